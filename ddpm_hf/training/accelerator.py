"""Processes, devices and mixed precision, and whether this machine has what the recipe asks for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradScalerKwargs, InitProcessGroupKwargs, ProjectConfiguration

from ddpm_hf.config import AnyRecipe, Train
from ddpm_hf.errors import UserError
from ddpm_hf.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def build_accelerator(recipe: AnyRecipe) -> Accelerator:
    """Processes, devices and mixed precision as launched; the recipe says which precision, not the launcher."""
    train = recipe.train
    check_precision(train)
    run = RunFolder(recipe)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes on processors alone would not find each other
        mixed_precision=train.precision,
        dynamo_backend="inductor" if train.compile else "no",
        project_config=ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.path)),
        kwargs_handlers=[
            GradScalerKwargs(enabled=train.gradient_scaler),
            # the main process alone computes an evaluation's metrics and prepares images, while the others wait
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ],
    )


@contextmanager
def own_accelerator() -> Iterator[None]:
    """`forget_accelerator` for what is done in here; then a caller's own `Accelerator` goes on as it was."""
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    callers = [dict(state) for state in shared]
    forget_accelerator()
    try:
        yield
    finally:
        several = PartialState._shared_state.get("num_processes", 1) > 1
        for state, before in zip(shared, callers, strict=True):
            if before or not several:  # several have parted; what is left here says so to the next
                state.clear()
                state.update(before)


def forget_accelerator() -> None:
    """Lets the next training or evaluation of this process choose precision and device for itself.

    Accelerate keeps both for the whole process, where a command needs them once. Raises `UserError` in a launcher's several
    processes, which part at the end of the first one and cannot meet again.
    """
    if PartialState._shared_state.get("num_processes", 1) > 1 and not torch.distributed.is_initialized():
        raise UserError("several processes train or evaluate once; launch this program anew for what comes next")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
