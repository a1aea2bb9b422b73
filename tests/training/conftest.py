import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def build_session():
    """What train_unconditional.py does between the recipe and `Session.train`."""

    def build(recipe):
        from ddpm_hf.build import build_denoiser
        from ddpm_hf.data.prepare import prepare, validation_data
        from ddpm_hf.diffusion.schedule import build_scheduler
        from ddpm_hf.training.accelerator import build_accelerator
        from ddpm_hf.training.session import Session

        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = build_accelerator(recipe)
        torch.manual_seed(recipe.run.seed)
        denoiser = build_denoiser(recipe)
        store, validation = prepare(recipe.data, progress=False), validation_data(recipe.data)
        return Session(
            recipe,
            store,
            denoiser,
            build_scheduler(recipe.diffusion),
            accelerator,
            validation and prepare(validation, progress=False),
        )

    return build
