"""What a session does that trains an autoencoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from ddpm_hf.autoencoder.objective import AutoencoderObjective, AutoencoderTrainee
from ddpm_hf.autoencoder.quality import measure_latents, psnr, reconstruct, ssim, with_scale
from ddpm_hf.codec import PixelCodec, to_uint8
from ddpm_hf.config import AutoencoderRecipe
from ddpm_hf.pictures import grid
from ddpm_hf.training.examples import Examples
from ddpm_hf.training.loop import Progress
from ddpm_hf.training.shared import validation_batches

MEASURED = 10_000  # images whose latents tell the scale, in the end: enough for three digits of it
MEASURED_MEANWHILE = 512  # at a checkpoint, which must not take long


class Autoencoding:
    """Trains an `AutoencoderKL` on images; leaves it, with the scale of its latents in its config."""

    product = "autoencoder"
    evaluate_every = None  # its validation says how good it is

    def __init__(
        self, recipe: AutoencoderRecipe, trainee: AutoencoderTrainee, examples: Examples, accelerator: Accelerator
    ) -> None:
        self.recipe, self.model, self.examples, self.accelerator = recipe, trainee, examples, accelerator
        self.codec = PixelCodec()
        self.progress = Progress()  # the session's; the discriminator's start depends on it
        self.objective = AutoencoderObjective(recipe.loss, lambda: self.progress.step, accelerator.device)

    def next_command(self, run: Path) -> str:
        return f"autoencoder.source: {run / self.product} in a recipe trains a denoiser on its latents"

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def save(self, trainee: AutoencoderTrainee, folder: Path, done: bool) -> None:
        """With scaling_factor and shift_factor such that a denoiser sees latents of mean 0 and standard deviation 1."""
        images = self._images(MEASURED if done else MEASURED_MEANWHILE)
        mean, std = measure_latents(trainee.autoencoder, images)
        with_scale(trainee.autoencoder, mean, std).save_pretrained(folder)
        if done:
            tqdm.write(
                f"latents: mean {mean:.4f}, standard deviation {std:.4f}; both are in the saved autoencoder's config"
            )

    def _images(self, most: int) -> Iterator[torch.Tensor]:
        """Batches of at most so many images, evenly spread over those trained on; float32 (N, C, H, W) in [-1, 1]."""
        indices, size = self.examples.train_indices, self.recipe.train.batch_size
        spread = indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int)]
        for start in range(0, len(spread), size):
            yield self.codec.encode(self.examples.training.plain(spread[start : start + size])["records"])

    def saved_tensors(self, trainee: AutoencoderTrainee) -> dict[str, torch.Tensor]:
        """What `save` will write."""
        return trainee.autoencoder.state_dict()

    @torch.no_grad()
    def validate(self, trainee: AutoencoderTrainee) -> dict[str, float]:
        """Means over the images that are not trained on: the loss but for the critic's part, PSNR in dB, and SSIM."""
        device = self.accelerator.device
        sums, count = torch.zeros(3, device=device), torch.zeros(1, device=device)
        for number, batch in validation_batches(self.examples, self.recipe.train.batch_size, self.accelerator):
            torch.manual_seed(number)
            x = self.codec.encode(batch["records"].to(device))
            loss = self.objective.validation(trainee, x, autocast=self.accelerator.autocast)
            drawn = reconstruct(trainee.autoencoder, x)
            # an exact copy's PSNR would be infinite
            sums += torch.stack([loss.sum(), psnr(drawn, x).clamp(max=100).sum(), ssim(drawn, x).sum()])
            count += len(x)
        loss, peak, similarity = (self.accelerator.reduce(sums, "sum") / self.accelerator.reduce(count, "sum")).tolist()
        return {"validation_loss": loss, "validation_psnr": peak, "validation_ssim": similarity}

    def picture(self, trainee: AutoencoderTrainee) -> Image.Image:
        """Originals, each with its reconstruction on its right; of images to validate with, if there are any."""
        held_out = self.examples.validation_indices
        images, indices = self.examples.validation, held_out if len(held_out) else self.examples.train_indices
        pairs = min(max(1, self.recipe.sample.num_images // 2), len(indices))
        chosen = [int(indices[i]) for i in np.linspace(0, len(indices) - 1, pairs).round().astype(int)]
        originals = images.plain(chosen)["records"]
        drawn = [
            reconstruct(trainee.autoencoder, self.codec.encode(some.to(self.accelerator.device))).cpu()
            for some in originals.split(self.recipe.sample.batch_size)
        ]
        side_by_side = torch.cat([originals, to_uint8(torch.cat(drawn))], dim=3)  # uint8 (pairs, C, H, 2W)
        return grid(side_by_side.numpy(), max(1, round((pairs / 2) ** 0.5)))
