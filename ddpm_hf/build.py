"""The one place that turns a recipe's names into objects."""

from diffusers import DiffusionPipeline, ModelMixin, UNet2DModel

from ddpm_hf.config import Recipe
from ddpm_hf.errors import UserError


def build_denoiser(recipe: Recipe, load_weights: bool = True) -> ModelMixin:
    """The denoiser with fresh weights, or with those of the pipeline that `model.pretrained` names, if `load_weights`."""
    model = recipe.model
    if model.pretrained is not None:
        return _pretrained_denoiser(recipe, load_weights)
    levels = range(len(model.block_out_channels))
    attends = [recipe.data.resolution[0] // 2**level in model.attention_resolutions for level in levels]
    height, width = recipe.data.resolution
    return UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=recipe.data.channels,
        out_channels=recipe.data.channels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attends[level] else "DownBlock2D" for level in levels),
        up_block_types=tuple("AttnUpBlock2D" if attends[level] else "UpBlock2D" for level in reversed(levels)),
        attention_head_dim=model.attention_head_dim,
        norm_num_groups=model.norm_num_groups,
        norm_eps=1e-6,  # from here on as in the DDPM paper's own network
        dropout=model.dropout,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )


def _pretrained_denoiser(recipe: Recipe, load_weights: bool) -> ModelMixin:
    source = recipe.model.pretrained
    try:
        config = DiffusionPipeline.load_config(source)
        if load_weights:
            denoiser = UNet2DModel.from_pretrained(source, subfolder="unet")
        else:
            denoiser = UNet2DModel.from_config(UNet2DModel.load_config(source, subfolder="unet"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.pretrained: no pipeline with a UNet2DModel at {source}: {str(error).splitlines()[0]}"
        ) from None
    if config.get("unet", [None, None])[1] != "UNet2DModel":
        raise UserError(
            f"model.pretrained: {source} holds {config.get('_class_name')}, whose denoiser is no UNet2DModel"
        )
    size = denoiser.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size or recipe.data.resolution)
    for key, theirs, ours in (
        ("data.channels", denoiser.config.in_channels, recipe.data.channels),
        ("data.resolution", list(size), list(recipe.data.resolution)),
    ):
        if theirs != ours:
            raise UserError(f"{key}: {ours} does not fit {source}, which was trained with {theirs}")
    return denoiser
