import json

import cleanfid
import numpy as np
import pytest

from ddpm_hf.config import dump_recipe
from ddpm_hf.data.prepare import prepare
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.image_files import FolderImages
from ddpm_hf.evaluation.images import Chosen, StoreImages
from ddpm_hf.evaluation.reference import (
    PublishedStatistics,
    open_reference,
    reference_statistics,
    training_images,
    validation_images,
)
from tests.evaluation.conftest import Pooled, random_images, write_images


@pytest.fixture
def folder(own_folder):
    return write_images(own_folder / "real", random_images(20))


@pytest.fixture
def images(folder):
    return FolderImages(folder, "real", progress=False)


def open_(text, data=None, **options):
    return open_reference(text, "--reference", data, progress=False, **options)


def cached():
    from pathlib import Path

    return sorted(path for path in Path("prepared/statistics").iterdir() if path.suffix == ".npz")


def test_statistics_are_computed_once(images, folder, state):
    first, second = Pooled(), Pooled()
    computed, before = reference_statistics(images, first, state, features=True)
    found, after = reference_statistics(FolderImages(folder, "again", progress=False), second, state, features=True)
    assert (before, first.seen, after, second.seen) == (False, 20, True, 0)
    np.testing.assert_array_equal(found.moments.scatter, computed.moments.scatter)
    np.testing.assert_array_equal(found.features, computed.features)
    # moments alone may come with features, which are there
    assert reference_statistics(images, second, state, features=False)[1]


def test_statistics_without_features_are_computed_anew_where_they_are_needed(images, state):
    reference_statistics(images, Pooled(), state, features=False)
    again = Pooled()
    found, cached_before = reference_statistics(images, again, state, features=True)
    assert (cached_before, again.seen) == (False, 20) and found.features.shape == (20, 5)
    assert reference_statistics(images, Pooled(), state, features=True)[1]


def test_other_images_size_or_extractor_are_another_s_statistics(images, folder, own_folder, state):
    reference_statistics(images, Pooled(), state, features=False)
    changed = random_images(20)
    changed[7, 0, 0] ^= 1
    other = FolderImages(write_images(own_folder / "other", changed), "other", progress=False)
    retrained = Pooled()
    retrained.identity = {**retrained.identity, "sha256": "1"}
    for reference, extractor in ((other, Pooled()), (Chosen(images, 19), Pooled()), (images, retrained)):
        assert not reference_statistics(reference, extractor, state, features=False)[1]
    assert len(cached()) == 4


@pytest.mark.parametrize("harm", ["cut", "foreign", "no word of it", "half a word of it", "another's word"])
def test_an_incomplete_or_foreign_file_is_never_used(harm, images, own_folder, state):
    expected, _ = reference_statistics(images, Pooled(), state, features=False)
    (file,) = cached()
    about = file.with_suffix(".json")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "foreign":
        other = FolderImages(write_images(own_folder / "other", random_images(9, seed=1)), "other", progress=False)
        reference_statistics(other, Pooled(), state, features=False)
        file.write_bytes(next(path for path in cached() if path != file).read_bytes())
    elif harm == "no word of it":
        about.unlink()
    elif harm == "half a word of it":
        about.write_text(about.read_text()[:20])
    else:
        content = json.loads(about.read_text())
        content["key"]["num_images"] = 19
        about.write_text(json.dumps(content))
    extractor = Pooled()
    found, cached_before = reference_statistics(images, extractor, state, features=False)
    assert (cached_before, extractor.seen) == (False, 20)
    np.testing.assert_array_equal(found.moments.scatter, expected.moments.scatter)
    assert reference_statistics(images, Pooled(), state, features=False)[1]


def test_a_store_s_statistics_lie_beside_it(digits_data, state):
    images = Chosen(training_images(digits_data, 0), 30)
    reference_statistics(images, Pooled(), state, features=False)
    from pathlib import Path

    assert list((Path(digits_data.store).parent / "statistics").glob("*.npz"))


def test_what_is_held_out_is_no_part_of_the_training_images(digits_data):
    data = digits_data.model_copy(update={"held_out": 0.1})
    store = prepare(data, progress=False)
    train, validation = open_("train", data, seed=3), open_("validation", data, seed=3)
    assert sorted([*train.indices, *validation.indices]) == list(range(len(store)))
    assert len(validation) == round(0.1 * len(store))
    assert (train.describe()["part"], validation.describe()["part"]) == ("train", "held out")


