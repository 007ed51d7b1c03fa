"""The run folder, as it is written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from termcolor import colored
from tqdm import tqdm

from datafree.errors import UserError
from datafree.repository import SampleRepository
from datafree.runs.contact_sheet import contact_sheet
from datafree.runs.files import ASIDE, CHECKPOINT, FILES, IMAGES, LOG, METRICS, PREVIOUS, STUDENT, TENSORBOARD
from datafree.runs.lock import RunLock
from datafree.runs.schema import read_text
from datafree.torch_utils import checkpoint


def require_tensorboard() -> None:
    """See that TensorBoard's events can be written.

    Raises:
        UserError: the package is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs a package that is not installed: pip install tensorboard")


def _part(file: Path) -> None:
    """Have a file of our own where a copy of the folder shares it (a hard link): what is added to one is not
    to appear in the other."""
    if file.exists() and file.stat().st_nlink > 1:
        own = file.with_name(file.name + ".tmp")
        shutil.copyfile(file, own)
        own.replace(file)


class RunFolder:
    """Writes a run's files.

    Args:
        path: the folder; made with its parents.
        lock: of the folder, if it is held already.
        overwrite: remove the files of an earlier run (only those named in `FILES`).
        events_from: write metrics and contact sheets as TensorBoard events too, from this epoch on.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(
        self, path: Path, overwrite: bool = False, events_from: int | None = None, lock: RunLock | None = None
    ):
        self.path = path
        try:
            self._lock = lock or RunLock(path)
            self._lock.mark()
            for name in FILES if overwrite else ():
                target = path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            _part(path / LOG)
            self._log = open(path / LOG, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (lives as long)
        except OSError as error:
            raise UserError(f"cannot write to {path} ({error}): choose another folder") from error
        self._events = None
        if events_from is not None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._events = SummaryWriter(str(path / TENSORBOARD), purge_step=events_from)
            except (OSError, UnicodeError) as error:
                raise UserError(f"cannot write events to {path} ({error}): choose another folder") from error

    def log(self, text: str, color: str | None = None) -> None:
        """A line on the console and in the log."""
        tqdm.write(colored(text, color) if color else text, file=sys.stdout)
        sys.stdout.flush()
        self._log.write(text + "\n")
        self._log.flush()

    def log_earlier(self, lines: Sequence[str]) -> None:
        """Lines that the console has shown before there was a folder."""
        self._log.writelines(line + "\n" for line in lines)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        self._lock.require()
        temporary = self.path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)

    def append_metrics(self, row: dict[str, Any]) -> None:
        self._lock.require()
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._events:
            seconds = {f"seconds/{name}": value for name, value in row["seconds"].items()}
            for name, value in {**row, **seconds}.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._events.add_scalar(name.replace("loss_", "loss/"), value, row["epoch"])
            self._events.flush()

    def truncate_metrics(self, first: int, epoch: int) -> None:
        """Keep the lines of the epochs from `first` to the one before `epoch`; the rest is written anew.

        Raises:
            UserError: the file cannot be read, or is far too long.
        """
        path = self.path / METRICS
        try:
            text = read_text(path, errors="replace") if path.exists() else ""
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {path} ({error}): remove it, and go on without its lines"
            ) from error
        kept: dict[int, str] = {}
        for line in text.splitlines():
            try:  # a line may be cut short by a crash, in an epoch that has no checkpoint
                number = json.loads(line)["epoch"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(number, int) and first <= number < epoch:
                kept[number] = line
        missing = [number + 1 for number in range(first, epoch) if number not in kept]
        if missing:
            self.log(f"warning: {path} has no line of epoch {', '.join(map(str, missing))}", "yellow")
        self._write(METRICS, "".join(kept[number] + "\n" for number in sorted(kept)))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        self._lock.require()
        checkpoint.save(state, self.path / CHECKPOINT, keep_previous=True)

    def remove_checkpoints(self) -> None:
        """Of a run that will not be continued."""
        for name in (CHECKPOINT, PREVIOUS, ASIDE):
            (self.path / name).unlink(missing_ok=True)

    def save_student(self, content: dict[str, Any], name: str = STUDENT) -> None:
        self._lock.require()
        checkpoint.save(content, self.path / name)

    def save_samples(self, epoch: int, repository: SampleRepository, classes: Sequence[str]) -> None:
        """A contact sheet of the newest samples of each class after `epoch` epochs."""
        self._lock.require()
        path = self.sheet(epoch)
        path.parent.mkdir(exist_ok=True)
        sheet = contact_sheet(repository, classes)
        sheet.save(path)
        if self._events:
            self._events.add_image("samples", np.array(sheet), epoch - 1, dataformats="HWC")
            self._events.flush()

    def sheet(self, epoch: int) -> Path:
        """The contact sheet after `epoch` epochs."""
        return self.path / IMAGES / f"epoch-{epoch:04d}.png"
