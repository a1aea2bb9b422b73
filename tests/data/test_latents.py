import logging
import multiprocessing
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ddpm_hf.codec import AutoencoderCodec
from ddpm_hf.config import Data
from ddpm_hf.data import latents as module
from ddpm_hf.data.dataset import TrainingImages, TrainingLatents, training_set
from ddpm_hf.data.latents import prepare_latents
from ddpm_hf.data.prepare import images_in, prepare
from ddpm_hf.data.sampler import draws
from ddpm_hf.data.sources import open_source
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.errors import UserError

PRECISION = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5}


def recipe(source, folder, **settings) -> Data:
    return Data(**({"source": str(source), "resolution": (8, 8), "channels": 1, "store": str(folder)} | settings))


def small_codec(seed: int = 0, scaling_factor: float = 0.5) -> AutoencoderCodec:
    """Gray images to latents with two channels and half the height and width."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=2,
        scaling_factor=scaling_factor,
    )
    return AutoencoderCodec(vae)


@pytest.fixture
def codec() -> AutoencoderCodec:
    return small_codec()


def make(data, codec, dtype="float16", batch_size=32) -> PreparedStore:
    return prepare_latents(data, codec, dtype, batch_size, progress=False)


def refused(data, codec, dtype="float16") -> str:
    with pytest.raises(UserError) as error:
        make(data, codec, dtype)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of ten images, so that a small set has many."""
    monkeypatch.setattr(module, "_shard_size", lambda total, record: 10)


def moments(codec, images: np.ndarray) -> torch.Tensor:
    return codec.moments(torch.from_numpy(np.ascontiguousarray(images))[:, None])


# ---- what is stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_store_holds_the_posteriors(tmp_path, digits, codec, dtype):
    store = make(recipe("digits", tmp_path / "store"), codec, dtype)
    assert len(store) == 1797 and store.class_names == list("0123456789") and store.shape == (4, 4, 4)
    np.testing.assert_array_equal(store.labels, digits[1])
    assert store.nbytes == 1797 * 64 * (4 if dtype == "float32" else 2)
    batch = training_set(store, recipe("digits", tmp_path)).plain(range(1797))
    assert batch["records"].dtype == getattr(torch, dtype) and batch["labels"].tolist() == digits[1].tolist()
    direct, precision = moments(codec, digits[0]), PRECISION[dtype]
    torch.testing.assert_close(batch["records"].float(), direct, rtol=precision, atol=precision)


def test_mirrors_are_encoded_not_flipped(tmp_path, digits, codec):
    store = make(recipe("digits", tmp_path / "store", flip=True), codec, "float32")
    assert store.shape == (8, 4, 4)
    halves = np.stack([store.read(i) for i in range(1797)]).reshape(1797, 2, 4, 4, 4)
    mirrored = moments(codec, digits[0][:, :, ::-1]).numpy()
    np.testing.assert_allclose(halves[:, 1], mirrored, atol=1e-5)
    assert np.abs(halves[:, 0, ..., ::-1] - mirrored).mean() > 0.02


def test_an_autoencoder_without_a_posterior(tmp_path, digits, codec, monkeypatch):
    posterior = AutoencoderCodec.moments
    monkeypatch.setattr(AutoencoderCodec, "moments", lambda self, images: posterior(self, images)[:, :2])
    store = make(recipe("digits", tmp_path / "store", flip=True), codec)
    assert store.shape == (4, 4, 4)
    records = training_set(store, recipe("digits", tmp_path)).plain([5])["records"]
    torch.testing.assert_close(records.float(), moments(codec, digits[0][5:6]), rtol=2e-3, atol=2e-3)


