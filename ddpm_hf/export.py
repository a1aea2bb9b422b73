"""A pipeline as a folder that plain Diffusers loads, here or from the Hub."""

import copy
import inspect
import json
import shutil
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


def save_pipeline(pipe: ImageGenerationPipeline, folder: Path, variant: str | None = None) -> None:
    """Saves in safetensors. An unconditional UNet2DModel with fixed variance becomes a stock `DDPMPipeline`; anything
    else takes along the files of code that it needs, and loads with `trust_remote_code=True`."""
    folder = Path(folder)
    if is_stock(pipe):
        DDPMPipeline(pipe.unet, pipe.scheduler).save_pretrained(folder, variant=variant)
        _forget_where_it_came_from(folder)
        return
    pipe.save_pretrained(folder, variant=variant)
    _forget_where_it_came_from(folder)
    index = json.loads((folder / "model_index.json").read_text())
    # Diffusers writes names that only this process could resolve; it loads a part's code from the part's own folder
    index["_class_name"] = _take_along(type(pipe), folder)
    for name, part in pipe.components.items():
        if part is not None and not type(part).__module__.startswith("diffusers."):
            index[name] = _take_along(type(part), folder / name)
    _write_json(folder / "model_index.json", index)


VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def save_variant(pipe: ImageGenerationPipeline, folder: Path, variant: str) -> None:
    """Adds the denoiser in half precision to a saved pipeline: files that `from_pretrained(..., variant=...)` takes.

    An autoencoder has none, since many overflow in half precision. Raises `UserError` where the denoiser's weights do.
    """
    half = torch.nn.Module.to(copy.deepcopy(pipe.unet), VARIANTS[variant])  # Diffusers' own `to` warns of nothing
    if not all(tensor.isfinite().all() for tensor in half.state_dict().values()):
        raise UserError(f"{variant} cannot hold this model's weights, some are too large; bf16 can")
    half.save_pretrained(Path(folder) / "unet", variant=variant)
    _forget_where_it_came_from(Path(folder))


def is_stock(pipe: ImageGenerationPipeline) -> bool:
    """Whether Diffusers' own classes suffice."""
    return (
        type(pipe.unet) is UNet2DModel
        and pipe.vae is None
        and pipe.config.num_classes is None
        and isinstance(pipe.scheduler, DDPMScheduler)
        and pipe.scheduler.config.variance_type in ("fixed_small", "fixed_large")
    )


def _take_along(cls: type, folder: Path) -> list[str]:
    """Copies the file that defines a class; returns how an index names it."""
    source = Path(inspect.getfile(cls))
    shutil.copyfile(source, folder / source.name)
    return [source.stem, cls.__name__]


def _forget_where_it_came_from(folder: Path) -> None:
    """Diffusers notes the path that a part was loaded from, which is nobody else's business."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            _write_json(file, config)


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
