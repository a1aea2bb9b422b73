"""The studies that come with the package."""

import re
from pathlib import Path

import pytest

from ddpm_hf.cli import parse
from ddpm_hf.cli.recipes import read_recipe
from ddpm_hf.config import recipe_kind
from ddpm_hf.studies.plan import make_plan
from ddpm_hf.studies.study import load_study

ROOT = Path(__file__).parent.parent.parent
STUDIES = ["das", "guidance", "jones_precision", "jones_timesteps", "luu", "peng", "samplers", "tefiang"]


def test_all_of_them_are_here():
    assert sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.yaml")) == STUDIES


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_whole(name, scale, tmp_path):
    """Every recipe loads with its settings, every command is one that its program takes, every row can be filled."""
    file = load_study(name)
    plan = make_plan(file, scale, tmp_path)
    for training in plan.trainings.values():
        kind = recipe_kind(training.command[3])
        assert read_recipe("", training.command[2:], kind)[0] == training.recipe
        if scale == "small":
            assert training.recipe.data.source == "digits"
    for job in plan.jobs.values():
        assert parse(job.command).out == str(job.out)
    for table in file.study.tables:
        for row in table.rows:
            assert row.of is not None or row.reported
    assert {way.variant for way in file.ways.values()} <= set(plan.variants)
    extractor = plan.scale.evaluate.extractor
    assert extractor == ("classifier" if scale == "small" else "inception")


@pytest.mark.parametrize("name", ["das", "jones_precision", "jones_timesteps", "luu", "peng", "tefiang"])
def test_the_full_scale_is_the_reports_own_recipe(name):
    """Only what leaves its results alone is set otherwise."""
    study = load_study(name).study
    allowed = re.compile(r"evaluate\..*|sample\..*|train\.checkpoint_every|condition\.num_classes")
    for variant in study.variants.values():
        for key in {**study.full.set, **variant.set, **variant.full.set}:
            assert allowed.fullmatch(key) or key == "diffusion.scale_betas", key


def reported(study, title):
    """Of a table, by row: what the report says."""
    table = next(t for t in load_study(study).study.tables if t.source == title)
    return {row.of or row.label: row.reported for row in table.rows if row.reported}


def test_the_reports_figures_are_those_of_the_reports():
    timesteps = reported("jones_timesteps", "Table 1")
    assert timesteps == {
        "t100": {"frechet": 72.307, "score": 4.9667, "training_hours": 6.78, "sampling_seconds": 217, "validation_loss": 0.0978},
        "t500": {"frechet": 26.635, "score": 7.7636, "training_hours": 7.22, "sampling_seconds": 938, "validation_loss": 0.0452},
        "t1000": {"frechet": 25.517, "score": 7.5891, "training_hours": 7.71, "sampling_seconds": 1861, "validation_loss": 0.0319},
        "t2000": {"frechet": 27.174, "score": 7.4758, "training_hours": 8.51, "sampling_seconds": 3595, "validation_loss": 0.0217},
    }  # fmt: skip
    precision = reported("jones_precision", "Table 2")
    assert [precision[name]["frechet"] for name in ("float32", "fp16", "bf16")] == [27.174, 29.379, 25.889]
    assert [precision[name]["training_hours"] for name in ("float32", "fp16", "bf16")] == [8.51, 7.35, 6.70]
    luu = reported("luu", "Table 1")
    assert {name: values["frechet"] for name, values in luu.items()} == {
        "BigGAN": 14.73,
        "pretrained": 14.30,
        "ours": 77.1,
    }
    peng = reported("peng", "Table 1")
    assert [peng[name]["epochs_to_quality"] for name in ("basic", "cfg", "cfg_ema")] == [17, 15, 11]
    das = reported("das", 'section "Experiments"')
    assert [das[name]["parameters"] for name in ("exp1", "exp2", "exp3")] == [30_471_427, 326_707, 326_707]
    assert reported("tefiang", "Table 1") == {"ddpm": {"frechet": 42.18, "score": (5.26, 0.31)}}
    ddim = reported("tefiang", "Table 2")
    assert [ddim[f"ddim_{n}"]["sampling_seconds"] for n in (50, 100, 200)] == [28.7, 56.3, 112.5]
    assert [ddim[f"ddim_{n}"]["frechet"] for n in (50, 100, 200)] == [44.32, 43.21, 42.38]
    assert reported("tefiang", "Table 3") == {"latent": {"frechet": 36.42, "score": (7.18, 0.42)}}
    guided = reported("tefiang", "Table 4")
    assert [guided[name]["frechet"] for name in ("w1.5", "w2", "w3")] == [32.85, 28.76, 25.13]
    techniques = reported("tefiang", "Table 5")
    assert [techniques[name]["score"] for name in ("cosine", "learned", "combined")] == [(11.23, 0.71), (11.68, 0.75), (12.24, 0.82)]  # fmt: skip


def test_tefiangs_weights_are_guidance_scales():
    ways = load_study("tefiang").ways
    assert [ways[name].guidance_scale for name in ("w1.5", "w2", "w3")] == [2.5, 3.0, 4.0]


def test_the_timestep_study_keeps_the_reports_betas_but_for_the_row_beyond_it(tmp_path):
    plan = make_plan(load_study("jones_timesteps"), "small", tmp_path)
    found = {
        name: (t.recipe.diffusion.num_train_timesteps, t.recipe.diffusion.beta_end, t.recipe.diffusion.scale_betas)
        for name, t in plan.trainings.items()
    }
    assert found == {
        "t100": (100, 0.02, False), "t500": (500, 0.02, False), "t1000": (1000, 0.02, False),
        "t2000": (2000, 0.02, False), "t100_scaled": (100, 0.02, True),
    }  # fmt: skip
