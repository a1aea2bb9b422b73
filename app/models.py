"""The models of the page: loaded once, shared by all its visitors, never changed."""

import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError

from ddpm_hf.app.card import Card, card_of
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


@dataclass(frozen=True)
class Model:
    """`name` is how the page calls it."""

    name: str
    pipe: ImageGenerationPipeline = field(repr=False)
    card: Card = field(default_factory=Card, repr=False)

    @property
    def num_classes(self) -> int | None:
        return self.pipe.config.num_classes

    @property
    def timesteps(self) -> int:
        return self.pipe.scheduler.config.num_train_timesteps

    def class_name(self, label: int) -> str:
        """Of two classes of the same name, each has its id behind it."""
        return "no class in particular" if label == self.num_classes else self._class_names[label]

    @cached_property
    def _class_names(self) -> list[str]:
        names = self.pipe.config.id2label or {}
        plain = [str(names.get(str(label), label)) for label in range(self.num_classes or 0)]
        times = Counter(plain)
        return [name if times[name] == 1 else f"{name} ({label})" for label, name in enumerate(plain)]


@dataclass(frozen=True)
class Failure:
    name: str
    message: str  # one line, without the folder's path


def load_models(
    sources: Sequence[str], device: torch.device, trust_remote_code: bool = False
) -> tuple[dict[str, Model], list[Failure]]:
    """The models by their names, and those that could not be loaded, whatever is wrong with them."""
    models, failures = {}, []
    for source, name in zip(map(os.path.expanduser, sources), names_of(sources), strict=True):
        try:
            pipe = _load(source, trust_remote_code)
            _check(source, pipe)
            pipe = pipe.to(device)
        except UserError as error:
            failures.append(Failure(name, _without_paths(str(error), source, name)))
        except Exception as error:  # a file may be wrong in any way, and memory may be too little
            traceback.print_exc(file=sys.stderr)
            memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            failures.append(Failure(name, "too large for this machine's memory" if memory else "cannot be loaded"))
        else:
            models[name] = Model(name, pipe, _card(source, pipe))
    return models, failures


def names_of(sources: Sequence[str]) -> list[str]:
    """What distinguishes them to a visitor: a folder's own name, a Hub id as it is."""
    names: list[str] = []
    for source in sources:
        path = Path(os.path.expanduser(source))
        try:
            there = path.exists()
        except OSError:  # such as a name that is too long
            there = False
        if there:
            parts = [part for part in path.resolve().parts if part not in ("pipeline", "hub")]
            name = parts[-1]
        else:
            name = source
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def _without_paths(message: str, source: str, name: str) -> str:
    """One line; of a path, its last part."""
    line = " ".join(message.removeprefix(f"{source}: ").split())
    if "/" in source:
        line = line.replace(source, name)
    return re.sub(r"(?<![\w/:.<])(?:~|[A-Za-z]:)?/(?:[^\s/'\":,;]+/)*([^\s/'\":,;]+)", r"\1", line)


def _card(source: str, pipe: ImageGenerationPipeline) -> Card:
    """A card that cannot be read costs the card alone."""
    try:
        return card_of(source, pipe)
    except LocalEntryNotFoundError:
        return Card("*The card was not downloaded to this machine, and the Hub cannot be reached.*")
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return Card()


def _check(source: str, pipe: ImageGenerationPipeline) -> None:
    """What the page relies on, of configurations that anyone may have written."""
    classes, names, size = pipe.config.num_classes, pipe.config.id2label, pipe.unet.config.sample_size
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise UserError(f"{source}: num_classes should be a whole number of at least 1")
    if names is not None and not isinstance(names, Mapping):
        raise UserError(f"{source}: id2label should map ids to names")
    sizes = size if isinstance(size, list | tuple) else (size, size)
    if len(sizes) != 2 or not all(isinstance(side, int) and side > 0 for side in sizes):
        raise UserError(f"{source}: its denoiser's sample_size should be a size in pixels or two")


def _load(source: str, trust_remote_code: bool) -> ImageGenerationPipeline:
    try:
        return load_pipeline(source)
    except UserError as error:
        if not trust_remote_code or "needs code of its own" not in str(error):
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
