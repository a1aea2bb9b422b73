"""The recipe: every setting, its type, range, default and meaning, in one place.

A recipe is a YAML file with the sections below. Settings not written keep the defaults below;
any of them can be given on the command line as `--section.setting value`.
Nothing heavy is imported here, so that `--help` and mistakes answer at once.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ddpm_hf.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def setting(default: Any, meaning: str, *, may_change: bool = False, **limits: Any) -> Any:
    """One setting. `may_change` marks what a resumed run may set otherwise: it cannot alter a result already reached."""
    return Field(default, description=meaning, json_schema_extra={"may_change": may_change}, **limits)


Size = Annotated[
    tuple[int, int], BeforeValidator(lambda v: (v, v) if isinstance(v, int) else tuple(v) if isinstance(v, list) else v)
]


class Run(Section):
    name: str | None = setting(
        None, "the run's folder under run.output_dir; the recipe's file name if not given", may_change=True
    )
    output_dir: str = setting("runs", "where run folders are made", may_change=True)
    seed: int = setting(0, "initial weights, data order, noise and timesteps all follow from it", ge=0, lt=2**32)


class Data(Section):
    source: str = setting(
        ...,
        "a Hub dataset id; a folder of images, of parquet, arrow or webdataset files or of datasets.save_to_disk;"
        " one such file; MNIST's IDX files; CIFAR-10's binary archive; or digits (scikit-learn's)",
        may_change=True,  # where the images lie; that they are the same images is checked against the checkpoint
    )
    split: str = setting("train", "which split of the source")
    image_column: str | None = setting(None, "the column that holds the images; found by its type if not given")
    label_column: str | None = setting(None, "the column that holds the labels; found by its type if not given")
    resolution: Size = setting(..., "height and width in pixels; one number for a square")
    channels: Literal[1, 3] = setting(3, "1 for grayscale, 3 for RGB")
    crop: Literal["center", "random"] = setting(
        "center", "the part kept where an image's shape is not the resolution's"
    )
    flip: bool = setting(False, "mirror half of the images left to right, drawn afresh each time")
    held_out: float = setting(0.0, "share of the images kept out of training, for the validation loss", ge=0, le=0.5)
    on_bad_image: Literal["stop", "skip"] = setting("stop", "what to do with a file that cannot be read")
    store: str | None = setting(
        None, "folder of the prepared store; under prepared/, named by content, if not given", may_change=True
    )
    prepare_workers: int | None = setting(
        None, "processes that prepare the store; one a core if not given", ge=1, may_change=True
    )
    workers: int = setting(0, "processes that read batches; 0 reads in the training process", ge=0, may_change=True)


class UNet2D(Section):
    kind: Literal["unet2d"] = setting("unet2d", "Diffusers' UNet2DModel, built as in the DDPM paper")
    pretrained: str | None = setting(
        None, "start from the denoiser of this pipeline (Hub id or folder), architecture included"
    )
    block_out_channels: tuple[int, ...] = setting(
        (128, 256, 256, 256), "channels of each level; each further level halves the image", min_length=1
    )
    layers_per_block: int = setting(2, "residual blocks a level", ge=1)
    attention_resolutions: tuple[int, ...] = setting((16,), "feature-map heights that get self-attention")
    attention_head_dim: int | None = setting(None, "channels of an attention head; one head if not given", ge=1)
    norm_num_groups: int = setting(32, "groups of each group normalisation", ge=1)
    dropout: float = setting(0.0, "dropout in the residual blocks", ge=0, lt=1)


class Diffusion(Section):
    num_train_timesteps: int = setting(1000, "T, the number of noise levels", ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = setting(
        "linear", "noise schedule; squaredcos_cap_v2 is Nichol & Dhariwal's cosine and sets its own betas"
    )
    beta_start: float = setting(1e-4, "variance of the first noising step", gt=0, lt=1)
    beta_end: float = setting(0.02, "variance of the last noising step", gt=0, lt=1)
    prediction_type: Literal["epsilon"] = setting("epsilon", "what the denoiser predicts: the noise")
    variance_type: Literal["fixed_small", "fixed_large"] = setting(
        "fixed_small", "variance of the reverse step: the posterior's (beta tilde) or beta (DDPM, section 3.2)"
    )


class Train(Section):
    max_steps: int | None = setting(None, "length in optimizer steps", ge=1, may_change=True)
    epochs: float | None = setting(
        None, "length in passes over the images; instead of max_steps", gt=0, may_change=True
    )
    batch_size: int = setting(64, "images a process and forward pass", ge=1)
    gradient_accumulation_steps: int = setting(1, "forward passes an optimizer step", ge=1)
    optimizer: Literal["adam", "adamw"] = setting("adam", "Adam, or AdamW with decoupled weight decay")
    learning_rate: float = setting(2e-4, "peak learning rate, reached after the warm-up", gt=0)
    adam_beta1: float = setting(0.9, "decay of Adam's first moment", ge=0, lt=1)
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", ge=0, lt=1)
    adam_epsilon: float = setting(1e-8, "Adam's term for numerical stability", gt=0)
    weight_decay: float = setting(0.0, "weight decay", ge=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine", "step"] = setting(
        "constant",
        "after the warm-up: constant, linear or cosine to zero at the end, or dropped at learning_rate_drops",
    )
    learning_rate_drops: tuple[float, ...] = setting(
        (), "where the rate drops: epochs if train.epochs is given, else steps"
    )
    learning_rate_drop_factor: float = setting(0.1, "what each drop multiplies the rate by", gt=0, lt=1)
    warmup_steps: int = setting(0, "optimizer steps over which the rate rises from zero", ge=0)
    max_grad_norm: float | None = setting(1.0, "gradients are clipped to this norm; null for none", gt=0)
    precision: Literal["no", "fp16", "bf16"] = setting("no", "mixed precision of the denoiser; no is float32")
    gradient_scaler: bool = setting(True, "scale the loss under fp16 so that small gradients survive")
    max_nonfinite_steps: int = setting(
        100, "stop after so many steps in a row whose gradients are not finite", ge=1, may_change=True
    )
    validate_every: int | None = setting(
        None, "optimizer steps between validation losses; needs data.held_out", ge=1, may_change=True
    )
    checkpoint_every: int = setting(
        1000, "optimizer steps between checkpoints; the pipeline is saved with each", ge=1, may_change=True
    )
    keep_checkpoints: int = setting(
        2, "checkpoints kept, besides the best and those that hold a file named keep", ge=1, may_change=True
    )
    compile: bool = setting(False, "torch.compile the denoiser", may_change=True)
    channels_last: bool = setting(
        False, "channels-last memory format: faster convolutions on recent GPUs", may_change=True
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, slower", may_change=True
    )


class EMA(Section):
    decay: float = setting(0.9999, "decay of the weights' exponential moving average, an update", ge=0, lt=1)
    warmup: bool = setting(True, "start with the smaller decay (1 + n) / (10 + n) after n updates")
    update_every: int = setting(1, "optimizer steps between updates", ge=1)


class Sample(Section):
    sampler: Literal["ddpm", "ddim"] = setting(
        "ddpm", "ancestral sampling (DDPM, algorithm 2) or deterministic DDIM", may_change=True
    )
    steps: int | None = setting(
        None, "denoising steps; if not given, T for ddpm and 50 for ddim", ge=1, may_change=True
    )
    num_images: int = setting(64, "images in the grid that is drawn during training", ge=1, may_change=True)
    batch_size: int = setting(64, "images drawn at once by a process", ge=1, may_change=True)
    seed: int = setting(0, "seed of the first image; image i has seed + i", ge=0, may_change=True)
    every: int | None = setting(
        None, "optimizer steps between grids; at checkpoints if not given", ge=1, may_change=True
    )


class Track(Section):
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        ("tensorboard",), "where the metrics go besides metrics.jsonl", may_change=True
    )
    project: str = setting("ddpm_hf", "project name at the trackers", may_change=True)
    log_every: int = setting(50, "optimizer steps between logged lines", ge=1, may_change=True)


class Recipe(Section):
    """One model, completely described."""

    run: Run = Run()
    data: Data
    model: UNet2D = UNet2D()
    diffusion: Diffusion = Diffusion()
    train: Train = Train()
    ema: EMA = EMA()
    sample: Sample = Sample()
    track: Track = Track()

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Recipe":
        for check in (
            _check_length,
            _check_learning_rate,
            _check_precision,
            _check_diffusion,
            _check_denoiser,
            _check_sampling,
            _check_validation,
        ):
            check(self)
        return self


# ---- settings that contradict each other -------------------------------------------------------------------


def _contradiction(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": message, "key": key})


def _check_length(recipe: Recipe) -> None:
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
            f"{train.warmup_steps} is longer than the run; at most train.max_steps, {train.max_steps}",
        )


def _check_learning_rate(recipe: Recipe) -> None:
    train = recipe.train
    if bool(train.learning_rate_drops) != (train.learning_rate_schedule == "step"):
        raise _contradiction(
            "train.learning_rate_drops", "belongs with train.learning_rate_schedule: step; give both or neither"
        )
    if list(train.learning_rate_drops) != sorted(train.learning_rate_drops):
        raise _contradiction("train.learning_rate_drops", f"must rise; {sorted(train.learning_rate_drops)} would")
    if recipe.train.optimizer == "adam" and train.weight_decay > 0:
        raise _contradiction("train.weight_decay", "needs train.optimizer: adamw; Adam would fold it into its moments")


def _check_precision(recipe: Recipe) -> None:
    if not recipe.train.gradient_scaler and recipe.train.precision != "fp16":
        raise _contradiction(
            "train.gradient_scaler", "only fp16 has a gradient scaler; leave it out, or set train.precision: fp16"
        )


def _check_diffusion(recipe: Recipe) -> None:
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


def _check_denoiser(recipe: Recipe) -> None:
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


def _check_sampling(recipe: Recipe) -> None:
    T = recipe.diffusion.num_train_timesteps
    if recipe.sample.steps is not None and recipe.sample.steps > T:
        raise _contradiction("sample.steps", f"{recipe.sample.steps} is more than diffusion.num_train_timesteps, {T}")


def _check_validation(recipe: Recipe) -> None:
    if recipe.train.validate_every and not recipe.data.held_out:
        raise _contradiction("train.validate_every", "needs images to validate on; set data.held_out, such as 0.02")


def _size(resolution: tuple[int, int]) -> str:
    return "x".join(map(str, resolution))


# ---- reading and writing -----------------------------------------------------------------------------------


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's plain values. PyYAML alone, at 1.1, reads 1e-4 as text and the precision `no` as false."""

    yaml_implicit_resolvers: ClassVar = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_value(text: str) -> Any:
    """A setting's value as YAML reads it: 1e-4 is a number, [1, 2] a list, null is None."""
    return yaml.load(text, Loader=_YamlLoader)


