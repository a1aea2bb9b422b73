"""Checkpoints: complete or absent, never half-written, never pickled.

checkpoints/step-00012000/
    model.safetensors  ema.safetensors  optimizer.safetensors   tensors by name
    state.json       progress and whatever else is small
    evaluation.json  the Fréchet distance, where it was measured; written later
    manifest.json    size and SHA-256 of the files above; written last
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddpm_hf.errors import UserError
from ddpm_hf.files import sha256_of, write_atomically

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def tensors(self, name: str) -> Tensors:
        """`model`, `ema` or `optimizer`, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")


class Checkpoints:
    """The checkpoints of one run folder: the last `keep` of them, the best one, and those that hold a file named `keep`.

    The best has the lowest Fréchet distance where there are evaluations, else the lowest validation loss. The file `best`
    in the folder names it.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], tensors: dict[str, Tensors]) -> Path:
        """Writes aside, syncs, renames; only then deletes what is no longer kept.

        Raises `UserError` where the disk is full; earlier checkpoints are then as they were.
        """
        self.check_space(state["step"], tensors)
        final = self.folder / f"step-{state['step']:08d}"
        aside = self.folder / f".{final.name}.new"
        try:
            aside.mkdir()
            for name, named in tensors.items():
                save_file({key: t.detach().contiguous() for key, t in named.items()}, aside / f"{name}.safetensors")
            (aside / "state.json").write_text(json.dumps(state, indent=1))
            files = sorted(aside.iterdir())
            for file in files:
                _sync(file)
            manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            _sync(aside / "manifest.json")
            _sync(aside)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise UserError(self._no_room(state["step"], str(error))) from None
        for path in self._paths():
            if int(path.name.removeprefix("step-")) >= state["step"]:
                shutil.rmtree(path)  # broken, or it would have been resumed from
        aside.rename(final)
        _sync(self.folder)
        self._prune()
        return final

    def note_evaluation(self, step: int, frechet_distance: float, settings: str) -> None:
        """Puts what an evaluation found beside a step's checkpoint, if there is one; the best may be another then.

        settings: a digest of what the distance depends on besides the weights.
        """
        path = self.folder / f"step-{step:08d}"
        if path.is_dir():
            found = {"frechet_distance": frechet_distance, "settings": settings}
            write_atomically(path / "evaluation.json", json.dumps(found))
            self._prune()

    def latest(self, report: Callable[[str], None] = print) -> Checkpoint | None:
        """The newest whole checkpoint, None where there are none. A broken one is reported and passed over.

        Raises `UserError` where all are broken: starting anew would bury them.
        """
        for path in reversed(self._paths()):
            if problem := find_damage(path):
                report(f"{path} is damaged ({problem}); looking for an earlier one")
                continue
            return self.at(int(path.name.removeprefix("step-")))
        if self._paths():
            raise UserError(
                f"no checkpoint in {self.folder} can be read whole; restore one, or choose another --run.name to start anew"
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, taken as whole. Raises `UserError` where this process cannot see it."""
        path = self.folder / f"step-{step:08d}"
        try:
            return Checkpoint(path, _state(path))
        except OSError:
            raise UserError(
                f"{path} cannot be read here; the run folder must lie on a disk that all machines share"
            ) from None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def _prune(self) -> None:
        paths = self._paths()
        kept = set(paths[-self.keep :]) | {path for path in paths if (path / "keep").exists()}
        if (best := _best(paths)) is not None:
            kept.add(best)
            write_atomically(self.folder / "best", f"{best.name}\n")
        for path in paths:
            if path not in kept:
                path.rename(doomed := path.with_name(f".{path.name}.old"))  # never half-deleted under its own name
                shutil.rmtree(doomed)

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def check_space(self, step: int, tensors: dict[str, Tensors]) -> None:
        """Raises `UserError` where a checkpoint of these would not fit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        size = sum(t.nbytes for named in tensors.values() for t in named.values())
        free = shutil.disk_usage(self.folder).free
        if free < size * 1.01 + 2**20:
            raise UserError(self._no_room(step, f"it needs {_megabytes(size)}, {_megabytes(free)} are free"))

    def _no_room(self, step: int, reason: str) -> str:
        last = self.latest(report=lambda _: None) if self._paths() else None
        return (
            f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}; make room and run the same command again,"
            f" which goes on from {f'step {last.step}' if last else 'the start'}"
        )


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is what its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if sha256_of(file) != expected["sha256"]:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "no readable manifest.json"
    return None


def _state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def _best(paths: list[Path]) -> Path | None:
    evaluated = {path: score for path in paths if (score := _read(path / "evaluation.json")) is not None}
    if evaluated:  # with the same extractor, images and sampler as the newest: others cannot be compared with it
        settings = evaluated[max(evaluated)]["settings"]
        comparable = {p: e["frechet_distance"] for p, e in evaluated.items() if e["settings"] == settings}
        return min(comparable, key=comparable.__getitem__)
    states = {path: state for path in paths if (state := _read(path / "state.json")) is not None}
    losses = {path: loss for path, state in states.items() if (loss := state.get("validation_loss")) is not None}
    return min(losses, key=losses.__getitem__, default=None)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None  # a broken one is never the best


def _sync(path: Path) -> None:
    """Makes sure that a file or folder is on the disk, not only in memory."""
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs what it may write only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


# ---- the optimizer's state, by parameter name --------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Tensors:
    """Adam's moments and step counts as `<moment>.<parameter>`."""
    return {f"{key}.{name}": value for name, p in model.named_parameters() for key, value in optimizer.state[p].items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: Tensors) -> None:
    state = optimizer.state_dict()
    parameters = {name: (i, p) for i, (name, p) in enumerate(model.named_parameters())}
    state["state"] = {i: {} for i, _ in parameters.values()}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        i, p = parameters[name]
        # moments take their parameter's memory format, which the fused step requires; step counts are scalars
        state["state"][i][key] = (
            torch.empty_like(p, requires_grad=False).copy_(value) if value.shape == p.shape else value.clone()
        )
    optimizer.load_state_dict(state)
