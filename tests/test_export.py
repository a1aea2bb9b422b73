"""Saved with the package, loaded without it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from ddpm_hf.build import build_denoiser
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import UserError
from ddpm_hf.export import is_stock, save_pipeline
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from tests.test_combinations import DENOISERS

LOAD_ELSEWHERE = """
import json, sys
sys.modules["ddpm_hf"] = None  # whoever imports it fails
import torch
from diffusers import DiffusionPipeline
for folder, trust, call in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=trust)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipe(generator=generators, output_type="np", **call).images
    print(type(pipe).__name__, type(pipe.unet).__name__, (images * 255).round().astype("uint8").tobytes().hex())
"""


def load_elsewhere(calls, tmp_path):
    """What another process, without this package, makes of each (folder, trusted, the call's options): classes and images."""
    shown = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, json.dumps([(str(folder), *rest) for folder, *rest in calls])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    return [(pipe, unet, np.frombuffer(bytes.fromhex(pixels), np.uint8)) for pipe, unet, pixels in lines]


def build(recipe, **parts):
    torch.manual_seed(0)
    classes = recipe.condition.num_classes
    pipe = ImageGenerationPipeline(
        build_denoiser(recipe).eval(),
        build_scheduler(recipe.diffusion),
        **parts,
        num_classes=classes,
        id2label=classes and {"0": "zero", "1": "one", "2": "two"},
        variance_exponent=recipe.diffusion.variance_exponent,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(labelled):
    labels = {"class_labels": ["two", "zero"], "guidance_scale": 2.0} if labelled else {}
    return {"batch_size": 2, "num_inference_steps": 4, **labels}


def draw(pipe, labelled):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipe(generator=generators, output_type="np", **call_of(labelled)).images
    return (images * 255).round().astype(np.uint8)


KINDS = {
    "jones": {},
    "peng": {"diffusion.variance_type": "fixed_exponent", "diffusion.variance_exponent": 0.3},
    "das": {"diffusion.beta_schedule": "sigmoid"},
    "luu": {"diffusion.prediction_type": "v_prediction", "diffusion.beta_schedule": "sigmoid_alpha_bar"},
    "tefiang": {"diffusion.variance_type": "learned_range", "diffusion.loss": "hybrid"},
    "unet2d": {},
}


def test_each_denoiser_loads_without_the_package_and_draws_the_same(tiny_recipe, tmp_path):
    calls, pipes = [], []
    for kind in KINDS:
        for labelled in (True, False):
            classes = {"condition.num_classes": 3} if labelled else {}
            pipe = build(tiny_recipe(**{"model.kind": kind, **DENOISERS[kind], **KINDS[kind]}, **classes))
            folder = tmp_path / f"{kind}-{labelled}"
            save_pipeline(pipe, folder)
            stock = kind == "unet2d" and not labelled
            assert is_stock(pipe) == stock
            assert bool(list(folder.rglob("*.py"))) != stock
            ours = load_pipeline(str(folder))  # no code beside the weights is run for this
            np.testing.assert_array_equal(draw(ours, labelled), draw(pipe, labelled))
            calls.append((folder, not stock, call_of(labelled)))
            pipes.append((pipe, labelled))
    for (folder, trusted, _), (pipe, labelled), shown in zip(
        calls, pipes, load_elsewhere(calls, tmp_path), strict=True
    ):
        assert shown[0] == ("ImageGenerationPipeline" if trusted else "DDPMPipeline")
        assert shown[1] == type(pipe.unet).__name__
        assert np.abs(shown[2].astype(int) - draw(pipe, labelled).ravel()).max() <= 1, folder


def test_latents_are_decoded_by_the_autoencoder_that_was_saved_with_them(tiny_recipe, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5, shift_factor=0.1,
    ).eval()  # fmt: skip
    pipe = build(tiny_recipe(**{"model.kind": "peng", **DENOISERS["peng"], "condition.num_classes": 3}), vae=vae)
    save_pipeline(pipe, tmp_path / "saved")
    images = draw(pipe, True)
    assert images.shape == (2, 16, 16, 1)  # the latents' 8x8, decoded
    ((_, _, theirs),) = load_elsewhere([(tmp_path / "saved", True, call_of(True))], tmp_path)
    assert np.abs(theirs.astype(int) - images.ravel()).max() <= 1
    call = {"batch_size": 2, "class_labels": "two", "num_inference_steps": 2}
    latents = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent").images
    decoded = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="pt").images
    with torch.no_grad():
        expected = vae.decode(latents / 0.5 + 0.1).sample
    torch.testing.assert_close(decoded, (expected / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("load", ["load_pipeline", "from_pretrained"])
def test_what_was_loaded_is_saved_again_the_same(load, tiny_recipe, tmp_path, monkeypatch):
    """Diffusers' own save of a pipeline that came with code would name modules that no other process has."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = build(tiny_recipe(**{"model.kind": "peng", **DENOISERS["peng"], "condition.num_classes": 3}))
    save_pipeline(pipe, tmp_path / "first")
    if load == "load_pipeline":
        loaded = load_pipeline(str(tmp_path / "first"))
    else:
        loaded = DiffusionPipeline.from_pretrained(tmp_path / "first", trust_remote_code=True)
        assert type(loaded).__module__.startswith("diffusers_modules.")
    save_pipeline(loaded, tmp_path / "second")
    names = sorted(str(p.relative_to(tmp_path / "first")) for p in (tmp_path / "first").rglob("*"))
    assert names == sorted(str(p.relative_to(tmp_path / "second")) for p in (tmp_path / "second").rglob("*"))
    for name in names:
        if (tmp_path / "first" / name).is_file():
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_code_beside_the_weights_is_never_run_here(tiny_recipe, tmp_path):
    pipe = build(tiny_recipe(**{"model.kind": "peng", **DENOISERS["peng"]}))
    save_pipeline(pipe, tmp_path / "saved")
    for file in (tmp_path / "saved").rglob("*.py"):
        file.write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n" + file.read_text())
    np.testing.assert_array_equal(draw(load_pipeline(str(tmp_path / "saved")), False), draw(pipe, False))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": None}, "which is not made of a denoiser and a scheduler alone"),
        ({"_class_name": None}, "which is not made of a denoiser and a scheduler alone"),
        ({"_class_name": ["x"]}, "a ['x'], which is not made"),
        ({"vae": ["diffusers", "VQModel"], "_class_name": "LDMPipeline"}, "a LDMPipeline, which is not made"),
        ({"scheduler": ["diffusers", "ScoreSdeVeScheduler"]}, "a ScoreSdeVeScheduler, whose noise schedule is not"),
        ({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "whose noise schedule is not one of betas"),
        ({"scheduler": ["os", "system"]}, "a system, whose noise schedule"),
        ({"num_classes": 3}, "its denoiser has None classes, its index names 3"),
    ],
)
def test_a_folder_that_is_something_else_gets_one_line(change, message, tiny_recipe, tmp_path):
    save_pipeline(build(tiny_recipe(**{"model.kind": "peng", **DENOISERS["peng"]})), tmp_path / "saved")
    index_file = tmp_path / "saved" / "model_index.json"
    index = json.loads(index_file.read_text()) | change
    index_file.write_text(json.dumps({name: entry for name, entry in index.items() if entry is not None}))
    with pytest.raises(UserError) as error:
        load_pipeline(str(tmp_path / "saved"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_foreign_code_is_refused_here(tiny_recipe, tmp_path):
    save_pipeline(build(tiny_recipe(**{"model.kind": "peng", **DENOISERS["peng"]})), tmp_path / "saved")
    index_file = tmp_path / "saved" / "model_index.json"
    index_file.write_text(index_file.read_text().replace('"Peng"', '"Stranger"'))
    with pytest.raises(UserError, match=r"needs code of its own; load it in Diffusers with trust_remote_code=True"):
        load_pipeline(str(tmp_path / "saved"))
    assert json.loads(index_file.read_text())["num_classes"] is None
