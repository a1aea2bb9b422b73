"""Drawing for visitors: what `draw_images` draws, seen on the way, stopped within a step, several at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpm_hf.app import drawing
from ddpm_hf.app.drawing import Progress, Stopped, Studio
from ddpm_hf.app.request import EACH, Settings
from ddpm_hf.errors import UserError
from ddpm_hf.sampling import draw_images

SETTINGS = [
    Settings("kinds", EACH, "dpmsolver++", 12, 2.0),
    Settings("kinds", "1", "ddim", 20, 3.0, 0.3, 5.0),
    Settings("kinds", "any", "heun", 5),
    Settings("plain", None, "ddpm", 25),
]


def all_of(iterator):
    """Progress, and the images at last."""
    *progress, images = iterator
    assert all(isinstance(p, Progress) for p in progress)
    return progress, images


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_images_as_anywhere(models, settings):
    model = models[settings.model]
    _, images = all_of(Studio(batch_size=3).draw(model, settings, range(5, 12), threading.Event()))
    np.testing.assert_array_equal(images, draw_images(model.pipe, list(range(5, 12)), 3, settings.sampling(model)))


def test_seen_on_the_way(models, monkeypatch):
    monkeypatch.setattr(drawing, "EVERY", 0.0)
    monkeypatch.setattr(drawing, "PREVIEW_SHARE", 1000.0)
    told = []
    settings = Settings("plain", None, "ddim", 6)
    images = drawing._draw(models["plain"], settings, range(4), 2, told.append)
    assert [(p.done, p.total) for p in told if p.images is None] == [(i, 12) for i in range(1, 13)]
    seen = [p for p in told if p.images is not None]
    assert [(p.done, len(p.images)) for p in seen] == [(i, 2) for i in range(1, 6)] + [(i, 4) for i in range(7, 12)]
    np.testing.assert_array_equal(seen[-1].images[:2], images[:2])  # of the second batch, after the first
    assert seen[0].images.dtype == np.uint8


def test_previews_take_no_more_than_their_share(models, monkeypatch):
    """With a decoder as slow as ten steps: a step takes a millisecond here, a picture decoded ten."""
    now = [0.0]
    monkeypatch.setattr(drawing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(drawing, "EVERY", 0.0)
    decoded = []

    class Slow:
        vae = object()

        def decode(self, state, _kind):
            now[0] += 0.01 * len(state)
            decoded.append(len(state))
            return state

    class Model:
        pipe = Slow()

    import torch

    previews = drawing._Previews(Model())
    for _ in range(6000):
        now[0] += 0.001
        previews.of(torch.zeros(4, 1, 2, 2))
    assert decoded[0] == 1  # what one costs is measured first
    assert set(decoded[1:]) == {4}
    assert 0.05 < 0.01 * sum(decoded) / now[0] <= 0.1


def test_stopped_within_a_step(models):
    stop, studio = threading.Event(), Studio()
    steps = []
    forward = models["plain"].pipe.unet.forward

    def counted(*args, **kwargs):
        steps.append(None)
        if len(steps) == 3:
            stop.set()
        return forward(*args, **kwargs)

    models["plain"].pipe.unet.forward = counted
    try:
        with pytest.raises(Stopped):
            all_of(studio.draw(models["plain"], Settings("plain", None, "ddim", 25), range(2), stop))
    finally:
        del models["plain"].pipe.unet.forward
    assert len(steps) == 3
    settings = Settings("plain", None, "ddim", 5)
    all_of(studio.draw(models["plain"], settings, range(2), threading.Event()))  # the next is drawn


def test_a_visitor_who_leaves_stops_it_too(models):
    studio, steps = Studio(), []
    forward = models["plain"].pipe.unet.forward
    models["plain"].pipe.unet.forward = lambda *args, **kw: (steps.append(None), forward(*args, **kw))[1]
    try:
        iterator = studio.draw(models["plain"], Settings("plain", None, "ddim", 50), range(64), threading.Event())
        next(iterator)
        iterator.close()
        studio._threads.shutdown(wait=True)
    finally:
        del models["plain"].pipe.unet.forward
    assert len(steps) < 100  # of two batches


def test_several_at_once_get_what_each_would_have_got_alone(models):
    """Models are shared, whatever each asks of them."""
    requests = [(settings, range(seed, seed + 6)) for seed in (0, 100) for settings in SETTINGS]
    studio = Studio(concurrency=len(requests))

    def drawn(request):
        settings, seeds = request
        return all_of(studio.draw(models[settings.model], settings, seeds, threading.Event()))[1]

    alone = [drawn(request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        for expected, found in zip(alone, threads.map(drawn, requests), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_a_strip_ends_in_its_picture(models, settings):
    model = models[settings.model]
    _, images = all_of(Studio().draw(model, settings, range(9, 10), threading.Event()))
    _, strip = all_of(Studio().strip(model, settings, 9, threading.Event()))
    assert strip.shape[1:] == (1, 8, 8)
    assert len(strip) == min(8, drawing.passes(model.pipe, settings.sampling(model)) + 1)
    np.testing.assert_array_equal(strip[-1], images[0])


def test_a_mistake_while_drawing_reaches_the_visitor(models):
    with pytest.raises(Exception, match="cannot be taken"):
        all_of(Studio().draw(models["plain"], Settings("plain", None, "ddim", 51), range(1), threading.Event()))


def test_stopped_while_others_are_drawn(models):
    """Whoever waits for a thread need not wait to stop."""
    studio, free, stop = Studio(), threading.Event(), threading.Event()
    studio._threads.submit(free.wait)
    try:
        iterator = studio.draw(models["plain"], Settings("plain", None, "ddim", 5), range(1), stop)
        assert next(iterator).doing == "waiting"
        stop.set()
        with pytest.raises(Stopped):
            next(iterator)
    finally:
        free.set()


def latent_model():
    """A small one with an autoencoder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DModel

    from ddpm_hf.app.models import Model
    from ddpm_hf.config import Diffusion
    from ddpm_hf.diffusion.schedule import build_scheduler
    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    torch.manual_seed(0)
    small = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DModel(8, 4, 4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **small)
    pipe = ImageGenerationPipeline(
        unet.eval(), build_scheduler(Diffusion(num_train_timesteps=50)), AutoencoderKL(**small).eval()
    )
    pipe.set_progress_bar_config(disable=True)
    return Model("latent", pipe)


