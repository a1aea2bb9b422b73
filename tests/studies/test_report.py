"""What a report says follows from the records, and from nothing else."""

import csv
import io
import json

import pytest

from ddpm_hf.studies.claims import judge
from ddpm_hf.studies.progress import Progress
from ddpm_hf.studies.report import write_report
from ddpm_hf.studies.results import Results
from ddpm_hf.studies.run import Execution
from ddpm_hf.studies.schema import Claim
from ddpm_hf.studies.tables import number, verbatim

KEY = "frechet_distance_classifier"
ERROR = "kernel_distance_classifier_standard_error"


@pytest.fixture
def results(make, runner):
    """A function from metrics by measurement to the results of a study that measured them."""

    def run(metrics=None, *replacements, only=None, **options):
        runner.metrics = {
            name: {KEY: value} if isinstance(value, float) else value for name, value in (metrics or {}).items()
        }
        plan = make(*replacements, **options)
        from ddpm_hf.studies.commands import Slot

        Execution(plan, Progress(plan.out), False, only, runner, lambda text: None).run([Slot(0, None, 1)])
        return Results(plan, Progress(plan.out), False)

    return run


def test_values_come_by_column_whatever_the_extractor(results):
    found = results({"large": {KEY: 7.25, "kernel_distance_classifier": 0.5, ERROR: 0.125}})
    outcome = found.of("large")
    assert outcome.values["frechet"] == 7.25
    assert (outcome.values["kernel"], outcome.spreads["kernel"]) == (0.5, 0.125)
    assert (outcome.values["sampling_seconds"], outcome.values["network_evaluations"]) == (12.3456, 1000)
    assert (outcome.values["training_hours"], outcome.values["loss"]) == (60 / 3600, 0.25)
    assert found.header("frechet") == "Fréchet distance (classifier) ↓"


def test_only_inceptions_distance_is_called_fid(make):
    plan = make(scale="full")
    assert Results(plan, Progress(plan.out), False).header("frechet") == "FID ↓"


def test_a_table_has_the_reports_figures_beside_ours(results):
    text = write_report(results({"large": 7.25, "tiny": 9.75})).read_text()
    table = [line for line in text.splitlines() if line.startswith("|")][:7]
    assert "Fréchet distance (classifier) ↓<br>*report: FID*" in table[0]
    assert table[2] == "| another's | *14.73* | - | - |"
    assert table[3] == "| the larger | 7.25<br>*2.5* | - | 12.3 s<br>*217 s* |"
    assert table[4] == "| the smaller | 9.75<br>*72.307* | - | 12.3 s |"
    assert [line.split(" | ")[0] for line in table[5:]] == ["| DDIM, 5 steps", "| DDIM, 10 steps"]
    assert "FID" not in text.replace("report: FID", "").replace("are no FID", "")


@pytest.mark.parametrize(
    ("large", "tiny", "finding", "shown"),
    [
        (4.0, 8.0, "Agrees", "the larger 4 < the smaller 8"),
        (8.0, 4.0, "Differs", "the larger 8 > the smaller 4"),
        (8.0, 8.3, "Too close to tell", "the larger 8 ≈ the smaller 8.3"),
    ],
)
def test_whether_a_claim_holds_is_said_by_the_numbers(results, large, tiny, finding, shown):
    text = write_report(results({"large": large, "tiny": tiny})).read_text()
    line = f"- **{finding}.** “The larger is better”: Fréchet distance (classifier): {shown}. The report: 2.5 < 72.307."
    assert line in text.splitlines()


@pytest.mark.parametrize(
    ("claim", "finding"),
    [
        ({"rises": ("large", "tiny", "ddim_5")}, "Agrees"),
        ({"falls": ("large", "tiny", "ddim_5")}, "Differs"),
        ({"rises": ("large", "tiny", "ddim_5", "ddim_10")}, "Agrees in part"),  # 4 < 8 < 16 ≈ 16.1
        ({"rises": ("ddim_5", "large", "tiny")}, "Differs"),  # one step right, one wrong
        ({"alike": ("ddim_5", "ddim_10")}, "Agrees"),
        ({"alike": ("tiny", "ddim_10")}, "Differs"),
        ({"alike": ("tiny", "ddim_10"), "within": 0.6}, "Agrees"),
    ],
)
def test_orders_of_several(results, claim, finding):
    found = results({"large": 4.0, "tiny": 8.0, "ddim_5": 16.0, "ddim_10": 16.1})
    table = found.plan.file.study.tables[0]
    assert judge(Claim(text="so", by="frechet", **claim), table, found).finding == finding


def test_the_reports_figures_are_looked_for_in_its_other_tables_too(results):
    other = "tables:\n  - {title: Other, columns: [frechet], rows: [{of: ddim_5, reported: {frechet: 44.32}}]}\n"
    found = results({"large": 4.0, "ddim_5": 8.0}, ("tables:\n", other))
    claim = Claim(text="so", by="frechet", rises=("large", "ddim_5"))
    assert judge(claim, found.plan.file.study.tables[1], found).text.endswith("The report: 2.5 < 44.32.")


def test_kernel_distances_are_told_apart_by_their_standard_errors(results):
    def found(error):
        two = {
            name: {"kernel_distance_classifier": value, ERROR: error} for name, value in (("large", 0.1), ("tiny", 0.2))
        }
        result = results(two, ("num_images: 40", f"num_images: {round(error * 1e6)}"))
        claim = Claim(text="so", by="kernel", rises=("large", "tiny"))
        return judge(claim, result.plan.file.study.tables[0], result).finding

    assert found(0.01) == "Agrees"
    assert found(0.05) == "Too close to tell"


