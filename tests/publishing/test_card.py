"""What a card says of evaluations, licenses and branches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from ddpm_hf.errors import UserError
from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.check import Job, run_elsewhere
from ddpm_hf.publishing.folder import build
from ddpm_hf.publishing.results import eval_results
from ddpm_hf.publishing.run import read_run
from ddpm_hf.publishing.snippets import snippets, variant_snippet


@pytest.fixture(scope="module")
def guided(trained, tmp_path_factory):
    """A published folder, and what its run knows."""
    run, folder = read_run(trained[0]["guided"]), tmp_path_factory.mktemp("published") / "guided"
    build(folder, run, Card(run, snippets(run, "someone/guided")))
    return folder, run


def test_results_are_of_these_weights_and_named_by_their_network(guided):
    folder, run = guided
    card = ModelCard.load(folder / "README.md")
    results = card.data.eval_results
    assert {result.metric_type for result in results} == {
        "frechet_distance_quarters", "precision_quarters", "recall_quarters"
    }  # fmt: skip
    (record,) = run.measured().values()  # the other is of an earlier step
    assert len(run.records) == 2
    for result in results:
        assert isinstance(result, EvalResult)
        assert result.metric_args == {"num_images": 40, "reference_images": record["reference"]["num_images"],
            "extractor": "quarters", "precision": "no", "sampler": "ddim", "steps": 2, "eta": 0.0, "guidance_scale": 2.0,
            "seeds": "0 to 39"}  # fmt: skip
        assert result.dataset_type == "other"  # digits is no id on the Hub
        assert result.dataset_name == "digits"
        assert result.dataset_split == "train"
    by_name = {result.metric_name: result.metric_value for result in results}
    assert by_name["Fréchet distance (quarters)"] == record["metrics"]["frechet_distance_quarters"]
    assert "FID" not in str(card.data.to_dict())
    text = card.text
    assert f"| Fréchet distance (quarters) ↓ | {record['metrics']['frechet_distance_quarters']:.4g} |" in text
    assert (
        "40 images, ddim in 2 steps, guidance scale 2, seeds 0 to 39, against 1,797 of digits (train), by 12 features"
        in text
    )
    assert "are no FID" in text
    for name in run.records:
        assert json.loads((folder / "evaluations" / name).read_text())["model"] == "guided"


def test_inceptions_distance_alone_is_called_fid(trained):
    from ddpm_hf.publishing.results import metric_name

    inception, others = {"extractor": {"name": "inception"}}, {"extractor": {"name": "dinov2"}}
    assert metric_name("fid", inception) == "FID"
    assert metric_name("kid", inception) == "KID"
    assert metric_name("frechet_distance_dinov2", others) == "Fréchet distance (dinov2)"
    assert metric_name("precision", others) == "precision (dinov2)"
    assert metric_name("bits_per_dimension", {"extractor": None}) == "bits per dimension"


@pytest.mark.parametrize(
    ("license", "shown"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("openrail++", {"license": "openrail++"}),
        ("Our Own, v2", {"license": "other", "license_name": "our-own-v2"}),
        ("other", {"license": "other"}),
        (None, {}),
    ],
)
def test_a_license_is_one_that_the_hub_knows_or_another_by_name(trained, license, shown):
    run = read_run(trained[0]["stock"])
    data = Card(run, snippets(run, "x"), license=license).data().to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == shown


def test_how_it_was_drawn_stands_beside_every_result(guided):
    _, run = guided
    ((name, record),) = run.measured().items()
    drawn = {"class": None, "eta": 0.5, "guidance_interval": [0.5, 20.0], "first_seed": 100}
    reference = record["reference"] | {"source": "ada/photos", "part": "held out", "split": "train"}

    def card_of(**sampling):
        other = {"precision": "bf16", "sampling": record["sampling"] | drawn | sampling, "reference": reference}
        changed = replace(run, dataset="ada/photos", records={name: record | other})
        return Card(changed, snippets(changed, "x"))

    results = eval_results(card_of().run)
    assert results
    for result in results:
        assert (result.dataset_type, result.dataset_split) == ("ada/photos", "held out")
        assert result.metric_args["guidance_interval"] == [0.5, 20.0]
        assert (result.metric_args["eta"], result.metric_args["precision"]) == (0.5, "bf16")
        assert result.metric_args["seeds"] == "100 to 139"
    how = "ddim in 2 steps, eta 0.5, guidance scale 2 between noise levels 0.5 and 20, in bf16, seeds 100 to 139"
    assert how in card_of().text(Path("nowhere"))
    of_one_class = card_of(**{"class": 3})
    assert eval_results(of_one_class.run) == []  # no result of the model's
    assert "between noise levels 0.5 and 20, class 3 alone, in bf16" in of_one_class.text(Path("nowhere"))


def test_a_file_that_is_no_record_is_left_out(trained, tmp_path):
    run = tmp_path / "guided"
    shutil.copytree(trained[0]["guided"], run)
    (run / "evaluations" / "notes.json").write_text("[1, 2]")
    assert len(read_run(run).records) == 2


def test_the_code_loads_the_branch_that_was_pushed(guided):
    folder, run = guided
    found = snippets(run, "someone/guided", "trial")
    assert 'from_pretrained("someone/guided", trust_remote_code=True, revision="trial")' in found[0].code
    half = variant_snippet(run, "someone/guided", "fp16", "trial").code
    assert 'variant="fp16", dtype=torch.float32, trust_remote_code=True, revision="trial")' in half
    assert "revision" not in snippets(run, "someone/guided", "main")[0].code
    (drawn,) = run_elsewhere([Job(folder, "someone/guided", "\n".join(one.code for one in found))])
    assert drawn.keys() == {"image.png", "faster.png"}


def test_the_check_has_an_end(guided):
    with pytest.raises(UserError, match=r"the card's code took more than 1 s here; if this machine is busy"):
        run_elsewhere([Job(guided[0], "x", "import time; time.sleep(600)")], limit=1)
