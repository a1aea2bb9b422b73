"""What of a study has been done: `progress.json` in its folder."""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm_hf.files import write_atomically
from ddpm_hf.studies.plan import Job, Training


class Progress:
    """Safe to be killed at any moment, and for threads.

    variants: name → identity and source of the training, done, error, seconds
    jobs: name → what was asked, error, seconds; one is done when its file is there too
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock, self._started = folder / "progress.json", threading.Lock(), time.monotonic()
        self.content: dict[str, Any] = {"seconds": 0.0, "processor_seconds": 0.0, "variants": {}, "jobs": {}}
        with suppress(OSError, ValueError):
            self.content |= json.loads(self._path.read_text())
        self._seconds_before = self.content["seconds"]
        self._processor_seconds_before = self.content["processor_seconds"]

    def training(self, name: str) -> dict[str, Any]:
        return self.content["variants"].get(name, {})

    def job(self, name: str) -> dict[str, Any]:
        return self.content["jobs"].get(name, {})

    def is_trained(self, training: Training) -> bool:
        found = self.training(training.variant)
        same = (found.get("identity"), found.get("source")) == (training.identity, training.source)
        return bool(same and found.get("done") and training.run.is_dir())

    def is_done(self, job: Job) -> bool:
        found = self.job(job.name)
        return found.get("asked") == job.asked and found.get("error") is None and job.out.is_file()

    def note(self, kind: str, name: str, seconds: float = 0.0, **values: Any) -> None:
        """kind: variants or jobs. `seconds` are added to those before, unless what was asked is another thing."""
        with self._lock:
            entry = self.content[kind].setdefault(name, {})
            for key in ("identity", "asked"):
                if key in values and values[key] != entry.get(key):
                    entry.clear()
            entry |= values | {"seconds": round(entry.get("seconds", 0.0) + seconds, 2)}
            self._save()

    def save(self) -> None:
        with self._lock:
            self._save()

    @property
    def seconds(self) -> float:
        """Of all sessions together."""
        return self.content["seconds"]

    @property
    def processor_seconds(self) -> float:
        """Of all sessions and processes that have ended; other work on the machine does not lengthen it."""
        return self.content["processor_seconds"]

    def _save(self) -> None:
        self.content["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 1)
        spent = os.times()
        own = spent.user + spent.system + spent.children_user + spent.children_system
        self.content["processor_seconds"] = round(self._processor_seconds_before + own, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(self.content, indent=1) + "\n")
