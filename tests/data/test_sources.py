import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.config import Data
from ddpm_hf.data.images import to_uint8
from ddpm_hf.data.sources import open_source
from ddpm_hf.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def recipe(source, **settings) -> Data:
    return Data(source=str(source), resolution=(8, 8), channels=1, **settings)


def pixels(example) -> np.ndarray:
    return np.asarray(to_uint8(example.image, 1))


def fails(source, **settings) -> str:
    with pytest.raises(UserError) as error:
        len(open_source(recipe(source, **settings)))
    assert "\n" not in str(error.value)
    return str(error.value)


def same_digits(source, digits, num, order=None):
    """The source holds the first digits, pixel for pixel, with their labels."""
    images, labels = digits
    order = range(num) if order is None else order
    assert len(source) == num
    for i, example in zip(order, source.read(0, num), strict=True):
        np.testing.assert_array_equal(pixels(example), images[i])
        assert example.label == labels[i]


# ---- arrays ------------------------------------------------------------------------------------------------


def test_digits(digits):
    source = open_source(recipe("digits"))
    same_digits(source, digits, 1797)
    assert source.class_names == list("0123456789")
    assert source.read(17, 18)[0].name == "image 17 of digits"
    assert "no split test; it has train" in fails("digits", split="test")


def write_idx(folder, images, labels, prefix="train", opener=open, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, magic, array in (
        ("images-idx3-ubyte", 2051, images),
        ("labels-idx1-ubyte", 2049, labels.astype(np.uint8)),
    ):
        header = np.array([magic, *array.shape], ">i4").tobytes()
        with opener(folder / f"{prefix}-{name}{ending}", "wb") as file:
            file.write(header + array.tobytes())
    return folder


@pytest.mark.parametrize(("opener", "ending"), [(open, ""), (gzip.open, ".gz")])
def test_idx_files(tmp_path, digits, opener, ending):
    images, labels = digits
    folder = write_idx(tmp_path / "mnist", images[:50], labels[:50], opener=opener, ending=ending)
    write_idx(folder, images[:20], labels[:20], "t10k", opener, ending)
    same_digits(open_source(recipe(folder)), digits, 50)
    same_digits(open_source(recipe(folder, split="test")), digits, 20)
    assert open_source(recipe(folder)).class_names == list("0123456789")
    assert "it has train, test" in fails(folder, split="val")


def test_idx_headers_are_checked(tmp_path, digits):
    images, labels = digits
    folder = write_idx(tmp_path / "mnist", images[:50], labels[:50])
    file = folder / "train-images-idx3-ubyte"
    content = file.read_bytes()
    file.write_bytes(b"\0\0\x0d\x03" + content[4:])
    assert "not an IDX file of bytes: it starts with 00000d03, not 00000803" in fails(folder)
    file.write_bytes(content[:-1])
    assert "should hold 50x8x8 bytes of data by its header, but holds 3199" in fails(folder)
    file.write_bytes(b"")
    assert "it starts with nothing" in fails(folder)
    write_idx(folder, images[:40], labels[:50])
    assert "has 40 images, but" in fails(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    assert "but not train-labels-idx1-ubyte" in fails(folder)


def test_a_gzipped_idx_file_cut_short(tmp_path, digits):
    folder = write_idx(tmp_path / "mnist", digits[0][:50], digits[1][:50], opener=gzip.open, ending=".gz")
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:300])
    assert "train-images-idx3-ubyte.gz cannot be read" in fails(folder)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist():
    train, test = open_source(recipe(FASHION)), open_source(recipe(FASHION, split="test"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.class_names[9] == "Ankle boot" and train.read(0, 1)[0].label == 9  # its well-known first image
    labels = [example.label for example in test.read(0, 10_000)]
    assert np.bincount(labels).tolist() == [1000] * 10


def cifar_files(num=7) -> dict[str, bytes]:
    """Real records of CIFAR-10's format, `num` a file, of random pixels."""
    random = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {}
    for name in names:
        records = random.integers(0, 256, (num, 3073), np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files | {"batches.meta.txt": b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"}


def write_cifar(folder: Path, archive: bool) -> Path:
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    for name, content in cifar_files().items():
        (inside / name).write_bytes(content)
    if not archive:
        return inside
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(inside, "cifar-10-batches-bin")
    return folder / "cifar-10-binary.tar.gz"


@pytest.mark.parametrize("archive", [True, False])
def test_cifar10_binary(tmp_path, archive):
    source = open_source(recipe(write_cifar(tmp_path, archive)))
    assert len(source) == 35 and source.class_names[0] == "airplane" and len(source.class_names) == 10
    record = cifar_files()["data_batch_2.bin"][3073 * 2 : 3073 * 3]  # image 7 + 2
    example = source.read(9, 10)[0]
    assert example.label == record[0]
    red, blue = np.frombuffer(record, np.uint8)[[1, 1 + 2048 + 33]]  # first red value, blue of row 1, column 1
    assert example.image[0, 0, 0] == red and example.image[1, 1, 2] == blue
    assert len(open_source(recipe(source._path, split="test"))) == 7
    assert len(open_source(recipe(tmp_path))) == 35  # the folder around it


def test_half_a_cifar_archive(tmp_path):
    archive = write_cifar(tmp_path, archive=True)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    assert "cut short or damaged" in fails(archive)
    folder = tmp_path / "cifar-10-batches-bin"
    (folder / "data_batch_3.bin").write_bytes(cifar_files()["data_batch_3.bin"][:-5])
    assert "data_batch_3.bin" in fails(folder) and "not a multiple of 3073" in fails(folder)
    (folder / "data_batch_4.bin").unlink()
    assert "lacks data_batch_4.bin" in fails(folder)
    other = tmp_path / "other.tar.gz"
    with tarfile.open(other, "w:gz") as tar:
        tar.add(folder / "test_batch.bin", "somewhere/test_batch.bin")
    assert "cifar-10-binary.tar.gz is the one" in fails(other)


# ---- folders of images -------------------------------------------------------------------------------------


def test_image_folder(digit_folder, digits):
    (digit_folder / "digit 0" / ".hidden.png").write_bytes(b"")
    (digit_folder / "digit 0" / "notes.txt").write_text("not an image")
    source = open_source(recipe(digit_folder))
    order = sorted(range(60), key=lambda i: (digits[1][i], i))
    same_digits(source, digits, 60, order)
    assert source.class_names == [f"digit {i}" for i in range(10)]
    assert source.read(0, 1)[0].name == str(digit_folder / "digit 0" / "0000.png")


def test_files_below_a_class_folder_count_to_it_and_suffixes_in_capitals_count(tmp_path, digits):
    for name in ("b/x/1.PNG", "b/2.png", "a/deep/er/3.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[0][0]).save(tmp_path / name)
    source = open_source(recipe(tmp_path))
    assert [(Path(e.name).name, e.label) for e in source.read(0, 3)] == [("3.JPEG", 0), ("2.png", 1), ("1.PNG", 1)]


def test_a_flat_folder_has_no_labels(tmp_path, digits):
    for i in range(3):
        Image.fromarray(digits[0][i]).save(tmp_path / f"{i}.png")
    source = open_source(recipe(tmp_path))
    assert source.class_names is None and [e.label for e in source.read(0, 3)] == [None] * 3


def test_images_beside_class_folders_are_refused(digit_folder):
    shutil.copy(digit_folder / "digit 0" / "0000.png", digit_folder / "stray.png")
    assert "stray.png lies beside the class folders" in fails(digit_folder)


def test_imagenet_layout(tmp_path, photographs):
    for split, num in (("train", 6), ("val", 2)):
        for i in range(num):
            path = tmp_path / split / f"n0144000{i % 2}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs[i])
    source = open_source(recipe(tmp_path))
    assert len(source) == 6 and source.class_names == ["n01440000", "n01440001"]
    assert [e.label for e in source.read(0, 6)] == [0, 0, 0, 1, 1, 1]
    assert len(open_source(recipe(tmp_path, split="val"))) == 2
    assert "no split test; it has train, val" in fails(tmp_path, split="test")


def test_fingerprint_is_of_the_files_wherever_they_lie(digit_folder, tmp_path):
    before = open_source(recipe(digit_folder)).fingerprint
    json.dumps(before)
    moved = digit_folder.rename(tmp_path / "elsewhere")
    assert open_source(recipe(moved)).fingerprint == before
    image = next(moved.rglob("*.png"))
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1000_000_000))
    assert open_source(recipe(moved)).fingerprint != before


# ---- tables ------------------------------------------------------------------------------------------------


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def digit_table(digits, num, labels=None):
    """A data set of the first digits, with string, integer or class labels."""
    import datasets

    kind = (
        datasets.ClassLabel(names=[f"n{i}" for i in range(10)])
        if labels is None
        else datasets.Value("string" if labels is str else "int64")
    )
    values = [f"n{label}" if labels is str else int(label) for label in digits[1][:num]]
    columns = {
        "picture": [{"bytes": png(image), "path": None} for image in digits[0][:num]],
        "label": values,
        "note": ["x"] * num,
    }
    return datasets.Dataset.from_dict(
        columns, datasets.Features({"picture": datasets.Image(), "label": kind, "note": datasets.Value("string")})
    )


def test_real_parquet(cifar10):
    source = open_source(recipe(cifar10, split="test"))
    assert len(source) == 10_000 and source.class_names[3] == "cat"
    example = source.read(5, 6)[0]
    assert to_uint8(example.image, 3).size == (32, 32) and example.label in range(10)
    assert example.name == f"row 5 of {cifar10}"
    assert "no split val; it has train, test" in fails(cifar10, split="val")


@pytest.mark.parametrize("labels", [None, int, str])
def test_parquet_labels_of_every_kind(tmp_path, digits, labels):
    digit_table(digits, 30, labels).to_parquet(tmp_path / "digits.parquet")
    for where in (tmp_path, tmp_path / "digits.parquet"):
        source = open_source(recipe(where))
        same_digits(source, digits, 30)
        assert source.class_names == [str(i) if labels is int else f"n{i}" for i in range(10)]


def test_parquet_of_plain_bytes(tmp_path, digits):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"img": [png(image) for image in digits[0][:5]]}), tmp_path / "a.parquet")
    source = open_source(recipe(tmp_path))
    np.testing.assert_array_equal(pixels(source.read(4, 5)[0]), digits[0][4])
    assert source.class_names is None and source.read(0, 1)[0].label is None