class _YamlDumper(yaml.SafeDumper):
    """Quotes what `_YamlLoader` would not read as text."""

    yaml_implicit_resolvers: ClassVar = _YamlLoader.yaml_implicit_resolvers


def recipe_path(name: str) -> Path:
    """A recipe file from its path, or from the name of one that comes with the package (`quickstart`)."""
    path = Path(name)
    if path.is_file():
        return path
    here = Path(__file__).parent
    for shipped in (here / "configs", here.parent / "configs"):  # installed, or a checkout
        if (found := shipped / f"{name.removesuffix('.yaml')}.yaml").is_file():
            return found
    shipped = next((folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()), None)
    names = sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")) if shipped else []
    near = difflib.get_close_matches(Path(name).stem, [n for n in names if not n.startswith("accelerate/")], n=1)
    raise UserError(f"{name}: no such recipe file" + (f"; did you mean {near[0]}?" if near else ""))


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe and applies overrides such as `{"train.max_steps": 100}`.

    Raises `UserError` with one line that names the key, what is wrong and what would be right.
    """
    file = recipe_path(str(path))
    try:
        tree = yaml.load(file.read_text(), Loader=_YamlLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{file}: a recipe is a mapping of sections such as data: and train:, not a {type(tree).__name__}"
        )
    for section, settings in tree.items():
        if settings is not None and not isinstance(settings, dict):
            raise UserError(f"{file}: {section}: should be a section with settings indented below it, not {settings!r}")
    tree = {section: dict(settings or {}) for section, settings in tree.items()}
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    # JSON carries what YAML can say, and lets strict types still take lists as tuples
    try:
        recipe = Recipe.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        problems = error.errors()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{file}: {_explain(problems[0])}{more}") from None
    name = recipe.run.name or file.stem
    if Path(name).name != name or name in (".", ".."):
        raise UserError(
            f"{file}: run.name: {name!r} should be a plain folder name; the folder above it is run.output_dir"
        )
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every setting written out; `load_recipe` reads it back equal."""
    tree = recipe.model_dump(mode="json")
    if recipe.model.pretrained is not None:
        tree["model"] = {name: tree["model"][name] for name in ("kind", "pretrained")}
    if recipe.diffusion.beta_schedule == "squaredcos_cap_v2":
        del tree["diffusion"]["beta_start"], tree["diffusion"]["beta_end"]
    return yaml.dump(tree, Dumper=_YamlDumper, sort_keys=False, default_flow_style=None, width=120)


