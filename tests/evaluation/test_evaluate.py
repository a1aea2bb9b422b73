from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation import evaluate
from ddpm_hf.evaluation.evaluate import Evaluator, build_evaluator, classes_of
from ddpm_hf.evaluation.image_files import ArchiveImages, FolderImages
from ddpm_hf.evaluation.images import DrawnImages
from ddpm_hf.evaluation.metrics import measure
from ddpm_hf.evaluation.reference import PublishedStatistics
from ddpm_hf.evaluation.statistics import Moments, Statistics
from ddpm_hf.sampling import Sampling
from tests.evaluation.conftest import Pooled, random_images, write_images

FAST = Sampling("ddim", 3)


@pytest.fixture
def folders(own_folder):
    """Real images, others like them, and darker ones."""
    sets = {"real": random_images(60), "alike": random_images(60, seed=1), "dark": random_images(60, seed=2, high=100)}
    return {name: FolderImages(write_images(own_folder / name, s), name, progress=False) for name, s in sets.items()}


@pytest.fixture
def pooled_by_name(monkeypatch):
    """`pooled` as the extractor of any name but the classifier's, which knows three classes; what was built."""
    built = []

    def build(name, weights, device, training_set, option):
        built.append((name, weights, training_set))
        extractor = Pooled()
        if name == "classifier":
            extractor.name = "classifier"
            pooled = extractor.extract

            def extract(images):
                found = pooled(images)
                ten = torch.nn.functional.pad(found.probabilities, (0, 8))
                return type(found)(found.values, ten)

            extractor.extract = extract
        return extractor

    monkeypatch.setattr(evaluate, "build_extractor", build)
    return built


METRICS = ("frechet", "kernel", "precision_recall", "density_coverage")


def test_all_of_it_together(folders, pooled, state):
    """The values are those of the metrics on the extractor's features, computed here from all images at once."""
    evaluator = Evaluator((*METRICS, "score"), state, pooled, None, folders["real"])
    evaluation = evaluator(folders["alike"])

    def statistics(images):
        found = Pooled()(images.read(range(60)))
        moments = Moments(5)
        moments.add(found.values)
        return Statistics(moments, found.values.numpy(), found.probabilities.numpy())

    expected, warnings = measure(
        (*METRICS, "score"), statistics(folders["alike"]), statistics(folders["real"]), "pooled"
    )
    assert evaluation.values == pytest.approx(expected)
    assert evaluation.warnings == warnings
    assert evaluation.frechet == evaluation.values["frechet_distance_pooled"]
    assert evaluation.distinct == 60 and evaluation.reference_was_cached is False
    assert set(evaluation.times) == {
        f"{phase}_seconds" for phase in ("reference", "reading", "extraction", "metrics", "total")
    }


def test_a_set_against_itself_and_against_another(folders, pooled, state):
    evaluator = Evaluator(METRICS, state, pooled, None, folders["real"])
    itself, alike, dark = (evaluator(folders[name]) for name in ("real", "alike", "dark"))
    assert abs(itself.frechet) < 1e-6 and itself.values["precision"] == itself.values["recall"] == 1
    assert itself.frechet < alike.frechet < dark.frechet
    assert alike.values["precision"] > 0.5 > dark.values["precision"]


def test_the_reference_is_extracted_once_for_many_evaluations(folders, pooled, state):
    evaluator = Evaluator(("frechet",), state, pooled, None, folders["real"])
    evaluator(folders["alike"])
    assert pooled.seen == 120
    assert evaluator(folders["dark"]).reference_was_cached and pooled.seen == 180


def test_drawn_images_have_a_rate(tiny_pipe, folders, pooled, state):
    evaluation = Evaluator(("frechet",), state, pooled, None, folders["real"])(DrawnImages(tiny_pipe, 10, FAST))
    times = evaluation.times
    assert times["images_per_second"] == pytest.approx(10 / times["sampling_seconds"])
    assert any("10 images against 60" in warning for warning in evaluation.warnings)


