"""Running the epochs: for the library, and for the commands, which also show and save them. Only the first
process prints and writes."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from datafree.errors import Stopped, UserError
from datafree.runs.environment import rounding
from datafree.runs.files import CHECKPOINT, STUDENT_BEST
from datafree.runs.folder import RunFolder
from datafree.synthesis.base import OnStep, ignore_step
from datafree.torch_utils.distributed import Processes

Row = dict[str, Any]  # a line of `metrics.jsonl`


class Epochs(Protocol):
    """What is run epoch by epoch: a `MeasuredDistiller`, or a training on real images."""

    processes: Processes

    def run_epoch(self, epoch: int, on_step: OnStep) -> Row:
        """Epoch `epoch`, counted from 0; returns its line of metrics."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""


def run_epochs(
    trained: Epochs, first: int, epochs: int, after: Callable[[Row], Any], on_step: OnStep = ignore_step
) -> None:
    """Run the epochs from `first`, counted from 0, to `epochs - 1`; call `after` with each one's metrics."""
    for epoch in range(first, epochs):
        after(trained.run_epoch(epoch, on_step))


@dataclass
class Progress:
    """How far a run has come. Epochs count from 0; `epoch` is the next one."""

    epoch: int
    seconds: float = 0.0
    best_epoch: int = -1
    best: float = -1.0  # test accuracy of that epoch, or agreement where there are no test images
    row: Row = field(default_factory=dict)  # metrics of the last epoch
    first: int = 0  # the epoch that the run began with
    best_is_trained: bool = False  # after the warm-up, which does not change the student

    def add(self, row: Row, seconds: float) -> bool:
        """Note a finished epoch; returns whether it is the best so far."""
        trained = row.get("loss_kd", 0.0) is not None
        score = row["test_top1"] if "test_top1" in row else row["holdout_agreement"]
        better = score > self.best or not self.best_is_trained
        best = better and row.get("evaluated", True) if trained else self.best_epoch < 0
        if best:
            self.best_epoch, self.best, self.best_is_trained = row["epoch"], score, trained
        self.epoch, self.seconds, self.row = row["epoch"] + 1, seconds, row
        return best


def run_in_folder(
    trained: Epochs,
    folder: RunFolder,
    progress: Progress,
    epochs: int,
    known: dict[str, Any],
    *,
    phase: str,
    steps: int,
    print_freq: int,
    show: Callable[[Row], tuple[str, str]],
    student: Callable[[], dict[str, Any]] | None = None,
    save_every: int = 1,
    after: Callable[[Row], Any] = lambda row: None,
) -> None:
    """Run the rest of the epochs; show and save each. If they are stopped, the state after the last whole
    epoch is saved.

    Args:
        trained: runs them.
        folder: open.
        progress: how far the run has come; kept up to date in the first process.
        epochs: of the run.
        known: what a checkpoint contains beside the state.
        phase: whose steps the bar counts, see `OnStep`.
        steps: of the bar.
        print_freq: steps between two lines on the loss; 0 for none.
        show: an epoch's line on the console, and a shorter text beside the bar.
        student: describes the student, for a file of the best epoch's.
        save_every: epochs between two checkpoints.
        after: called by the first process after each epoch.

    Raises:
        Stopped: by a signal; the text says how to continue.
        UserError: a loss is no longer finite, or the disk is full.
    """
    processes, start, seconds_before = trained.processes, time.perf_counter(), progress.seconds
    unsaved: dict[str, Any] | None = None
    # Hidden in all processes but the first, and unless on a terminal.
    hidden = None if processes.is_main else True
    bar = tqdm(total=steps, unit="step", disable=hidden, dynamic_ncols=True, smoothing=0.05)
    count = 0

    def on_step(name: str, loss: Tensor) -> None:
        nonlocal count
        if name == phase:
            bar.update()
            count += 1
            if print_freq and count % print_freq == 0:
                folder.log(f"  step {count}: loss {loss.item():.4f}")
        if received and processes.world_size == 1:  # several processes stop together, after an epoch
            raise Stopped("", 128 + received[0])

    def write(row: Row, state: dict[str, Any]) -> None:
        nonlocal unsaved
        folder.append_metrics(row)
        line, beside = show(row)
        if row.get("loss_kd", 0.0) is None:  # an epoch of the warm-up counts as a step
            bar.update()
        bar.set_postfix_str(beside)
        folder.log(line)
        best = progress.add(row, seconds_before + time.perf_counter() - start)
        if best and student:
            folder.save_student({**student(), "best_epoch": row["epoch"]}, STUDENT_BEST)
        after(row)
        content = {"progress": asdict(progress), "rounding": rounding(), **known, "distiller": state}
        if progress.epoch == epochs or progress.epoch % save_every == 0:
            folder.save_checkpoint(content)
            unsaved = None
        else:
            unsaved = copy.deepcopy(content)

    def after_epoch(row: Row) -> None:
        state = trained.state_dict()  # every process contributes
        if processes.is_main:
            write(row, state)
        signals = processes.broadcast_object(received if row["epoch"] + 1 < epochs else [])
        if signals:
            raise Stopped("", 128 + signals[0])

    with bar, _signals_noted() as received:
        try:
            run_epochs(trained, progress.epoch, epochs, after_epoch, on_step)
        except Exception as error:
            if not processes.is_main:
                raise
            if unsaved:
                with suppress(UserError):  # keep the first error
                    folder.save_checkpoint(unsaved)
            if not isinstance(error, Stopped):
                raise
            how = "continue with the same command and --resume (without --overwrite)"
            if not (folder.path / CHECKPOINT).exists():
                how = "no epoch was finished: start again with --overwrite"
            name = signal.Signals(error.status - 128).name
            raise Stopped(f"stopped by {name}; {how}", error.status) from error


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Inside the block the first Ctrl-C or SIGTERM is only noted in the list; a second one ends the program
    at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
