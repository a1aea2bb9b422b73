import multiprocessing

import numpy as np
import pytest
import torch

from ddpm_hf.config import Data
from ddpm_hf.data.prepare import prepare
from ddpm_hf.data.store import PreparedStore, write_manifest, write_shard
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors import build_extractor, classifier

NUM = 300


@pytest.fixture
def few(monkeypatch):
    """Training that takes a moment."""
    monkeypatch.setitem(classifier.SETTINGS, "examples", 2048)
    monkeypatch.setitem(classifier.SETTINGS, "least_steps", 1)


def make_store(folder, images, labels, classes=2, **fingerprint) -> PreparedStore:
    """Of uint8 (N, C, H, W); labels None for an image without."""
    folder.mkdir(parents=True)
    write_shard(folder, 0, [(i, label, image) for i, (image, label) in enumerate(zip(images, labels, strict=True))])
    content = {
        "fingerprint": {"transforms": {"resolution": list(images.shape[2:])}} | fingerprint,
        "dtype": "uint8",
        "channels": images.shape[1],
        "class_names": None if classes is None else [str(i) for i in range(classes)],
        "skipped": {"count": 0, "names": []},
    }
    write_manifest(folder, 1, content)
    return PreparedStore(folder)


def stripes(channels, height, width, num=NUM, seed=0):
    """Four noisy stripes, upright (0) or level (1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num)
    images = rng.integers(0, 128, (num, channels, height, width), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        across = image if label else image.swapaxes(1, 2)
        across[:, np.arange(across.shape[1]) * 4 // across.shape[1] % 2 == 0] += 100
    return images, labels.tolist()


@pytest.fixture
def striped(tmp_path):
    return make_store(tmp_path / "prepared" / "stripes", *stripes(1, 16, 16))


@pytest.mark.slow
def test_digits_are_recognised(tmp_path):
    store = prepare(
        Data(source="digits", resolution=(8, 8), channels=1, store=str(tmp_path / "digits")), progress=False
    )
    extractor = build_extractor("classifier", training_set=store)
    assert extractor.identity["accuracy"] > 0.97
    images = torch.from_numpy(np.stack([store.read(i) for i in range(len(store))]))
    found = extractor(images)
    assert (found.probabilities.argmax(dim=1).numpy() == store.labels).mean() > 0.99
    mirrored = extractor(images.flip(-1)).probabilities.argmax(dim=1).numpy()
    assert (mirrored == store.labels).mean() < 0.7


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 20), (3, 128, 128)])
def test_images_of_any_shape(tmp_path, few, shape):
    store = make_store(tmp_path / "prepared" / "stripes", *stripes(*shape))
    extractor = build_extractor("classifier", training_set=store)
    assert extractor.identity["accuracy"] > 0.9
    images, labels = stripes(*shape, num=100, seed=1)
    found = extractor(torch.from_numpy(images))
    assert found.values.shape == (100, extractor.dimensions) and found.probabilities.shape == (100, 2)
    assert (found.probabilities.argmax(dim=1).numpy() == labels).mean() > 0.9
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(100))


def test_the_accuracy_is_of_images_that_it_was_not_trained_on(tmp_path, few):
    """Labels without meaning are learned by heart at best."""
    images, _ = stripes(1, 8, 8, num=600)
    labels = np.random.default_rng(5).integers(0, 2, 600).tolist()
    extractor = build_extractor("classifier", training_set=make_store(tmp_path / "prepared" / "random", images, labels))
    assert 0.25 < extractor.identity["accuracy"] < 0.75


def test_it_is_trained_once_and_the_same_each_time(striped, few, monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build_extractor("classifier", training_set=striped)
    assert torch.equal(torch.get_rng_state(), before)  # a session around it draws on as if it had not been
    folder = striped.folder.parent / "classifiers"
    [weights] = folder.glob("*.safetensors")
    content = weights.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(classifier, "train", lambda *arguments: pytest.fail("trained again"))
        assert build_extractor("classifier", training_set=striped).identity == first.identity
    weights.unlink()
    torch.manual_seed(4)
    assert build_extractor("classifier", training_set=striped).identity == first.identity
    assert weights.read_bytes() == content
    weights.write_bytes(content[:1000])  # a broken copy
    assert build_extractor("classifier", training_set=striped).identity == first.identity


def test_other_labels_are_another_classifier(striped, few, tmp_path):
    images, labels = stripes(1, 16, 16)
    swapped = make_store(tmp_path / "prepared" / "swapped", images, [1 - label for label in labels])
    one, other = (build_extractor("classifier", training_set=store) for store in (striped, swapped))
    assert one.identity["sha256"] != other.identity["sha256"]
    found = [extractor(torch.from_numpy(images)).probabilities.argmax(dim=1) for extractor in (one, other)]
    assert (found[0] != found[1]).float().mean() > 0.9


def _build(folder, queue):
    torch.set_num_threads(1)
    classifier.SETTINGS |= {"examples": 2048, "least_steps": 1}
    trained, train = [], classifier.train
    classifier.train = lambda *arguments: trained.append(1) or train(*arguments)
    identity = build_extractor("classifier", training_set=PreparedStore(folder)).identity
    queue.put((len(trained), identity["sha256"]))


@pytest.mark.slow
def test_of_several_processes_one_trains(striped):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    processes = [spawn.Process(target=_build, args=(striped.folder, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(trained for trained, _ in found) == [0, 0, 1]
    assert len({digest for _, digest in found}) == 1


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([None] * 40, None, "have no labels"),
        ([None] * 3 + [0, 1] * 20, 2, "3 of 43 images"),
        ([1] * 40, 2, "40 images of 1 classes"),
        ([0, 1] * 5, 2, "10 images of 2 classes"),
    ],
)
def test_sets_that_no_classifier_can_learn(tmp_path, labels, classes, expected):
    store = make_store(tmp_path / "prepared" / "few", np.zeros((len(labels), 1, 8, 8), np.uint8), labels, classes)
    with pytest.raises(UserError, match=expected) as error:
        build_extractor("classifier", training_set=store, option="evaluate.")
    assert str(error.value).startswith("evaluate.extractor: classifier is trained on labelled images")
    assert not (store.folder.parent / "classifiers").exists()


def test_latents_are_no_images(tmp_path):
    store = make_store(tmp_path / "prepared" / "latents", *stripes(1, 8, 8), latents={"dtype": "float16"})
    with pytest.raises(UserError, match="holds latents"):
        build_extractor("classifier", training_set=store)


def test_a_folder_that_cannot_be_written_is_named(few, striped):
    folder = striped.folder.parent / "classifiers"
    folder.write_text("in the way")
    with pytest.raises(
        UserError, match=r"^--extractor: .*classifiers, where .* cannot be written .*data\.store"
    ) as error:
        build_extractor("classifier", training_set=striped)
    assert "\n" not in str(error.value)


def test_a_classifier_that_is_there_needs_no_place_to_write(few, striped, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    first = build_extractor("classifier", training_set=striped)
    monkeypatch.setattr(classifier, "_alone", refuse)
    assert build_extractor("classifier", training_set=striped).identity == first.identity
