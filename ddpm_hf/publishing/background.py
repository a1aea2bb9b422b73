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
from ddpm_hf.durations import rough_duration
from ddpm_hf.errors import UnreachableError, one_line_errors
from ddpm_hf.files import sha256_of, write_atomically
from ddpm_hf.publishing.failures import unsigned
from ddpm_hf.publishing.upload import EditedError, check_destination
from ddpm_hf.training.loop import Progress
from ddpm_hf.training.run_folder import RunFolder

COMMAND = (sys.executable, "-m", "ddpm_hf.publishing.background")  # of the other process
# of a launch, which sets the threads of each of its processes too
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
ONE_PUSH = 4 * 3600  # seconds, of which the check takes most where a model is large
LAST_PUSH = 30 * 60  # seconds that the end of a training waits for it


@contextmanager
def pushing(recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> Iterator["Push | None"]:
    """Gives what pushes the model in the background as `recipe.hub` says, if it does, on the main process; in the end waits
    for the last push.

    Raises `UserError` at once where the Hub refuses the token. A Hub that cannot be reached, a card that was edited
    there and a push that fails are told, and do not end the training.
    """
    if recipe.hub.repo_id is None or not accelerator.is_main_process:
        yield None
        return
    try:
        check_destination(recipe.hub.repo_id, recipe.hub.revision, option="hub.repo_id")
    except (EditedError, UnreachableError) as error:
        _say(f"warning: {error}; training begins, and pushes are tried when they are due")
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
    identity: list[str | None]  # of the checkpoint and where it goes


class Push:
    """Called after a checkpoint, pushes it. One push at a time: while it lasts, a newer step replaces one that waits."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.hub, self.run = recipe.hub, run
        self.aside = run.path / f".push-{os.getpid()}"
        self.noted = run.path / ".pushed.json"  # what was pushed last, and where to
        self.last = -1  # the newest step that was to be pushed
        self._lock = threading.Lock()
        self._waiting: _Job | None = None
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None
        self._stopped = False
        for leftover in run.path.glob(".push-*"):  # of a training that was killed, and its push with it
            shutil.rmtree(leftover, ignore_errors=True)

    def __call__(self, _: Progress) -> None:
        newest = max(self.run.checkpoints.glob("step-*"), default=None)
        step = -1 if newest is None else int(newest.name.removeprefix("step-"))
        if step <= self.last:  # its checkpoint was put off
            return
        self.last = step
        try:
            identity = self._identity(newest)
            if self._last_pushed() == identity:
                return
            job = _Job(step, self._link_aside(newest), identity)
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
        try:
            with _ended_by_signals():
                _say(f"waiting for the last push to {self.hub.repo_id}, for at most {rough_duration(LAST_PUSH)}")
                thread.join(LAST_PUSH)
        except SystemExit:
            self.stop()
            self._failed(self.last, "interrupted")
            raise
        if thread.is_alive():
            self.stop()
            self._failed(self.last, f"it took more than {rough_duration(LAST_PUSH)}")

    def stop(self) -> None:
        with self._lock:
            self._stopped, self._waiting = True, None
            process, self._process = self._process, None
        if process is not None:
            _end(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)  # it may be writing aside
        shutil.rmtree(self.aside, ignore_errors=True)

    # ---- aside

    def _link_aside(self, checkpoint: Path) -> Path:
        """A run folder that stays as it is now: what `publish` reads of this one.

        Hard links take neither time nor space, and hold what they name: training writes new files in the place of these.
        """
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

    def _identity(self, checkpoint: Path) -> list[str | None]:
        return [self.hub.repo_id, self.hub.revision, sha256_of(checkpoint / "state.json")]

    def _last_pushed(self) -> list[str | None] | None:
        try:
            return json.loads(self.noted.read_text())
        except (OSError, ValueError):
            return None

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
        too_long = None
        # left open: where this process ends, however it does, the other one reads that, and ends too
        pipe, process.stdin = process.stdin, None
        try:
            with suppress(BrokenPipeError):  # it has ended already, and says why
                pipe.write(json.dumps(asked) + "\n")
                pipe.flush()
            shown, errors = process.communicate(timeout=ONE_PUSH)
        except subprocess.TimeoutExpired:
            _end(process)
            process.communicate()
            too_long = f"it took more than {rough_duration(ONE_PUSH)}"
        finally:
            with self._lock:
                self._process = None
            with suppress(OSError):
                pipe.close()
        if self._stopped:
            return
        if too_long:
            self._failed(job.step, too_long)
        elif process.returncode:
            last = (errors.strip().splitlines() or [f"its process ended with {process.returncode}"])[-1]
            # the folder is made anew for the next push
            self._failed(job.step, unsigned(last.removeprefix("error: ").partition(f"; {out} ")[0]))
        else:
            with suppress(OSError):
                write_atomically(self.noted, json.dumps(job.identity))
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


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raises `SystemExit` where SIGINT or SIGTERM comes; in the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _publish() -> None:
    """The other process."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_training, daemon=True).start()

    from ddpm_hf.publishing.publish import publish

    if hasattr(os, "nice"):
        os.nice(10)
    publish(**asked)


def _end_with_the_training() -> None:
    """Whose end closes the pipe, even where it was killed."""
    while os.read(0, 1024):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # with what this process has started
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    with one_line_errors():
        _publish()
