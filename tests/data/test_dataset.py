import json
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.codec import PixelCodec
from ddpm_hf.config import Data
from ddpm_hf.data.dataset import TrainingImages, as_it_is, crop_offset, is_flipped
from ddpm_hf.data.prepare import prepare
from ddpm_hf.data.preview import preview
from ddpm_hf.data.sampler import SampleOrder
from ddpm_hf.data.store import INDEX, PreparedStore, write_manifest, write_shard
from ddpm_hf.errors import UserError

FLIP = 1 << 63


@pytest.fixture
def store(tmp_path) -> PreparedStore:
    return prepare(recipe(tmp_path), progress=False)


def recipe(tmp_path, **settings) -> Data:
    return Data(source="digits", resolution=(8, 8), channels=1, store=str(tmp_path / "store"), **settings)


@pytest.fixture
def ragged(tmp_path, photographs) -> tuple[PreparedStore, Data]:
    for i, photograph in enumerate(photographs):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(photograph)
    data = Data(
        source=str(tmp_path / "photos"), resolution=(32, 32), crop="random", flip=True, store=str(tmp_path / "ragged")
    )
    return prepare(data, progress=False), data


# ---- the store ---------------------------------------------------------------------------------------------


def test_reading_is_a_view_and_cannot_write(store):
    pixels = store.read(5)
    assert pixels.shape == (1, 8, 8) and pixels.dtype == np.uint8 and not pixels.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_the_store_is_picklable_by_its_path(store):
    store.read(0)  # mapped, which must not weigh on the pickle
    text = pickle.dumps(store)
    assert len(text) < 500
    np.testing.assert_array_equal(pickle.loads(text).read(1796), store.read(1796))


def test_any_dtype_and_shape_makes_a_store(tmp_path):
    latents = np.random.default_rng(0).normal(size=(7, 8, 4, 4)).astype(np.float32)
    write_shard(tmp_path, 0, ((i, None, latents[i]) for i in range(4)))
    write_shard(tmp_path, 1, ((i, i, latents[i]) for i in range(4, 7)))
    content = {
        "fingerprint": {},
        "dtype": "float32",
        "channels": 8,
        "class_names": None,
        "skipped": {"count": 0, "names": []},
    }
    write_manifest(tmp_path, 2, content)
    store = PreparedStore(tmp_path)
    for i in range(7):
        np.testing.assert_array_equal(store.read(i), latents[i])
    assert store.labels.tolist() == [-1] * 4 + [4, 5, 6] and store.shape == (8, 4, 4)


