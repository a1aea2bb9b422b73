import numpy as np
import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extraction import extract
from ddpm_hf.evaluation.image_files import FolderImages
from ddpm_hf.evaluation.images import DrawnImages, Images
from ddpm_hf.sampling import Sampling
from tests.evaluation.conftest import Pooled, random_images, write_images

FAST = Sampling("ddim", 3)


class Given(Images):
    """An array's images; `most` remembers the largest batch."""

    called, batch_size = "given", 6

    def __init__(self, pixels, labels=None):
        self.pixels, self.shape, self.labels, self.most = pixels, pixels.shape[1:], labels, 0

    def __len__(self):
        return len(self.pixels)

    def read(self, indices, progress=lambda images: None):
        self.most = max(self.most, len(indices))
        return torch.from_numpy(self.pixels[list(indices)])

    content = "given"

    def describe(self):
        return {}


@pytest.fixture
def given():
    return Given(random_images(20)[:, None], np.arange(20))


class OneOf:
    """A process among several, as `extract` sees it; joined by the test."""

    def __init__(self, index, processes):
        self.process_index, self.num_processes, self.is_main_process = index, processes, index == 0
        self.device = torch.device("cpu")


def test_statistics_are_those_of_the_extractor_s_features_in_order(given, pooled, state):
    found = extract(given, pooled, state, features=True, probabilities=True, first=3)
    expected = Pooled()(torch.from_numpy(given.pixels))
    np.testing.assert_allclose(found.statistics.features, expected.values.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.probabilities, expected.probabilities.numpy(), rtol=1e-6)
    features = expected.values.numpy().astype(np.float64)
    np.testing.assert_allclose(found.statistics.moments.mean.numpy(), features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.moments.covariance.numpy(), np.cov(features, rowvar=False), rtol=1e-5)
    np.testing.assert_array_equal(found.first, given.pixels[:3])
    np.testing.assert_array_equal(found.statistics.labels, given.labels)
    assert (found.distinct, pooled.seen, given.most) == (20, 20, 6)


def test_only_what_is_asked_for_is_kept(given, pooled, state):
    found = extract(given, pooled, state)
    assert found.statistics.features is None and found.statistics.probabilities is None and found.seen is None
    assert found.statistics.moments.count == 20 and len(found.first) == 0


def test_a_classifier_sees_the_same_images(given, pooled, state):
    classifier = Pooled()
    found = extract(given, pooled, state, classifier=classifier)
    assert classifier.seen == 20
    np.testing.assert_allclose(found.seen, Pooled()(torch.from_numpy(given.pixels)).probabilities.numpy())
    alone = extract(given, pooled, state, classifier=pooled)
    np.testing.assert_array_equal(alone.seen, found.seen)
    assert pooled.seen == 40  # once more, not twice


def test_an_extractor_sees_no_more_than_a_few_images_at_once(pooled, state):
    given = Given(random_images(300)[:, None])
    given.batch_size, pooled.at_once, largest = 300, 300, []
    pooled.extract = lambda images, extract=pooled.extract: (largest.append(len(images)), extract(images))[1]
    extract(given, pooled, state)
    assert max(largest) == 64 and sum(largest) == 300


def test_images_that_repeat_are_counted_once(pooled, state):
    pixels = random_images(6)[[0, 1, 1, 2, 0, 3]][:, None]
    assert extract(Given(pixels), pooled, state).distinct == 4


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_the_shares_of_several_processes_make_the_whole(processes, given, pooled, state, monkeypatch):
    """Seven images for nine processes too: some have none."""
    from ddpm_hf.evaluation import extraction

    given.pixels, given.labels = given.pixels[:7], given.labels[:7]
    alone = extract(given, pooled, state, features=True, probabilities=True, first=3)
    shares = []
    monkeypatch.setattr(extraction, "gather_to_main", lambda share, state: shares.append(share))
    for index in range(processes):
        extract(given, pooled, OneOf(index, processes), features=True, probabilities=True, first=3)
    assert sorted(i for share in shares for i in share.indices) == list(range(7))
    joined = extraction._joined(shares, given)
    for name in ("features", "probabilities", "labels"):
        np.testing.assert_array_equal(getattr(joined.statistics, name), getattr(alone.statistics, name))
    np.testing.assert_allclose(joined.statistics.moments.scatter, alone.statistics.moments.scatter, rtol=1e-12)
    np.testing.assert_array_equal(joined.first, alone.first)
    assert joined.distinct == alone.distinct == 7


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_drawn_images_are_measured_alike_whatever_the_batch(batch_size, tiny_pipe, pooled, state):
    found = extract(DrawnImages(tiny_pipe, 9, FAST, batch_size=batch_size), pooled, state, features=True)
    whole = extract(DrawnImages(tiny_pipe, 9, FAST, batch_size=9), pooled, state, features=True)
    np.testing.assert_allclose(found.statistics.features, whole.statistics.features, atol=1)  # one gray level
    assert found.distinct == 9 and found.reading_seconds > 0 and found.extraction_seconds > 0


def test_files_are_read_ahead_and_a_broken_one_is_told_in_one_line(tmp_path, pooled, state):
    folder = write_images(tmp_path / "images", random_images(200))
    images = FolderImages(folder, "images", progress=False)
    assert extract(images, pooled, state).statistics.moments.count == 200
    (folder / "0150.png").write_bytes(b"changed meanwhile")
    with pytest.raises(UserError, match=r"0150\.png: is not an image"):
        extract(images, pooled, state)


def test_a_full_memory_names_what_to_lower(given, pooled, state):
    def fill(images):
        raise torch.OutOfMemoryError("full")

    pooled.extract = fill
    with pytest.raises(UserError, match="out of memory on cpu, where pooled takes 64 of given at once: end what else"):
        extract(given, pooled, state)
    given.read_ahead = False  # as of what a model draws
    with pytest.raises(UserError, match="out of memory on cpu: lower --batch_size, 6"):
        extract(given, pooled, state)


def test_images_that_are_not_finite_are_an_error(tiny_pipe, pooled, state):
    with torch.no_grad():
        tiny_pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        extract(DrawnImages(tiny_pipe, 3, FAST), pooled, state)
