"""A model from a run folder, a pipeline folder or the Hub."""

import os
from inspect import signature
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import is_offline_mode

from ddpm_hf.build import DENOISERS, num_classes_of
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


def load_pipeline(source: str) -> ImageGenerationPipeline:
    """Denoiser (float32, eval) and training schedule from a run folder, a pipeline folder or a Hub id.

    Code that lies beside the weights is never run: this package has its own of the same name, or refuses.
    """
    source = os.path.expanduser(source)
    path = Path(source)
    if is_run(path):
        if (path / "autoencoder").is_dir():
            raise UserError(
                f"{source}: an autoencoder's run; a denoiser of its latents, of train_cfg_latent.py, is what draws"
            )
        if not (path / "pipeline" / "model_index.json").is_file():
            raise UserError(f"{source}: this run has no pipeline yet; it is saved with the first checkpoint")
        source = str(path / "pipeline")
    elif path.exists() and not (path / "model_index.json").is_file():
        raise UserError(f"{source}: neither a run folder (recipe.yaml) nor a pipeline folder (model_index.json)")
    elif not path.exists() and (source.startswith((".", "/", "~", "runs/")) or source.count("/") != 1):
        raise UserError(
            f"{source}: no such folder; give a run folder, a pipeline folder or a Hub id such as google/ddpm-cifar10-32"
        )
    disable_progress_bar()  # of loading, which takes a moment
    try:
        index = DiffusionPipeline.load_config(source)
        pipe = _load(source, {name: entry for name, entry in index.items() if isinstance(entry, (list, tuple))}, index)
    except (OSError, ValueError, AttributeError) as error:
        if not path.exists() and is_offline_mode():
            raise UserError(
                f"{source}: not downloaded to this machine, and HF_HUB_OFFLINE forbids to reach the Hub; unset it"
            ) from None
        raise UserError(
            f"{source}: cannot be loaded as a Diffusers pipeline: {str(error).strip().splitlines()[0]}"
        ) from None
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's; a published model has a recipe too, but its pipeline beside it."""
    marked = (folder / "checkpoints").is_dir() or (folder / "recipe.yaml").is_file()
    return marked and not (folder / "model_index.json").is_file()


def _load(source: str, parts: dict[str, list], index: dict) -> ImageGenerationPipeline:
    """`parts` are the index's entries [library, class]; nothing is downloaded before they are known to fit."""
    class_of = {name: entry[1] for name, entry in parts.items() if len(entry) == 2 and entry[1] is not None}
    own = class_of.pop("_class_name", None)
    named = own is not None or isinstance(index.get("_class_name"), str)
    if not named or set(class_of) - {"vae"} != {"unet", "scheduler"} or ("vae" in class_of and own is None):
        raise UserError(
            f"{source}: a {own or index.get('_class_name')}, which is not made of a denoiser and a scheduler alone"
        )
    known = {cls.__name__: cls for cls in DENOISERS.values()}
    if own not in (None, ImageGenerationPipeline.__name__) or class_of["unet"] not in known:
        raise UserError(
            f"{source}: a {own or index['_class_name']} with a {class_of['unet']}, which needs code of its own; load it in"
            " Diffusers with trust_remote_code=True if you trust it"
        )
    scheduler = getattr(diffusers, class_of["scheduler"], None)
    if scheduler is None or not {"trained_betas", "beta_schedule"} <= set(signature(scheduler).parameters):
        raise UserError(f"{source}: a {class_of['scheduler']}, whose noise schedule is not one of betas")
    autoencoder = _autoencoder_class(source, parts["vae"]) if "vae" in class_of else None
    loaded = {
        "unet": known[class_of["unet"]].from_pretrained(source, subfolder="unet"),
        "scheduler": scheduler.from_pretrained(source, subfolder="scheduler"),
    }
    if autoencoder is not None:
        loaded["vae"] = autoencoder.from_pretrained(source, subfolder="vae").eval()
        takes, gives = loaded["unet"].config.in_channels, _latent_channels(loaded["vae"])
        if takes != gives:
            raise UserError(
                f"{source}: its denoiser, {class_of['unet']}, works on {takes} channels, its autoencoder,"
                f" {class_of['vae']}, on {gives}; they do not belong together"
            )
    settings = {name: index.get(name) for name in ("num_classes", "id2label", "variance_exponent", "image_channels")}
    if num_classes_of(loaded["unet"]) != settings["num_classes"]:
        raise UserError(f"{source}: its denoiser has {num_classes_of(loaded['unet'])} classes, its index names"
            f" {settings['num_classes']}")  # fmt: skip
    return ImageGenerationPipeline(**loaded, **settings)


def _autoencoder_class(source: str, entry: list[str]) -> type[ModelMixin]:
    """One of Diffusers' own, from an index's entry [library, class]."""
    library, name = entry
    cls = getattr(diffusers, name, None) if library == "diffusers" else None
    if not getattr(cls, "__module__", "").startswith("diffusers.models.autoencoders."):
        raise UserError(f"{source}: its autoencoder, a {name} of {library}, is none of Diffusers'")
    if "latent_channels" not in signature(cls).parameters:
        raise UserError(f"{source}: a {name}, which is no autoencoder with latent channels")
    return cls


def _latent_channels(vae: ModelMixin) -> int:
    # a VQModel's codes may have another width than what its encoder ends in
    return getattr(vae.config, "vq_embed_dim", None) or vae.config.latent_channels
