"""What a run tells about itself: counters on the device, metrics.jsonl, trackers, one progress bar."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from ddpm_hf.config import AnyRecipe
from ddpm_hf.training.run_folder import RunFolder


class Meter:
    """Counts during training without waiting for the device; `read` waits, once a logged line."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.skipped = torch.zeros((), device=accelerator.device)
        self.skipped_in_a_row = torch.zeros((), device=accelerator.device)
        self.seconds_before = 0.0
        self.restart()

    def restart(self) -> None:
        """Begins to count anew, at the start of training and after each logged line."""
        device = self.accelerator.device
        self.loss_sum = torch.zeros((), device=device)
        self.loss_count = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.images, self.data_wait, self.paused_for = 0, 0.0, 0.0
        self.started, self.paused_at = time.perf_counter(), None

    def next_batch(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        start = time.perf_counter()
        batch = next(batches)
        self.data_wait += time.perf_counter() - start
        return batch

    @torch.no_grad()
    def add_loss(self, loss: torch.Tensor) -> None:
        """`loss`: float32 (N,), one an image. Values that are not finite are left out of the mean."""
        finite = loss.isfinite()
        self.loss_sum += torch.where(finite, loss, 0).sum()
        self.loss_count += finite.sum()

    @torch.no_grad()
    def add_step(self, images: int, grad_norm: torch.Tensor, accept: torch.Tensor) -> None:
        self.images += images
        self.grad_norm = grad_norm
        self.skipped += 1 - accept
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * (1 - accept)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here (sampling, saving) does not count as training time."""
        synchronize(self.accelerator.device)
        self.paused_at = time.perf_counter()
        yield
        synchronize(self.accelerator.device)
        self.paused_for += time.perf_counter() - self.paused_at
        self.paused_at = None

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps so far, over all sessions of the run."""
        return self.seconds_before + self._elapsed()

    def _elapsed(self) -> float:
        return (self.paused_at or time.perf_counter()) - self.started - self.paused_for

    def read(self) -> dict[str, float | int | None]:
        """Means over all processes since the last call."""
        loss_sum, loss_count = self.accelerator.reduce(torch.stack([self.loss_sum, self.loss_count]), "sum").tolist()
        elapsed = self._elapsed()
        self.seconds_before += elapsed
        grad_norm = self.grad_norm.item()
        values = {
            "loss": loss_sum / loss_count if loss_count else None,
            "grad_norm": grad_norm if np.isfinite(grad_norm) else None,
            "images_per_second": self.images / elapsed,
            "data_wait": self.data_wait / elapsed,  # share of the time spent waiting for data
            "skipped_steps": int(self.skipped.item()),
            "training_seconds": self.seconds_before,
        }
        self.restart()
        return values


class Tracking:
    """metrics.jsonl, the trackers of the recipe and the progress bar; silent on all processes but the first."""

    def __init__(self, recipe: AnyRecipe, run: RunFolder, accelerator: Accelerator, step: int, max_steps: int) -> None:
        self.run, self.accelerator = run, accelerator
        self.main = accelerator.is_main_process
        settings = {
            f"{section}.{key}": str(value)
            for section, values in recipe.model_dump().items()
            for key, value in values.items()
        }
        started = []
        for tracker in recipe.track.trackers:
            # TensorBoard takes its project's name as the folder below the run's
            project = "tensorboard" if tracker == "tensorboard" else recipe.track.project
            names = {
                "wandb": {
                    "name": recipe.run.name,
                    "id": sha256(str(run.path.resolve()).encode()).hexdigest()[:12],
                    "resume": "allow",
                },
                "trackio": {"name": recipe.run.name},
            }
            accelerator.log_with = [tracker]
            accelerator.trackers = []
            accelerator.init_trackers(project, init_kwargs={tracker: names.get(tracker, {})})
            started += accelerator.trackers
            if tracker != "tensorboard" and self.main:  # its hyper-parameter page would need one folder more a run
                accelerator.trackers[-1].store_init_configuration(settings)
        accelerator.trackers = started
        self.shown: dict[str, str] = {}
        self.bar = tqdm(initial=step, total=max_steps, unit="step", dynamic_ncols=True, disable=not self.main)

    def log(self, values: dict[str, float | int | None]) -> None:
        if self.main:
            with open(self.run.metrics_file, "a") as file:
                file.write(json.dumps(values) + "\n")
            shown = {"loss": "loss", "validation_loss": "val", "images_per_second": "images/s"}
            self.bar.set_postfix(
                {name: f"{values[key]:.4g}" for key, name in shown.items() if values.get(key) is not None}
            )
        self.accelerator.log({k: v for k, v in values.items() if k != "step" and v is not None}, step=values["step"])

    def log_picture(self, picture: Image.Image, step: int) -> None:
        images = np.asarray(picture.convert("RGB"))[None]  # uint8 (1, H, W, 3)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": images}, step=step, **layout)

    def close(self) -> None:
        self.bar.close()
        self.accelerator.end_training()


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
