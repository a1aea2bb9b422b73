"""What all tabs draw with, and who is drawing, so that it can be stopped."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ddpm_hf.app.drawing import Studio
from ddpm_hf.app.files import Shelf
from ddpm_hf.app.models import Model
from ddpm_hf.app.request import Limits


class Visits:
    """Drawings that go on, by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawing: defaultdict[str, set[threading.Event]] = defaultdict(set)

    @contextmanager
    def drawing(self, session: str | None) -> Iterator[threading.Event]:
        """An event that is set when the visitor stops it, or leaves."""
        stop, session = threading.Event(), session or ""
        with self._lock:
            self._drawing[session].add(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                self._drawing[session].discard(stop)
                if not self._drawing[session]:
                    del self._drawing[session]

    def stop(self, session: str | None) -> None:
        with self._lock:
            for stop in self._drawing.get(session or "", ()):
                stop.set()


@dataclass(frozen=True)
class Rooms:
    models: Mapping[str, Model]
    limits: Limits
    studio: Studio
    shelf: Shelf
    visits: Visits
