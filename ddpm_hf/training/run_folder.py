"""The run folder: where everything about one run lies."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ddpm_hf.config import AnyRecipe, differences, dump_recipe, load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.files import beside, put_in_place, write_atomically


class RunFolder:
    """`<run.output_dir>/<run.name>/`."""

    def __init__(self, recipe: AnyRecipe) -> None:
        self.path = Path(os.path.expanduser(recipe.run.output_dir)) / recipe.run.name
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.evaluations = self.path / "evaluations"
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def claim(self) -> None:
        """Makes the folder and holds it while this process lives; the system lets go of it even after a SIGKILL."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use by another training; wait for it, stop it, or choose another --run.name"
            ) from None
        except OSError as error:
            raise UserError(f"run.output_dir: {self.path} cannot be written: {error.strerror}") from None

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()  # at once, whatever ended the training: a notebook's process lives on

    def state(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of itself, not looking whether it is whole; None without one."""
        for path in sorted(self.checkpoints.glob("step-*"), reverse=True):
            with suppress(OSError, ValueError):
                return json.loads((path / "state.json").read_text())
        return None

    def check_recipe(self, recipe: AnyRecipe, trained_batch: int, world_size: int) -> None:
        """Refuses to resume with a recipe that would change results already reached.

        `trained_batch` images made up a step so far, of all processes and micro-batches together.
        """
        old = load_recipe(self.recipe_file, kind=type(recipe))
        found = differences(old, recipe)
        batch = recipe.train.batch_size * recipe.train.gradient_accumulation_steps * world_size
        if batch == trained_batch:  # the same images make up each step, only cut in other pieces
            found = [d for d in found if d[0] not in ("train.batch_size", "train.gradient_accumulation_steps")]
        if found:
            key, before, now = found[0]
            more = f" (and {', '.join(key for key, *_ in found[1:])})" if found[1:] else ""
            raise UserError(
                f"{key}: {self.path} was trained with {_plain(before)}, the recipe now says {_plain(now)}{more};"
                " set it back, or choose another --run.name for a new run"
            )

    def check_origin(
        self, recipe: AnyRecipe, state: dict[str, Any], class_names: list[str] | None, autoencoder: dict | None
    ) -> None:
        """Refuses to resume on other classes, or through another autoencoder."""
        if state["class_names"] != class_names:
            key = "data.source" if recipe.data.classes is None else "data.classes"
            raise UserError(
                f"{key}: the classes were {state['class_names']} when {self.path} was trained, now they are"
                f" {class_names}; use the same, or another --run.name"
            )
        if state["autoencoder"] != autoencoder:
            raise UserError(
                f"autoencoder.source: is not the autoencoder that {self.path} was trained with, or its scale differs;"
                f" {self.path / 'pipeline'} holds the run's own copy and can be named instead; or choose another --run.name"
            )

    def write_recipe(self, recipe: AnyRecipe) -> None:
        write_atomically(self.recipe_file, dump_recipe(recipe))

    def forget_metrics_after(self, step: int) -> None:
        """Drops lines that a killed run logged after the checkpoint it is resumed from; they will come again."""
        if self.metrics_file.is_file():
            lines = self.metrics_file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_atomically(self.metrics_file, "".join(kept))

    def replace(self, product: str, save: Callable[[Path], None]) -> None:
        """Saves a pipeline or an autoencoder aside with `save(folder)`, then puts it in the place of the last one."""
        final = self.path / product
        new = beside(final, "new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            save(new)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(new, ignore_errors=True)
            raise UserError(f"{final} cannot be written: {error}; make room and run the same command again") from None
        put_in_place(new, final)


def open_run(recipe: AnyRecipe, accelerator: Accelerator) -> RunFolder:
    """The recipe's run folder, held by this launch until it is released.

    Raises `UserError` where it is in use or was begun with another recipe: before images are prepared, which may take long.
    """
    run = RunFolder(recipe)
    if accelerator.is_main_process:
        run.claim()
        try:
            if (state := run.state()) is not None and run.recipe_file.is_file():
                run.check_recipe(recipe, state["images_per_step"], accelerator.num_processes)
        except UserError:
            run.release()
            raise
    return run


def _plain(value) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
