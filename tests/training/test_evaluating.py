"""Evaluations during training: records, logged metrics, the best checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf.cli import main
from ddpm_hf.config import load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.training.checkpoints import Checkpoints
from tests.training.test_processes import finish, launch

EVALUATED = {
    "evaluate.every": 4,
    "evaluate.extractor": "classifier",
    "evaluate.num_images": 12,
    "evaluate.batch_size": 5,
    "evaluate.reference_images": 40,
    "train.learning_rate_schedule": "constant",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The classifier and the statistics are kept below the current folder."""
    monkeypatch.chdir(tmp_path)


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, step, name):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def test_evaluations_are_recorded_logged_and_change_nothing(tiny_recipe, build_session):
    evaluated = build_session(tiny_recipe(**EVALUATED, **{"run.name": "evaluated"}))
    evaluated.train()
    plain = build_session(tiny_recipe(**{"run.name": "plain", "train.learning_rate_schedule": "constant"}))
    plain.train()
    for name in ("model", "ema", "optimizer"):
        a, b = (weights(s.run.path, 8, name) for s in (evaluated, plain))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name

    key = "frechet_distance_classifier"
    lines = [line for line in logged(evaluated.run.path) if key in line]
    assert [line["step"] for line in lines] == [4, 8]
    for line in lines:
        record = json.loads((evaluated.run.path / "evaluations" / f"step-{line['step']:08d}.json").read_text())
        assert record["metrics"][key] == line[key]
        assert (record["step"], record["num_images"], record["distinct_images"]) == (line["step"], 12, 12)
        assert record["reference"]["num_images"] == 40


def test_the_best_checkpoint_is_the_one_evaluated_best(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**EVALUATED, **{"train.keep_checkpoints": 1, "data.held_out": 0.1}))
    distances = iter([1.0, 3.0])
    evaluate = session.task.evaluate

    def with_distance(denoiser):
        evaluation, *rest = evaluate(denoiser)
        evaluation.frechet = next(distances)
        return evaluation, *rest

    session.task.evaluate = with_distance
    session.train()
    folder = session.run.checkpoints
    assert (folder / "best").read_text() == "step-00000004\n"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000004", "step-00000008"]
    assert json.loads((folder / "step-00000004" / "evaluation.json").read_text())["frechet_distance"] == 1.0


def test_distances_of_other_settings_are_not_compared(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, distance, settings in ((1, 5.0, "few images"), (2, 9.0, "many images"), (3, 8.0, "many images")):
        checkpoints.save({"step": step}, {"model": {"w": torch.zeros(3)}})
        checkpoints.note_evaluation(step, distance, settings)
    assert (tmp_path / "best").read_text() == "step-00000003\n"
    checkpoints.note_evaluation(7, 1.0, "many images")  # of no checkpoint
    assert (tmp_path / "best").read_text() == "step-00000003\n"


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**EVALUATED, **{"train.max_steps": 4}))
    session.train()
    record = session.run.evaluations / "step-00000004.json"
    before = json.loads(record.read_text())["metrics"]
    record.unlink()
    build_session(tiny_recipe(**EVALUATED)).train()
    assert json.loads(record.read_text())["metrics"] == before
    assert (session.run.evaluations / "step-00000008.json").is_file()


def test_the_command_measures_what_training_did(tiny_recipe, build_session, capsys):
    """The pipeline that is left behind, drawn from by the same seeds, has the same figures."""
    session = build_session(tiny_recipe(**EVALUATED))
    session.train()
    sample = session.recipe.sample
    command = [
        "evaluate",
        str(session.run.path),
        "--extractor",
        "classifier",
        "--num_images",
        "12",
        "--out",
        "record.json",
    ]
    options = [
        "--reference_images",
        "40",
        "--steps",
        str(sample.steps),
        "--sampler",
        sample.sampler,
        "--batch_size",
        "7",
    ]
    main(command + options)
    with open("record.json") as file:
        ours = json.load(file)
    theirs = json.loads((session.run.path / "evaluations" / "step-00000008.json").read_text())
    key = "frechet_distance_classifier"
    assert ours["metrics"][key] == pytest.approx(
        theirs["metrics"][key], rel=1e-3
    )  # a gray level may round the other way
    assert ours["reference"] == theirs["reference"]
    assert ours["weights"] == theirs["weights"]
    assert ours["ema"] == theirs["ema"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluate.extractor": "resnet"}, "evaluate.extractor|resnet"),
        ({"evaluate.reference": "nowhere"}, "evaluate.reference: nowhere is neither a folder"),
        ({"evaluate.reference_images": 5000}, "evaluate.reference_images: 5000 are more than there are"),
        ({"evaluate.metrics": ["score"], "evaluate.num_images": 3}, "evaluate.metrics: score needs at least 10 images"),
    ],
)
def test_mistakes_come_before_the_first_step(overrides, message, tiny_recipe, build_session):
    recipe = tiny_recipe(**{**EVALUATED, **overrides})
    with pytest.raises(UserError, match=message):
        build_session(recipe).train()
    assert not (Path(recipe.run.output_dir) / recipe.run.name / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluate.every": 500}, r"evaluate\.every: 500 is no multiple of train\.checkpoint_every, 600.*600 is"),
        ({"evaluate.num_images": 500}, r"evaluate\.num_images: needs evaluate\.every"),
        (
            {"evaluate.every": 600, "evaluate.metrics": ["class_agreement"]},
            "class_agreement is for a conditional model",
        ),
        ({"evaluate.every": 600, "evaluate.reference": "validation"}, r"validation needs data\.held_out"),
        ({"evaluate.every": 600, "evaluate.metrics": ["fid"]}, "evaluate.metrics"),
    ],
)
def test_contradictions_in_a_recipe(overrides, message):
    with pytest.raises(UserError, match=message):
        load_recipe("quickstart", overrides)


@pytest.mark.slow
def test_two_processes_evaluate_together_and_resume(tiny_recipe, tmp_path, capsys):
    """Their figures are those of one process that draws from what they trained."""
    recipe = tiny_recipe(**EVALUATED, **{"evaluate.metrics": ["frechet", "kernel"], "train.max_steps": 4})
    run = Path(recipe.run.output_dir) / recipe.run.name
    finish(launch(recipe, tmp_path, processes=2))
    assert "frechet_distance_classifier" in logged(run)[-1]
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 8})})
    finish(launch(longer, tmp_path, processes=2))
    theirs = json.loads((run / "evaluations" / "step-00000008.json").read_text())
    assert (theirs["processes"], theirs["num_images"], theirs["distinct_images"]) == (2, 12, 12)
    command = [
        "evaluate",
        str(run),
        "--extractor",
        "classifier",
        "--metrics",
        "frechet",
        "kernel",
        "--num_images",
        "12",
    ]
    options = ["--reference_images", "40", "--steps", str(recipe.sample.steps), "--sampler", recipe.sample.sampler]
    main([*command, *options, "--out", "record.json"])
    ours = json.loads(Path("record.json").read_text())
    assert ours["weights"] == theirs["weights"]
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2)