def test_a_validation_split_is_its_own_images(own_folder, tmp_path):
    from ddpm_hf.config import Data

    for split, seed in (("train", 0), ("test", 1)):
        write_images(tmp_path / "set" / split, random_images(5 + seed, seed=seed))
    data = Data(source=str(tmp_path / "set"), resolution=8, channels=1, validation_split="test", prepare_workers=1)
    found = validation_images(data, 0)
    assert len(found) == 6
    np.testing.assert_array_equal(found.read(range(6))[:, 0].numpy(), random_images(6, seed=1))


def test_a_recipe_a_run_folder_and_an_archive_name_images_too(own_folder, tiny_recipe):
    recipe = tiny_recipe(**{"data.held_out": 0.5})
    (own_folder / "mine.yaml").write_text(dump_recipe(recipe))
    (own_folder / "run").mkdir()
    (own_folder / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    a, b = open_("mine.yaml"), open_("run")
    assert isinstance(a, StoreImages) and len(a) == len(b) == 1797 - 898
    assert a.content == b.content
    assert len(open_("quickstart")) == 1797
    np.savez("x.npz", images=random_images(3, channels=1))
    assert len(open_("x.npz")) == 3


def test_the_pixels_of_a_latent_recipe(own_folder, tiny_recipe):
    """Whose store, where one is named, holds latents."""
    recipe = tiny_recipe()
    latent = recipe.model_copy(update={"autoencoder": recipe.autoencoder.model_copy(update={"source": "somewhere"})})
    (own_folder / "latent.yaml").write_text(dump_recipe(latent))
    images = open_("latent.yaml")
    assert images.shape == (1, 8, 8) and str(images.store.folder).startswith("prepared/digits-8x8x1-")


def test_some_of_a_reference(images, folder):
    assert len(open_(str(folder), number=7)) == 7
    assert len(open_(str(folder), number=20)) == 20
    with pytest.raises(UserError, match="--reference_images: 21 are more than there are, 20"):
        open_(str(folder), number=21)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "--reference: train is of a run"),
        ("nowhere", "--reference: nowhere is neither a folder of images, nor train, validation, a recipe"),
        ("empty", "--reference: empty holds no image files"),
        ("not.npz", "--reference: not.npz: no such file"),
        ("cleanfid:cifar10", "--reference: cleanfid:cifar10 should be cleanfid:NAME:RES:SPLIT"),
        ("cleanfid:cifar10:big:test", "should be cleanfid:NAME:RES:SPLIT"),
    ],
)
def test_mistakes(text, message, own_folder):
    (own_folder / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_(text)


def test_a_run_without_images_to_validate_on(digits_data):
    with pytest.raises(UserError, match="this run has no images to validate on"):
        open_("validation", digits_data)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """clean-fid's folder of downloaded statistics, with one in it."""
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "cleanfid" / "__init__.py"))
    folder = tmp_path / "cleanfid" / "stats"
    folder.mkdir(parents=True)
    mean, root = np.arange(6.0), np.random.default_rng(0).normal(size=(6, 6))
    np.savez(folder / "mine_clean_test_32.npz", mu=mean, sigma=root @ root.T)
    return mean, root @ root.T, folder


def test_published_statistics_are_clean_fid_s_own(published, pooled, state):
    mean, covariance, _ = published
    reference = open_("cleanfid:mine:32:test")
    assert reference == PublishedStatistics("mine", 32, "test")
    statistics, cached_before = reference_statistics(reference, pooled, state, features=False)
    np.testing.assert_array_equal(statistics.moments.mean, mean)
    np.testing.assert_allclose(statistics.moments.covariance, covariance, rtol=1e-14)
    assert cached_before and pooled.seen == 0


def test_published_statistics_that_cannot_be_had(published, monkeypatch):
    _, _, folder = published
    (folder / "mine_clean_test_32.npz").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"cleanfid:mine:32:test: the file in clean-fid's own folder, .*stats, is broken"
    ):
        open_("cleanfid:mine:32:test").load()

    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=r"cleanfid:yours:32:test: cannot be had \(no network\)"):
        open_("cleanfid:yours:32:test").load()
    with pytest.raises(UserError, match="--reference_images: published statistics are of all their images"):
        open_("cleanfid:mine:32:test", number=5)


def test_statistics_that_cannot_be_kept_are_used(images, own_folder, state, caplog):
    (own_folder / "prepared").write_text("in the way")
    for _ in range(2):
        found, cached_before = reference_statistics(images, Pooled(), state, features=False)
        assert found.moments.count == 20 and not cached_before
    (warning,) = caplog.messages
    assert "statistics cannot be written" in warning and "\n" not in warning
