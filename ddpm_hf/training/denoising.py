"""What a session does that trains a denoiser."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin
from PIL import Image

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.config import Recipe
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.export import save_pipeline
from ddpm_hf.pictures import class_grid, grid
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling
from ddpm_hf.training.examples import Examples
from ddpm_hf.training.shared import draw_together, validation_loss


class Denoising:
    """Trains `denoiser` on what `codec` makes of the images; leaves a pipeline."""

    product = "pipeline"

    def __init__(
        self,
        recipe: Recipe,
        denoiser: ModelMixin,
        codec: PixelCodec | AutoencoderCodec,
        scheduler: DDPMScheduler,
        examples: Examples,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.model, self.codec, self.scheduler = recipe, denoiser, codec, scheduler
        self.examples, self.accelerator = examples, accelerator
        self.objective = Objective(
            recipe.diffusion,
            recipe.condition,
            scheduler,
            accelerator.device,
            accelerator.gather,
            discrete=codec.vae is None,
        )
        self.timesteps = self.objective.timesteps  # which may learn from the losses

    def next_command(self, run: Path) -> str:
        return f"ddpm-hf sample {run} draws with it"

    def state(self) -> dict[str, torch.Tensor]:
        """What importance sampling has learned from the losses so far."""
        return self.timesteps.state()

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        self.timesteps.load_state(tensors)

    def pipeline(self, denoiser: ModelMixin) -> ImageGenerationPipeline:
        """The model as whoever loads it will use it."""
        num_classes, names = self.recipe.condition.num_classes, self.examples.store.class_names
        pipe = ImageGenerationPipeline(
            denoiser,
            self.scheduler,
            self.codec.vae,
            num_classes=num_classes,
            id2label=None if num_classes is None else {str(i): name for i, name in enumerate(names)},
            variance_exponent=self.recipe.diffusion.variance_exponent,
            image_channels=1 if self.recipe.autoencoder.gray_as_rgb else None,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def save(self, denoiser: ModelMixin, folder: Path, done: bool) -> None:
        save_pipeline(self.pipeline(denoiser), folder)

    def saved_tensors(self, denoiser: ModelMixin) -> dict[str, torch.Tensor]:
        """What `save` will write."""
        vae = {} if self.codec.vae is None else {f"vae.{k}": v for k, v in self.codec.vae.state_dict().items()}
        return denoiser.state_dict() | vae

    def validate(self, denoiser: ModelMixin) -> dict[str, float]:
        """The loss on images that are not trained on; of a conditional model, with labels and without."""

        def loss(null_class: int | None = None) -> float:
            return validation_loss(
                denoiser,
                self.objective,
                self.codec,
                self.examples,
                self.recipe.train.batch_size,
                self.accelerator,
                null_class,
            )

        condition = self.recipe.condition
        if condition.num_classes is None or condition.dropout == 0:
            return {"validation_loss": loss()}
        return {"validation_loss": loss(), "validation_loss_unlabelled": loss(condition.num_classes)}

    def picture(self, denoiser: ModelMixin) -> Image.Image:
        """A grid of the same seeds each time; of a conditional model, a row a class, and guidance scales side by side."""
        sample, num_classes = self.recipe.sample, self.recipe.condition.num_classes

        def draw(seeds: list[int], scale: float) -> np.ndarray:
            interval = None if scale == 1 else sample.guidance_interval
            decoded = self.recipe.autoencoder.batch_size
            sampling = Sampling(sample.sampler, sample.steps, sample.eta, None, scale, interval, decoded)
            return draw_together(self.pipeline(denoiser), seeds, sample.batch_size, sampling, self.accelerator)

        if num_classes is None:
            return grid(draw(list(range(sample.seed, sample.seed + sample.num_images)), 1.0))
        scales = sample.grid_guidance_scales or tuple(dict.fromkeys((1.0, sample.guidance_scale)))
        rows = min(num_classes, 20, max(1, sample.num_images // len(scales)))
        columns = max(1, sample.num_images // (rows * len(scales)))
        classes = np.linspace(0, num_classes - 1, rows).round().astype(int)
        # an image's class is its seed modulo the number of classes
        first = -(-sample.seed // num_classes) * num_classes
        seeds = [int(first + k * num_classes + label) for label in classes for k in range(columns)]
        drawn = np.stack([draw(seeds, scale) for scale in scales], axis=1)  # uint8 (rows * columns, scales, C, H, W)
        images = drawn.reshape(rows, columns, len(scales), *drawn.shape[2:]).swapaxes(1, 2)
        return class_grid(images, scales, [self.examples.store.class_names[label] for label in classes])
