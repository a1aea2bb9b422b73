"""The reports' recipes: what they say is what the reports say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_hf.config import load_recipe
from ddpm_hf.training.estimate import estimate

ROOT = Path(__file__).parent.parent
COUNTS = {  # of the reports' README
    "jones_t100": 12_920_323,
    "jones_t500": 12_920_323,
    "jones_t1000": 12_920_323,
    "jones_t2000": 12_920_323,
    "jones_fp16": 12_920_323,
    "jones_fp16_unscaled": 12_920_323,
    "jones_bf16": 12_920_323,
    "peng_basic": 1_140_401,
    "peng_cfg": 1_141_681,
    "peng_cfg_ema": 1_141_681,
    "das_exp1": 30_471_427,
    "das_exp2": 326_707,
    "das_exp3": 791_651,
    "luu": 35_711_491,
}


def test_all_of_them_are_here():
    assert {p.stem for p in (ROOT / "configs" / "reports").glob("*.yaml")} == {*COUNTS, "tefiang_ddpm"}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_dry_run_tells_the_exact_parameter_count(name, count):
    recipe = load_recipe(
        f"reports/{name}", {"data.source": "digits", "data.validation_split": None, "train.batch_size": 1}
    )
    assert estimate(recipe, processes=1)["parameters"] == count


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("das_exp1", {"diffusion.num_train_timesteps": 400, "train.batch_size": 16, "train.epochs": 100}),
        ("das_exp2", {"diffusion.num_train_timesteps": 200, "train.batch_size": 8, "train.epochs": 50}),
        ("das_exp3", {"diffusion.num_train_timesteps": 200, "train.learning_rate": 2e-4, "model.base_channels": 16}),
        (
            "jones_t500",
            {
                "train.epochs": 500,
                "train.batch_size": 256,
                "train.learning_rate": 2e-4,
                "train.learning_rate_drops": (400,),
                "diffusion.variance_type": "fixed_large",
            },
        ),
        ("jones_fp16_unscaled", {"train.precision": "fp16", "train.gradient_scaler": False}),
        ("jones_fp16", {"train.precision": "fp16", "train.gradient_scaler": True}),
        ("jones_bf16", {"train.precision": "bf16", "diffusion.num_train_timesteps": 2000}),
        ("peng_cfg", {"condition.num_classes": 10, "ema.decay": 0.0, "diffusion.variance_type": "fixed_exponent"}),
        (
            "jones_t100",
            {"diffusion.num_train_timesteps": 100, "diffusion.beta_start": 1e-4, "diffusion.beta_end": 0.02},
        ),
        ("jones_t1000", {"diffusion.num_train_timesteps": 1000, "data.validation_split": "test"}),
        ("jones_t2000", {"diffusion.num_train_timesteps": 2000, "train.learning_rate_drop_factor": 0.1}),
        (
            "luu",
            {"train.gradient_accumulation_steps": 2, "train.precision": "fp16", "diffusion.num_train_timesteps": 1000},
        ),
        ("tefiang_ddpm", {"train.max_grad_norm": 1.0, "train.learning_rate_schedule": "cosine"}),
        ("luu", {"train.max_steps": 20000, "train.learning_rate": 8e-5, "ema.decay": 0.995, "ema.update_every": 10}),
        (
            "tefiang_ddpm",
            {
                "train.optimizer": "adamw",
                "train.learning_rate": 1e-4,
                "train.weight_decay": 1e-4,
                "train.batch_size": 4,
                "train.epochs": 50,
                "diffusion.beta_start": 2e-4,
                "data.resolution": (128, 128),
            },
        ),
    ],
)
def test_what_a_report_states_is_set(name, settings):
    recipe = load_recipe(f"reports/{name}")
    for key, value in settings.items():
        section, _, setting = key.partition(".")
        assert getattr(getattr(recipe, section), setting) == value, key


def test_a_dry_run_counts_and_warns_without_a_network():
    shown = subprocess.run(
        [sys.executable, "train_unconditional.py", "--config", "reports/das_exp2", "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    costs = json.loads(shown.stdout.splitlines()[-1])
    assert costs["parameters"] == 326_707
    assert costs["images_per_epoch"] is None  # the images are on the Hub
    assert "keeps sqrt(alpha_bar_T) = 0.36 of the image" in shown.stderr
    assert "diffusion.scale_betas: true (leaves 0.0055)" in shown.stderr
