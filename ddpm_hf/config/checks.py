"""Settings that contradict each other."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from ddpm_hf.config.sections import Recipe


def check(recipe: "Recipe") -> None:
    """Raises Pydantic's error of kind `contradiction` for the first that is found."""
    _check_length(recipe)
    _check_learning_rate(recipe)
    _check_precision(recipe)
    _check_diffusion(recipe)
    _check_denoiser(recipe)
    _check_sampling(recipe)
    _check_validation(recipe)
    _check_trackers(recipe)


def _contradiction(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": message, "key": key})


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


def _check_diffusion(recipe: "Recipe") -> None:
    diffusion = recipe.diffusion
    if diffusion.beta_start >= diffusion.beta_end:
        raise _contradiction(
            "diffusion.beta_start", f"{diffusion.beta_start} must be below diffusion.beta_end, {diffusion.beta_end}"
        )
    if diffusion.beta_schedule == "squaredcos_cap_v2" and {"beta_start", "beta_end"} & diffusion.model_fields_set:
        raise _contradiction(
            "diffusion.beta_start",
            "and diffusion.beta_end mean nothing to beta_schedule squaredcos_cap_v2; leave them out",
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
    factor = 2 ** (len(model.block_out_channels) - 1)
    if any(side % factor for side in resolution):
        near = sorted({factor * n for side in resolution for n in (side // factor, -(-side // factor)) if n})
        raise _contradiction(
            "data.resolution",
            f"{_size(resolution)} cannot be halved {len(model.block_out_channels) - 1} times by the {len(model.block_out_channels)} levels of"
            f" model.block_out_channels; {' or '.join(map(str, near))} can",
        )
    if bad := [c for c in model.block_out_channels if c < 1 or c % model.norm_num_groups]:
        raise _contradiction(
            "model.block_out_channels",
            f"{bad[0]} cannot be split into model.norm_num_groups, {model.norm_num_groups}; multiples of it can",
        )
    heights = [resolution[0] // 2**level for level in range(len(model.block_out_channels))]
    if unknown := [size for size in model.attention_resolutions if size not in heights]:
        raise _contradiction(
            "model.attention_resolutions",
            f"{unknown[0]} is no feature-map height of this model; it has {', '.join(map(str, heights))}",
        )
    if model.attention_head_dim and (bad := [c for c in model.block_out_channels if c % model.attention_head_dim]):
        raise _contradiction(
            "model.attention_head_dim",
            f"{model.attention_head_dim} does not divide {bad[0]} of model.block_out_channels",
        )


def _check_sampling(recipe: "Recipe") -> None:
    T = recipe.diffusion.num_train_timesteps
    if recipe.sample.steps is not None and recipe.sample.steps > T:
        raise _contradiction("sample.steps", f"{recipe.sample.steps} is more than diffusion.num_train_timesteps, {T}")


def _check_validation(recipe: "Recipe") -> None:
    if recipe.train.validate_every and not recipe.data.held_out:
        raise _contradiction("train.validate_every", "needs images to validate on; set data.held_out, such as 0.02")


def _check_trackers(recipe: "Recipe") -> None:
    for tracker in recipe.track.trackers:
        if find_spec(tracker) is None:
            raise _contradiction(
                "track.trackers", f"{tracker} is not installed; pip install {tracker}, or leave it out"
            )


def _size(resolution: tuple[int, int]) -> str:
    return "x".join(map(str, resolution))
