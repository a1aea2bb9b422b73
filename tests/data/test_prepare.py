import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ddpm_hf.config import Data
from ddpm_hf.data import prepare as module
from ddpm_hf.data.images import read_image
from ddpm_hf.data.prepare import images_in, prepare
from ddpm_hf.data.sources import open_source
from ddpm_hf.errors import UserError

ROOT = Path(__file__).parents[2]


def recipe(source, folder, **settings) -> Data:
    return Data(**({"source": str(source), "resolution": (8, 8), "channels": 1, "store": str(folder)} | settings))


def refused(data) -> str:
    with pytest.raises(UserError) as error:
        prepare(data, progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of ten images, so that a small set has many."""
    monkeypatch.setattr(module, "_shard_size", lambda total, record: 10)


def test_the_store_holds_the_source(tmp_path, digits, small_shards):
    store = prepare(recipe("digits", tmp_path / "store", prepare_workers=1), progress=False)
    assert len(store) == 1797 and store.class_names == list("0123456789")
    np.testing.assert_array_equal(np.concatenate([store.read(i) for i in range(1797)]), digits[0])
    np.testing.assert_array_equal(store.labels, digits[1])
    assert len(store.manifest["shards"]) == 180


def test_real_photographs_of_many_shapes(tmp_path, photographs):
    for i, photograph in enumerate(photographs):
        (tmp_path / f"{i}.jpg").write_bytes(photograph)
    for crop in ("center", "random"):
        data = recipe(tmp_path, tmp_path / "stores" / crop, resolution=(48, 64), channels=3, crop=crop)
        store, source = prepare(data, progress=False), open_source(data)
        for i, example in enumerate(source.read(0, 8)):
            np.testing.assert_array_equal(store.read(i), read_image(example, (48, 64), 3, crop))
        assert store.label(0) is None and store.labels.tolist() == [-1] * 8
        assert (store.shape == (3, 48, 64)) == (crop == "center")


def test_two_processes_write_what_one_writes(tmp_path, small_shards):
    one = prepare(recipe("digits", tmp_path / "one", prepare_workers=1), progress=False)
    two = prepare(recipe("digits", tmp_path / "two", prepare_workers=2), progress=False)
    assert contents(one.folder) == contents(two.folder)


def test_a_finished_store_is_opened_without_reading_the_source(tmp_path, digit_folder, monkeypatch):
    data = recipe(digit_folder, tmp_path / "store", flip=False, held_out=0.1)
    before = contents(prepare(data, progress=False).folder)
    monkeypatch.setattr(module, "_prepare", None)
    same_bytes = {"flip": True, "held_out": 0.2, "workers": 3, "prepare_workers": 2}
    store = prepare(data.model_copy(update=same_bytes), progress=False)
    assert contents(store.folder) == before and images_in(data) == 60


def test_images_are_counted_without_preparing(tmp_path, digit_folder):
    assert images_in(recipe(digit_folder, tmp_path / "store")) == 60
    assert not (tmp_path / "store").exists()


def test_folder_is_named_by_source_shape_and_content(tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {
        prepare(recipe(digit_folder, None, store=None, **settings), progress=False).folder
        for settings in ({}, {"channels": 3}, {"crop": "random"}, {"flip": True})
    }
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {Path("prepared")}
    names = sorted(folder.name[:-10] for folder in folders)
    assert names == ["photos-8x8x1-", "photos-8x8x1-", "photos-8x8x3-"]


# ---- refusals ----------------------------------------------------------------------------------------------


def test_a_store_of_other_images_is_refused(tmp_path, digit_folder):
    data = recipe(digit_folder, tmp_path / "store")
    prepare(data, progress=False)
    other = data.model_copy(update={"resolution": (16, 16)})
    assert "was prepared with data.resolution [8, 8], the recipe wants [16, 16]; delete it" in refused(other)
    with pytest.raises(UserError, match="resolution"):
        images_in(other)
    assert "with data.crop center, the recipe wants random" in refused(data.model_copy(update={"crop": "random"}))
    assert "with data.source (kind) folder, the recipe wants digits" in refused(recipe("digits", tmp_path / "store"))
    os.utime(next(digit_folder.rglob("*.png")), (0, 0))
    assert "the files of data.source are not those that" in refused(data)


def test_a_folder_of_other_files_is_refused(tmp_path, digit_folder):
    assert "photos holds other files and is no prepared store" in refused(recipe(digit_folder, digit_folder))
    assert sorted(p.name for p in digit_folder.iterdir()) == [f"digit {i}" for i in range(10)]


def test_shards_of_unknown_origin_are_refused(tmp_path):
    store = prepare(recipe("digits", tmp_path / "store"), progress=False)
    (store.folder / "manifest.json").unlink()
    assert "holds shards of unknown origin" in refused(recipe("digits", tmp_path / "store"))


def test_too_little_space_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert "needs about 0 MB, but 0 MB are free" in refused(recipe("digits", tmp_path / "store"))
    assert not list((tmp_path / "store").glob("shard-*"))


def test_a_store_cut_short_is_noticed(tmp_path):
    store = prepare(recipe("digits", tmp_path / "store"), progress=False)
    with open(store.folder / "shard-00000.bin", "r+b") as file:
        file.truncate(1000)
    assert "shard-00000.bin is missing or incomplete; delete" in refused(recipe("digits", tmp_path / "store"))


# ---- bad images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_stops_with_its_path(tmp_path, digit_folder, small_shards, workers):
    bad = digit_folder / "digit 5" / "0005.png"
    bad.write_bytes(bad.read_bytes()[:60])
    message = refused(recipe(digit_folder, tmp_path / "store", prepare_workers=workers))
    assert message.startswith(f"{bad}: ") and message.endswith("; repair or remove it, or set data.on_bad_image: skip")


def test_bad_images_are_skipped_and_counted(tmp_path, digit_folder, small_shards, caplog):
    bad = [digit_folder / "digit 0" / "0000.png", *sorted((digit_folder / "digit 5").iterdir())]
    for path in bad:
        path.write_bytes(b"not an image")
    data = recipe(digit_folder, tmp_path / "store", on_bad_image="skip", prepare_workers=1)
    with caplog.at_level(logging.WARNING):
        store = prepare(data, progress=False)
    first, total = [record.getMessage() for record in caplog.records]
    assert first == f"skipping images that cannot be read; the first is {bad[0]}: is not an image that Pillow can read"
    assert total.startswith(f"skipped {len(bad)} of 60 images")
    assert len(store) == 60 - len(bad) == images_in(data)
    assert store.manifest["skipped"] == {"count": len(bad), "names": [str(path) for path in bad]}
    kept = [e for e in open_source(data).read(0, 60) if Path(e.name) not in bad]
    assert store.labels.tolist() == [e.label for e in kept]
    for i, example in enumerate(kept):
        np.testing.assert_array_equal(store.read(i), read_image(example, (8, 8), 1, "center"))


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"not an image")
    message = refused(recipe(tmp_path / "photos", tmp_path / "store", on_bad_image="skip"))
    assert "none of the 3 images" in message and "0.png" in message


# ---- interruption ------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from ddpm_hf.config import Data
from ddpm_hf.data import images, prepare
read = images.read_image
images.read_image = lambda *args: time.sleep(0.002) or read(*args)  # slow enough to be killed on the way
prepare._shard_size = lambda total, record: 100
prepare.prepare(Data.model_validate_json(sys.argv[1]), progress=False)
"""


def kill_midway(data: Data, folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, data.model_dump_json()], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_and_resumed_equals_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_shard_size", lambda total, record: 100)
    undisturbed = prepare(recipe("digits", tmp_path / "undisturbed", prepare_workers=1), progress=False)
    folder = tmp_path / "killed"
    data = recipe("digits", folder, prepare_workers=1)
    kill_midway(data, folder)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert 3 <= len(finished) < 18 and not (folder / "manifest.json").exists()

    other = data.model_copy(update={"resolution": (16, 16)})
    assert "was prepared with data.resolution [8, 8], the recipe wants [16, 16]" in refused(other)
    prepare(data, progress=False)
    assert contents(folder) == contents(undisturbed.folder)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # none written twice


POOL = """
import sys
from ddpm_hf.config import Data
from ddpm_hf.data import prepare
prepare._shard_size = lambda total, record: 5
prepare.prepare(Data.model_validate_json(sys.argv[1]), progress=False)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    for i in range(400):
        Image.new("L", (1000, 1000), i % 256).save(tmp_path / f"{i}.png")
    data = recipe(tmp_path, tmp_path / "store", prepare_workers=2)
    process = subprocess.Popen([sys.executable, "-c", POOL, data.model_dump_json()], cwd=ROOT)
    while not list((tmp_path / "store").glob("*.npy")):
        time.sleep(0.01)
        assert process.poll() is None
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    assert len(prepare(data, progress=False)) == 400


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_programs_at_once_prepare_once(tmp_path):
    data = recipe("digits", tmp_path / "store")
    (tmp_path / "store").mkdir()
    code = "import sys\nfrom ddpm_hf.config import Data\nfrom ddpm_hf.data.prepare import prepare\nprint(len(prepare(Data.model_validate_json(sys.argv[1]))))"
    with FileLock(tmp_path / "store" / ".lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, data.model_dump_json()],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "another process is preparing" in other.stderr.readline()
        assert other.poll() is None
    out, err = other.communicate(timeout=60)
    assert out == "1797\n" and "img/s" in err
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["num_images"] == 1797


@pytest.mark.slow
def test_fifty_thousand_jpegs(tmp_path, cifar10):
    start = time.monotonic()
    store = prepare(recipe(cifar10, tmp_path / "store", resolution=(32, 32), channels=3), progress=False)
    assert len(store) == 50_000 and np.bincount(store.labels).tolist() == [5000] * 10
    assert time.monotonic() - start < 30
