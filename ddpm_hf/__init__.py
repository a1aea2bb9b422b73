"""Train a diffusion model of your own: one recipe from images to a Diffusers pipeline.

    import ddpm_hf

    recipe = ddpm_hf.load_recipe("quickstart", {"run.name": "first", "train.max_steps": 600})
    run = ddpm_hf.train(recipe)                   # the run folder; again, and it goes on where it ended
    model = ddpm_hf.load_model(run)
    images = ddpm_hf.sample(model, 16, steps=100)  # uint8 (16, C, H, W)
    record = ddpm_hf.evaluate(run, extractor="classifier", num_images=1000, steps=100)
    ddpm_hf.publish(run)                          # the folder that the Hub shows

What the user got wrong raises `ddpm_hf.UserError`, in one line.
"""

from importlib import import_module
from typing import Any

from ddpm_hf.errors import UserError

__version__ = "0.1.0"

__all__ = ["UserError", "evaluate", "load_model", "load_recipe", "publish", "sample", "train"]


def __getattr__(name: str) -> Any:
    """PEP 562: what needs torch is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ddpm_hf.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
