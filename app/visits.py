"""What all tabs draw with, and who is drawing, so that it can be stopped."""

import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ddpm_hf.app.drawing import Studio
from ddpm_hf.app.files import Shelf
from ddpm_hf.app.models import Model
from ddpm_hf.app.request import Limits

UNFOLLOWED = 20.0  # seconds that a drawing goes on though nobody reads what comes of it
REMEMBERED = 1000  # stops that the page has not been told of
LONGEST = 900.0  # seconds: no drawing takes longer


class Stop:
    """Whether a drawing should end: its visitor says so, has left, or it takes too long. `why`: in a line, once it should."""

    def __init__(self, visits: "Visits", session: str) -> None:
        self._visits, self._session = visits, session
        self._event = threading.Event()
        self._until = time.monotonic() + LONGEST
        self.why = "Stopped. Nothing of it was kept."

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        if not self._event.is_set():
            if time.monotonic() > self._until:
                self.why = f"Stopped: it took longer than {LONGEST / 60:.0f} minutes. Ask for fewer pictures or steps."
                self.set()
            elif self._visits.unfollowed(self._session) > UNFOLLOWED:
                self.set()
        return self._event.is_set()


class Visits:
    """Drawings that go on, by session and tab, and whose answers are read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.queue: Any = None  # Gradio's, once there is one
        self._drawing: defaultdict[tuple[str, str], set[Stop]] = defaultdict(set)
        self._following: Counter[str] = Counter()
        self._stopped: OrderedDict[tuple[str, str], None] = OrderedDict()  # whose end is not a failure
        self._seen: dict[str, float] = {}  # of sessions that draw: when they were followed last

    @contextmanager
    def drawing(self, session: str | None, tab: str = "") -> Iterator[Stop]:
        """Set when the visitor stops it, or leaves."""
        key = (session or "", tab)
        stop = Stop(self, key[0])
        with self._lock:
            self._drawing[key].add(stop)
            self._seen[key[0]] = time.monotonic()
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                self._drawing[key].discard(stop)
                if not self._drawing[key]:
                    del self._drawing[key]
                if not any(other == key[0] for other, _ in self._drawing):
                    self._seen.pop(key[0], None)

    def stop(self, session: str | None, tab: str | None = None) -> None:
        """One tab's, or all."""
        with self._lock:
            for (other, of_tab), stops in self._drawing.items():
                if other == (session or "") and tab in (None, of_tab):
                    for stop in stops:
                        stop.set()
            if tab is not None:
                self._stopped[session or "", tab] = None
                while len(self._stopped) > REMEMBERED:
                    self._stopped.popitem(last=False)

    def was_stopped(self, session: str | None, tab: str) -> bool:
        """Since this was asked last."""
        with self._lock:
            return self._stopped.pop((session or "", tab), 0) is None

    def ahead(self) -> int:
        """How many requests wait or are drawn."""
        lines = {} if self.queue is None else self.queue.event_queue_per_concurrency_id
        waiting = len(lines["drawing"].queue) if "drawing" in lines else 0
        with self._lock:
            return waiting + sum(map(len, self._drawing.values()))

    def is_drawing(self, session: str | None, tab: str) -> bool:
        with self._lock:
            return any(not stop._event.is_set() for stop in self._drawing.get((session or "", tab), ()))

    @contextmanager
    def following(self, session: str) -> Iterator[None]:
        """While somebody reads a session's answers."""
        with self._lock:
            self._following[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._following[session] -= 1
                if not self._following[session]:
                    del self._following[session]
                if session in self._seen:
                    self._seen[session] = time.monotonic()

    def unfollowed(self, session: str) -> float:
        """For how many seconds nobody has read what this session, which draws, is told."""
        with self._lock:
            return 0.0 if session in self._following else time.monotonic() - self._seen.get(session, time.monotonic())


def before_you(waiting: int) -> str:
    """What a visitor reads who has to wait."""
    if not waiting:
        return "Waiting for a free place"
    return f"Waiting: {waiting} {'request comes' if waiting == 1 else 'requests come'} first"


@dataclass(frozen=True)
class Rooms:
    models: Mapping[str, Model]
    limits: Limits
    studio: Studio
    shelf: Shelf
    visits: Visits
