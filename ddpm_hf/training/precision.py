"""Whether this machine can train in the recipe's precision, and whether it should."""

import logging

import torch

from ddpm_hf.config import Train
from ddpm_hf.errors import UserError

logger = logging.getLogger(__name__)


def check_precision(train: Train) -> None:
    """Refuses fp16 without a GPU; warns where bf16 is emulated, which is slower than float32."""
    gpu = torch.accelerator.is_available()
    if train.precision == "fp16" and not gpu:
        raise UserError(
            "train.precision: fp16 needs a GPU and there is none; take no (float32), or bf16 where the processor has it"
        )
    if train.precision == "bf16" and not _has_bfloat16(gpu):
        logger.warning(
            "train.precision: this %s has no bfloat16 units, so bf16 is slower than float32 here; no would be faster",
            "GPU" if gpu else "processor",
        )


def _has_bfloat16(gpu: bool) -> bool:
    if gpu:
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
