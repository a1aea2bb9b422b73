import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from PIL import Image

from ddpm_hf.evaluation.extractors.base import Extractor, Features


class Pooled(Extractor):
    """Features are the means of an image's four quarters and its size of change; two classes, dark and bright.

    Counts the images that it sees.
    """

    name, dimensions, channels, has_probabilities = "pooled", 5, 3, True

    def __init__(self):
        self.device = torch.device("cpu")
        self.identity = {"name": "pooled", "weights": "none", "sha256": "0", "resize": "none", "dimensions": 5}
        self.seen = 0

    def extract(self, images):
        self.seen += len(images)
        x = images.float().mean(dim=1, keepdim=True)
        quarters = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        bright = (x.mean(dim=(1, 2, 3)) / 255)[:, None]
        return Features(
            torch.cat([quarters, x.std(dim=(1, 2, 3))[:, None]], dim=1), torch.cat([1 - bright, bright], dim=1)
        )


@pytest.fixture
def pooled():
    return Pooled()


@pytest.fixture
def state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield PartialState(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """What is kept below the current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_pipe(tiny_unet):
    """Draws 8x8 digits-like noise in a few steps of 50 timesteps."""
    from diffusers import DDPMScheduler

    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    return ImageGenerationPipeline(tiny_unet.eval(), DDPMScheduler(50, timestep_spacing="trailing"))


@pytest.fixture
def digits_data(tmp_path):
    from ddpm_hf.config import Data

    return Data(source="digits", resolution=8, channels=1, store=str(tmp_path / "prepared" / "digits"))


def write_images(folder, images, suffix=".png"):
    """uint8 (N, H, W) or (N, H, W, 3) as files; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}{suffix}")
    return folder


def random_images(n, size=8, seed=0, low=0, high=256, channels=None):
    shape = (n, size, size) if channels is None else (n, size, size, channels)
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)
