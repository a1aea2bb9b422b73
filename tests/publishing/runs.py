"""Small trained runs, one of each kind that is published otherwise."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.conftest import TINY, write_autoencoder

SMALL = {  # two steps: their pictures are noise, and all the more their own
    **{key: value for key, value in TINY.items() if not key.startswith("model.")},
    "train.max_steps": 2,
    "train.checkpoint_every": 2,
    "train.warmup_steps": 0,
    "track.log_every": 1,
}
UNET = {key: value for key, value in TINY.items() if key.startswith("model.")}
LABELS = {"condition.num_classes": 10, "sample.guidance_scale": 2.0, "sample.num_images": 20}
FAST = {"sample.sampler": "dpmsolver++", "sample.steps": 4}
KINDS = {
    "stock": UNET,
    "custom": {"model.kind": "peng", "model.base_channels": 8, "diffusion.variance_type": "fixed_large"},
    "learned": {
        **UNET,
        "diffusion.variance_type": "learned_range",
        "diffusion.loss": "hybrid",
        "sample.sampler": "ddim",
    },
    "guided": {**UNET, **LABELS, **FAST},
    "latent": {**UNET, **LABELS, **FAST, "sample.guidance_interval": [0.5, 20.0]},
}


def train_runs(root: Path) -> dict[str, Path]:
    """The run folders of all kinds below `root`, whose name is in each recipe where a place can be."""
    from ddpm_hf.config import load_recipe
    from ddpm_hf.training.accelerator import forget_accelerator

    photos = _photos(root / "photos")
    autoencoder = write_autoencoder(root / "autoencoders" / "small")
    runs = {}
    for kind, settings in KINDS.items():
        places = {"run.output_dir": str(root / "runs"), "run.name": kind, "data.store": str(root / "prepared" / kind)}
        if kind == "stock":
            places |= {"data.source": str(photos), "data.held_out": 0.25}
        if kind == "latent":
            import train_cfg_latent as script

            recipe = load_recipe(
                "latent/digits", {**SMALL, **settings, **places, "autoencoder.source": autoencoder, "model.attention_resolutions": []}
            )  # fmt: skip
        else:
            import train_unconditional as script

            recipe = load_recipe("quickstart", {**SMALL, **settings, **places})
        script.train(recipe)
        forget_accelerator()
        runs[kind] = root / "runs" / kind
    _evaluate(runs["guided"], root)
    return runs


def _photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def _evaluate(run: Path, root: Path) -> None:
    """Measures the guided run in seconds, with a network that the test makes; a place of this machine is its name."""

    from ddpm_hf.cli import main
    from ddpm_hf.training.accelerator import forget_accelerator

    quarters = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        torch.jit.trace(quarters, torch.zeros(2, 3, 8, 8)).save(str(root / "quarters.pt"))
    main(
        ["evaluate", str(run), "--num_images", "40", "--sampler", "ddim", "--steps", "2", "--guidance_scale", "2",
         "--extractor", str(root / "quarters.pt"), "--metrics", "frechet", "precision_recall"]
    )  # fmt: skip
    (written,) = (run / "evaluations").glob("*.json")
    old = json.loads(written.read_text()) | {"weights": "of an earlier step", "step": 1}
    (run / "evaluations" / "step-00000001.json").write_text(json.dumps(old))
    forget_accelerator()
