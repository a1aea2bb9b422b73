"""Ends a run between two steps when it is asked to: SIGTERM, as schedulers send it, or Ctrl-C."""

import signal
import threading
import time
from datetime import timedelta

import torch
from torch import distributed


class StopRequest:
    """Call it after each step: true, on every process at once, as soon as any process was signalled.

    Launchers pass on signals that a process was sent as well, so further ones mean the same;
    only another Ctrl-C, by a person who waited, ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # no other may
            self._handlers = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        # Processes agree over the host's network, beside the devices' own: asking never waits for a device.
        self._group = (
            distributed.new_group(backend="gloo", timeout=timedelta(days=1)) if distributed.is_initialized() else None
        )

    def _receive(self, number: int, _frame) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt

    def __call__(self) -> bool:
        if self._group is not None:
            number = torch.tensor(self.signal or 0)
            distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
            self.signal = int(number) or None
        return self.signal is not None

    def restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
