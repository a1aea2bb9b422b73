"""The training loop: DDPM (Ho et al. 2020), algorithm 1."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.tracking import Meter


@dataclass
class Progress:
    """How far a run is; its whole random state follows from this and the seed."""

    step: int = 0  # optimizer steps taken
    images_seen: int = 0


@dataclass(frozen=True)
class Event:
    """Something done after every `every` steps and after the last one; at a stop, which may have seconds, if `on_stop`."""

    every: int
    action: Callable[[Progress], None]
    on_stop: bool = False


def training_loop(
    *,
    model: nn.Module,
    wrapped: nn.Module,  # the same as Accelerate wraps it, for many processes and compilation
    objective: Callable[..., torch.Tensor],
    codec: PixelCodec | AutoencoderCodec,
    batches: Iterator[dict[str, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ema: EMA,
    accelerator: Accelerator,
    meter: Meter,
    progress: Progress,
    max_steps: int,
    accumulation: int,
    seed: int,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
    events: list[Event],
    stop_requested: Callable[[], bool],
) -> None:
    """Trains until `max_steps`, or until `stop_requested` after a step; `progress` tells where it ended.

    The host never waits for the device in here, but for the events. Everything random in a forward pass (timesteps,
    noise, dropout) comes from torch's default generators, seeded from (seed, progress, process): a resumed run draws
    what an undisturbed one would have.
    """
    while progress.step < max_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step)
        images = 0
        for micro_step in range(accumulation):
            # Algorithm 1, line 2: x_0 ~ q(x_0); uint8 pixels (N, C, H, W), or latents' moments, to float32 (N, C, H, W)
            batch = meter.next_batch(batches)
            torch.manual_seed(noise_seed(seed, progress.images_seen, micro_step, accelerator.process_index))
            x0 = codec.encode(batch["records"].to(accelerator.device, non_blocking=True))
            labels = batch["labels"].to(accelerator.device, non_blocking=True)  # int64 (N,)
            images += len(x0) * accelerator.num_processes
            last = micro_step == accumulation - 1
            with nullcontext() if last else accelerator.no_sync(wrapped):  # gradients are averaged once a step
                # lines 3 to 5: t, epsilon, and the gradient of the loss
                loss = objective(wrapped, x0, labels, accelerator.autocast)
                accelerator.backward(loss.mean() / accumulation)
            meter.add_loss(loss.detach())

        scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        # A fused step leaves weights and moments alone where found_inf is 1; no one has to look.
        accept = grad_norm.isfinite().float()
        optimizer.found_inf = 1 - accept
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        progress.step += 1
        progress.images_seen += images
        ema.update(model, progress.step, accept)
        meter.add_step(images, grad_norm, accept)

        stopping = stop_requested()
        for event in events:
            if progress.step % event.every == 0 or progress.step == max_steps or (stopping and event.on_stop):
                event.action(progress)
        if stopping:
            return


def noise_seed(seed: int, images_seen: int, micro_step: int, process: int) -> int:
    return int(
        np.random.SeedSequence([seed, 4, images_seen, micro_step, process]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
