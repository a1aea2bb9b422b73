"""Pushing to the Hub while training goes on.

What is published of a step is linked aside, and another process of low priority makes the folder, checks it and uploads it:
one that fails, or is slow, disturbs neither the training's memory nor its random numbers nor its device.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

import ddpm_hf
from ddpm_hf.config import Recipe
from ddpm_hf.errors import one_line_errors
from ddpm_hf.publishing.upload import check_destination
from ddpm_hf.training.loop import Progress
from ddpm_hf.training.run_folder import RunFolder

COMMAND = (sys.executable, "-m", "ddpm_hf.publishing.background")  # of the other process
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAST_PUSH = 30 * 60  # seconds that the end of a training waits for it


@contextmanager
def pushing(recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> Iterator["Push | None"]:
    """Gives what pushes the model in the background as `recipe.hub` says, if it does, on the main process; in the end waits
    for the last push.

    Raises `UserError` at once where the Hub refuses the token. A push that fails is told, and does not end the training.
    """
    if recipe.hub.repo_id is None or not accelerator.is_main_process:
        yield None
        return
    check_destination(recipe.hub.repo_id, recipe.hub.revision, option="hub.repo_id")
    push = Push(recipe, run)
    try:
        yield push
        push.wait()
    finally:
        push.stop()


@dataclass(frozen=True)
class _Job:
    step: int
    folder: Path  # of what belongs to this push


class Push:
    """Called after a checkpoint, pushes it. One push at a time: while it lasts, a newer step replaces one that waits."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.hub, self.run = recipe.hub, run
        self.aside = run.path / ".push"
        self.last = -1  # the newest step that was to be pushed
        self._lock = threading.Lock()
        self._waiting: _Job | None = None
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None
        self._stopped = False
        shutil.rmtree(self.aside, ignore_errors=True)  # of a run that was killed

    def __call__(self, _: Progress) -> None:
        newest = max(self.run.checkpoints.glob("step-*"), default=None)
        step = -1 if newest is None else int(newest.name.removeprefix("step-"))
        if step <= self.last:  # its checkpoint was put off
            return
        self.last = step
        try:
            job = _Job(step, self._link_aside(newest))
        except OSError as error:
            return self._failed(step, f"{self.aside} cannot be written: {error.strerror or error}")
        with self._lock:
            replaced, self._waiting = self._waiting, job
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def wait(self) -> None:
        """For what is under way, for a while."""
        thread = self._thread
        if thread is None:
            return
        _say(f"waiting for the last push to {self.hub.repo_id}, for at most {LAST_PUSH / 60:g} minutes")
        try:
            thread.join(LAST_PUSH)
        except KeyboardInterrupt:
            self.stop()
            self._failed(self.last, "interrupted")
            raise SystemExit(130) from None
        if thread.is_alive():
            self.stop()
            self._failed(self.last, f"it took more than {LAST_PUSH / 60:g} minutes")

    def stop(self) -> None:
        with self._lock:
            self._stopped, self._waiting = True, None
            if self._process is not None:
                _end(self._process)
                self._process = None
        shutil.rmtree(self.aside, ignore_errors=True)

    # ---- aside

    def _link_aside(self, checkpoint: Path) -> Path:
        """A run folder that stays as it is now: what `publish` reads of this one. Names of the same files cost nothing."""
        run, folder = self.run, self.aside / checkpoint.name
        copy = folder / run.path.name
        shutil.copytree(run.path / "pipeline", copy / "pipeline", copy_function=_link)
        if run.evaluations.is_dir():
            shutil.copytree(run.evaluations, copy / "evaluations", copy_function=_link)
        (copy / "checkpoints" / checkpoint.name).mkdir(parents=True)
        for name in ("ema.safetensors", "state.json"):  # which say what the weights are
            _link(checkpoint / name, copy / "checkpoints" / checkpoint.name / name)
        for file in filter(Path.is_file, (run.recipe_file, run.metrics_file)):  # which is written to
            shutil.copyfile(file, copy / file.name)
        if (picture := run.samples / f"{checkpoint.name}.png").is_file():
            _link(picture, folder / "samples.png")
        return folder

    # ---- in the background

    def _work(self) -> None:
        while True:
            with self._lock:
                job, self._waiting = self._waiting, None
                if job is None or self._stopped:
                    self._thread = None
                    return
            try:
                self._push(job)
            except Exception as error:  # whatever it is, training goes on
                self._failed(job.step, str(error) or type(error).__name__)
            shutil.rmtree(job.folder, ignore_errors=True)

    def _push(self, job: _Job) -> None:
        out, picture = job.folder / "hub", job.folder / "samples.png"
        asked = {
            "run": str(job.folder / self.run.path.name),
            "out": str(out),
            "samples": str(picture) if picture.is_file() else None,
            "push": self.hub.repo_id,
            "private": self.hub.private,
            "revision": self.hub.revision,
        }
        with self._lock:
            if self._stopped:
                return
            process = self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=_environment(),
                start_new_session=True,  # a Ctrl-C is the training's
            )
        shown, errors = process.communicate(json.dumps(asked))
        with self._lock:
            self._process = None
        if self._stopped:
            return
        if process.returncode:
            last = (errors.strip().splitlines() or [f"its process ended with {process.returncode}"])[-1]
            # the folder is made anew for the next push
            self._failed(job.step, last.removeprefix("error: ").partition(f"; {out} ")[0])
        else:
            _say(f"pushed step {job.step}: {(shown.strip().splitlines() or [self.hub.repo_id])[-1]}")

    def _failed(self, step: int, why: str) -> None:
        options = f"--push {self.hub.repo_id}{' --private' if self.hub.private else ''}"
        options += f" --revision {self.hub.revision}" if self.hub.revision else ""
        by_hand = f"`ddpm-hf publish {self.run.path} {options}` does it by hand"
        _say(f"warning: step {step} was not pushed: {why}; the training is not touched by it; {by_hand}")


def _environment() -> dict[str, str]:
    """The package is found as it is here; devices and the other processes of a launch are left to the training."""
    paths = [str(Path(ddpm_hf.__file__).parent.parent), os.environ.get("PYTHONPATH")]
    alone = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    return alone | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}


def _end(process: subprocess.Popen) -> None:
    if hasattr(os, "killpg"):  # with what it has started
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system can
        shutil.copyfile(source, target)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _publish() -> None:
    """The other process."""
    from ddpm_hf.publishing.publish import publish

    if hasattr(os, "nice"):
        os.nice(10)
    publish(**json.load(sys.stdin))


if __name__ == "__main__":
    with one_line_errors():
        _publish()
