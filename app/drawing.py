"""Drawing for one visitor among several: seen while it goes on, stopped within a step."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ddpm_hf.app.models import Model
from ddpm_hf.app.request import Settings
from ddpm_hf.errors import UserError
from ddpm_hf.sampling import draw_batch, draw_strip, passes

PREVIEW_SHARE = 0.1  # of the time that drawing takes may go into showing it
EVERY = 0.2  # seconds between previews, at least
STRIP_COLUMNS = 8


class Stopped(Exception):
    """The visitor has changed their mind."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` passes of the denoiser over a batch; `images`, uint8 (n, C, H, W): the first n pictures as
    they are now, None where nothing new is to be seen."""

    done: int
    total: int
    images: np.ndarray | None = None


class Studio:
    """Draws for at most `concurrency` visitors at once, `batch_size` pictures at a time.

    Its threads last: each new thread that computes would cost memory of its own.
    """

    def __init__(self, concurrency: int = 1, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="drawing")

    def draw(
        self, model: Model, settings: Settings, seeds: range, stop: threading.Event
    ) -> Iterator[Progress | np.ndarray]:
        """Progress from time to time, at last the images: uint8 (N, C, H, W), those of `ddpm_hf.sampling.draw_images`.

        Ends with `Stopped` within a step of `stop` being set; closing the iterator stops it too.
        """
        return self._follow(stop, partial(_draw, model, settings, seeds, self.batch_size))

    def strip(
        self, model: Model, settings: Settings, seed: int, stop: threading.Event
    ) -> Iterator[Progress | np.ndarray]:
        """As `draw`: at last the states of one picture, uint8 (columns, C, H, W), from noise to what `draw` gives."""
        return self._follow(stop, partial(_strip, model, settings, seed))

    def _follow(
        self, stop: threading.Event, work: Callable[[Callable[[Progress], None]], np.ndarray]
    ) -> Iterator[Progress | np.ndarray]:
        """Runs `work` in a thread; what it tells is passed on, the newest where several came at once."""
        left = threading.Event()  # the iterator was closed
        news = threading.Condition()
        latest: dict[str, Any] = {}

        def tell(progress: Progress) -> None:
            if stop.is_set() or left.is_set():
                raise Stopped
            with news:
                images = progress.images if progress.images is not None else latest.get("images")
                latest.update(progress=progress, images=images)
                news.notify()

        def finished(_future: Any) -> None:
            with news:
                news.notify()

        future = self._threads.submit(work, tell)
        future.add_done_callback(finished)
        try:
            while not future.done():
                with news:
                    news.wait_for(lambda: latest or future.done(), timeout=1)
                    progress, images = latest.pop("progress", None), latest.pop("images", None)
                if progress is not None and not future.done():
                    yield Progress(progress.done, progress.total, images)
            yield future.result()
        finally:
            left.set()
            future.cancel()  # where it has not begun


def _draw(
    model: Model, settings: Settings, seeds: range, batch_size: int, tell: Callable[[Progress], None]
) -> np.ndarray:
    sampling = settings.sampling(model)
    per_batch = passes(model.pipe, sampling)
    starts = range(0, len(seeds), batch_size)
    done, total = 0, per_batch * len(starts)
    drawn: list[np.ndarray] = []
    previews = _Previews(model)

    def progress(_images: int) -> None:
        nonlocal done
        done += 1
        tell(Progress(done, total))

    def watch(state: torch.Tensor) -> None:
        images = None if done % per_batch == 0 else previews.of(state)  # the last state is decoded anyway
        if images is not None:
            tell(Progress(done, total, np.concatenate([*drawn, images])))

    for start in starts:
        try:
            images = draw_batch(model.pipe, seeds[start : start + batch_size], sampling, progress, watch)
        except torch.OutOfMemoryError:
            raise UserError("out of memory: ask for fewer pictures, or try again later") from None
        drawn.append(images.cpu().numpy())
    return np.concatenate(drawn)


def _strip(model: Model, settings: Settings, seed: int, tell: Callable[[Progress], None]) -> np.ndarray:
    sampling = settings.sampling(model)
    done, total = 0, passes(model.pipe, sampling)

    def progress(_images: int) -> None:
        nonlocal done
        done += 1
        tell(Progress(done, total))

    return draw_strip(model.pipe, [seed], sampling, STRIP_COLUMNS, progress)[0]


class _Previews:
    """Pictures as they are on the way, so seldom that making them takes a tenth of the time, whatever it costs.

    An autoencoder may cost as much as ten steps do: what it takes for one picture is measured first.
    """

    def __init__(self, model: Model) -> None:
        self._pipe = model.pipe
        self._each = None if model.pipe.vae is not None else 0.0  # seconds for a picture
        self._began = self._last = time.monotonic()
        self._spent = 0.0

    def of(self, state: torch.Tensor) -> np.ndarray | None:
        """uint8 (N, C, H, W) of a state (N, C, H, W), or None where it is too early."""
        now = time.monotonic()
        left = PREVIEW_SHARE * (now - self._began) - self._spent
        if now - self._last < EVERY or left <= (self._each or 0) * len(state):
            return None
        if self._each is None:
            self._timed(state[:1])
            return None
        return self._timed(state)

    def _timed(self, state: torch.Tensor) -> np.ndarray:
        if state.device.type != "cpu":
            torch.accelerator.synchronize(state.device)  # what is still to be computed of the step is not the preview's
        began = time.monotonic()
        images = (self._pipe.decode(state, "pt") * 255).round().to(torch.uint8).cpu().numpy()
        self._last = time.monotonic()
        self._spent += self._last - began
        self._each = (self._last - began) / len(state)
        return images