@pytest.mark.parametrize(
    ("column", "low", "high", "finding"),
    [  # 40 images, and 1,797 of the reference
        ("precision", 0.5, 0.7, "Too close to tell"),  # apart by 0.2; two standard errors of the difference are 0.214
        ("precision", 0.5, 0.75, "Agrees"),
        ("precision", 0.98, 1.0, "Too close to tell"),
        ("recall", 0.5, 0.54, "Agrees"),  # apart by 0.04; two standard errors are 0.033
        ("recall", 0.5, 0.52, "Too close to tell"),
    ],
)
def test_shares_are_told_apart_by_their_binomial_errors(results, column, low, high, finding):
    found = results({"large": {column: low}, "tiny": {column: high}})
    claim = Claim(text="so", by=column, rises=("large", "tiny"))
    assert judge(claim, found.plan.file.study.tables[0], found).finding == finding


def test_what_is_not_there_is_said(results, runner):
    runner.failing["--run.name tiny"] = 2, "error: the disk is full\n"
    text = write_report(results()).read_text()
    assert "the smaller<br>*failed: the disk is full*" in text
    assert "- **Cannot be said.** “The larger is better”: the smaller: failed: the disk is full." in text
    assert "*Not drawn" in text  # the figure of DDIM's steps


def test_a_row_that_needs_a_gpu_says_so(results):
    text = write_report(results(None, ("set: {model.block", "needs_gpu: true, set: {model.block"))).read_text()
    assert "| the smaller<br>*needs a GPU* | *72.307* |" in text


def test_the_report_begins_with_what_was_run_and_ends_with_the_commands(results):
    result = results({"large": 1.0}, settings={"data.held_out": "0.1"}, num_images=50)
    text = write_report(result).read_text()
    assert text.index("What was run") < text.index("Sizes") < text.index("## Figures") < text.index("## Commands")
    for part in (
        "small. Digits.",
        "cannot show:** Much.",
        "a test's",
        "torch 9.9",
        "1,797 images of `digits`, train",
        "right on 97.5% of the real images",
        "40 images are few",
        "`--num_images 50 --data.held_out 0.1`",
    ):
        assert part in text
    for training in result.plan.trainings.values():
        assert f"python {' '.join(training.command[:4])}" in text
    assert f"ddpm-hf evaluate {result.plan.out}/runs/tiny --num_images 50" in text


def test_figures_are_files_beside_the_report(results):
    result = results({"large": 4.0, "tiny": 8.0})
    text = write_report(result).read_text()
    for name in ("01-loss.png", "02-steps.png", "03-images.png"):
        assert (result.plan.out / "figures" / name).read_bytes()[:4] == b"\x89PNG"
        assert f'<img src="figures/{name}" alt="' in text


def test_results_as_json_and_csv(results):
    result = results({"large": 4.0, "tiny": 8.0})
    write_report(result)
    found = json.loads((result.plan.out / "results.json").read_text())
    assert found["measurements"]["tiny"]["values"][KEY] == 8.0
    assert found["claims"][0]["finding"] == "Agrees"
    rows = list(csv.DictReader(io.StringIO((result.plan.out / "results.csv").read_text())))
    assert [row["measurement"] for row in rows] == ["large", "tiny", "ddim_5", "ddim_10"]
    assert [float(row[KEY]) for row in rows] == [4.0, 8.0, 5.0, 5.0]


def test_epochs_to_quality_are_the_first_below_the_threshold(results, runner):
    def train(command, train=runner.train):
        train(command)
        from pathlib import Path

        run = Path(command[command.index("--run.output_dir") + 1]) / command[command.index("--run.name") + 1]
        values = {"large": (9.0, 5.0, 6.0), "tiny": (9.0, 8.0, 7.0)}[run.name]
        lines = [{"step": i, "images_seen": 1797 * i, KEY: value} for i, value in enumerate(values, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    runner.train = train
    result = results(
        None,
        ("  about: Digits.", "  about: Digits.\n  quality: {by: frechet, at_most: 5.5}"),
        ("columns: [frechet", "columns: [epochs_to_quality, frechet"),
    )
    assert result.of("large").values["epochs_to_quality"] == 2
    assert "epochs_to_quality" not in result.of("tiny").values
    text = write_report(result).read_text()
    assert "| the smaller | not in 3 |" in text
    assert "Fréchet distance (classifier) of at most 5.5" in text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("frechet", 72.3071, "72.31"),
        ("sampling_seconds", 3595.2, "3,595 s"),
        ("sampling_seconds", 12.3456, "12.3 s"),
        ("parameters", 12_920_323, "12,920,323"),
        ("training_hours", 6.784, "6.78 h"),
        ("training_hours", 0.5, "30 min"),
        ("training_hours", 0.01, "36 s"),
        ("precision", 0.6543, "0.654"),
    ],
)
def test_numbers(column, value, text):
    assert number(column, value) == text


def test_a_reports_own_figures_keep_all_their_digits():
    assert verbatim("score", (5.26, 0.31)) == "5.26 ± 0.31"
    assert verbatim("parameters", 30471427.0) == "30,471,427"
    assert verbatim("frechet", 72.307) == "72.307"
