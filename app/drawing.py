"""Drawing for one visitor among several: seen while it goes on, stopped within a step."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from ddpm_hf.app.models import Model
from ddpm_hf.app.request import Settings
from ddpm_hf.errors import UserError
from ddpm_hf.sampling import draw_batch, draw_strip, passes

PREVIEW_SHARE = 0.1  # of the time that drawing takes may go into showing it
EVERY = 0.4  # seconds between previews, at least
UNTIMED = 1.0  # seconds before an autoencoder is timed at one picture, which may take long
TOLD = 0.25  # seconds between news, at least: who reads slowly is not buried in them
STRIP_COLUMNS = 8


class Stopped(Exception):
    """The visitor has changed their mind."""


class Stop(Protocol):
    """Whether to stop; a `threading.Event` is one."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Progress:
    """`done` of `total` passes of the denoiser over a batch; `images`, uint8 (n, C, H, W): the first n pictures as
    they are now, None where nothing new is to be seen. `doing`: "waiting", "drawing" or "decoding". Whoever shows the
    images tells `showing_took` for how many seconds."""

    done: int
    total: int
    images: np.ndarray | None = None
    doing: str = "drawing"
    showing_took: Callable[[float], None] = lambda seconds: None


class Studio:
    """Draws for at most `concurrency` visitors at once, `batch_size` pictures at a time.

    Its threads last: each new thread that computes would cost memory of its own.
    """

    def __init__(self, concurrency: int = 1, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="drawing")

    def draw(self, model: Model, settings: Settings, seeds: range, stop: Stop) -> Iterator[Progress | np.ndarray]:
        """Progress from time to time, at last the images: uint8 (N, C, H, W), those of `ddpm_hf.sampling.draw_images`.

        Ends with `Stopped` within a step of `stop` being set; closing the iterator stops it too.
        """
        return self._follow(stop, partial(_draw, model, settings, seeds, self.batch_size))

    def strip(self, model: Model, settings: Settings, seed: int, stop: Stop) -> Iterator[Progress | np.ndarray]:
        """As `draw`: at last the states of one picture, uint8 (columns, C, H, W), from noise to what `draw` gives."""
        return self._follow(stop, partial(_strip, model, settings, seed))

    def _follow(
        self, stop: Stop, work: Callable[[Callable[[Progress], None]], np.ndarray]
    ) -> Iterator[Progress | np.ndarray]:
        """Runs `work` in a thread; what it tells is passed on, the newest where several came at once."""
        left = threading.Event()  # the iterator was closed
        news = threading.Condition()
        latest: dict[str, Any] = {}

        def tell(progress: Progress) -> None:
            if stop.is_set() or left.is_set():
                raise Stopped
            with news:
                if progress.images is None and "progress" in latest:  # pictures that nobody has seen yet stay news
                    before = latest["progress"]
                    progress = replace(progress, images=before.images, showing_took=before.showing_took)
                latest["progress"] = progress
                news.notify()

        def finished(_future: Any) -> None:
            with news:
                news.notify()

        future = self._threads.submit(work, tell)
        future.add_done_callback(finished)
        try:
            wait([future], TOLD)
            if not future.running() and not future.done():  # the thread ends what somebody else has stopped
                yield Progress(0, 1, doing="waiting")
            while not future.done():
                with news:
                    news.wait_for(lambda: latest or future.done(), timeout=TOLD)
                    progress = latest.pop("progress", None)
                if stop.is_set():
                    raise Stopped
                if progress is not None and not future.done():
                    yield progress
                    wait([future], TOLD)
            yield future.result()
        finally:
            left.set()
            future.cancel()  # where it has not begun


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        words = ("not enough memory", "can't allocate memory")  # a processor's
        if isinstance(error, torch.OutOfMemoryError) or any(some in str(error) for some in words):
            raise UserError("out of memory: ask for fewer pictures, or try again later") from None
        raise
    except MemoryError:
        raise UserError("out of memory: ask for fewer pictures, or try again later") from None


class _Denoised(Exception):
    """Ends a drawing of latents before they are decoded, which is done here, in parts."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents


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
        if done % per_batch == 0:  # the last state is decoded anyway
            if model.pipe.vae is not None:
                raise _Denoised(state)
            return
        images = previews.of(state)
        if images is not None:
            tell(Progress(done, total, np.concatenate([*drawn, images]), showing_took=previews.showing_took))

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        parts = []
        for some in latents.split(sampling.decode_batch_size):
            tell(Progress(done, total, doing="decoding"))
            parts.append(model.pipe.decode(some, "pt"))
        return (torch.cat(parts) * 255).round().to(torch.uint8)

    with _enough_memory():
        for start in starts:
            try:
                images = draw_batch(model.pipe, seeds[start : start + batch_size], sampling, progress, watch)
            except _Denoised as denoised:
                images = decoded(denoised.latents)
            drawn.append(images.cpu().numpy())
    return np.concatenate(drawn)


def _strip(model: Model, settings: Settings, seed: int, tell: Callable[[Progress], None]) -> np.ndarray:
    sampling = settings.sampling(model)
    done, total = 0, passes(model.pipe, sampling)

    def progress(_images: int) -> None:
        nonlocal done
        done += 1
        tell(Progress(done, total, doing="decoding" if done == total and model.pipe.vae is not None else "drawing"))

    # decoding takes time, all states of pixels are there anyway
    columns = total + 1 if model.pipe.vae is None else 2 * STRIP_COLUMNS
    with _enough_memory():
        states = draw_strip(model.pipe, [seed], sampling, columns, progress)[0]
    return states[telling_states(states, STRIP_COLUMNS)]


def telling_states(states: np.ndarray, columns: int) -> list[int]:
    """Which of the states (N, C, H, W) to show: the first, the last, and between them ever nearer to the last.

    Evenly spaced in steps most would be noise: a picture is seen late.
    """
    columns = min(columns, len(states))
    away = np.sqrt(((states.astype(np.float64) - states[-1]) ** 2).mean(axis=(1, 2, 3)))
    chosen = [0]
    for i in range(1, columns):
        wanted = away[0] * (1 - i / (columns - 1)) ** 2
        least, most = chosen[-1] + 1, len(states) - (columns - i)  # so that enough are left
        chosen.append(least + int(np.abs(away[least : most + 1] - wanted).argmin()))
    return [*chosen[:-1], len(states) - 1] if columns > 1 else [len(states) - 1]


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
        if self._each is None and now - self._began < UNTIMED:
            return None
        if now - self._last < EVERY or left <= (self._each or 0) * len(state):
            return None
        if self._each is None:
            self._timed(state[:1])
            return None
        return self._timed(state)

    def showing_took(self, seconds: float) -> None:
        self._spent += seconds

    def _timed(self, state: torch.Tensor) -> np.ndarray:
        if state.device.type != "cpu":
            torch.accelerator.synchronize(state.device)  # what is still to be computed of the step is not the preview's
        began = time.monotonic()
        images = (self._pipe.decode(state, "pt") * 255).round().to(torch.uint8).cpu().numpy()
        self._last = time.monotonic()
        self._spent += self._last - began
        self._each = (self._last - began) / len(state)
        return images
