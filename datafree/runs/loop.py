"""Runs the epochs, in one process or in several. Only the first process prints and writes files."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import Tensor

from datafree.distiller import Distiller
from datafree.errors import UserError
from datafree.runs.folder import RunFolder
from datafree.runs.interrupts import Interrupts
from datafree.runs.progress import Progress, ProgressBar

SHEETS = 10  # contact sheets written in the course of a run


class EpochWriter:
    """Writes what an epoch leaves in the run folder. The first process has one.

    Args:
        run: the folder.
        bar: the console.
        progress: how far the run has come; kept up to date.
        distiller: what is trained.
        classes: names of the classes.
        facts: what else a checkpoint says.
    """

    def __init__(
        self,
        run: RunFolder,
        bar: ProgressBar,
        progress: Progress,
        distiller: Distiller,
        classes: Sequence[str],
        facts: dict[str, Any],
    ):
        self.run, self.bar, self.progress, self.distiller = run, bar, progress, distiller
        self.classes, self.facts, self.settings = classes, facts, distiller.settings
        self._before, self._start = progress.seconds, time.perf_counter()
        self._unsaved: dict[str, Any] | None = None

    def write(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Metrics, contact sheet and checkpoint of the epoch just done."""
        s, progress = self.settings, self.progress
        self.run.append_metrics(row)
        self.bar.epoch(row)
        progress.add(row, self._before + time.perf_counter() - self._start)
        last = progress.epoch == s.epochs
        if last or progress.epoch % max(1, s.epochs // SHEETS) == 0:
            self.run.save_samples(progress.epoch, self.distiller.repository, self.classes)
        content = {"progress": asdict(progress), **self.facts, "distiller": state}
        if last or progress.epoch % s.save_every == 0:
            self.run.save_checkpoint(content)
            self._unsaved = None
        else:
            self._unsaved = copy.deepcopy(content)

    def save_what_is_left(self) -> None:
        """The checkpoint of the last whole epoch, if none was due then."""
        if self._unsaved:
            with suppress(UserError):  # what went wrong first is what is told
                self.run.save_checkpoint(self._unsaved)


def run_epochs(distiller: Distiller, first_epoch: int, writer: EpochWriter | None) -> None:
    """All epochs from `first_epoch` on. If they are stopped, the state after the last whole epoch is saved.

    Args:
        distiller: runs them.
        first_epoch: counted from 0.
        writer: of the first process; None in the others.

    Raises:
        Stopped: by a signal.
        UserError: a loss is no longer finite, or the disk takes no more.
    """
    processes, epochs = distiller.processes, distiller.settings.epochs
    with Interrupts() as interrupts:

        def on_step(phase: str, loss: Tensor) -> None:
            if writer:
                writer.bar.step(phase, loss)
            if processes.world_size == 1:  # several processes stop together, after an epoch
                interrupts.check()

        try:
            for epoch in range(first_epoch, epochs):
                row = distiller.run_epoch(epoch, on_step)
                state = distiller.state_dict()  # to which every process contributes
                if writer:
                    writer.write(row, state)
                received = interrupts.received if epoch + 1 < epochs else None
                if processes.first_says(received is not None):
                    if writer:
                        interrupts.check()
                    return
        except Exception:
            if writer:
                writer.save_what_is_left()
            raise
