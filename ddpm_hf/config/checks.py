"""Settings that contradict each other."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from ddpm_hf.config.meaning import without_meaning

if TYPE_CHECKING:
    from ddpm_hf.config.sections import Recipe


def check(recipe: "Recipe") -> None:
    """Raises Pydantic's error of kind `contradiction` for the first that is found."""
    _check_meaning(recipe)
    _check_length(recipe)
    _check_learning_rate(recipe)
    _check_precision(recipe)
    _check_noise_schedule(recipe)
    _check_objective(recipe)
    _check_denoiser(recipe)
    _check_condition(recipe)
    _check_sampling(recipe)
    _check_validation(recipe)
    _check_trackers(recipe)


def _contradiction(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": message, "key": key})


def _check_meaning(recipe: "Recipe") -> None:
    def value(key: str) -> Any:
        section, _, name = key.partition(".")
        return getattr(getattr(recipe, section), name)

    for key, (_, message) in without_meaning(value).items():
        section, _, name = key.partition(".")
        if name in getattr(recipe, section).model_fields_set:
            raise _contradiction(key, message)


def _check_length(recipe: "Recipe") -> None:
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


def _check_learning_rate(recipe: "Recipe") -> None:
    train = recipe.train
    if bool(train.learning_rate_drops) != (train.learning_rate_schedule == "step"):
        raise _contradiction(
            "train.learning_rate_drops", "belongs with train.learning_rate_schedule: step; give both or neither"
        )
    if list(train.learning_rate_drops) != sorted(train.learning_rate_drops):
        raise _contradiction("train.learning_rate_drops", f"must rise; {sorted(train.learning_rate_drops)} would")
    if recipe.train.optimizer == "adam" and train.weight_decay > 0:
        raise _contradiction("train.weight_decay", "needs train.optimizer: adamw; Adam would fold it into its moments")


def _check_precision(recipe: "Recipe") -> None:
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


def _check_denoiser(recipe: "Recipe") -> None:
    model, resolution = recipe.model, recipe.data.resolution
    if min(resolution) < 1:
        raise _contradiction("data.resolution", f"{list(resolution)} must be positive")
    if model.pretrained is not None:
        if given := sorted(model.model_fields_set - {"kind", "pretrained"}):
            raise _contradiction(
                f"model.{given[0]}", "comes from the pipeline that model.pretrained names; leave it out"
            )
        return  # the size is checked against that pipeline's own configuration when it is loaded
    factor = 2 ** (model.levels - 1)
    if any(side % factor for side in resolution):
        near = sorted({factor * n for side in resolution for n in (side // factor, -(-side // factor)) if n})
        raise _contradiction(
            "data.resolution",
            f"{_size(resolution)} cannot be halved {model.levels - 1} times by the {model.levels} levels of"
            f" model.kind {model.kind}; {' or '.join(map(str, near))} can",
        )
    _check_widths(recipe)
    heights = [resolution[0] // 2**level for level in range(model.levels)]
    for name in ("attention_resolutions", "global_context_resolutions"):
        if unknown := [size for size in getattr(model, name, None) or () if size not in heights]:
            raise _contradiction(
                f"model.{name}",
                f"{unknown[0]} is no feature-map height of this model; it has {', '.join(map(str, heights))}",
            )


def _check_widths(recipe: "Recipe") -> None:
    model = recipe.model
    key = "model.block_out_channels" if hasattr(model, "block_out_channels") else "model.base_channels"
    if any(width < 1 for width in model.widths):
        raise _contradiction(key, f"{min(model.widths)} must be positive")
    splits = [("norm_num_groups", width) for width in model.widths]
    if model.kind == "unet2d":  # attention is where it is asked for, and in the middle
        heights = [recipe.data.resolution[0] // 2**level for level in range(model.levels)]
        attends = [w for w, height in zip(model.widths, heights, strict=True) if height in model.attention_resolutions]
        splits += [("attention_head_dim", width) for width in (*attends, model.widths[-1])]
    if model.kind == "tefiang":  # narrower levels have one head
        splits += [("attention_head_dim", width) for width in model.widths if width > model.attention_head_dim]
    for name, width in splits:
        divisor = getattr(model, name, None)
        if divisor and width % divisor:
            raise _contradiction(key, f"{width} cannot be split by model.{name}, {divisor}; multiples of it can")


def _check_condition(recipe: "Recipe") -> None:
    condition, sample = recipe.condition, recipe.sample
    if condition.num_classes is not None and sample.guidance_scale != 1 and condition.dropout == 0:
        raise _contradiction(
            "sample.guidance_scale",
            f"{sample.guidance_scale:g} guides away from the null class, which condition.dropout: 0 never trains; set it to 0.1",
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


def _check_validation(recipe: "Recipe") -> None:
    data = recipe.data
    if data.validation_split is not None and data.held_out:
        raise _contradiction("data.held_out", "is given together with data.validation_split; keep one of them")
    if data.validation_split == data.split:
        raise _contradiction("data.validation_split", f"{data.split} is what is trained on; name another split")


def _check_trackers(recipe: "Recipe") -> None:
    for tracker in recipe.track.trackers:
        if find_spec(tracker) is None:
            raise _contradiction(
                "track.trackers", f"{tracker} is not installed; pip install {tracker}, or leave it out"
            )


def _size(resolution: tuple[int, int]) -> str:
    return "x".join(map(str, resolution))
