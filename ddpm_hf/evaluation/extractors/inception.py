"""InceptionV3 as clean-fid runs it (Parmar et al. 2022), whose features FID, KID and the Inception Score are defined by."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import linear

from ddpm_hf.errors import UnreachableError, UserError
from ddpm_hf.evaluation.extractors.base import Extractor, Features
from ddpm_hf.files import sha256_of

FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"  # 96 MB; clean-fid's own
SIZE = 299


class Inception(Extractor):
    """NVIDIA's TorchScript translation of the original network; its clean resize is bicubic, by Pillow, in float.

    The probabilities leave out the output layer's bias, as the Inception Score's original code does (Salimans et al. 2016).

    weights: the file, or a folder that holds it; None looks where clean-fid and torch keep theirs, then downloads it
    """

    name, dimensions, has_probabilities = "inception", 2048, True

    def __init__(self, weights: str | None, device: torch.device | str, option: str = "--") -> None:
        from ddpm_hf.evaluation.extractors.torchscript import load_torchscript

        self.device = torch.device(device)
        key = f"{option}extractor_weights"
        path = _named(weights, key) if weights is not None else _found(key, f"{option}extractor")
        network = load_torchscript(path, self.device, key)
        if not (hasattr(network, "layers") and hasattr(network, "output")):
            raise UserError(f"{key}: {path} is not {FILE}, which {URL} gives")
        self._layers, self._output = network.layers, network.output.weight
        # one for each core of this process's share; Pillow lets them work at once
        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        self.identity = {
            "name": self.name,
            "weights": path.name,
            "sha256": sha256_of(path),
            "resize": f"clean-fid's: {SIZE}x{SIZE}, bicubic with antialias",
            "dimensions": self.dimensions,
        }

    def extract(self, images: torch.Tensor) -> Features:
        x = self._resized(images).to(self.device).expand(-1, 3, -1, -1)
        values = self._layers((x - 128) / 128).flatten(1)
        return Features(values, linear(values, self._output).softmax(dim=1))

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        """float32 (N, C, 299, 299), a channel at a time."""
        planes = images.cpu().numpy()
        resized = self._threads.map(_clean_resize, planes.reshape(-1, *planes.shape[2:]))
        return torch.from_numpy(np.stack(list(resized))).unflatten(0, planes.shape[:2])


def _clean_resize(plane: np.ndarray) -> np.ndarray:
    """uint8 (h, w) to float32 (299, 299) in [0, 255]; the same bits as cleanfid.resize's."""
    image = Image.fromarray(plane.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image).clip(0, 255)


def _named(weights: str, key: str) -> Path:
    path = Path(os.path.expanduser(weights))
    if path.is_dir() and not (path / FILE).is_file():
        raise UserError(f"{key}: {weights} holds no {FILE}; download {URL} into it")
    return path / FILE if path.is_dir() else path


def _found(key: str, extractor: str) -> Path:
    """Where the weights are, having been downloaded if need be. Raises `UserError` where that cannot be."""
    from filelock import FileLock
    from huggingface_hub.constants import HF_HUB_OFFLINE

    kept = Path(torch.hub.get_dir(), "checkpoints", FILE)
    for path in (kept, *_cleanfid_keeps()):
        if path.is_file():
            return path
    mend = f"put {URL} at {kept}, or name the file by {key}; {extractor} efficientnet_lite0 needs no download, nor does classifier, for which a recipe must be at hand"
    if HF_HUB_OFFLINE:
        raise UserError(
            f"{extractor}: inception needs its weights, and HF_HUB_OFFLINE forbids to download them: {mend}"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # one process of a machine downloads
            if not kept.is_file():
                torch.hub.download_url_to_file(URL, str(kept))  # aside, then renamed
    except OSError as error:
        raise UnreachableError(
            f"{extractor}: inception needs its weights, which cannot be downloaded ({error}): {mend}"
        ) from None
    return kept


def _cleanfid_keeps() -> list[Path]:
    """Where clean-fid itself downloads to."""
    return [Path("." if os.name == "nt" else "/tmp", FILE)]
