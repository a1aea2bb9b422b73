"""What a run has to show, in the form that anyone may see."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_hf.codec import weights_digest
from ddpm_hf.config import Recipe, load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.loading import is_run, load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.publishing.places import public_recipe, public_record

Record = dict[str, Any]  # of an evaluation


@dataclass(frozen=True)
class Run:
    """A run folder, read.

    recipe: without places of this machine; places: its settings that named one
    pipe: the pipeline that the run saved, float32, on the CPU
    state: what the checkpoint of exactly these weights says of itself; None where there is none any more
    records: of evaluations, by their file names
    metrics: the lines of metrics.jsonl, in order
    dataset: the id of the data set on the Hub, None of any other
    license: as the recipe's `hub` section has it
    """

    folder: Path
    recipe: Recipe
    places: list[str]
    pipe: ImageGenerationPipeline
    state: dict[str, Any] | None
    records: dict[str, Record]
    metrics: list[dict[str, Any]]
    dataset: str | None
    license: str | None

    @property
    def name(self) -> str:
        return self.recipe.run.name

    @property
    def class_names(self) -> list[str] | None:
        """Of a conditional model, in the order of their ids."""
        num_classes, names = self.pipe.config.num_classes, self.pipe.config.id2label
        if num_classes is None:
            return None
        return [(names or {}).get(str(i), str(i)) for i in range(num_classes)]

    def measured(self) -> dict[str, Record]:
        """The records of these very weights with values in them, by their file names."""
        of_these = {
            "weights": weights_digest(self.pipe.unet),
            "autoencoder": None if self.pipe.vae is None else weights_digest(self.pipe.vae),
        }
        return {
            name: record
            for name, record in self.records.items()
            if record.get("metrics") and all(record.get(key) == value for key, value in of_these.items())
        }


def read_run(run: str | Path) -> Run:
    """Raises `UserError` for what is no run folder with a pipeline in it."""
    folder = Path(os.path.expanduser(run))
    if not folder.exists():
        raise UserError(f"{folder.absolute()}: no such folder; give a run folder, such as training leaves in runs/")
    if not is_run(folder):
        if (folder / "model_index.json").is_file():
            raise UserError(
                f"{run}: a pipeline folder; give the run folder that it came from, whose recipe and records are published too"
            )
        raise UserError(f"{run}: no run folder, which has a recipe.yaml")
    pipe = load_pipeline(str(folder))
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{run}: has no recipe.yaml, which is published too")
    state = _state_of(folder, pipe)
    local = load_recipe(folder / "recipe.yaml")
    here = folder.resolve()
    local = local.model_copy(update={"run": local.run.model_copy(update={"name": here.name})})
    # a checkpoint knows what the source was when it was read; its name alone may mean a folder or an id, in doubt a folder
    kind = (state or {}).get("source", {}).get("kind")
    from_hub = kind == "hub"
    recipe, places = public_recipe(local, from_hub, (state or {}).get("here"), folder)
    read = {path.name: _record(path) for path in sorted((folder / "evaluations").glob("*.json"))}
    records = {
        name: public_record(record, local, recipe, folder) for name, record in read.items() if record is not None
    }
    metrics = _metrics(folder / "metrics.jsonl")
    dataset = recipe.data.source if from_hub else None
    return Run(folder, recipe, places, pipe, state, records, metrics, dataset, local.hub.license)


def _state_of(folder: Path, pipe: ImageGenerationPipeline) -> dict[str, Any] | None:
    """The state of the checkpoint whose average is what the pipeline holds; a killed run may lack it for its last."""
    weights = pipe.unet.state_dict()
    for path in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            average, state = load_file(path / "ema.safetensors"), json.loads((path / "state.json").read_text())
        except (OSError, ValueError, SafetensorError):
            continue
        if average.keys() == weights.keys() and all(torch.equal(weights[name], average[name]) for name in weights):
            return state
    return None


def _record(path: Path) -> Record | None:
    """None of a file that is no evaluation's record, such as notes of the user's own."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an evaluation's record: {error}") from None
    return record if isinstance(record, dict) and isinstance(record.get("metrics"), dict) else None


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Whole lines alone: a run that is under way may be writing one."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def curve(metrics: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key; what is not finite is NaN."""
    points = [(line["step"], line[key]) for line in metrics if key in line]
    return [step for step, _ in points], [math.nan if value is None else float(value) for _, value in points]
