import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """No test writes to the user's cache."""
    cache = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        if config := sys.modules.get("datasets.config"):
            patch.setattr(config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="session")
def cifar10() -> Path:
    if not (SHARED / "cifar10").is_dir():
        pytest.skip(f"needs the CIFAR-10 parquet files at {SHARED / 'cifar10'}")
    return SHARED / "cifar10"


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """Eight ImageNet photographs as JPEG files, of several shapes."""
    file = SHARED / "imagenet_samples" / "train.parquet"
    if not file.is_file():
        pytest.skip(f"needs the photographs at {file}")
    import pyarrow.parquet as pq

    return [row["image"]["bytes"] for row in next(pq.ParquetFile(file).iter_batches(8)).to_pylist()]


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: uint8 (1797,8,8), and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target


@pytest.fixture
def digit_folder(tmp_path, digits) -> Path:
    """The first 60 digits as <class>/<number>.png."""
    return write_digit_folder(tmp_path / "photos", *digits, 60)


def write_digit_folder(folder: Path, images: np.ndarray, labels: np.ndarray, num: int) -> Path:
    for i in range(num):
        path = folder / f"digit {labels[i]}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
    return folder
