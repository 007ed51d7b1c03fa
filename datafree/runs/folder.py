"""The run folder: whether a run may use it, one command at a time, and what a run writes there."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout
from termcolor import colored
from tqdm import tqdm

from datafree.errors import UserError
from datafree.repository import SampleRepository
from datafree.runs.contact_sheet import contact_sheet
from datafree.runs.files import (
    CHECKPOINT,
    CONFIG,
    FILES,
    FOLDERS,
    IMAGES,
    LOCK,
    LOG,
    METRICS,
    STUDENT,
    TENSORBOARD,
    TRAINING,
    unshare,
)
from datafree.torch_utils import checkpoint

KEYS = {"dataset", "seed", "git_commit", "threads"}  # in the settings of every run


def is_run(folder: Path) -> bool:
    """Whether this project wrote the settings in a folder."""
    found = [folder / name for name in (CONFIG, TRAINING) if (folder / name).exists()]
    try:
        settings = [json.loads(file.read_text(encoding="utf-8")) for file in found]
    except (OSError, ValueError):
        return False
    return bool(settings) and all(isinstance(one, dict) and one.keys() >= KEYS for one in settings)


class RunFolder:
    """The files of a run. `check` and `lock` come first, then `open`; nothing is written before `lock`.

    Args:
        path: the folder.
        resume, overwrite: whether a run in it is continued or replaced.
        flag: names the folder in error messages.
        is_main: whether this process prints and writes.
    """

    def __init__(
        self,
        path: Path,
        resume: bool = False,
        overwrite: bool = False,
        flag: str = "--save_dir",
        is_main: bool = True,
    ):
        self.path, self.resume, self.overwrite, self.flag = path, resume, overwrite, flag
        self.is_main = is_main
        self._lines: list[str] = []  # shown before the log was open
        self._log: TextIO | None = None
        self._lock: FileLock | None = None
        self._events: Any = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self._log, self._events):
            if part:
                part.close()
        if self._lock:
            self._lock.release()

    def check(self) -> None:
        """See that a run may be written here. Changes nothing.

        Raises:
            UserError: the folder contains a run that is neither continued nor replaced, or somebody else's
                files where a run's would go, or it is not a folder.
        """
        path, choose = self.path, f"choose another {self.flag}"
        if not self.is_main:
            return
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: {choose}")
        found = [name for name in (*FILES, LOCK) if os.path.lexists(path / name)]
        for file in (path / name for name in found):
            fits = file.is_dir() if file.name in FOLDERS else file.is_file()
            if file.is_symlink() or not fits:
                raise UserError(f"{file} is a symlink or a special file: {choose}")
        found = [name for name in found if name != LOCK]
        if found and not is_run(path):
            raise UserError(f"{path} contains {found[-1]}, which no run of this project wrote: {choose}")
        if found and not self.resume and not self.overwrite:
            raise UserError(
                f"{path} already contains a run: continue it with --resume, replace it with --overwrite, "
                f"or {choose}"
            )

    def lock(self) -> None:
        """Keep other commands out until this object is closed, or the process ends.

        Raises:
            UserError: another command writes to the folder, or nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
            self._lock = lock
        except Timeout:
            raise UserError(
                f"another command writes to {self.path}: wait, or use another {self.flag}"
            ) from None
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error
        self.check()  # another command may have begun a run here in the meantime

    def open(self, name: str, config: dict[str, Any], events_from: int | None) -> None:
        """Begin to write, after deleting the files of the run that is replaced, if any.

        Args:
            name: the file for the settings.
            config: the settings.
            events_from: write TensorBoard events too, from this epoch on.

        Raises:
            UserError: nothing can be written.
        """
        try:
            for old in (self.path / file for file in FILES if self.overwrite and file != name):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            _write(self.path / name, json.dumps(config, indent=2) + "\n")
            unshare(self.path / LOG)
            self._log = open(self.path / LOG, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            self._log.writelines(line + "\n" for line in self._lines)
            if events_from is not None:
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(self.path / TENSORBOARD), purge_step=events_from)
        except (OSError, UnicodeError) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> UserError:
        return UserError(f"cannot write to {self.path} ({error}): choose another {self.flag}")

    def log(self, text: str, color: str | None = None) -> None:
        """Show a line on the console, and write it to the log."""
        if not self.is_main:
            return
        tqdm.write(colored(text, color) if color else text, file=sys.stdout)
        sys.stdout.flush()
        if self._log:
            self._log.write(text + "\n")
            self._log.flush()
        else:
            self._lines.append(text)

    def warn(self, text: str) -> None:
        self.log(f"warning: {text}", "yellow")

    def _require_present(self) -> None:
        """Raises:
        UserError: the folder was removed, and maybe created anew by another command.
        """
        assert self._log is not None
        try:
            same = os.path.samestat(os.fstat(self._log.fileno()), os.stat(self.path / LOG))
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(f"{self.path} was removed or replaced during the run: start again")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self._require_present()
        _write(self.path / name, json.dumps(content, indent=2) + "\n")

    def append_metrics(self, row: dict[str, Any]) -> None:
        self._require_present()
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
        """Keep only the lines of the epochs from `first` to `epoch - 1`."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if len(lines) < epoch - first:
            self.warn(f"{path} has {len(lines)} lines of the {epoch - first} epochs before")
        _write(path, "".join(line + "\n" for line in lines[: epoch - first]))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        self._require_present()
        checkpoint.save(state, self.path / CHECKPOINT, keep_previous=True)

    def save_student(self, content: dict[str, Any], name: str = STUDENT) -> None:
        self._require_present()
        checkpoint.save(content, self.path / name)

    def save_samples(self, epoch: int, repository: SampleRepository, classes: Sequence[str]) -> None:
        """A contact sheet of the newest samples of each class after `epoch` epochs."""
        self._require_present()
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


def require_tensorboard() -> None:
    """Raises:
    UserError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs a package that is not installed: pip install tensorboard")


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
