"""The models of the page: loaded once, shared by all its visitors, never changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ddpm_hf.app.card import card_of
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


@dataclass(frozen=True)
class Model:
    """`name` is how the page calls it, `card` its model card in Markdown."""

    name: str
    pipe: ImageGenerationPipeline = field(repr=False)
    card: str = field(default="", repr=False)

    @property
    def num_classes(self) -> int | None:
        return self.pipe.config.num_classes

    @property
    def timesteps(self) -> int:
        return self.pipe.scheduler.config.num_train_timesteps

    def class_name(self, label: int) -> str:
        if label == self.num_classes:
            return "no class in particular"
        return str((self.pipe.config.id2label or {}).get(str(label), label))


@dataclass(frozen=True)
class Failure:
    name: str
    message: str  # one line, without the folder's path


def load_models(
    sources: Sequence[str], device: torch.device, trust_remote_code: bool = False
) -> tuple[dict[str, Model], list[Failure]]:
    """The models by their names, and those that could not be loaded."""
    models, failures = {}, []
    for source, name in zip(sources, names_of(sources), strict=True):
        try:
            pipe = _load(source, trust_remote_code).to(device)
        except UserError as error:
            failures.append(Failure(name, str(error).removeprefix(f"{source}: ").replace(source, name)))
        else:
            models[name] = Model(name, pipe, card_of(source, pipe))
    return models, failures


def names_of(sources: Sequence[str]) -> list[str]:
    """What distinguishes them to a visitor: a folder's own name, a Hub id as it is."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        if path.exists():
            parts = [part for part in path.resolve().parts if part not in ("pipeline", "hub")]
            name = parts[-1]
        else:
            name = source
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def _load(source: str, trust_remote_code: bool) -> ImageGenerationPipeline:
    try:
        return load_pipeline(source)
    except UserError as error:
        if not trust_remote_code:
            raise
        refusal = error
    path = Path(source)
    if (path / "pipeline" / "model_index.json").is_file():  # a run
        source = str(path / "pipeline")
    try:
        loaded = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    except Exception:  # of any kind: this is another's code
        raise refusal from None
    return _as_ours(source, loaded)


def _as_ours(source: str, loaded: DiffusionPipeline) -> ImageGenerationPipeline:
    """The parts of a pipeline that came with its own code, in this package's pipeline, which draws by seed."""
    parts = {name: part for name, part in loaded.components.items() if part is not None}
    if not {"unet", "scheduler"} <= set(parts) <= {"unet", "scheduler", "vae"}:
        raise UserError(f"{source}: a {type(loaded).__name__}, which is not made of a denoiser and a scheduler alone")
    if "num_train_timesteps" not in parts["scheduler"].config or not hasattr(parts["scheduler"], "betas"):
        raise UserError(f"{source}: a {type(parts['scheduler']).__name__}, whose noise schedule is not one of betas")
    names = ("num_classes", "id2label", "variance_exponent", "image_channels")
    pipe = ImageGenerationPipeline(**parts, **{name: loaded.config.get(name) for name in names})
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
