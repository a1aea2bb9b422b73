"""Any TorchScript file as an extractor.

The file's forward takes images, float32 (N, channels, H, W) with the values 0 to 255, and gives features, float (N, D), or a
tuple of features and class probabilities, (N, K). It resizes and normalises by itself. Two attributes, which it may have,
say what it takes: `channels: int`, 1 or 3 (3 if not given), and `image_size: int`, for square images of one size, to which
they are then resized (any size if not given).
"""

import warnings
from pathlib import Path

import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors import EXTRACTORS
from ddpm_hf.evaluation.extractors.base import Extractor, Features, resize
from ddpm_hf.evaluation.extractors.inception import FILE as INCEPTION
from ddpm_hf.files import sha256_of

_PROBE = 64  # pixels a side, of an image that a file is tried with


class TorchScript(Extractor):
    """Named by the file's stem. Raises `UserError` where the file is missing or is not what this module says."""

    at_once = 16

    def __init__(self, path: Path, device: torch.device | str, option: str = "--") -> None:
        key = f"{option}extractor"
        if path.name == INCEPTION:
            raise UserError(f"{key}: {path} is Inception; set {key} inception and {key}_weights {path}")
        if path.stem in EXTRACTORS:
            raise UserError(f"{key}: {path} would be taken for the built-in {path.stem}; give the file another name")
        self.name, self.device = path.stem, torch.device(device)
        self._network = load_torchscript(path, self.device, key)
        self.channels = getattr(self._network, "channels", 3)
        self._size = getattr(self._network, "image_size", None)
        if self.channels not in (1, 3) or not (self._size is None or isinstance(self._size, int)):
            raise UserError(
                f"{key}: {path} says that it takes {self.channels} channels and the image size {self._size}; its"
                " attributes channels, 1 or 3, and image_size should be whole numbers"
            )
        found = self._probe(path, key)
        self.dimensions, self.has_probabilities = found.values.shape[1], found.probabilities is not None
        self.identity = {
            "name": self.name,
            "weights": path.name,
            "sha256": sha256_of(path),
            "resize": "the file's own" if self._size is None else f"{self._size}x{self._size}, bicubic with antialias",
            "dimensions": self.dimensions,
        }

    def extract(self, images: torch.Tensor) -> Features:
        x = self.to_input(images)
        found = self._network(x if self._size is None else resize(x, (self._size, self._size)))
        values, probabilities = found if isinstance(found, tuple) else (found, None)
        return Features(values.float(), None if probabilities is None else probabilities.float())

    def _probe(self, path: Path, key: str) -> Features:
        """Features of a black image and a white one."""
        side = self._size or _PROBE
        images = torch.zeros(2, self.channels, side, side, dtype=torch.uint8)
        images[1] = 255
        try:
            with torch.no_grad():
                found = self.extract(images)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{key}: {path} does not make features of float images (N, {self.channels}, {side}, {side}): {reason}; of"
                " its attributes, channels and image_size say what it takes"
            ) from None
        values, probabilities = found.values, found.probabilities
        if values.ndim != 2 or len(values) != 2:
            raise UserError(
                f"{key}: {path} gives features of the shape {tuple(values.shape)} for two images, not (2, D)"
            )
        if probabilities is not None and not _are_probabilities(probabilities):
            raise UserError(
                f"{key}: {path} gives class probabilities, its second output, that are not (2, K) with rows that sum to 1"
            )
        return found


def _are_probabilities(p: torch.Tensor) -> bool:
    return p.ndim == 2 and len(p) == 2 and bool((p >= 0).all()) and bool(((p.sum(dim=1) - 1).abs() < 1e-3).all())


def load_torchscript(path: Path, device: torch.device, key: str) -> torch.jit.ScriptModule:
    """In evaluation mode, frozen. Raises `UserError`, which names the option by `key`."""
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load`", FutureWarning)  # such files stay what they are
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError:
        raise UserError(f"{key}: {path} is no TorchScript file, or not a whole one") from None