def test_no_more_is_computed_than_each_image_once(tiny_pipe, folders, pooled, state):
    passes = []
    tiny_pipe.unet.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    evaluator = Evaluator((*METRICS, "score"), state, pooled, pooled, folders["real"])
    evaluator(folders["real"])  # the reference's statistics are there from now on
    before = pooled.seen
    evaluator(DrawnImages(tiny_pipe, 13, FAST, batch_size=5))
    assert passes == [5] * 3 + [5] * 3 + [3] * 3
    assert pooled.seen - before == 13


def test_metrics_of_other_kinds_need_no_image(state):
    evaluation = Evaluator((), state)(None, {"validation_loss": lambda: {"validation_loss": 0.5}})
    assert evaluation.values == {"validation_loss": 0.5} and evaluation.distinct is None
    assert set(evaluation.times) == {"validation_loss_seconds", "total_seconds"}


def test_repeated_images_are_a_warning(own_folder, folders, pooled, state):
    twice = FolderImages(write_images(own_folder / "twice", random_images(30).repeat(2, axis=0)), "x", progress=False)
    evaluation = Evaluator(("frechet",), state, pooled, None, folders["real"])(twice)
    assert evaluation.distinct == 30
    assert any("only 30 of the 60 images are distinct" in warning for warning in evaluation.warnings)


def test_class_agreement_is_of_what_was_asked_and_what_is_seen(own_folder, pooled, state):
    """Dark images are seen as class 0, bright ones as class 1; a quarter was asked for as the other one."""
    dark, bright = random_images(20, high=60), random_images(20, low=200)
    labels = np.repeat([0, 1], 20)
    labels[:10] = 1
    np.savez("x.npz", images=np.concatenate([dark, bright])[..., None], labels=labels)
    evaluation = Evaluator(("class_agreement",), state, pooled, pooled, None)(ArchiveImages(own_folder / "x.npz", "x"))
    assert evaluation.values == {"class_agreement": 0.75}


def test_samples_and_their_nearest_reference_images(folders, pooled, state):
    evaluation = Evaluator(("frechet",), state, pooled, None, folders["real"])(folders["real"], nearest=True)
    nearest = evaluation.nearest
    assert nearest.samples.shape == (16, 1, 8, 8) and nearest.images.shape == (16, 5, 1, 8, 8)
    np.testing.assert_array_equal(nearest.indices[:, 0], range(16))
    np.testing.assert_array_equal(nearest.images[:, 0], nearest.samples)
    np.testing.assert_array_equal(nearest.distances[:, 0], 0)


def test_against_published_statistics(folders, own_folder, pooled, state, monkeypatch):
    """The same distance as against the images that they are of, and no count that nobody knows."""
    import cleanfid

    monkeypatch.setattr(cleanfid, "__file__", str(own_folder / "cleanfid" / "__init__.py"))
    (own_folder / "cleanfid" / "stats").mkdir(parents=True)
    features = Pooled()(folders["real"].read(range(60))).values.numpy().astype(np.float64)
    np.savez(
        own_folder / "cleanfid" / "stats" / "mine_clean_train_8.npz",
        mu=features.mean(0),
        sigma=np.cov(features, rowvar=False),
    )
    published = Evaluator(("frechet",), state, pooled, None, PublishedStatistics("mine", 8, "train"))(folders["dark"])
    computed = Evaluator(("frechet",), state, pooled, None, folders["real"])(folders["dark"])
    assert published.frechet == pytest.approx(computed.frechet, rel=1e-6)
    assert published.warnings[0].startswith("60 images against published statistics: the Fréchet distance is biased")


# ---- what is found before


def build(folders, state, metrics=("frechet",), images="alike", **options):
    options = {"reference": str(folders["real"].folder), "extractor": "pooled", **options}
    return build_evaluator(metrics, folders[images], state, **options)


