"""Recipes: read, written, overridden; and what a wrong one is told."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm_hf.config import AutoencoderRecipe, Recipe, differences, dump_recipe, load_recipe, setting_keys
from ddpm_hf.errors import UserError

ROOT = Path(__file__).parent.parent
RECIPES = sorted(
    str(p.relative_to(ROOT / "configs").with_suffix(""))
    for p in (ROOT / "configs").rglob("*.yaml")
    if p.parent.name not in ("accelerate", "studies")
)


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_read_and_written_back_equal(name, tmp_path):
    kind = kind_of(name)
    recipe = load_recipe(name, kind=kind)
    written = tmp_path / f"{recipe.run.name}.yaml"
    written.write_text(dump_recipe(recipe))
    assert load_recipe(written, kind=kind) == recipe
    assert recipe.run.name in (Path(name).stem, f"{Path(name).stem}_latent")


def test_no_two_of_them_share_a_run_folder():
    names = [load_recipe(name, kind=kind_of(name)).run.name for name in RECIPES]
    assert len(set(names)) == len(names)


def kind_of(name):
    return AutoencoderRecipe if name.endswith("_autoencoder") else Recipe


def test_values_are_yaml_1_2(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "run: {name: 2024-01-01}\ndata: {source: digits, resolution: [16, 32]}\n"
        "train: {max_steps: 10, learning_rate: 1e-4, precision: no, max_grad_norm: null}\nmodel: {attention_resolutions: [8]}"
    )
    read = load_recipe(recipe)
    assert (read.run.name, read.data.resolution, read.train.learning_rate) == ("2024-01-01", (16, 32), 1e-4)
    assert (read.train.precision, read.train.max_grad_norm) == ("no", None)


WRONG = [
    ({"train.learning_rat": 1e-4}, "train.learning_rat: no such setting; did you mean train.learning_rate?"),
    (
        {"evaluate.metrics": ["FID"]},
        "'FID' is not one of frechet, kernel, score, precision_recall, density_coverage, class_agreement; did you mean frechet?",
    ),
    ({"trian.max_steps": 3}, "trian: no such section; did you mean train?"),
    ({"train.precision": "fp61"}, "train.precision: 'fp61' is not one of no, fp16, bf16; did you mean fp16?"),
    ({"train.max_steps": "many"}, "train.max_steps: 'many' should be a whole number"),
    ({"train.max_steps": 1.5}, "train.max_steps: 1.5 should be a whole number"),
    ({"train.batch_size": 0}, "train.batch_size: 0 must be at least 1"),
    ({"train.batch_size": True}, "train.batch_size: true should be a whole number"),
    ({"train.learning_rate": -1.0}, "train.learning_rate: -1.0 must be more than 0.0"),
    ({"data.flip": "yes"}, "data.flip: 'yes' should be true or false"),
    ({"data.channels": 2}, "data.channels: 2 is not one of 1, 3"),
    ({"data.source": None}, "data.source: null should be text; put it in quotes"),
    ({"data.resolution": [8, 8, 8]}, "data.resolution: [8, 8, 8] should be one number, or [height, width]"),
    ({"data.held_out": 0.9}, "data.held_out: 0.9 must be at most 0.5"),
    ({"ema.decay": 1.0}, "ema.decay: 1.0 must be less than 1.0"),
    ({"run.name": "a/b"}, "run.name: 'a/b' should be a plain folder name; the folder above it is run.output_dir"),
    (
        {"track.trackers": ["tensorbord"]},
        "'tensorbord' is not one of tensorboard, wandb, trackio; did you mean tensorboard?",
    ),
    # settings that contradict each other
    (
        {"train.epochs": 3.0, "train.max_steps": 9},
        "train.max_steps: is given together with train.epochs; keep one of them",
    ),
    ({"train.max_steps": None}, "train.max_steps: is not given, nor is train.epochs; give one of them"),
    (
        {"data.resolution": 28, "model.block_out_channels": [32, 32, 32, 32]},
        "data.resolution: 28x28 cannot be halved 3 times by the 4 levels of model.kind unet2d; 24 or 32 can",
    ),
    (
        {"model.block_out_channels": [30, 64]},
        "model.block_out_channels: 30 cannot be split by model.norm_num_groups, 16",
    ),
    (
        {"model.attention_resolutions": [16]},
        "model.attention_resolutions: 16 is no feature-map height of this model; it has 8, 4",
    ),
    ({"model.pretrained": "somewhere"}, "comes from the pipeline that model.pretrained names; leave it out"),
    ({"diffusion.beta_start": 0.5}, "diffusion.beta_start: 0.5 must be below diffusion.beta_end, 0.02"),
    (
        {"diffusion.beta_schedule": "squaredcos_cap_v2", "diffusion.beta_end": 0.1},
        "means nothing to beta_schedule squaredcos_cap_v2",
    ),
    (
        {"train.warmup_steps": 99999},
        "train.warmup_steps: 99999 is longer than the run, train.max_steps: 1800; for a trial set it to 0",
    ),
    ({"train.gradient_scaler": False}, "only fp16 has a gradient scaler; leave it out, or set train.precision: fp16"),
    ({"train.learning_rate_drops": [5]}, "train.learning_rate_drops: belongs with train.learning_rate_schedule: step"),
    ({"train.weight_decay": 0.1}, "train.weight_decay: needs train.optimizer: adamw"),
    (
        {"train.validate_every": 10},
        "train.validate_every: needs images to validate on; set data.held_out, such as 0.02, or data.validation_split",
    ),
    (
        {"data.validation_split": "test", "data.held_out": 0.1},
        "data.held_out: is given together with data.validation_split; keep one of them",
    ),
    ({"data.validation_split": "train"}, "data.validation_split: train is what is trained on; name another split"),
    # denoisers
    (
        {"model.kind": "pang"},
        "model.kind: 'pang' is not one of unet2d, jones, peng, das, luu, tefiang; did you mean peng?",
    ),
    (
        {"model.kind": "peng", "model.norm_num_groups": 4},
        "model.norm_num_groups: model.kind peng has no such setting; it has base_channels, time_embed_dim",
    ),
    ({"model.kind": "peng", "model.base_channels": 12}, "model.base_channels: 12 must be a multiple of 8"),
    (
        {"model.kind": "jones", "data.resolution": 28},
        "data.resolution: 28x28 cannot be halved 3 times by the 4 levels of model.kind jones; 24 or 32 can",
    ),
    (
        {"model.kind": "das", "model.attention_resolutions": [16]},
        "model.attention_resolutions: 16 is no feature-map height of this model; it has 8, 4, 2, 1",
    ),
    (
        {"model.kind": "das", "model.base_channels": 12},
        "model.base_channels: 12 cannot be split by model.norm_num_groups, 8; multiples of it can",
    ),
    # noise schedules
    (
        {"diffusion.rescale_betas_zero_snr": True},
        "needs diffusion.prediction_type: v_prediction or sample; of pure noise, epsilon says nothing about the image",
    ),
    (
        {"diffusion.trained_betas": [0.1, 0.2]},
        "has 2 values, diffusion.num_train_timesteps is 1000; give one a timestep",
    ),
    ({"diffusion.trained_betas": [0.1, 1.0]}, "diffusion.trained_betas.1: 1.0 must be less than 1.0"),
    (
        {"diffusion.num_train_timesteps": 2, "diffusion.trained_betas": [0.1, 0.2], "diffusion.beta_end": 0.1},
        "diffusion.beta_end: means nothing to diffusion.trained_betas; leave one of them out",
    ),
    (
        {"diffusion.num_train_timesteps": 10, "diffusion.scale_betas": True},
        "diffusion.scale_betas: makes the last beta 2, which must be below 1; with beta_end 0.02 it can be had from 21",
    ),
    # objectives
    (
        {"diffusion.variance_type": "learned_range"},
        "learned_range gets no gradient from diffusion.loss: mse; set diffusion.loss to hybrid or vlb",
    ),
    ({"diffusion.loss": "hybrid"}, "hybrid is for diffusion.variance_type: learned_range"),
    (
        {"diffusion.variance_exponent": 0.3},
        "is for diffusion.variance_type: fixed_exponent, not fixed_small",
    ),
    ({"diffusion.variance_type": "fixed_exponent"}, "diffusion.variance_exponent: is missing for"),
    ({"ema.warmup": False, "ema.warmup_power": 0.6}, "ema.warmup_power: means nothing without ema.warmup"),
    ({"diffusion.loss": "vlb", "diffusion.min_snr_gamma": 5.0}, "diffusion.min_snr_gamma: weighs L_simple"),
    ({"diffusion.timestep_sampling": "importance"}, "importance is for diffusion.loss: vlb; leave it out for mse"),
    ({"diffusion.vlb_weight": 0.01}, "diffusion.vlb_weight: means nothing to diffusion.loss: mse; leave it out"),
    # labels and guidance
    ({"condition.dropout": 0.2}, "condition.dropout: needs classes; set condition.num_classes, or leave it out"),
    (
        {"sample.guidance_scale": 2.0},
        "sample.guidance_scale: needs classes; set condition.num_classes, or leave it out",
    ),
    (
        {"condition.num_classes": 10, "condition.dropout": 0.0, "sample.guidance_scale": 2.0},
        "2 guides away from the null class, which condition.dropout: 0 never trains; set it to 0.1",
    ),
    (
        {"condition.num_classes": 10, "sample.guidance_interval": [1.0, 5.0]},
        "sample.guidance_interval: needs a sample.guidance_scale; at 1 there is no guidance",
    ),
    (
        {"condition.num_classes": 10, "sample.guidance_scale": 2.0, "sample.guidance_interval": [5.0, 1.0]},
        "sample.guidance_interval: [5.0, 1.0] should be two noise levels, the lower one first, from 0 on",
    ),
    ({"sample.eta": 0.5}, "sample.eta: is for sample.sampler: ddim; ddpm has no such setting"),
    ({"sample.steps": 2000}, "sample.steps: 2000 is more than diffusion.num_train_timesteps, 1000"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[next(iter(o)) for o, _ in WRONG])
def test_a_wrong_recipe_gets_one_line_that_helps(overrides, message):
    with pytest.raises(UserError) as error:
        load_recipe("quickstart", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("quickstart", {"model.kind": "das", "model.base_channels": 16}, {"model.widths": (16, 32, 32, 32)}),
        ("quickstart", {"train.epochs": 3.0}, {"train.max_steps": None}),
        ("reports/peng_basic", {"train.max_steps": 3}, {"train.epochs": None}),
        ("reports/jones_t1000", {"diffusion.beta_schedule": "squaredcos_cap_v2"}, {"diffusion.beta_end": 0.02}),
        ("reports/peng_cfg", {"condition.num_classes": None}, {"sample.guidance_scale": 1.0}),
        ("reports/jones_t100", {"data.validation_split": None}, {"train.validate_every": None}),
        ("reports/peng_cfg", {"diffusion.variance_type": "fixed_small"}, {"diffusion.variance_exponent": None}),
    ],
)
def test_an_override_drops_what_it_leaves_without_a_meaning(name, overrides, expected, tmp_path):
    recipe = load_recipe(name, overrides)
    for key, value in expected.items():
        section, _, setting = key.partition(".")
        assert getattr(getattr(recipe, section), setting) == value
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml", {"run.name": recipe.run.name}) == recipe


def test_another_kind_keeps_what_to_start_from(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "data: {source: digits, resolution: 8}\nmodel: {pretrained: runs/a/pipeline}\ntrain: {max_steps: 1}"
    )
    assert load_recipe(file, {"model.kind": "peng"}).model.pretrained == "runs/a/pipeline"


def test_learning_rate_drops_do_not_change_their_unit_unnoticed():
    with pytest.raises(UserError, match=r"\[400\] in the recipe are epochs; with train.max_steps give them in steps"):
        load_recipe("reports/jones_t1000", {"train.max_steps": 5000})
    recipe = load_recipe("reports/jones_t1000", {"train.max_steps": 5000, "train.learning_rate_drops": [4000]})
    assert recipe.train.learning_rate_drops == (4000,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [", "line 1: not valid YAML"),
        ("- a\n- b", "a recipe is a mapping of sections such as data: and train:, not a list"),
        ("data: digits", "data: should be a section with settings indented below it, not 'digits'"),
        ("train: {max_steps: 3}", "data: is missing; a recipe needs it"),
        (
            "data: {source: digits}\ntrain: {max_steps: 3}",
            "data.resolution: is missing; it is height and width in pixels",
        ),
    ],
)
def test_a_file_that_is_no_recipe(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml") as error:
        load_recipe(tmp_path / "r.yaml")
    assert message in str(error.value)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match=r"quickstrat: no such recipe file; did you mean quickstart\?"):
        load_recipe("quickstrat")


def test_what_a_resumed_run_may_change():
    base = load_recipe("quickstart", {"train.learning_rate_schedule": "constant"})
    free = {
        "train.max_steps": 9999,
        "track.log_every": 1,
        "sample.steps": 7,
        "train.checkpoint_every": 3,
        "train.compile": True,
    }
    assert differences(base, load_recipe("quickstart", {"train.learning_rate_schedule": "constant", **free})) == []
    changed = load_recipe(
        "quickstart", {"train.learning_rate_schedule": "constant", "train.learning_rate": 0.5, "ema.decay": 0.9}
    )
    assert differences(base, changed) == [("train.learning_rate", 1e-3, 0.5), ("ema.decay", 0.999, 0.9)]


def test_a_schedule_over_the_runs_length_changes_with_it():
    assert differences(load_recipe("quickstart"), load_recipe("quickstart", {"train.max_steps": 3600})) == [
        ("train.max_steps", 1800, 3600)
    ]


def test_every_setting_says_what_it_means():
    assert all(field.description for kind in (Recipe, AutoencoderRecipe) for field in setting_keys(kind).values())
    assert set(Recipe.model_fields) >= {"run", "data", "model", "diffusion", "train", "sample", "track"}


@pytest.mark.parametrize(
    "command",
    [
        ["train_unconditional.py"],
        ["train_cfg_latent.py"],
        ["train_autoencoder.py"],
        ["-m", "ddpm_hf", "sample"],
        ["-m", "ddpm_hf", "prepare"],
        ["-m", "ddpm_hf"],
    ],
)
def test_help_answers_at_once(command):
    times = []
    for _ in range(3):
        start = time.monotonic()
        shown = subprocess.run(
            [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        times.append(time.monotonic() - start)
    assert min(times) < 2
    if "train" in command[0]:
        kind = AutoencoderRecipe if "autoencoder" in command[0] else Recipe
        assert all(
            f"--{key}" in shown and " ".join(field.description.split()[:3]) in shown
            for key, field in setting_keys(kind).items()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train_unconditional.py", "--config", "quickstart", "--train.learning_rat", "1"],
            "did you mean --train.learning_rate?",
        ),
        (
            ["train_unconditional.py", "--config", "quickstart", "--train.max_steps", "x"],
            "train.max_steps: 'x' should be a whole number",
        ),
        (["train_unconditional.py"], "--config"),
        (["train_unconditional.py", "--config", "latent/digits"], "latents are trained on by train_cfg_latent.py"),
        (["train_unconditional.py", "--config", "latent/digits_autoencoder"], "which train_autoencoder.py trains"),
        (["train_autoencoder.py", "--config", "latent/digits"], "is the recipe of a diffusion model"),
        (["train_cfg_latent.py", "--config", "latent/digits", "--autoencoder.source", "null"], "null means pixels"),
        (
            ["train_cfg_latent.py", "--config", "latent/digits", "--autoencoder.source", "runs/x/autoencoder"],
            "no such folder; train it with train_autoencoder.py",
        ),
        (["-m", "ddpm_hf", "smaple", "runs/x"], "did you mean sample?"),
        (["-m", "ddpm_hf", "sample", "runs/x", "--step", "3"], "did you mean --steps?"),
        (["-m", "ddpm_hf", "sample", "runs/x", "--num_images", "0"], "'0' should be a whole number of at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(arguments, message):
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
