"""LPIPS (Zhang et al. 2018): how different two images look, from the features of a VGG16 trained on ImageNet."""

from importlib.util import find_spec
from pathlib import Path

import torch

from ddpm_hf.config import AutoencoderRecipe
from ddpm_hf.config.checks import LPIPS_RESOLUTION
from ddpm_hf.errors import UserError

VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"  # 528 MB; LPIPS's own few weights are torchmetrics'


def weights_file() -> Path:
    """Where torchvision keeps VGG16's weights: in TORCH_HOME, or ~/.cache/torch."""
    return Path(torch.hub.get_dir(), "checkpoints", VGG16.rsplit("/", 1)[1])


def lpips_at_hand() -> bool:
    """Whether `LPIPS` can be had without a network."""
    return weights_file().is_file() and all(find_spec(name) for name in ("torchmetrics", "torchvision"))


def choose_perceptual(recipe: AutoencoderRecipe) -> tuple[AutoencoderRecipe, str]:
    """The recipe with `auto` resolved, so that it says when written down what was done; and why."""
    loss = recipe.loss
    if loss.perceptual != "auto":
        return recipe, f"loss.perceptual: {loss.perceptual}"
    chosen, why = "lpips", "VGG16's weights are at hand"
    if not lpips_fits(recipe.data.resolution):
        chosen, why = "l2", f"LPIPS is for images of {LPIPS_RESOLUTION} pixels a side and more"
    elif not lpips_at_hand():
        chosen, why = "l2", f"loss.perceptual: lpips needs torchmetrics, torchvision and {VGG16} at {weights_file()}"
    chosen_recipe = recipe.model_copy(update={"loss": loss.model_copy(update={"perceptual": chosen})})
    return chosen_recipe, f"loss.perceptual: {chosen}, since {why}"


def lpips_fits(size: tuple[int, int]) -> bool:
    """Whether images of this height and width are large enough for VGG16."""
    return min(size) >= LPIPS_RESOLUTION


class LPIPS:
    """Zhang et al. (2018), equation 1, through torchmetrics; frozen, in float32, and no part of any model's state.

    Nothing is downloaded: raises `UserError` where the weights are not at hand.
    """

    def __init__(self, device: torch.device) -> None:
        if not lpips_at_hand():
            raise UserError(
                f"loss.perceptual: lpips needs torchmetrics, torchvision and VGG16's weights: put {VGG16} at {weights_file()}, or take l2"
            )
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # the network alone: the metric around it looks at every value's range, and the device would wait for that
        self.net = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.requires_grad_(False).to(device)

    def __call__(self, reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Each image's distance (N,), 0 for equal images, from float32 (N, 1 or 3, H, W) in [-1, 1]."""
        three = (-1, 3, -1, -1)  # gray is repeated
        return self.net(reconstruction.expand(three), images.expand(three)).flatten()