def test_columns_can_be_named(tmp_path, digits):
    table = digit_table(digits, 12).add_column("label2", [7] * 12)
    table = table.add_column("other", [{"bytes": png(image), "path": None} for image in digits[0][12:24]])
    table.to_parquet(tmp_path / "digits.parquet")
    assert "picture, other all hold images; name one" in fails(tmp_path)
    source = open_source(recipe(tmp_path, image_column="other", label_column="label2"))
    np.testing.assert_array_equal(pixels(source.read(0, 1)[0]), digits[0][12])
    assert source.read(0, 1)[0].label == 7
    assert "no column imag; there are picture, label, note, label2, other" in fails(tmp_path, image_column="imag")
    assert "note does not hold images; picture, other would do" in fails(tmp_path, image_column="note")
    assert "digits has no columns" in fails("digits", label_column="label")


def test_hidden_labels_are_none(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": b"", "path": None}] * 3, "label": [-1, None, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    assert [e.label for e in open_source(recipe(tmp_path)).read(0, 3)] == [None, None, 1]


def test_arrow(tmp_path, digits):
    digit_table(digits, 30).save_to_disk(tmp_path / "saved")
    (tmp_path / "arrow").mkdir()
    file = next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "arrow" / "data.arrow")
    same_digits(open_source(recipe(file.parent)), digits, 30)
    same_digits(open_source(recipe(file)), digits, 30)


