"""Continuing a run: which checkpoint to take, whether it is of such a run, and taking it whole or not at
all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from datafree.errors import Damaged, UserError
from datafree.runs.environment import rounding
from datafree.runs.files import ASIDE, CHECKPOINT, MARKS, PREVIOUS, SAMPLES, STUDENT_BEST
from datafree.runs.lock import RunLock
from datafree.runs.loop import Epochs
from datafree.runs.progress import FIGURES, Progress
from datafree.torch_utils import checkpoint
from datafree.torch_utils.distributed import Processes

T = TypeVar("T")
# What reading content raises that is not of its kind.
WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError)


class Resume:
    """Continues the run in a folder.

    Args:
        folder: of the run that goes on.
        identity: what must be the same for one run to continue another, as plain data.
        epochs: of the run.
        processes: of which the first changes the folder.
        figures: what the metrics of the last epoch must have.
        flag: names the folder, for error messages.
        lock: of the folder, if it is held already; it is taken where samples are brought from another folder.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        epochs: int,
        processes: Processes,
        lock: RunLock | None,
        figures: Sequence[str] = FIGURES,
        flag: str = "--save_dir",
    ):
        self.folder, self.identity, self.epochs = folder, identity, epochs
        self.processes, self.lock, self.figures, self.flag = processes, lock, figures, flag
        self.warnings: list[str] = []

    def load(self, trained: Epochs, named: str) -> Progress:
        """Load the state to continue from; returns how far it had come.

        Args:
            trained: takes the state.
            named: the checkpoint that the user names, empty for the newest in the folder.

        Raises:
            UserError: there is none, it is of a run with other settings, or of another folder's run.
        """
        own = self.folder / CHECKPOINT
        if named:
            path = Path(named)
            begun = any((self.folder / name).exists() for name in (*MARKS, PREVIOUS, SAMPLES))
            if begun and path.resolve().parent != self.folder.resolve():
                raise UserError(f"{self.folder} holds another run than {path}: choose another {self.flag}")
            progress = self._load(trained, path)
            if path.resolve() == checkpoint.previous(own).resolve() and own.exists():
                self._set_aside(own)  # it is of samples that are no more
            return progress
        candidates = [path for path in (own, checkpoint.previous(own)) if path.exists()]
        if not candidates:
            raise UserError(f"no checkpoint in {self.folder}: no epoch was finished; start with --overwrite")
        try:
            return self._load(trained, candidates[0])
        except Damaged as error:
            if len(candidates) == 1:
                raise
            progress = self._load(trained, candidates[1])
            self.warnings.append(f"{error}; continuing from the one before it, {candidates[1]}")
            self._set_aside(own)  # so that it never takes the place of the good one
            return progress

    def _set_aside(self, own: Path) -> None:
        if self.processes.is_main:
            own.replace(self.folder / ASIDE)

    def _load(self, trained: Epochs, path: Path) -> Progress:
        """Take the state in a checkpoint: all processes, or none.

        Raises:
            Damaged: the file, or the samples beside it, are not what was written.
            UserError: it is of a run with other settings.
        """
        content, progress = self._together(lambda: self._read(path))
        with self._samples_beside(path):
            self._together(lambda: self._take(trained, content, path))
        before: Any = content.get("rounding")
        for name, now in rounding().items() if isinstance(before, dict) else ():  # earlier versions tell none
            if before.get(name) != now:
                self.warnings.append(
                    f"the run was stopped with {name} {before.get(name)} and goes on with {now}: its "
                    "numbers may be rounded otherwise than in a run that was not stopped"
                )
        return progress

    def _together(self, part: Callable[[], T]) -> T:
        """What a part gives. What goes wrong in one process is raised in all: only the first reads the
        samples, say.

        Raises:
            UserError: of the first process in which something goes wrong.
        """
        error, result = None, None
        try:
            result = part()
        except UserError as raised:
            error = raised
        found = [one for one in self.processes.all_gather_object(error) if one is not None]
        try:
            if found:
                raise found[0]
            return cast(T, result)
        finally:  # or else the error and this frame hold each other, and with them the lock
            error, found = None, []

    def _read(self, path: Path) -> tuple[dict[str, Any], Progress]:
        content = checkpoint.read(path)
        try:
            before = {**content["identity"]}
            if not {"epochs", "seed"} <= before.keys():
                raise KeyError("identity")
            # A name that the checkpoint lacks is of a setting that is younger than it.
            changed = [name for name, value in self.identity.items() if before.get(name, value) != value]
            if changed:
                old, new = before[changed[0]], self.identity[changed[0]]
                raise UserError(
                    f"{path} is of a run with other settings: {changed[0]} was {old} and is {new}"
                    + (f" (also {', '.join(changed[1:])})" if changed[1:] else "")
                )
            return content, Progress.of(content["progress"], self.epochs, self.figures)
        except WRONG as error:
            raise _no_checkpoint(path) from error

    def _take(self, trained: Epochs, content: dict[str, Any], path: Path) -> None:
        try:
            trained.load_state_dict(content["distiller"])
        except WRONG as error:
            raise _no_checkpoint(path) from error

    @contextmanager
    def _samples_beside(self, path: Path) -> Iterator[None]:
        """Bring the samples beside another folder's checkpoint to this one, and the best student; they go if
        the block fails."""
        names = [name for name in (SAMPLES, STUDENT_BEST) if (path.parent / name).exists()]
        elsewhere = path.parent.resolve() != self.folder.resolve()
        bring = names if self.processes.is_main and elsewhere else []
        try:
            if bring:
                self.lock = self.lock or RunLock(self.folder)
            for name in bring:
                shutil.copyfile(path.parent / name, self.folder / name)
            self.processes.barrier()
            yield
        except BaseException:
            for name in bring:
                (self.folder / name).unlink(missing_ok=True)
            raise


def _no_checkpoint(path: Path) -> Damaged:
    return Damaged(
        f"{path} is no checkpoint of such a run, or was written by another version: name its checkpoint.pth, "
        "or start anew with --overwrite"
    )


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of the network that is trained, in a run's checkpoint or any other.

    Args:
        content: of the checkpoint.
        path: where it is from, for the error message.

    Raises:
        UserError: there is none.
    """
    if isinstance(content, dict) and isinstance(content.get("distiller"), dict):
        state = content["distiller"]
        content = {"state_dict": state.get("student", state.get("network"))}
    return checkpoint.state_dict_of(content, path)