def test_an_evaluator_from_names(folders, pooled_by_name, state):
    evaluator = build(folders, state, extractor_weights="some", reference_images=30)
    assert pooled_by_name == [("pooled", "some", None)]
    assert len(evaluator.reference) == 30 and evaluator.classifier is None
    assert evaluator(folders["alike"]).frechet > 0


def test_nothing_is_built_that_nothing_needs(folders, pooled_by_name, state):
    evaluator = build(folders, state, metrics=("score",), reference=None)
    assert evaluator.reference is None and len(pooled_by_name) == 1
    assert build(folders, state, metrics=(), reference=None).extractor is None
    assert len(pooled_by_name) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fid",)}, "--metrics: 'fid' is no metric; choose from frechet, kernel"),
        ({"reference": None}, "--reference: alike have no recipe to tell it"),
        ({"reference": "large"}, r"--reference: its images are 1x9x9 \(channels, height, width\), alike 1x8x8"),
        ({"reference": "colored"}, r"--reference: its images are 3x8x8"),
        ({"metrics": ("kernel",), "reference_images": 3}, "--metrics: kernel needs at least 4 images in the reference"),
        ({"metrics": ("kernel",), "images": "few"}, "--metrics: kernel needs at least 4 images, and there are 3"),
        ({"metrics": ("precision_recall",), "reference_images": 5}, "--metrics: precision_recall needs at least 6 images"),
        ({"metrics": ("class_agreement",)}, "--metrics: class_agreement needs images that were drawn by class"),
        ({"nearest": True, "reference_images": 4}, "--neighbours: needs a reference of at least 5 images"),
        ({"reference": "cleanfid:cifar10:32:test"}, "--extractor: cleanfid:cifar10:32:test are statistics of inception's"),
        (
            {"reference": "cleanfid:cifar10:32:test", "extractor": "inception"},
            "--reference: cleanfid:cifar10:32:test is of another size than alike, 8x8",
        ),
        (
            {"reference": "cleanfid:cifar10:32:test", "extractor": "inception", "metrics": ("frechet", "kernel")},
            "--metrics: kernel needs the reference's images",
        ),
        (
            {"reference": "cleanfid:cifar10:32:test", "extractor": "inception", "nearest": True},
            "--neighbours: cleanfid:cifar10:32:test has no images",
        ),
        ({"reference": "train", "option": "evaluate."}, "evaluate.reference: train is of a run"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_any_image_is_read(options, message, folders, own_folder, pooled_by_name, state):
    write_images(own_folder / "large", random_images(8, 9))
    write_images(own_folder / "colored", random_images(8, channels=3))
    folders["few"] = FolderImages(write_images(own_folder / "few", random_images(3)), "few", progress=False)
    with pytest.raises(UserError, match=message):
        build(folders, state, **options)


def test_missing_weights_are_told_before_the_reference_is_prepared(folders, state, digits_data):
    with pytest.raises(UserError, match=r"--extractor: nowhere\.pt: no such file"):
        build(folders, state, extractor="nowhere.pt", reference="train", data=digits_data)
    assert not Path(digits_data.store).exists()


@pytest.mark.parametrize(
    ("classes", "classifier", "built"),
    [(2, None, ["pooled"]), (10, None, ["pooled", "classifier"]), (2, "other", ["pooled", "other"])],
)
def test_who_sees_the_classes(classes, classifier, built, folders, digits_data, pooled_by_name, state, tiny_unet):
    """The extractor where it knows as many as the model, else the small classifier, or whoever is named."""
    from diffusers import DDPMScheduler

    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    names = {str(i): str(i) for i in range(classes)}
    pipe = ImageGenerationPipeline(tiny_unet, DDPMScheduler(50), num_classes=classes, id2label=names)
    images = DrawnImages(pipe, 20, FAST)
    evaluator = build_evaluator(
        ("frechet", "class_agreement"), images, state, data=digits_data, extractor="pooled", classifier=classifier
    )
    assert [name for name, *_ in pooled_by_name] == built
    assert classes_of(evaluator.classifier, images.shape) == classes
    assert (evaluator.classifier is evaluator.extractor) == (len(built) == 1)
    if "classifier" in built:
        assert len(pooled_by_name[1][2]) == 1797  # trained on the model's own images


def test_a_classifier_of_other_classes_is_refused(folders, pooled_by_name, state):
    np.savez("x.npz", images=random_images(20)[..., None], labels=np.arange(20) % 3)
    images = ArchiveImages(folders["real"].folder.parent / "x.npz", "x")
    with pytest.raises(UserError, match="--classifier: pooled knows 2 classes, the model 3"):
        build_evaluator(("class_agreement",), images, state, classifier="pooled", reference=None)
    with pytest.raises(
        UserError, match="--classifier: classifier is trained on a recipe's labelled images, and there is none here"
    ):
        build_evaluator(("class_agreement",), images, state, reference=None)


class Odd(Pooled):
    """Takes images of 9x9 alone, as a TorchScript file may."""

    def extract(self, images):
        if images.shape[2:] != (9, 9):
            raise RuntimeError("The following operation failed:\nshapes cannot be multiplied")
        return super().extract(images)


def test_an_extractor_is_tried_with_the_images_shape(folders, state, monkeypatch):
    monkeypatch.setattr(evaluate, "build_extractor", lambda *_: Odd())
    expected = r"extractor: pooled cannot take alike, 1x8x8 \(channels, height, width\): shapes cannot be multiplied"
    with pytest.raises(UserError, match=f"^--{expected}"):
        build(folders, state)
    labelled = ArchiveImages(_archive(labels=np.arange(20) % 2), "x")
    with pytest.raises(UserError, match=r"^evaluate\.classifier: pooled cannot take x, 1x8x8"):
        build_evaluator(("class_agreement",), labelled, state, classifier="other", reference=None, option="evaluate.")


def test_an_extractor_of_gray_images_is_no_extractor_of_colored_ones(own_folder, pooled, state, monkeypatch):
    pooled.channels = 1
    monkeypatch.setattr(evaluate, "build_extractor", lambda *_: pooled)
    colored = FolderImages(write_images(own_folder / "colored", random_images(20, channels=3)), "x", progress=False)
    with pytest.raises(UserError, match=r"^--extractor: pooled cannot take x, 3x8x8 .*: pooled takes gray images"):
        build_evaluator(("frechet",), colored, state, extractor="y", reference=str(colored.folder))


def test_published_statistics_are_had_before_images_are_drawn(folders, state, monkeypatch, pooled_by_name):
    def missing(self):
        raise UserError(f"{self.called}: cannot be had")

    monkeypatch.setattr(PublishedStatistics, "load", missing)
    with pytest.raises(UserError, match=r"^--reference: cleanfid:mine:8:train: cannot be had"):
        build(folders, state, reference="cleanfid:mine:8:train", extractor="inception")


def test_manifolds_of_a_very_large_reference_are_refused(folders, pooled_by_name, state, monkeypatch):
    monkeypatch.setattr(evaluate, "MOST_IMAGES", 59)
    for metric in ("precision_recall", "density_coverage"):
        with pytest.raises(UserError, match=f"^--reference_images: {metric} compare.* for its 60; set 59 or fewer"):
            build(folders, state, metrics=("frechet", metric))
        assert build(folders, state, metrics=(metric,), reference_images=59)
    assert build(folders, state, metrics=("kernel",))


@pytest.mark.parametrize("metric", ["frechet", "kernel"])
def test_a_reference_prepared_is_there_when_images_are(metric, folders, pooled, state):
    evaluator = Evaluator((metric,), state, pooled, None, folders["real"])
    evaluator.prepare_reference()
    assert pooled.seen == 60
    assert evaluator(folders["alike"]).reference_was_cached and pooled.seen == 120
    Evaluator(("score",), state, pooled).prepare_reference()  # nothing to do


def _archive(**arrays):
    np.savez("archive.npz", images=random_images(20)[..., None], **arrays)
    return Path("archive.npz")
