import pickle

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.config import Data
from ddpm_hf.data.images import to_uint8
from ddpm_hf.data.prepare import prepare
from ddpm_hf.data.sources import open_source
from ddpm_hf.errors import UserError


@pytest.fixture
def choose(tmp_path):
    """A function from a source and the lines of a file to the source of the classes chosen."""

    def open_chosen(source, *lines, name="classes.txt", **settings):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return open_source(recipe(source, classes=str(tmp_path / name), **settings))

    return open_chosen


def recipe(source, **settings) -> Data:
    return Data(source=str(source), resolution=(8, 8), channels=1, **settings)


def refused(source) -> str:
    with pytest.raises(UserError) as error:
        len(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def pixels(example) -> np.ndarray:
    return np.asarray(to_uint8(example.image, 1))


# ---- what is chosen ----------------------------------------------------------------------------------------


def test_digits_in_the_order_of_the_list(choose, digits):
    source = choose("digits", "# the round ones", "", "8 eight", "  0\tzero, or nought ", "6")
    assert source.class_names == ["eight", "zero, or nought", "6"]
    images, labels = digits
    rows = np.flatnonzero(np.isin(labels, [8, 0, 6]))
    assert len(source) == len(rows)
    expected = [{8: 0, 0: 1, 6: 2}[label] for label in labels[rows].tolist()]
    assert source.labels.dtype == np.int64 and source.labels.tolist() == expected
    for example, row, label in zip(source.read(3, 40), rows[3:], expected[3:], strict=False):
        np.testing.assert_array_equal(pixels(example), images[row])
        assert example.label == label and example.name == f"image {row} of digits"


def test_subfolders(choose, tmp_path, photographs):
    for i, name in enumerate(["n01440764", "n01443537", "n01484850", "n01440764", "n01484850"]):
        path = tmp_path / "train" / name / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photographs[i])
    source = choose(tmp_path / "train", "n01484850 great white shark", "n01440764 tench, Tinca tinca")
    assert source.class_names == ["great white shark", "tench, Tinca tinca"]
    assert [(example.label, example.name[-6:]) for example in source.read(0, 9)] == [
        (1, "0.JPEG"),
        (1, "3.JPEG"),
        (0, "2.JPEG"),
        (0, "4.JPEG"),
    ]


def test_a_real_table(choose, cifar10):
    everything, source = open_source(recipe(cifar10)), choose(cifar10, "truck lorry", "cat")
    assert len(source) == 10_000 and source.class_names == ["lorry", "cat"]
    rows = np.flatnonzero(np.isin(everything.labels, [9, 3]))
    assert source.labels.tolist() == np.where(everything.labels[rows] == 9, 0, 1).tolist()
    for k in (0, 1, 5000, 9999):
        [mine], [original] = source.take([k]), everything.take([int(rows[k])])
        assert mine == original._replace(label=source.labels[k]) and mine.name == f"row {rows[k]} of {cifar10}"
    assert [example.label for example in source.read(9990, 10_000)] == source.labels[9990:].tolist()


def test_names_with_spaces(choose, digit_folder):
    assert choose(digit_folder, "digit 3", "digit 1").class_names == ["digit 3", "digit 1"]


def test_labels_are_those_of_the_images(tmp_path, digit_folder, cifar10):
    for where in ("digits", digit_folder, cifar10):
        source = open_source(recipe(where))
        assert source.labels.dtype == np.int64
        assert source.labels[:50].tolist() == [example.label for example in source.read(0, 50)]
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "0.png")
    assert open_source(recipe(tmp_path / "flat")).labels.tolist() == [-1]


