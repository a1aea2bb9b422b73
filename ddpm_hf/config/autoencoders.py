"""The settings of an autoencoder that is trained here: the sections `model` and `loss` of its recipe."""

from typing import Literal

from ddpm_hf.config.base import Section, setting


class AutoencoderModel(Section):
    latent_channels: int = setting(4, "channels of the latents", ge=1)
    block_out_channels: tuple[int, ...] = setting(
        (128, 256, 512, 512),
        "channels of each level; each further level halves the image, so three of them make latents of a quarter of its size",
        min_length=1,
    )
    layers_per_block: int = setting(2, "residual blocks a level", ge=1)
    mid_block_attention: bool = setting(True, "self-attention at the lowest resolution")
    norm_num_groups: int = setting(32, "groups of each group normalisation", ge=1)

    @property
    def levels(self) -> int:
        """Resolutions that the network works at; each but the first halves the image."""
        return len(self.block_out_channels)


class Reconstruction(Section):
    perceptual: Literal["auto", "lpips", "l2"] = setting(
        "auto", "what is added to L1: LPIPS (Zhang et al. 2018) or L2; auto takes LPIPS where its weights are at hand"
    )
    perceptual_weight: float = setting(1.0, "weight of LPIPS or L2", ge=0)
    kl_weight: float = setting(
        1e-6, "weight of the posterior's divergence from N(0, I), summed over latents, a value of the image", ge=0
    )
    discriminator_start: int | None = setting(
        None, "optimizer steps after which a patch discriminator joins in (Esser et al. 2021); none if not given", ge=0
    )
    discriminator_weight: float = setting(0.1, "weight of the discriminator's opinion of the reconstruction", gt=0)
