"""Settings that contradict each other."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from ddpm_hf.config.meaning import without_meaning

if TYPE_CHECKING:
    from ddpm_hf.config.denoisers import Denoiser
    from ddpm_hf.config.recipes import AnyRecipe, AutoencoderRecipe, Recipe


def check_denoiser(recipe: "Recipe") -> None:
    """Raises Pydantic's error of kind `contradiction` for the first that is found in a diffusion model's recipe."""
    _check_training(recipe)
    _check_noise_schedule(recipe)
    _check_objective(recipe)
    _check_autoencoder(recipe)
    _check_model(recipe)
    _check_condition(recipe)
    _check_sampling(recipe)
    _check_evaluation(recipe)
    _check_pushing(recipe)


def check_autoencoder(recipe: "AutoencoderRecipe") -> None:
    """The same for an autoencoder's recipe."""
    _check_training(recipe)
    model, factor = recipe.model, 2 ** (recipe.model.levels - 1)
    _check_halving(recipe.data.resolution, factor, f"the {model.levels} levels of model.block_out_channels")
    for width in model.block_out_channels:
        if width < 1 or width % model.norm_num_groups:
            raise _contradiction(
                "model.block_out_channels",
                f"{width} cannot be split by model.norm_num_groups, {model.norm_num_groups}; multiples of it can",
            )
    if recipe.loss.perceptual == "lpips" and min(recipe.data.resolution) < LPIPS_RESOLUTION:
        raise _contradiction(
            "loss.perceptual", f"lpips is for images of {LPIPS_RESOLUTION} pixels a side and more; take l2"
        )

    if recipe.loss.discriminator_start is not None and min(recipe.data.resolution) < 8:
        raise _contradiction("loss.discriminator_start", "is for images of 8 pixels a side and more; leave it out")


LPIPS_RESOLUTION = 32  # pixels a side; VGG16's last features are 16 times smaller, 2x2 of them here


def _check_training(recipe: "AnyRecipe") -> None:
    _check_meaning(recipe)
    if min(recipe.data.resolution) < 1:
        raise _contradiction("data.resolution", f"{list(recipe.data.resolution)} must be positive")
    _check_length(recipe)
    _check_learning_rate(recipe)
    _check_precision(recipe)
    _check_validation(recipe)
    _check_trackers(recipe)