def test_latents_are_decoded_in_parts_between_which_it_can_be_stopped():
    model, settings, told = latent_model(), Settings("latent", None, "ddim", 3), []
    images = drawing._draw(model, settings, range(20), 32, told.append)
    np.testing.assert_array_equal(images, draw_images(model.pipe, list(range(20)), 32, settings.sampling(model)))
    assert [p.doing for p in told].count("decoding") == 2  # of 16 and 4

    def stopping(progress):
        if progress.doing == "decoding":
            raise Stopped

    with pytest.raises(Stopped):
        drawing._draw(model, settings, range(20), 32, stopping)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_told(models, monkeypatch, error):
    def failing(*_args, **_more):
        raise error

    monkeypatch.setattr(drawing, "draw_strip", failing)
    with pytest.raises(UserError, match="out of memory"):
        all_of(Studio().strip(models["plain"], Settings("plain", None, "ddim", 5), 0, threading.Event()))


def test_states_of_a_strip_come_nearer_to_the_picture():
    noise = np.linspace(200, 0, 101).astype(np.uint8).reshape(-1, 1, 1, 1)  # evenly less of it
    chosen = drawing.telling_states(noise, 8)
    assert chosen[0] == 0
    assert chosen[-1] == 100
    assert chosen == sorted(set(chosen))
    assert sum(noise[i].item() <= 100 for i in chosen) >= 5
    assert drawing.telling_states(noise[:3], 8) == [0, 1, 2]


def test_a_preview_is_encoded_once(monkeypatch):
    from ddpm_hf.app import stage

    encoded, spent = [], []
    monkeypatch.setattr(stage, "_preview", lambda image: encoded.append(image) or "<img>")
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    sheet = stage.Sheet(6, 3)
    for shown in (images[:2], images[:2], images):
        html = sheet.html(Progress(1, 2, shown, showing_took=spent.append))
    assert len(encoded) == 4
    assert len(spent) == 3
    assert html.count("<img>") == 4
    assert html.count('class="cell"') == 6