def test_labels_of_every_kind_of_table(choose, tmp_path):
    import datasets

    def table(name, labels, feature):
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        rows = {"image": [{"bytes": b"", "path": None}] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    named = table("named", [-1, None, 1, 0], datasets.ClassLabel(names=["a b", "c"]))
    assert open_source(recipe(named)).labels.tolist() == [-1, -1, 1, 0]
    source = choose(named, "c")
    assert source.labels.tolist() == [0] and source.read(0, 1)[0].name == f"row 2 of {named}"
    text = table("text", ["dog", None, "ant"], datasets.Value("string"))
    assert open_source(recipe(text)).labels.tolist() == [1, -1, 0]
    numbers = table("numbers", [4, 2, 4], datasets.Value("int64"))
    assert choose(numbers, "4 four", "2").labels.tolist() == [0, 1, 0]


def test_picklable(choose, cifar10, digit_folder):
    for where, name in ((cifar10, "cat"), (digit_folder, "digit 3"), ("digits", "7")):
        source = choose(where, name)
        copy = pickle.loads(pickle.dumps(source))
        assert copy.read(2, 5)[1].name == source.read(3, 4)[0].name and len(copy) == len(source)


# ---- refusals ----------------------------------------------------------------------------------------------


def test_what_cannot_be_chosen(choose, digit_folder):
    message = refused(choose("digits", "1", "# and", "ten"))
    assert "classes.txt: digits has no class ten; it has 0, 1, 2, 3, 4, …" in message and "line 3 of" in message
    assert "has no class digt 3; did you mean digit 3?" in refused(choose(digit_folder, "digt 3"))
    assert "has no class digit 3 three; did you mean digit 3?" in refused(choose(digit_folder, "digit 3 three"))
    message = refused(choose("digits", "1", "2", "1 one"))
    assert "line 3 of" in message and "lists 1 a second time; remove one" in message
    assert "calls a second class one; call one of them otherwise" in refused(choose("digits", "1 one", "2 one"))


def test_without_labels_there_is_nothing_to_choose_by(choose, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "0.png")
    assert "flat has no labels to choose by; leave it out" in refused(choose(tmp_path / "flat", "cat"))


def test_what_is_no_list(choose, tmp_path):
    with pytest.raises(UserError, match=r"data.classes: no such file: .*clases.txt; did you mean .*classes.txt\?"):
        choose("digits", "1")
        open_source(recipe("digits", classes=str(tmp_path / "clases.txt")))
    with pytest.raises(UserError, match=r"lists no class; write one class name of data.source a line"):
        choose("digits", "# nothing", " ")
    (tmp_path / "classes.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"classes.bin cannot be read as text"):
        open_source(recipe("digits", classes=str(tmp_path / "classes.bin")))


# ---- the prepared store ------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_list_wherever_it_lies(choose):
    plain = open_source(recipe("digits")).fingerprint
    first = choose("digits", "1", "2 two").fingerprint
    assert first != plain and first["kind"] == "digits"
    assert choose("digits", "# the same", "1 ", "2 two", "", name="elsewhere.txt").fingerprint == first
    for lines in (["2 two", "1"], ["1", "2 zwei"], ["1", "2"], ["1"]):
        assert choose("digits", *lines).fingerprint != first


@pytest.mark.parametrize("workers", [1, 2])
def test_prepared(tmp_path, choose, digit_folder, digits, workers, monkeypatch):
    monkeypatch.setattr("ddpm_hf.data.prepare._shard_size", lambda total, record: 5)
    (tmp_path / "classes.txt").write_text("digit 7\ndigit 2\n")
    settings = {"classes": str(tmp_path / "classes.txt"), "store": str(tmp_path / "store")}
    data = recipe(digit_folder, prepare_workers=workers, **settings)
    store = prepare(data, progress=False)
    assert store.class_names == ["digit 7", "digit 2"]
    labels = digits[1][:60]
    rows = np.concatenate([np.flatnonzero(labels == 2), np.flatnonzero(labels == 7)])  # in the folders' order
    np.testing.assert_array_equal(np.concatenate([store.read(i) for i in range(len(rows))]), digits[0][rows])
    assert store.labels.tolist() == [1] * (labels == 2).sum() + [0] * (labels == 7).sum()
    (tmp_path / "classes.txt").write_text("digit 7\n")
    for other, wants in ((data, r"1 \(\w{10}\)"), (data.model_copy(update={"classes": None}), "all")):
        with pytest.raises(
            UserError, match=rf"prepared with data.classes choosing 2 \(\w{{10}}\), the recipe wants {wants}; delete it"
        ):
            prepare(other, progress=False)
