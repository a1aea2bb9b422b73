"""DINOv2 (Oquab et al. 2023), whose features agree better with people than Inception's do (Stein et al. 2023)."""

import os
from pathlib import Path

import torch

from ddpm_hf.codec import weights_digest
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors.base import Extractor, Features, resize

DEFAULT = "facebook/dinov2-base"  # FD_DINOv2 in the literature is of facebook/dinov2-large
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of images in [0, 1]
MODEL_TYPES = ("dinov2", "dinov2_with_registers")


class Dinov2(Extractor):
    """The class token after the last layer norm. The whole image is resized, nothing is cropped, as Stein et al. do.

    weights: Hub id or folder of a transformers checkpoint
    """

    name, has_probabilities = "dinov2", False

    def __init__(self, weights: str | None, device: torch.device | str, option: str = "--") -> None:
        self.device = torch.device(device)
        source = weights or DEFAULT
        self._model = _load(source, option).to(self.device)
        self._mean, self._std = (torch.tensor(values, device=self.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
        self.dimensions = self._model.config.hidden_size
        self.identity = {
            "name": self.name,
            "weights": Path(source).name if os.path.exists(os.path.expanduser(source)) else source,
            "sha256": weights_digest(self._model),
            "resize": f"{SIZE}x{SIZE}, bicubic with antialias",
            "dimensions": self.dimensions,
        }

    def extract(self, images: torch.Tensor) -> Features:
        x = resize(self.to_input(images), (SIZE, SIZE))
        return Features(self._model((x - self._mean) / self._std).last_hidden_state[:, 0], None)


def _load(source: str, option: str) -> torch.nn.Module:
    """In float32 and evaluation mode. Raises `UserError`."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, which takes a moment
    place = os.path.expanduser(source)
    try:
        kind = AutoConfig.from_pretrained(place).model_type
        if kind not in MODEL_TYPES:
            raise UserError(f"{option}extractor_weights: {source} holds a {kind}, no {' or '.join(MODEL_TYPES)}")
        model = AutoModel.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError) as error:
        why = "HF_HUB_OFFLINE forbids to download them" if HF_HUB_OFFLINE else str(error).strip().splitlines()[0]
        raise UserError(
            f"{option}extractor: dinov2's weights are not at {source}, neither a folder nor in the Hub's cache ({why}); give"
            f" {option}extractor_weights, a Hub id such as {DEFAULT} or a folder that holds its files;"
            f" {option}extractor efficientnet_lite0 needs no download, nor does classifier, for which a recipe must be at hand"
        ) from None
    return model.eval().requires_grad_(False)
