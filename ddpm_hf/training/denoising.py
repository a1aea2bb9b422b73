"""What a session does that trains a denoiser."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler, ModelMixin
from PIL import Image

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.config import Recipe
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.evaluation.evaluate import Evaluation, build_evaluator
from ddpm_hf.evaluation.images import DrawnImages
from ddpm_hf.evaluation.records import about_model, record_of, settings_digest, settings_of
from ddpm_hf.evaluation.reference import pixels
from ddpm_hf.export import save_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sample_grid import sample_grid, sampling_of_recipe
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
        self.evaluate_every = recipe.evaluate.every

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

    def evaluate(self, denoiser: ModelMixin) -> tuple[Evaluation, dict[str, Any], str]:
        """What the model draws, compared with real images; the record, without what only the run knows; its settings' digest."""
        images = self._drawn(denoiser)
        evaluation = self.evaluator(images)
        settings = settings_of(self.evaluator, images)
        model = {
            "ema": self.recipe.ema.model_dump(mode="json"),
            "precision": self.recipe.train.precision,
            **about_model(images.pipe),
        }
        return evaluation, record_of(model, settings, evaluation, PartialState()), settings_digest(settings)

    def prepare_evaluation(self) -> None:
        """Opens all that evaluations need. Raises `UserError` for what would fail at the first one."""
        recipe, settings = self.recipe, self.recipe.evaluate
        self.evaluator = build_evaluator(
            settings.metrics,
            self._drawn(self.model),
            PartialState(),
            data=pixels(recipe.data, recipe.autoencoder.source is not None),
            seed=recipe.run.seed,
            reference=settings.reference,
            reference_images=settings.reference_images,
            extractor=settings.extractor,
            extractor_weights=settings.extractor_weights,
            option="evaluate.",
        )
        self.evaluator.prepare_reference()

    def _drawn(self, denoiser: ModelMixin) -> DrawnImages:
        settings = self.recipe.evaluate
        return DrawnImages(
            self.pipeline(denoiser),
            settings.num_images,
            sampling_of_recipe(self.recipe),
            batch_size=settings.batch_size,
            autocast=self.accelerator.autocast,
        )

    def picture(self, denoiser: ModelMixin) -> Image.Image:
        """The recipe's grid, of the same seeds each time."""

        def draw(seeds: list[int], sampling: Sampling) -> np.ndarray:
            pipe, at_once = self.pipeline(denoiser), self.recipe.sample.batch_size
            return draw_together(pipe, seeds, at_once, sampling, self.accelerator)

        return sample_grid(self.recipe, self.examples.store.class_names, draw)
