"""A picture of what the model will see."""

from pathlib import Path

import numpy as np

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.data.dataset import TrainingImages, TrainingLatents
from ddpm_hf.pictures import grid


def preview(
    dataset: TrainingImages | TrainingLatents, codec: PixelCodec | AutoencoderCodec, path: str | Path, num: int = 64
) -> None:
    """Writes a grid of `num` images, drawn from all, flipped and cropped as in training; latents are decoded."""
    random = np.random.default_rng(0)
    indices = random.choice(len(dataset), min(num, len(dataset)), replace=False)
    draws = random.integers(0, 2**64, len(indices), np.uint64)
    batch = dataset.__getitems__(list(zip(indices.tolist(), draws.tolist(), strict=True)))
    device = "cpu" if codec.vae is None else codec.vae.device
    images = codec.decode(codec.encode(batch["records"].to(device)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid(images.cpu().numpy()).save(path)
