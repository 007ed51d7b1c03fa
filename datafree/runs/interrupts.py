"""Ctrl-C and SIGTERM: a run ends after the step that it is in, with all that it takes to continue."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from datafree.errors import Stopped
from datafree.runs.files import CHECKPOINT, PREVIOUS

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Inside the block the first signal is only noted, for `check` to act on; a second one ends the program
    at once, as without this."""

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


def how_to_continue(folder: Path, named: str | None, world_size: int) -> str:
    """What to say of a run in a folder that was stopped.

    Args:
        folder: of the run.
        named: the checkpoint that it was continued from, if one was named.
        world_size: how many processes take part.
    """
    if not any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS)):
        return "no epoch was finished here: start again, with --overwrite if without --resume"
    words: list[str] = []
    dropped = False
    for word in sys.argv:  # flags may be cut short, and have True behind them
        if dropped and word in ("True", "False"):
            continue
        dropped = word.startswith(("--ov", "--resu"))
        words += [] if dropped else [word]
    if named in words:
        words.remove(named)
    start = [] if world_size == 1 else ["torchrun", "--nproc_per_node", str(world_size)]
    if words[0].endswith(".py"):
        start = start or ["python"]
    elif start:  # an installed command
        start.append("--no-python")
    return f"continue with: {shlex.join([*start, *words, '--resume'])}"
