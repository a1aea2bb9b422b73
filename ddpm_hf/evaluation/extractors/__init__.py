"""Networks whose features images are compared by, and the classes that they see."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf.errors import UserError

if TYPE_CHECKING:
    import torch

    from ddpm_hf.data.store import PreparedStore
    from ddpm_hf.evaluation.extractors.base import Extractor

EXTRACTORS = ("inception", "dinov2", "efficientnet_lite0", "classifier")
TORCHSCRIPT_SUFFIXES = (".pt", ".ts", ".torchscript", ".jit")


def build_extractor(
    name: str,
    weights: str | None = None,
    device: "torch.device | str" = "cpu",
    training_set: "PreparedStore | None" = None,
    option: str = "--",
) -> "Extractor":
    """The extractor of a name in `EXTRACTORS`, or a TorchScript file.

    weights: file or folder of inception's, Hub id or folder of dinov2's; None finds them, or downloads them where it may
    training_set: labelled pixels; what `classifier` is trained on
    option: how options begin in messages, "--" or "evaluate."

    Raises `UserError` for a name or file that is none, and for weights that are missing or do not fit.
    """
    if weights is not None and name not in ("inception", "dinov2"):
        raise UserError(f"{option}extractor_weights: is for inception and dinov2; {name} needs none, leave it out")
    match name:
        case "inception":
            from ddpm_hf.evaluation.extractors.inception import Inception

            return Inception(weights, device, option)
        case "dinov2":
            from ddpm_hf.evaluation.extractors.dinov2 import Dinov2

            return Dinov2(weights, device, option)
        case "efficientnet_lite0":
            from ddpm_hf.evaluation.extractors.efficientnet_lite0 import EfficientNetLite0

            return EfficientNetLite0(device, option)
        case "classifier":
            from ddpm_hf.evaluation.extractors.classifier import Classifier

            if training_set is None:
                raise UserError(
                    f"{option}extractor: classifier is trained on labelled images, and there are none here; name another"
                )
            return Classifier(training_set, device, option)
    if Path(name).suffix not in TORCHSCRIPT_SUFFIXES:
        raise UserError(
            f"{option}extractor: {name} is none of {', '.join(EXTRACTORS)}, nor a TorchScript file"
            f" ({', '.join(TORCHSCRIPT_SUFFIXES)})"
        )
    from ddpm_hf.evaluation.extractors.torchscript import TorchScript

    return TorchScript(Path(os.path.expanduser(name)), device, option)
