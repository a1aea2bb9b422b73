"""The settings of each kind of denoiser: the `model` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from ddpm_hf.config.base import Section, setting


class Denoiser(Section):
    pretrained: str | None = setting(
        None, "start from the denoiser of this pipeline (Hub id or folder), architecture included"
    )

    @property
    def levels(self) -> int:
        """Resolutions that the network works at; each but the first halves the image."""
        widths = getattr(self, "block_out_channels", None) or getattr(self, "channel_multipliers", None)
        return len(widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        if hasattr(self, "block_out_channels"):
            return self.block_out_channels
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)


class UNet2D(Denoiser):
    kind: Literal["unet2d"] = setting("unet2d", "Diffusers' UNet2DModel, built as in the DDPM paper")
    block_out_channels: tuple[int, ...] = setting(
        (128, 256, 256, 256), "channels of each level; each further level halves the image", min_length=1
    )
    layers_per_block: int = setting(2, "residual blocks a level", ge=1)
    attention_resolutions: tuple[int, ...] = setting((16,), "feature-map heights that get self-attention")
    attention_head_dim: int | None = setting(None, "channels of an attention head; one head if not given", ge=1)
    norm_num_groups: int = setting(32, "groups of each group normalisation", ge=1)
    dropout: float = setting(0.0, "dropout in the residual blocks", ge=0, lt=1)


class Jones(Denoiser):
    kind: Literal["jones"] = setting("jones", "the U-Net of report jones")
    base_channels: int = setting(64, "channels of the first level", ge=2, multiple_of=2)

    @property
    def channel_multipliers(self) -> tuple[int, ...]:
        return 1, 2, 4, 4


class Peng(Denoiser):
    kind: Literal["peng"] = setting("peng", "the U-Net of report peng")
    base_channels: int = setting(32, "channels of the first level", ge=8, multiple_of=8)
    time_embed_dim: int = setting(128, "width of the time code and the label embedding", ge=2, multiple_of=2)

    @property
    def channel_multipliers(self) -> tuple[int, ...]:
        return 1, 2, 4


class Das(Denoiser):
    kind: Literal["das"] = setting("das", "the U-Net of report das")
    base_channels: int = setting(128, "channels of the first level", ge=1)
    channel_multipliers: tuple[int, ...] = setting(
        (1, 2, 2, 2), "channels of each level over the first's", min_length=1
    )
    layers_per_block: int = setting(2, "residual blocks a level", ge=1)
    attention_resolutions: tuple[int, ...] | None = setting(
        None, "feature-map heights that get self-attention; all but the highest if not given"
    )
    norm_num_groups: int = setting(8, "groups of each group normalisation", ge=1)


class Luu(Denoiser):
    kind: Literal["luu"] = setting("luu", "the U-Net of report luu")
    base_channels: int = setting(64, "channels of the first level", ge=4)
    channel_multipliers: tuple[int, ...] = setting(
        (1, 2, 4, 8), "channels of each level over the first's", min_length=1
    )


class Tefiang(Denoiser):
    kind: Literal["tefiang"] = setting("tefiang", "report tefiang's enhanced attention, section 7.3")
    block_out_channels: tuple[int, ...] = setting(
        (128, 256, 256, 512), "channels of each level; each further level halves the image", min_length=1
    )
    layers_per_block: int = setting(2, "residual blocks a level", ge=1)
    attention_resolutions: tuple[int, ...] | None = setting(
        None, "feature-map heights that get self-attention and attend to the class; the lower two if not given"
    )
    global_context_resolutions: tuple[int, ...] | None = setting(
        None, "feature-map heights that attend to a pooled grid of themselves; all others if not given"
    )
    cross_resolution_attention: bool = setting(True, "the way up attends to all resolutions of the way down")
    attention_head_dim: int = setting(64, "channels of an attention head", ge=1)
    norm_num_groups: int = setting(32, "groups of each group normalisation", ge=1)


Model = Annotated[UNet2D | Jones | Peng | Das | Luu | Tefiang, Field(discriminator="kind")]
