"""What an autoencoder is trained for: Rombach et al. (2022), section 3.1 and equation 25, with Esser et al.'s critic."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.func import functional_call

from ddpm_hf.autoencoder.discriminator import PatchDiscriminator
from ddpm_hf.autoencoder.perceptual import LPIPS
from ddpm_hf.config.autoencoders import Reconstruction

Autocast = Callable[[], AbstractContextManager]


class Terms(NamedTuple):
    """What a forward pass gives the loss, float32, a value an image but for the first."""

    reconstruction: torch.Tensor  # (N, C, H, W), not clamped
    kl: torch.Tensor  # (N,), summed over the latent's elements, in nats
    generator: torch.Tensor  # (N,), gives the autoencoder alone a gradient
    discriminator: torch.Tensor  # (N,), gives the discriminator alone a gradient


class AutoencoderTrainee(nn.Module):
    """Autoencoder and discriminator as one module, so that one backward pass and one optimizer step train both."""

    def __init__(self, autoencoder: AutoencoderKL, discriminator: PatchDiscriminator | None = None) -> None:
        super().__init__()
        self.autoencoder, self.discriminator = autoencoder, discriminator

    def forward(self, images: torch.Tensor, adversarial: float = 0.0) -> Terms:
        """`images`: float32 (N, C, H, W) in [-1, 1]; `adversarial`: the factor of both adversarial terms, 0 without them.

        Draws each latent from its posterior, with torch's default generator.
        """
        posterior = DiagonalGaussianDistribution(self.autoencoder.encode(images).latent_dist.parameters.float())
        reconstruction = self.autoencoder.decode(posterior.sample()).sample.float()
        kl = posterior.kl()  # to N(0, I)
        if self.discriminator is None:
            return Terms(reconstruction, kl, torch.zeros_like(kl), torch.zeros_like(kl))
        if not adversarial:
            # without a pass; a zero gradient all the same, as DistributedDataParallel waits for every parameter's
            nothing = 0 * sum(parameter.sum() for parameter in self.discriminator.parameters()).float().expand_as(kl)
            return Terms(reconstruction, kl, torch.zeros_like(kl), nothing)
        # the generator's term sees the discriminator's weights as constants
        constants = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, constants, (reconstruction,)).float()
        generator = -logits.mean(dim=(1, 2, 3))
        # and the discriminator's sees the reconstruction as one: the hinge loss of Lim & Ye (2017), equation 4
        pair = self.discriminator(torch.cat([images, reconstruction.detach()])).float()
        real, fake = pair.chunk(2)
        hinge = (torch.relu(1 - real) + torch.relu(1 + fake)).mean(dim=(1, 2, 3)) / 2
        return Terms(reconstruction, kl, adversarial * generator, adversarial * hinge)

    def enable_gradient_checkpointing(self) -> None:
        self.autoencoder.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        self.autoencoder.disable_gradient_checkpointing()


class AutoencoderObjective:
    """Each image's loss, with the call of `ddpm_hf.diffusion.objective.Objective`.

    `settings.perceptual`: lpips or l2; `step`: how many optimizer steps have been taken, on which the discriminator's
    start depends. Only the networks run under `autocast`, and of those LPIPS, part of the loss, does not.
    Raises `UserError` where LPIPS is asked for and not at hand.
    """

    def __init__(self, settings: Reconstruction, step: Callable[[], int], device: torch.device) -> None:
        if settings.perceptual not in ("lpips", "l2"):
            raise ValueError(f"perceptual is lpips or l2, not {settings.perceptual}")
        self.settings, self.step = settings, step
        self.lpips = LPIPS(device) if settings.perceptual == "lpips" else None

    def __call__(
        self,
        model: Callable[..., Terms],
        x0: torch.Tensor,
        labels: torch.Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> torch.Tensor:
        """The training loss (N,) of the images `x0`, float32 (N, C, H, W) in [-1, 1].

        `model`: an `AutoencoderTrainee`, wrapped or not; labels play no part. Both networks' losses are added, of
        which each network gets the gradient of its own.
        """
        start = self.settings.discriminator_start
        adversarial = 1.0 if start is not None and self.step() >= start else 0.0
        with autocast():
            terms = model(x0, adversarial)
        # a fixed weight: Esser et al.'s adaptive one (equation 7) takes two more backward passes through the last
        # layer, one of them of the whole loss, and would differ between a batch and the micro batches it is cut into
        adversary = self.settings.discriminator_weight * terms.generator + terms.discriminator
        return self._reconstruction_loss(x0, terms) + adversary

    def validation(
        self,
        model: Callable[..., Terms],
        x0: torch.Tensor,
        labels: torch.Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> torch.Tensor:
        """The same loss (N,) without the adversarial terms, so that it stays comparable while the critic changes."""
        with autocast():
            terms = model(x0, 0.0)
        return self._reconstruction_loss(x0, terms)

    def _reconstruction_loss(self, x0: torch.Tensor, terms: Terms) -> torch.Tensor:
        """L1 + perceptual_weight * (LPIPS or L2) + kl_weight * KL, (N,).

        L1 and L2 are means over an image's values. The divergence is summed over the latent and divided by the number
        of the image's values, C * H * W: Rombach et al. sum both over an image and LPIPS counts once a value, so
        that all is divided by the same number and `kl_weight` is theirs (10^-6, appendix G).
        """
        error = terms.reconstruction - x0
        of_image = (1, 2, 3)
        l2 = self.lpips is None
        perceptual = error.square().mean(dim=of_image) if l2 else self.lpips(terms.reconstruction, x0)
        reconstruction = error.abs().mean(dim=of_image) + self.settings.perceptual_weight * perceptual
        return reconstruction + self.settings.kl_weight * terms.kl / x0[0].numel()
