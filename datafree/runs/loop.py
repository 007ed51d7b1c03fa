"""Runs the epochs, in one process or in several. Only the first process prints and writes files."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor

from datafree.errors import Stopped, UserError
from datafree.runs.environment import rounding
from datafree.runs.files import STUDENT_BEST
from datafree.runs.folder import RunFolder
from datafree.runs.interrupts import Interrupts, how_to_continue
from datafree.runs.progress import Progress, ProgressBar
from datafree.synthesis.base import OnStep
from datafree.torch_utils.distributed import Processes

SHEETS = 10  # contact sheets written in the course of a run


class Epochs(Protocol):
    """What is run epoch by epoch: a `Distiller`, or a `Trainer` on real images."""

    processes: Processes

    def run_epoch(self, epoch: int, on_step: OnStep) -> dict[str, Any]:
        """Epoch `epoch`, counted from 0; returns its line of metrics."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the one that gave `state`."""


class EpochWriter:
    """Writes what an epoch leaves in the run folder. The first process has one.

    Args:
        run: the folder.
        bar: the console.
        progress: how far the run has come; kept up to date.
        epochs: of the run.
        facts: what else a checkpoint says.
        save_every: epochs between two checkpoints.
        show: draws a contact sheet after so many epochs.
        student: describes the student, for a file of the best epoch's.
    """

    def __init__(
        self,
        run: RunFolder,
        bar: ProgressBar,
        progress: Progress,
        epochs: int,
        facts: dict[str, Any],
        save_every: int = 1,
        show: Callable[[int], Any] | None = None,
        student: Callable[[], dict[str, Any]] | None = None,
    ):
        self.run, self.bar, self.progress, self.epochs = run, bar, progress, epochs
        self.facts, self.save_every, self.show, self.student = facts, save_every, show, student
        self._before, self._start = progress.seconds, time.perf_counter()
        self._unsaved: dict[str, Any] | None = None

    def write(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Metrics, contact sheet and checkpoint of the epoch just done."""
        progress = self.progress
        self.run.append_metrics(row)
        self.bar.epoch(row)
        best = progress.add(row, self._before + time.perf_counter() - self._start)
        if best and self.student:
            self.run.save_student({**self.student(), "best_epoch": row["epoch"]}, STUDENT_BEST)
        last = progress.epoch == self.epochs
        if self.show and (last or progress.epoch % max(1, self.epochs // SHEETS) == 0):
            self.show(progress.epoch)
        content = {"progress": asdict(progress), "rounding": rounding(), **self.facts, "distiller": state}
        if last or progress.epoch % self.save_every == 0:
            self.run.save_checkpoint(content)
            self._unsaved = None
        else:
            self._unsaved = copy.deepcopy(content)

    def save_what_is_left(self) -> None:
        """The checkpoint of the last whole epoch, if none was due then."""
        if self._unsaved:
            with suppress(UserError):  # what went wrong first is what is told
                self.run.save_checkpoint(self._unsaved)


def run_epochs(
    trained: Epochs,
    first_epoch: int,
    epochs: int,
    writer: EpochWriter | None,
    named: str | None,
    after: Callable[[int], Any] = lambda epoch: None,
) -> None:
    """All epochs from `first_epoch` on. If they are stopped, the state after the last whole epoch is saved.

    Args:
        trained: runs them.
        first_epoch: counted from 0.
        epochs: of the run.
        writer: of the first process; None in the others.
        named: the checkpoint that the run was continued from, if one was named.
        after: called by the first process after each epoch.

    Raises:
        Stopped: by a signal; the text, which the first process has, says how to continue.
        UserError: a loss is no longer finite, or the disk takes no more.
    """
    processes = trained.processes
    with Interrupts() as interrupts:

        def on_step(phase: str, loss: Tensor) -> None:
            if writer:
                writer.bar.step(phase, loss)
            if processes.world_size == 1:  # several processes stop together, after an epoch
                interrupts.check()

        try:
            for epoch in range(first_epoch, epochs):
                row = trained.run_epoch(epoch, on_step)
                state = trained.state_dict()  # to which every process contributes
                if writer:
                    writer.write(row, state)
                    after(epoch)
                received = interrupts.received if epoch + 1 < epochs else None
                received = processes.broadcast_object(received)
                if received is not None:
                    interrupts.check()
                    raise Stopped("", 128 + received)
        except Exception as error:
            if not writer:
                raise
            writer.save_what_is_left()
            if not isinstance(error, Stopped):
                raise
            how = how_to_continue(writer.run.path, named, processes.world_size)
            raise Stopped(f"{error}; {how}", error.status) from error