def test_their_scale_is_measured_and_told(tmp_path, digits, codec, capsys, caplog):
    data = recipe("digits", tmp_path / "store")
    measured = prepare_latents(data, codec, "float32", 32).manifest["latents"]
    torch.manual_seed(0)
    samples = codec.encode(moments(codec, digits[0]))
    assert measured["mean"] * 0.5 == pytest.approx(samples.mean().item(), abs=0.01)
    assert measured["std"] * 0.5 == pytest.approx(samples.std().item(), rel=0.01)
    line = f"1,797 latents: mean {measured['mean'] / 2:.3g}, standard deviation {measured['std'] / 2:.3g} after scaling"
    assert capsys.readouterr().out == line + "\n"
    assert not caplog.messages

    strange = small_codec(scaling_factor=0.001)
    prepare_latents(recipe("digits", tmp_path / "strange"), strange, "float32", 32)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    right = float(
        re.search(r"set scaling_factor in the autoencoder's config.json to ([\d.]+)", warning.getMessage())[1]
    )
    assert right == pytest.approx(1 / measured["std"], rel=1e-2)


def test_images_wait_in_small_numbers(tmp_path, codec, monkeypatch):
    """Memory does not grow with the set: few images are read ahead, and the autoencoder is given one batch at once."""
    data, batch_size, read, encoded, waiting = recipe("digits", tmp_path / "store"), 16, 0, 0, 0
    source, encode = open_source(data), codec.moments

    def reading(start, stop):
        nonlocal read
        read += stop - start
        return type(source).read(source, start, stop)

    def encoding(images):
        nonlocal encoded, waiting
        assert len(images) <= batch_size
        encoded, waiting = encoded + len(images), max(waiting, read - encoded)
        return encode(images)

    monkeypatch.setattr(source, "read", reading)
    monkeypatch.setattr(module, "open_source", lambda data: source)
    monkeypatch.setattr(codec, "moments", encoding)
    make(data, codec, batch_size=batch_size)
    assert read == 1797 and encoded == 1798  # and one to learn the shape
    assert waiting <= 4 * batch_size


# ---- refusals ----------------------------------------------------------------------------------------------


def test_latents_of_anything_else_are_refused(tmp_path, digit_folder, codec):
    data = recipe(digit_folder, tmp_path / "store")
    before = contents(make(data, codec).folder)
    other = small_codec(seed=1)
    has, wants = (c.identity["weights"][:7] for c in (codec, other))
    assert f"with another autoencoder's weights {has}…, the recipe wants {wants}…; delete it" in refused(data, other)
    scaled = small_codec(scaling_factor=0.25)
    assert "with the autoencoder's scaling_factor 0.5, the recipe wants 0.25" in refused(data, scaled)
    assert "with autoencoder.latent_dtype float16, the recipe wants bfloat16" in refused(data, codec, "bfloat16")
    assert "with data.flip False, the recipe wants True" in refused(data.model_copy(update={"flip": True}), codec)
    larger = data.model_copy(update={"resolution": (16, 16)})
    assert "with data.resolution [8, 8], the recipe wants [16, 16]" in refused(larger, codec)
    assert "with data.source (kind) folder, the recipe wants digits" in refused(recipe("digits", data.store), codec)
    assert contents(Path(data.store)) == before


def test_pixels_are_no_latents_nor_the_other_way_round(tmp_path, codec):
    pixels, latents = recipe("digits", tmp_path / "pixels"), recipe("digits", tmp_path / "latents")
    prepare(pixels, progress=False)
    make(latents, codec)
    assert "pixels holds pixels, the recipe wants latents; delete it" in refused(pixels, codec)
    with pytest.raises(UserError, match="latents holds latents, the recipe wants pixels; delete it"):
        prepare(latents, progress=False)
    assert images_in(latents) == images_in(pixels) == 1797


def test_a_store_begun_for_other_latents_is_refused(tmp_path, digit_folder, codec, small_shards):
    bad = digit_folder / "digit 5" / "0005.png"
    bad.write_bytes(b"not an image")
    data = recipe(digit_folder, tmp_path / "store")
    refused(data, codec)
    assert "another autoencoder's weights" in refused(data, small_codec(seed=1))