def _contradiction(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": message, "key": key})


def _check_meaning(recipe: "AnyRecipe") -> None:
    def value(key: str) -> Any:
        section, _, name = key.partition(".")
        return getattr(getattr(recipe, section), name)

    keys = [
        f"{section}.{name}"
        for section in type(recipe).model_fields
        for name in type(getattr(recipe, section)).model_fields
    ]
    for key, (_, message) in without_meaning(value, keys).items():
        section, _, name = key.partition(".")
        if name in getattr(recipe, section).model_fields_set:
            raise _contradiction(key, message)


def _check_length(recipe: "AnyRecipe") -> None:
    train = recipe.train
    if train.max_steps is None and train.epochs is None:
        raise _contradiction(
            "train.max_steps", "is not given, nor is train.epochs; give one of them, such as train.max_steps: 10000"
        )
    if train.max_steps is not None and train.epochs is not None:
        raise _contradiction("train.max_steps", "is given together with train.epochs; keep one of them")
    if train.max_steps is not None and train.warmup_steps > train.max_steps:
        raise _contradiction(
            "train.warmup_steps",
            f"{train.warmup_steps} is longer than the run, train.max_steps: {train.max_steps}; for a trial set it to 0",
        )


def _check_learning_rate(recipe: "AnyRecipe") -> None:
    train = recipe.train
    if bool(train.learning_rate_drops) != (train.learning_rate_schedule == "step"):
        raise _contradiction(
            "train.learning_rate_drops", "belongs with train.learning_rate_schedule: step; give both or neither"
        )
    if list(train.learning_rate_drops) != sorted(train.learning_rate_drops):
        raise _contradiction("train.learning_rate_drops", f"must rise; {sorted(train.learning_rate_drops)} would")
    if recipe.train.optimizer == "adam" and train.weight_decay > 0:
        raise _contradiction("train.weight_decay", "needs train.optimizer: adamw; Adam would fold it into its moments")


def _check_precision(recipe: "AnyRecipe") -> None:
    if not recipe.train.gradient_scaler and recipe.train.precision != "fp16":
        raise _contradiction(
            "train.gradient_scaler", "only fp16 has a gradient scaler; leave it out, or set train.precision: fp16"
        )


def _check_noise_schedule(recipe: "Recipe") -> None:
    diffusion, T = recipe.diffusion, recipe.diffusion.num_train_timesteps
    betas_have_ends = diffusion.trained_betas is None and diffusion.beta_schedule in (
        "linear",
        "scaled_linear",
        "sigmoid",
    )
    if diffusion.trained_betas is not None and len(diffusion.trained_betas) != T:
        raise _contradiction(
            "diffusion.trained_betas",
            f"has {len(diffusion.trained_betas)} values, diffusion.num_train_timesteps is {T}; give one a timestep",
        )
    if betas_have_ends and diffusion.beta_start >= diffusion.beta_end:
        raise _contradiction(
            "diffusion.beta_start", f"{diffusion.beta_start} must be below diffusion.beta_end, {diffusion.beta_end}"
        )
    if diffusion.scale_betas and diffusion.beta_end * 1000 / T >= 1:
        raise _contradiction(
            "diffusion.scale_betas",
            f"makes the last beta {diffusion.beta_end * 1000 / T:g}, which must be below 1; with beta_end"
            f" {diffusion.beta_end} it can be had from {int(diffusion.beta_end * 1000) + 1} timesteps on",
        )
    if diffusion.rescale_betas_zero_snr and diffusion.prediction_type == "epsilon":
        raise _contradiction(
            "diffusion.rescale_betas_zero_snr",
            "needs diffusion.prediction_type: v_prediction or sample; of pure noise, epsilon says nothing about the image",
        )


def _check_objective(recipe: "Recipe") -> None:
    diffusion = recipe.diffusion
    if diffusion.variance_type == "fixed_exponent" and diffusion.variance_exponent is None:
        raise _contradiction(
            "diffusion.variance_exponent", "is missing for diffusion.variance_type: fixed_exponent; 0.3, for one"
        )
    if diffusion.variance_type == "learned_range" and diffusion.loss == "mse":
        raise _contradiction(
            "diffusion.variance_type",
            "learned_range gets no gradient from diffusion.loss: mse; set diffusion.loss to hybrid or vlb",
        )
    if diffusion.variance_type != "learned_range" and diffusion.loss == "hybrid":
        raise _contradiction(
            "diffusion.loss",
            "hybrid is for diffusion.variance_type: learned_range; with a fixed variance its L_vlb has no gradient, so take mse",
        )
    if diffusion.min_snr_gamma is not None and diffusion.loss == "vlb":
        raise _contradiction(
            "diffusion.min_snr_gamma", "weighs L_simple; diffusion.loss: vlb has none, so take mse or hybrid"
        )
    if diffusion.timestep_sampling == "importance" and diffusion.loss != "vlb":
        raise _contradiction(
            "diffusion.timestep_sampling", f"importance is for diffusion.loss: vlb; leave it out for {diffusion.loss}"
        )


def _check_autoencoder(recipe: "Recipe") -> None:
    data, autoencoder = recipe.data, recipe.autoencoder
    if autoencoder.source is None:
        return
    if autoencoder.gray_as_rgb and data.channels != 1:
        raise _contradiction("autoencoder.gray_as_rgb", "is for data.channels: 1; leave it out for colours")
    if data.crop == "random" and autoencoder.store_latents:
        raise _contradiction(
            "data.crop", "random cannot be had from stored latents; take center, or autoencoder.store_latents: false"
        )


def _check_model(recipe: "Recipe") -> None:
    model, autoencoder = recipe.model, recipe.autoencoder
    if model.pretrained is not None:
        if given := sorted(model.model_fields_set - {"kind", "pretrained"}):
            raise _contradiction(
                f"model.{given[0]}", "comes from the pipeline that model.pretrained names; leave it out"
            )
        return  # the size is checked against that pipeline's own configuration when it is loaded
    if any(width < 1 for width in model.widths):
        raise _contradiction(_widths_key(model), f"{min(model.widths)} must be positive")
    if autoencoder.source is None:  # else once the latents' size is known
        check_size(model, recipe.data.resolution)


def check_size(model: "Denoiser", size: tuple[int, int], factor: int = 1) -> None:
    """Raises where a denoiser cannot work on pixels or latents of this size, `factor` times smaller than the images."""
    halvings = model.levels - 1
    _check_halving(size, 2**halvings, f"the {model.levels} levels of model.kind {model.kind}", factor)
    heights = [size[0] // 2**level for level in range(model.levels)]
    for name in ("attention_resolutions", "global_context_resolutions"):
        if unknown := [height for height in getattr(model, name, None) or () if height not in heights]:
            raise _contradiction(
                f"model.{name}",
                f"{unknown[0]} is no feature-map height of this model; it has {', '.join(map(str, heights))}",
            )
    _check_widths(model, heights)


def _check_halving(size: tuple[int, int], divisor: int, by: str, factor: int = 1) -> None:
    """`size`: of the images, or of latents `factor` times smaller, which `by` divides by `divisor`."""
    if all(side % divisor == 0 for side in size):
        return
    near = sorted({divisor * n for side in size for n in (side // divisor, -(-side // divisor)) if n})
    images, latents = _size([side * factor for side in size]), f"gives latents of {_size(size)}, which "
    raise _contradiction(
        "data.resolution",
        f"{images} {latents if factor > 1 else ''}cannot be halved {divisor.bit_length() - 1} times by {by};"
        f" {' or '.join(str(side * factor) for side in near)} can",
    )


def _widths_key(model: "Denoiser") -> str:
    return "model.block_out_channels" if hasattr(model, "block_out_channels") else "model.base_channels"


def _check_widths(model: "Denoiser", heights: list[int]) -> None:
    splits = [("norm_num_groups", width) for width in model.widths]
    if model.kind == "unet2d":  # attention is where it is asked for, and in the middle
        attends = [w for w, height in zip(model.widths, heights, strict=True) if height in model.attention_resolutions]
        splits += [("attention_head_dim", width) for width in (*attends, model.widths[-1])]
    if model.kind == "tefiang":  # narrower levels have one head
        splits += [("attention_head_dim", width) for width in model.widths if width > model.attention_head_dim]
    for name, width in splits:
        divisor = getattr(model, name, None)
        if divisor and width % divisor:
            raise _contradiction(
                _widths_key(model), f"{width} cannot be split by model.{name}, {divisor}; multiples of it can"
            )


def _check_condition(recipe: "Recipe") -> None:
    condition, sample = recipe.condition, recipe.sample
    scales = {sample.guidance_scale, *(sample.grid_guidance_scales or ())} - {1}
    if condition.num_classes is not None and scales and condition.dropout == 0:
        raise _contradiction(
            "sample.guidance_scale" if sample.guidance_scale in scales else "sample.grid_guidance_scales",
            f"{min(scales):g} guides away from the null class, which condition.dropout: 0 never trains; set it to 0.1",
        )
    if sample.guidance_interval is not None and sample.guidance_scale == 1:
        raise _contradiction("sample.guidance_interval", "needs a sample.guidance_scale; at 1 there is no guidance")
    if sample.guidance_interval is not None:
        low, high = sample.guidance_interval
        if not 0 <= low < high:
            raise _contradiction(
                "sample.guidance_interval", f"{[low, high]} should be two noise levels, the lower one first, from 0 on"
            )


def _check_sampling(recipe: "Recipe") -> None:
    T, sample = recipe.diffusion.num_train_timesteps, recipe.sample
    if sample.steps is not None and sample.steps > T:
        raise _contradiction("sample.steps", f"{sample.steps} is more than diffusion.num_train_timesteps, {T}")
    if sample.eta and sample.sampler != "ddim":
        raise _contradiction("sample.eta", f"is for sample.sampler: ddim; {sample.sampler} has no such setting")


def _check_evaluation(recipe: "Recipe") -> None:
    if "class_agreement" in recipe.evaluate.metrics and recipe.condition.num_classes is None:
        raise _contradiction(
            "evaluate.metrics", "class_agreement is for a conditional model; set condition.num_classes"
        )
    _check_at_checkpoints("evaluate.every", recipe.evaluate.every, recipe, "what is measured best might not be saved")
    if recipe.evaluate.reference == "validation" and not (recipe.data.held_out or recipe.data.validation_split):
        raise _contradiction(
            "evaluate.reference", "validation needs data.held_out or data.validation_split; set one, or take train"
        )


REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # OWNER/NAME; the Hub's client knows the finer rules


def _check_pushing(recipe: "Recipe") -> None:
    repo_id = recipe.hub.repo_id
    if repo_id is not None and not REPO_ID.fullmatch(repo_id):
        raise _contradiction("hub.repo_id", f"{repo_id!r} should be OWNER/NAME, such as you/digits")
    _check_at_checkpoints("hub.push_every", recipe.hub.push_every, recipe, "there might be nothing new to push")
    every, pictures = recipe.hub.push_every, recipe.sample.every
    if every is not None and pictures is not None and every % pictures:
        raise _contradiction(
            "hub.push_every",
            f"{every} is no multiple of sample.every, {pictures}, so that the card's picture would be of another step",
        )


def _check_at_checkpoints(key: str, every: int | None, recipe: "Recipe", otherwise: str) -> None:
    checkpoint_every = recipe.train.checkpoint_every
    if every is not None and every % checkpoint_every:
        near = checkpoint_every * max(1, round(every / checkpoint_every))
        raise _contradiction(
            key,
            f"{every} is no multiple of train.checkpoint_every, {checkpoint_every}, so that {otherwise}; {near} is",
        )


def _check_validation(recipe: "AnyRecipe") -> None:
    data = recipe.data
    if data.validation_split is not None and data.held_out:
        raise _contradiction("data.held_out", "is given together with data.validation_split; keep one of them")
    if data.validation_split == data.split:
        raise _contradiction("data.validation_split", f"{data.split} is what is trained on; name another split")


def _check_trackers(recipe: "AnyRecipe") -> None:
    for tracker in recipe.track.trackers:
        if find_spec(tracker) is None:
            raise _contradiction(
                "track.trackers", f"{tracker} is not installed; pip install {tracker}, or leave it out"
            )


def _size(resolution: Sequence[int]) -> str:
    return "x".join(map(str, resolution))
