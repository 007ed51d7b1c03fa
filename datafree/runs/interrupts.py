"""Ctrl-C and SIGTERM: a run ends after its current step, with all that is needed to continue."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from datafree.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Inside the block the first signal is only noted, for `check`; a second one ends the program at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()

    def check(self) -> None:
        """Raises:
        Stopped: a signal has come.
        """
        if self.received is not None:
            raise Stopped(f"stopped by {self.received.name}", 128 + self.received)