def test_reading_and_opening_do_not_grow_with_the_store(tmp_path):
    """A million images: opened in about a second, and the last as quickly read as the first."""
    num, shards = 1_000_000, 10
    for n in range(shards):
        index = np.zeros(num // shards, INDEX)
        index["source"], index["height"], index["width"] = np.arange(num // shards) + n * num // shards, 2, 2
        index["label"], index["offset"] = n, np.arange(num // shards) * 4
        np.save(tmp_path / f"shard-{n:05d}.npy", index)
        np.full(num // shards * 4, n, np.uint8).tofile(tmp_path / f"shard-{n:05d}.bin")
    content = {
        "fingerprint": {},
        "dtype": "uint8",
        "channels": 1,
        "class_names": None,
        "skipped": {"count": 0, "names": []},
    }
    write_manifest(tmp_path, shards, content)

    start = time.perf_counter()
    store = PreparedStore(tmp_path)
    assert time.perf_counter() - start < 2
    assert len(store) == num and store.label(999_999) == 9 and (store.read(999_999) == 9).all()

    def seconds(first: int) -> float:
        start = time.perf_counter()
        for i in range(first, first + 2000):
            store.read(i)
        return time.perf_counter() - start

    def best(first: int) -> float:
        return min(seconds(first) for _ in range(5))

    assert best(num - 2000) < 3 * best(0)


def test_what_is_no_store(tmp_path, store):
    with pytest.raises(UserError, match=r"is not a prepared store: it has no manifest\.json"):
        PreparedStore(tmp_path)
    manifest = store.manifest | {"format": 99}
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has the store format 99, this version reads 1"):
        PreparedStore(store.folder)


# ---- batches -----------------------------------------------------------------------------------------------


def test_a_batch(store, tmp_path, digits):
    batch = TrainingImages(store, recipe(tmp_path, flip=True)).__getitems__([(3, 0), (7, FLIP), (3, FLIP)])
    images, labels = digits
    assert (
        batch["records"].shape == (3, 1, 8, 8)
        and batch["records"].dtype == torch.uint8
        and batch["records"].is_contiguous()
    )
    np.testing.assert_array_equal(batch["records"][:, 0], [images[3], images[7][:, ::-1], images[3][:, ::-1]])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == labels[[3, 7, 3]].tolist()


def test_no_flip_unless_asked_for(store, tmp_path, digits):
    dataset = TrainingImages(store, recipe(tmp_path))
    np.testing.assert_array_equal(dataset.__getitems__([(7, FLIP)])["records"][0, 0], digits[0][7])
    np.testing.assert_array_equal(dataset.plain([7, 8])["records"][:, 0], digits[0][7:9])


def test_half_are_flipped_and_crops_are_uniform():
    draws = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    assert np.mean([is_flipped(d) for d in draws]) == pytest.approx(0.5, abs=0.02)
    offsets = np.array([crop_offset(d, 3, 1) for d in draws])
    np.testing.assert_allclose(np.bincount(offsets[:, 0]) / 20_000, [0.25] * 4, atol=0.02)
    np.testing.assert_allclose(np.bincount(offsets[:, 1]) / 20_000, [0.5] * 2, atol=0.02)
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.03


def test_crops_stay_inside_at_the_extremes():
    assert crop_offset(0, 5, 9) == (0, 0)
    assert crop_offset(2**64 - 1, 5, 9) == (5, 9)
    assert crop_offset(2**64 - 1, 0, 0) == (0, 0)


def test_a_random_crop_is_part_of_the_image_and_follows_from_its_draw(ragged):
    store, data = ragged
    dataset = TrainingImages(store, data)
    draws = np.random.default_rng(0).integers(0, 2**64, 200, np.uint64).tolist()
    samples = [(i % 8, draw) for i, draw in enumerate(draws)]
    images = dataset.__getitems__(samples)["records"].numpy()
    for (index, draw), image in zip(samples, images, strict=True):
        whole = store.read(index)
        top, left = crop_offset(draw, whole.shape[1] - 32, whole.shape[2] - 32)
        assert 0 <= top <= whole.shape[1] - 32 and 0 <= left <= whole.shape[2] - 32
        crop = whole[:, top : top + 32, left : left + 32]
        np.testing.assert_array_equal(image, crop[..., ::-1] if draw >> 63 else crop)
    np.testing.assert_array_equal(dataset.__getitems__(samples)["records"], images)
    assert len({image.tobytes() for image in images}) > 100
    middle = dataset.plain([0])["records"][0].numpy()
    whole = store.read(0)
    top, left = (whole.shape[1] - 32) // 2, (whole.shape[2] - 32) // 2
    np.testing.assert_array_equal(middle, whole[:, top : top + 32, left : left + 32])


def test_a_worker_process_gives_the_same_batches(store, tmp_path):
    dataset = TrainingImages(store, recipe(tmp_path, flip=True))

    def first_batches(workers: int) -> list[dict]:
        context = "spawn" if workers else None  # as on macOS and Windows
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=SampleOrder(np.arange(len(dataset)), 16, seed=0),
            collate_fn=as_it_is,
            num_workers=workers,
            multiprocessing_context=context,
        )
        return [batch for batch, _ in zip(loader, range(3), strict=False)]

    for here, there in zip(first_batches(0), first_batches(1), strict=True):
        assert torch.equal(here["records"], there["records"]) and torch.equal(here["labels"], there["labels"])


def test_a_batch_of_128_takes_well_under_a_millisecond(tmp_path):
    data = Data(source="digits", resolution=(32, 32), channels=3, store=str(tmp_path / "store"), flip=True)
    dataset = TrainingImages(prepare(data, progress=False), data)
    batches = SampleOrder(np.arange(len(dataset)), 128, seed=0)
    times = []
    for samples, _ in zip(batches, range(200), strict=False):
        start = time.perf_counter()
        dataset.__getitems__(samples)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3  # the best of many: others may use the machine


# ---- preview -----------------------------------------------------------------------------------------------


def test_preview_shows_images_of_the_store(store, tmp_path):
    preview(TrainingImages(store, recipe(tmp_path)), PixelCodec(), tmp_path / "new" / "preview.png", num=10)
    grid = np.asarray(Image.open(tmp_path / "new" / "preview.png"))
    side = 64 + 2  # eight times larger, and a gap
    assert grid.shape == (3 * side + 2, 4 * side + 2)
    known = {store.read(i).tobytes() for i in range(len(store))}
    for i in range(10):
        top, left = 2 + i // 4 * side, 2 + i % 4 * side
        assert grid[top : top + 64 : 8, left : left + 64 : 8].tobytes() in known
    assert (grid[66:68] == 255).all()


def test_the_content_of_a_store_is_its_images_and_labels_whatever_they_are_called(tmp_path):
    def content(name, shards, change=lambda records: records):
        folder = tmp_path / name
        folder.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), np.uint8)
        records = change([(i, i % 3, image) for i, image in enumerate(images)])
        for number in range(shards):
            write_shard(folder, number, records[number * 12 // shards : (number + 1) * 12 // shards])
        details = {"fingerprint": {"source": name}, "dtype": "uint8", "channels": 1, "class_names": None}
        write_manifest(folder, shards, details | {"skipped": {"count": 0, "names": []}})
        return PreparedStore(folder).content

    same = content("a", 1)
    assert content("b", 3) == same
    assert content("other label", 1, lambda r: [(r[0][0], 2, r[0][2]), *r[1:]]) != same
    assert content("other pixel", 1, lambda r: [(0, 0, r[0][2] ^ 1), *r[1:]]) != same
    assert content("other order", 1, lambda r: [r[1], r[0], *r[2:]]) != same