def test_random_crops_are_refused(tmp_path, codec):
    message = refused(recipe("digits", tmp_path, crop="random"), codec)
    assert message.startswith("data.crop: ") and message.endswith("set center, or autoencoder.store_latents: false")


def test_the_folder_is_named_for_its_latents(tmp_path, digit_folder, codec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = recipe(digit_folder, None, store=None)
    folders = {make(data, codec).folder, make(data, small_codec(1)).folder, make(data, codec, "float32").folder}
    assert len(folders) == 3 and {folder.name[:-10] for folder in folders} == {"photos-8x8x1-latents-"}


# ---- bad images and bad latents ----------------------------------------------------------------------------


def test_a_bad_image_stops_or_is_skipped(tmp_path, digit_folder, codec, small_shards, caplog):
    bad = digit_folder / "digit 5" / "0005.png"
    bad.write_bytes(b"not an image")
    data = recipe(digit_folder, tmp_path / "store")
    message = refused(data, codec)
    assert message.startswith(f"{bad}: ") and message.endswith("; repair or remove it, or set data.on_bad_image: skip")
    data = data.model_copy(update={"on_bad_image": "skip"})
    store = make(data, codec, batch_size=4)
    assert caplog.messages[0].startswith(f"skipping images that cannot be read; the first is {bad}")
    assert len(store) == 59 and store.manifest["skipped"] == {"count": 1, "names": [str(bad)]}
    kept = [example for example in open_source(data).read(0, 60) if example.name != str(bad)]
    assert store.labels.tolist() == [example.label for example in kept]
    images = np.stack([np.asarray(Image.open(example.image)) for example in kept])
    records = TrainingLatents(store).plain(range(59))["records"].float()
    torch.testing.assert_close(records, moments(codec, images), rtol=2e-3, atol=2e-3)


class White(AutoencoderCodec):
    """Gives white images `value`."""

    value: float

    def moments(self, images):
        moments = super().moments(images)
        moments[(images == 255).flatten(1).all(dim=1)] = self.value
        return moments


@pytest.mark.parametrize(
    ("value", "right"), [(1e6, "does not fit into float16; set autoencoder.latent_dtype: float32"), (np.nan, "float32")]
)
def test_a_latent_that_is_not_finite_names_its_image(tmp_path, digit_folder, codec, value, right):
    white = digit_folder / "digit 3" / "white.png"
    Image.new("L", (8, 8), 255).save(white)
    bad = White(codec.vae)
    bad.value = value
    data = recipe(digit_folder, tmp_path / "store")
    message = refused(data, bad)
    assert message.startswith(f"{white}: its latent ") and right in message
    if np.isfinite(value):
        assert len(make(recipe(digit_folder, tmp_path / "wide"), bad, "float32")) == 61


# ---- interruption, and several processes -------------------------------------------------------------------

forks = pytest.mark.skipif(sys.platform == "win32", reason="kills, and forks what has imported torch")


def encode_slowly(data: Data, pause: float, log: Path) -> None:
    """In a process of its own: prepares latents, slow enough to be met on the way; logs each shard that it begins."""
    write, encode = module.write_shard, AutoencoderCodec.moments

    def slow_moments(codec, images):
        time.sleep(pause * (len(images) > 1))  # not for the one that tells the shape
        return encode(codec, images)

    def logged_write(folder, number, records):
        with open(log, "a") as file:
            file.write(f"{number}\n")
        return write(folder, number, records)

    module._shard_size = lambda total, record: 100
    module.write_shard, AutoencoderCodec.moments = logged_write, slow_moments
    make(data, small_codec())


@pytest.fixture
def start(tmp_path):
    """A function that starts `encode_slowly`; gives the process and its log."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusers.models.autoencoders.autoencoder_kl", "ddpm_hf.data.latents"])
    started = []

    def start(data: Data, pause: float = 0.02) -> tuple[multiprocessing.Process, Path]:
        log = tmp_path / f"log-{len(started)}"
        started.append(context.Process(target=encode_slowly, args=(data, pause, log)))
        started[-1].start()
        return started[-1], log

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shards_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.npy"))


@pytest.fixture
def undisturbed(tmp_path, codec, monkeypatch) -> dict[str, bytes]:
    """The files that one process writes in one go."""
    monkeypatch.setattr(module, "_shard_size", lambda total, record: 100)
    return contents(make(recipe("digits", tmp_path / "undisturbed", flip=True), codec).folder)


@forks
def test_killed_again_and_again_equals_undisturbed(tmp_path, codec, start, undisturbed):
    folder = tmp_path / "killed"
    data, seen = recipe("digits", folder, flip=True), {}
    for kills in (1, 2, 3):
        process, _ = start(data)
        wait_until(lambda enough=4 * kills: len(shards_in(folder)) >= enough)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen |= {path: path.stat().st_mtime_ns for path in shards_in(folder) if path not in seen}
    assert 12 <= len(seen) < 18 and not (folder / "manifest.json").exists()
    assert "with data.flip True, the recipe wants False" in refused(data.model_copy(update={"flip": False}), codec)
    make(data, codec)
    assert contents(folder) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in seen} == seen  # none written twice


@forks
def test_two_processes_share_the_work(tmp_path, start, undisturbed):
    folder = tmp_path / "shared"
    data = recipe("digits", folder, flip=True)
    started = [start(data), start(data)]
    for process, _ in started:
        process.join(60)
        assert process.exitcode == 0
    shards = [log.read_text().split() for _, log in started]
    assert sorted(map(int, shards[0] + shards[1])) == list(range(18)) and min(map(len, shards)) >= 3
    assert contents(folder) == undisturbed
    assert {path.name for path in folder.iterdir()} - undisturbed.keys() <= {".lock"}


@forks
def test_what_a_killed_process_leaves_is_taken_over_by_the_others(tmp_path, start, undisturbed):
    folder = tmp_path / "shared"
    data = recipe("digits", folder, flip=True)
    stuck, log = start(data, pause=60)
    wait_until(log.exists)
    others = [start(data, pause=0)[0] for _ in range(2)]
    wait_until(lambda: len(shards_in(folder)) == 17)  # all but the one that the first process has
    time.sleep(0.2)
    assert [process.exitcode for process in (stuck, *others)] == [None] * 3
    stuck.kill()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert contents(folder) == undisturbed


# ---- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_latents_flip_where_pixels_flip(tmp_path, codec, dtype):
    data = recipe("digits", tmp_path / "pixels", flip=True)
    pixels = training_set(prepare(data, progress=False), data)
    data = recipe("digits", tmp_path / "latents", flip=True)
    latents = training_set(make(data, codec, dtype), data)
    assert isinstance(pixels, TrainingImages) and isinstance(latents, TrainingLatents) and len(latents) == 1797
    samples = [(i * 7 % 1797, draw) for i, draw in enumerate(draws(0, range(300)).tolist())]
    of_pixels, of_latents = pixels.__getitems__(samples), latents.__getitems__(samples)
    assert of_latents["records"].is_contiguous() and of_latents["records"].shape == (300, 4, 4, 4)
    expected, precision = codec.moments(of_pixels["records"]), PRECISION[dtype]
    torch.testing.assert_close(of_latents["records"].float(), expected, rtol=precision, atol=precision)
    assert torch.equal(of_latents["labels"], of_pixels["labels"])


def test_no_mirrors_unless_asked_for(tmp_path, codec):
    data = recipe("digits", tmp_path / "store")
    dataset = training_set(make(data, codec), data)
    batch = dataset.__getitems__([(7, 1 << 63), (8, 0)])
    assert torch.equal(batch["records"], dataset.plain([7, 8])["records"])
