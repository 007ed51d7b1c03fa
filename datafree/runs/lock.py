"""Who may write to a run folder: one command at a time, and none over files that are not a run's."""

from __future__ import annotations

import os
from pathlib import Path

from datafree.errors import UserError
from datafree.runs.files import CHECKPOINT, CONFIG, FILES, FOLDERS, LOCK, MARKS, PREVIOUS, TRAINING
from datafree.runs.schema import read_json

try:
    import fcntl
except ImportError:  # not a Unix: nothing keeps two commands from writing to one folder
    fcntl = None  # type: ignore[assignment]


MARK = "The files beside this one are of a run of BSR, and --overwrite removes them.\n"
# What the settings of a run have, by which the folder of an earlier version is known, and a copy that has
# no lock.
SETTINGS = {
    CONFIG: {"dataset", "method", "teacher", "student", "seed"},
    TRAINING: {"dataset", "model", "seed"},
}


def is_of_run(folder: Path) -> bool:
    """Whether this project has made the files in a folder: its settings tell, or where there are none that
    can be read, the mark, which outlives what is removed beside it."""
    told = [_is_settings(folder / name, keys) for name, keys in SETTINGS.items()]
    return _marked(folder) if set(told) == {None} else False not in told


def _marked(folder: Path) -> bool:
    lock = folder / LOCK
    try:
        return lock.is_file() and lock.stat().st_size == len(MARK) and lock.read_text("utf-8") == MARK
    except (OSError, ValueError):
        return False


def _is_settings(file: Path, keys: set[str]) -> bool | None:
    """None of a file that is not there, or damaged."""
    try:
        return keys <= read_json(file).keys()
    except (OSError, ValueError):
        return None


def refuse_existing(folder: Path, resume: bool, overwrite: bool, flag: str = "--save_dir") -> bool:
    """See that a run may be written to `folder`, which `flag` names; touches nothing. Returns whether there
    is a run already.

    Raises:
        UserError: it holds a run and neither `resume` nor `overwrite` is asked for, it holds files of
            someone else where a run's would go, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another {flag}")
    found = [name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    for name in (*found, LOCK):
        path = folder / name
        kind_fits = path.is_dir() if name in FOLDERS else path.is_file()
        if path.is_symlink() or (path.exists() and not kind_fits):
            raise UserError(f"{path} is a link or another thing that no run makes: choose another {flag}")
    # The lock is there before any other file, and after the others when a run is being replaced.
    is_run = is_of_run(folder)
    # A checkpoint may have been copied by itself.
    bare = resume and not SETTINGS.keys() & set(found) and bool({CHECKPOINT, PREVIOUS} & set(found))
    if found and not (is_run or bare):
        raise UserError(f"{folder} holds {found[0]}, which is not a run's: choose another {flag}")
    if found and not resume and not overwrite:
        raise UserError(
            f"{folder} already holds a run ({found[0]}): continue it with --resume, "
            f"replace it with --overwrite, or choose another {flag}"
        )
    return is_run or bool(found)


class RunLock:
    """Held by the one command that writes to a run folder; the system takes it back when the process ends,
    however it does.

    Args:
        folder: made with its parents.
        flag: names the folder, for error messages.

    Raises:
        UserError: another command holds it, or nothing can be written there.
    """

    def __init__(self, folder: Path, flag: str = "--save_dir"):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o644)
            self._file = os.fdopen(handle, "r+b")  # held as long as this lives
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error}): choose another {flag}") from error
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another command writes to {folder}: wait, or use another {flag}") from error
        except OSError:  # a file system that knows no locks
            pass

    def mark(self) -> None:
        """From now on the folder is a run's."""
        self._file.seek(0)
        if not self._file.read(1):
            self._file.write(MARK.encode())
            self._file.flush()

    def require(self) -> None:
        """See that the folder is still the one that was locked.

        Raises:
            UserError: it was removed, and maybe made anew by another command.
        """
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.folder / LOCK))
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(f"{self.folder} was removed or replaced while the run was going on: start again")

    @classmethod
    def of_new_run(cls, folder: Path, overwrite: bool, flag: str = "--save_dir") -> RunLock:
        """The lock of a folder in which a run is begun.

        Raises:
            UserError: another command has begun one there by now, which must not be mixed with this.
        """
        lock = cls(folder, flag)
        if not overwrite and any((folder / name).exists() for name in MARKS):
            raise UserError(f"another command has begun a run in {folder}: use another {flag}")
        return lock