def test_webdataset(tmp_path, digits):
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for i in range(25):
            for suffix, content in (("png", png(digits[0][i])), ("cls", str(digits[1][i]).encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for where in (tmp_path, tmp_path / "shard-000.tar"):
        same_digits(open_source(recipe(where)), digits, 25)


def test_save_to_disk(tmp_path, digits):
    import datasets

    one, both = tmp_path / "one", tmp_path / "both"
    digit_table(digits, 30).save_to_disk(one)
    datasets.DatasetDict({"train": digit_table(digits, 30), "test": digit_table(digits, 10)}).save_to_disk(both)
    same_digits(open_source(recipe(one)), digits, 30)
    same_digits(open_source(recipe(both)), digits, 30)
    same_digits(open_source(recipe(both, split="test")), digits, 10)
    assert "no split val; it has test, train" in fails(both, split="val")


def test_a_hub_id_without_network():
    code = (
        "from ddpm_hf.data.sources import open_source; from ddpm_hf.config import Data; from ddpm_hf.errors import UserError\n"
        "source = open_source(Data(source='someone/flowers', resolution=(8, 8)))\n"
        "try: len(source)\n"
        "except UserError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.stdout.startswith("data.source: the Hub cannot be reached for someone/flowers"), out.stderr
    assert "name a local folder instead" in out.stdout and out.stdout.count("\n") == 1


# ---- the door ----------------------------------------------------------------------------------------------


def test_opening_imports_nothing_heavy(tmp_path, digits):
    digit_table(digits, 3).to_parquet(tmp_path / "digits.parquet")
    code = (
        "import sys; from ddpm_hf.config import Data; from ddpm_hf.data.sources import open_source\n"
        f"open_source(Data(source={str(tmp_path)!r}, resolution=(8, 8))).fingerprint\n"
        "print({'torch', 'datasets', 'sklearn'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.stdout == "set()\n", out.stderr


def test_what_is_not_there(tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fails("./foto") == "data.source: no such file or folder: ./foto; did you mean photos?"
    assert "did you mean photos/digit 1" in fails("photos/digt 1")  # photos/ is here, so this is no Hub id
    assert "nor is there a folder" in fails("/no/where/at/all")
    assert "did you mean digits?" in fails("digts")
    assert "no such file or folder" in fails("somewhere/train.parquet")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in fails("empty")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert "photos.zip is a file of a kind that is not read" in fails("photos.zip")
    (tmp_path / "photos" / "a.tar").write_bytes(b"")
    assert "photos holds image and webdataset files" in fails("photos")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_broken_link_is_named(digit_folder):
    (digit_folder / "digit 0" / "gone.png").symlink_to("nowhere.png")
    assert "gone.png is neither a file nor a folder; perhaps a broken link" in fails(digit_folder)


def test_sources_are_picklable(tmp_path, digits, digit_folder):
    digit_table(digits, 30).to_parquet(tmp_path / "digits.parquet")
    idx = write_idx(tmp_path / "mnist", digits[0][:50], digits[1][:50])
    for where in ("digits", digit_folder, idx, tmp_path / "digits.parquet", write_cifar(tmp_path / "c", archive=True)):
        source = open_source(recipe(where))
        len(source)  # opened, which must not weigh on the pickle
        text = pickle.dumps(source)
        assert len(text) < 5000
        copy = pickle.loads(text)
        assert [(e.label, e.name) for e in copy.read(3, 9)] == [(e.label, e.name) for e in source.read(3, 9)]