def differences(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """Settings that differ although a resumed run may not change them: (key, old value, new value)."""
    found = []
    for section in Recipe.model_fields:
        for name, field in type(getattr(new, section)).model_fields.items():
            a, b = getattr(getattr(old, section), name, None), getattr(getattr(new, section), name)
            if a != b and not field.json_schema_extra["may_change"]:
                found.append((f"{section}.{name}", a, b))
    if new.train.learning_rate_schedule in ("linear", "cosine"):  # the rate at every step depends on the length
        for name in ("max_steps", "epochs"):
            a, b = getattr(old.train, name), getattr(new.train, name)
            if a != b:
                found.append((f"train.{name}", a, b))
    return found


def setting_keys() -> dict[str, Any]:
    """Every setting's dotted key and its field."""
    return {
        f"{s}.{n}": f for s, section in Recipe.model_fields.items() for n, f in section.annotation.model_fields.items()
    }


# ---- messages ----------------------------------------------------------------------------------------------

_SHOULD_BE = {
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "tuple_type": "should be a list such as [1, 2]",
    "model_type": "should be a section with settings below it",
    "missing": "is missing",
}
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "of length at least"}


def did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _plain(value: Any) -> str:
    """A value as YAML would write it."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def _explain(error: ErrorDetails) -> str:
    """One of Pydantic's findings as `key: what is wrong; what would be right`."""
    key = ".".join(map(str, error["loc"]))
    given, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "contradiction":
        return f"{context['key']}: {context['text']}"
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        if not section:
            return f"{key}: no such section{did_you_mean(name, list(Recipe.model_fields))}"
        keys = list(setting_keys())
        return f"{key}: no such setting{did_you_mean(key, keys)}"
    if kind == "missing":
        field = setting_keys().get(key)
        return f"{key}: is missing" + (f"; it is {field.description}" if field else "; a recipe needs it")
    if kind == "literal_error":
        choices = [c.strip("'") for c in re.split(r", | or ", context["expected"])]
        return f"{key}: {_plain(given)} is not one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
    for limit, words in _LIMITS.items():
        if limit in context:
            return f"{key}: {_plain(given)} must be {words} {context[limit]}"
    if key == "data.resolution":
        return f"{key}: {_plain(given)} should be one number, or [height, width]"
    if kind == "too_short":
        return f"{key}: {_plain(given)} needs at least {context['min_length']} value"
    return f"{key}: {_plain(given)} {_SHOULD_BE.get(kind, error['msg'][0].lower() + error['msg'][1:])}"
