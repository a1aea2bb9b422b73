"""Commands as processes of their own, several at once; a signal to the study reaches them all."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Runner = Callable[[list[str], Mapping[str, str], Path], int]


@dataclass(frozen=True)
class Slot:
    """Where one command at a time runs: on a GPU of its own, or on a share of the cores."""

    number: int
    gpu: str | None
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        environment = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


def slots(jobs: int | None, scale: str, tasks: int) -> list[Slot]:
    """As many as commands shall run at once, no more than there are `tasks`."""
    gpus, cores = visible_gpus(), _cores()
    jobs = min(jobs or len(gpus) or (min(cores, 8) if scale == "small" else 1), max(1, tasks))
    return [Slot(i, gpus[i % len(gpus)] if gpus else None, max(1, cores // jobs)) for i in range(jobs)]


def visible_gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(i) for i in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Starts commands, `python` before them, and can end them all."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopping = False

    def __call__(self, command: list[str], environment: Mapping[str, str], log: Path) -> int:
        """The exit code; negative of a signal. What it prints goes to the end of `log`."""
        with open(log, "ab") as file:
            with self._lock:
                if self.stopping:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [sys.executable, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self, kill: bool = False) -> None:
        """SIGTERM, after which a training saves and ends; no further command starts. With `kill`, at once."""
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.kill() if kill else process.terminate()


def last_error(log: Path, start: int, code: int) -> str:
    """Why a command failed, in one line: what it printed last from `start` on, an error before all else."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if told:
        return told[-1]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else -code
        return f"ended by {name}" + (", perhaps for want of memory" if code == -9 else "")
    return lines[-1] if lines else f"ended with exit code {code}"
