"""Settings that others leave without a meaning."""

from collections.abc import Callable, Iterable
from typing import Any

Found = dict[str, tuple[str, str]]


def without_meaning(value: Callable[[str], Any], keys: Iterable[str]) -> Found:
    """Each such setting's key, with the key of the setting that is the cause, and what to tell who gave it.

    `value` gives a setting by its key, `keys` are those of the recipe's kind. A recipe must not give settings without a
    meaning, a dump leaves them out, and an override that is the cause drops those of the recipe's file.
    """
    found = _in_any_training(value)
    found |= _of_denoisers(value) if "diffusion.loss" in keys else _of_autoencoders(value)
    return found


def _in_any_training(value: Callable[[str], Any]) -> Found:
    found = {}
    if not value("data.held_out") and value("data.validation_split") is None:
        message = "needs images to validate on; set data.held_out, such as 0.02, or data.validation_split"
        found["train.validate_every"] = ("data.validation_split", message)
    if not value("ema.warmup"):
        found["ema.warmup_power"] = ("ema.warmup", "means nothing without ema.warmup; leave it out")
    return found


def _of_autoencoders(value: Callable[[str], Any]) -> Found:
    if value("loss.discriminator_start") is not None:
        return {}
    message = "needs a discriminator; set loss.discriminator_start, or leave it out"
    return {"loss.discriminator_weight": ("loss.discriminator_start", message)}


def _of_denoisers(value: Callable[[str], Any]) -> Found:
    found = {}

    def drop(cause: str, message: str, *keys: str) -> None:
        found.update(dict.fromkeys(keys, (cause, message)))

    ends = ("diffusion.beta_start", "diffusion.beta_end", "diffusion.scale_betas")
    if value("diffusion.trained_betas") is not None:
        message = "means nothing to diffusion.trained_betas; leave one of them out"
        drop("diffusion.trained_betas", message, "diffusion.beta_schedule", *ends)
    elif (schedule := value("diffusion.beta_schedule")) in ("squaredcos_cap_v2", "sigmoid_alpha_bar"):
        drop("diffusion.beta_schedule", f"means nothing to beta_schedule {schedule}; leave it out", *ends)
    if (loss := value("diffusion.loss")) != "hybrid":
        drop("diffusion.loss", f"means nothing to diffusion.loss: {loss}; leave it out", "diffusion.vlb_weight")
    if (kind := value("diffusion.variance_type")) != "fixed_exponent":
        message = f"is for diffusion.variance_type: fixed_exponent, not {kind}; leave it out"
        drop("diffusion.variance_type", message, "diffusion.variance_exponent")
    if value("condition.num_classes") is None:
        message = "needs classes; set condition.num_classes, or leave it out"
        keys = ("condition.dropout", "sample.guidance_scale", "sample.guidance_interval", "sample.grid_guidance_scales")
        drop("condition.num_classes", message, *keys)
    if value("autoencoder.source") is None:
        message = "needs autoencoder.source, such as stabilityai/sd-vae-ft-mse; leave it out for pixels"
        others = ("store_latents", "latent_dtype", "batch_size", "tiling", "gray_as_rgb")
        drop("autoencoder.source", message, *(f"autoencoder.{name}" for name in others))
    elif not value("autoencoder.store_latents"):
        message = "is for autoencoder.store_latents: true; leave it out"
        drop("autoencoder.store_latents", message, "autoencoder.latent_dtype")
    if value("evaluate.every") is None:
        others = (
            "metrics",
            "num_images",
            "batch_size",
            "extractor",
            "extractor_weights",
            "reference",
            "reference_images",
        )
        message = "needs evaluate.every, the optimizer steps between evaluations; set it, or leave this out"
        drop("evaluate.every", message, *(f"evaluate.{name}" for name in others))
    if value("hub.repo_id") is None:
        message = "needs hub.repo_id, where the model is pushed to, such as you/digits; set it, or leave this out"
        drop("hub.repo_id", message, "hub.push_every", "hub.private", "hub.revision")
    return found
