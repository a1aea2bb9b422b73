"""The one place that turns a recipe's names into objects."""

from collections.abc import Sequence

from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, UNet2DModel
from pydantic_core import PydanticCustomError

from ddpm_hf.autoencoder.discriminator import PatchDiscriminator
from ddpm_hf.autoencoder.objective import AutoencoderTrainee
from ddpm_hf.autoencoder.pretrained import latent_shape
from ddpm_hf.config import AutoencoderRecipe, Recipe
from ddpm_hf.config.checks import check_size
from ddpm_hf.denoisers.das import Das
from ddpm_hf.denoisers.jones import Jones
from ddpm_hf.denoisers.luu import Luu
from ddpm_hf.denoisers.peng import Peng
from ddpm_hf.denoisers.tefiang import Tefiang
from ddpm_hf.errors import UserError

DENOISERS = {"unet2d": UNet2DModel, "jones": Jones, "peng": Peng, "das": Das, "luu": Luu, "tefiang": Tefiang}


def build_denoiser(recipe: Recipe, load_weights: bool = True) -> ModelMixin:
    """The denoiser with fresh weights, or with those of the pipeline that `model.pretrained` names, if `load_weights`."""
    channels, height, width = shape = sample_shape(recipe)
    if recipe.model.pretrained is not None:
        return _pretrained_denoiser(recipe, shape, load_weights)
    _check_latents_size(recipe, (height, width))
    shared = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": 2 * channels if recipe.diffusion.variance_type == "learned_range" else channels,
    }
    if recipe.model.kind == "unet2d":
        return UNet2DModel(**shared, **_unet2d_arguments(recipe, height))
    shared["num_classes"] = recipe.condition.num_classes
    settings = recipe.model.model_dump(
        exclude={"kind", "pretrained", "attention_resolutions", "global_context_resolutions"}
    )
    return DENOISERS[recipe.model.kind](**shared, **settings, **_attention_levels(recipe, height))


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderTrainee:
    """A fresh AutoencoderKL, and the discriminator that the recipe asks for."""

    model, data = recipe.model, recipe.data
    autoencoder = AutoencoderKL(
        in_channels=data.channels,
        out_channels=data.channels,
        down_block_types=("DownEncoderBlock2D",) * model.levels,
        up_block_types=("UpDecoderBlock2D",) * model.levels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
        mid_block_add_attention=model.mid_block_attention,
        sample_size=data.resolution[0],
        scaling_factor=1.0,  # measured and set when it is saved
    )
    if recipe.loss.discriminator_start is None:
        return AutoencoderTrainee(autoencoder)
    return AutoencoderTrainee(autoencoder, PatchDiscriminator(data.channels, data.resolution))


def sample_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of what the denoiser sees: pixels, or latents; for these the autoencoder's config is read."""
    if recipe.autoencoder.source is None:
        return recipe.data.channels, *recipe.data.resolution
    return latent_shape(recipe.autoencoder, recipe.data)


def _check_latents_size(recipe: Recipe, size: tuple[int, int]) -> None:
    """What the recipe's own checks could not know yet."""
    try:
        check_size(recipe.model, size, factor=recipe.data.resolution[0] // size[0])
    except PydanticCustomError as error:
        raise UserError(f"{error.context['key']}: {error.context['text']}") from None


def num_classes_of(denoiser: ModelMixin) -> int | None:
    """The classes that a denoiser was made for, by its own config; None for an unconditional one."""
    if isinstance(denoiser, UNet2DModel):
        embeddings = denoiser.config.num_class_embeds  # the null class has one of its own, the last
        return None if embeddings is None else embeddings - 1
    return denoiser.config.num_classes


def _unet2d_arguments(recipe: Recipe, height: int) -> dict:
    model, classes = recipe.model, recipe.condition.num_classes
    attends = [level in _levels(recipe, height, model.attention_resolutions) for level in range(model.levels)]
    return {
        "num_class_embeds": None if classes is None else classes + 1,
        "block_out_channels": model.block_out_channels,
        "layers_per_block": model.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        "attention_head_dim": model.attention_head_dim,
        "norm_num_groups": model.norm_num_groups,
        "dropout": model.dropout,
        "norm_eps": 1e-6,  # from here on as in the DDPM paper's own network
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }


def _attention_levels(recipe: Recipe, height: int) -> dict[str, tuple[int, ...]]:
    """Where attention goes, as levels instead of feature-map heights; as the report has it where none are given."""
    model, levels = recipe.model, range(recipe.model.levels)
    match model.kind:
        case "das":
            return {"attention_levels": _levels(recipe, height, model.attention_resolutions, default=levels[1:])}
        case "tefiang":
            attention = _levels(recipe, height, model.attention_resolutions, default=levels[-2:])
            others = [level for level in levels if level not in attention]
            context = _levels(recipe, height, model.global_context_resolutions, default=others)
            return {"attention_levels": attention, "global_context_levels": context}
        case _:
            return {}


def _levels(recipe: Recipe, height: int, heights: Sequence[int] | None, default: Sequence[int] = ()) -> tuple[int, ...]:
    """The levels, 0 the highest resolution and `height` pixels high, whose feature maps have these heights."""
    if heights is None:
        return tuple(default)
    return tuple(level for level in range(recipe.model.levels) if height // 2**level in heights)


def _pretrained_denoiser(recipe: Recipe, shape: tuple[int, int, int], load_weights: bool) -> ModelMixin:
    source, kind = recipe.model.pretrained, DENOISERS[recipe.model.kind]
    try:
        config = DiffusionPipeline.load_config(source)
        theirs = (config.get("unet") or [None, None])[1]
        if theirs != kind.__name__:
            named = {cls.__name__: name for name, cls in DENOISERS.items()}
            mend = f"set model.kind: {named[theirs]}" if theirs in named else "which none here continues"
            raise UserError(f"model.pretrained: {source} holds a {theirs}, no {kind.__name__}; {mend}")
        if load_weights:
            denoiser = kind.from_pretrained(source, subfolder="unet")
        else:
            denoiser = kind.from_config(kind.load_config(source, subfolder="unet"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.pretrained: no pipeline with a {kind.__name__} at {source}: {str(error).splitlines()[0]}"
        ) from None
    size = denoiser.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size or shape[1:])
    latents = recipe.autoencoder.source is not None
    outputs = 2 if recipe.diffusion.variance_type == "learned_range" else 1
    for key, theirs, ours in (
        ("autoencoder.source" if latents else "data.channels", denoiser.config.in_channels, shape[0]),
        ("data.resolution", list(size), list(shape[1:])),
        ("condition.num_classes", num_classes_of(denoiser), recipe.condition.num_classes),
        ("diffusion.variance_type", denoiser.config.out_channels // denoiser.config.in_channels, outputs),
    ):
        if theirs != ours:
            if key == "diffusion.variance_type":
                ours, theirs = recipe.diffusion.variance_type, "a learned variance" if theirs == 2 else "a fixed one"
            elif latents and key == "autoencoder.source":
                ours = f"{recipe.autoencoder.source}, whose latents have {ours} channels,"
            elif latents and key == "data.resolution":
                ours = f"{list(recipe.data.resolution)}, with latents of {ours},"
            raise UserError(f"{key}: {ours} does not fit {source}, which was trained with {theirs}")
    return denoiser
