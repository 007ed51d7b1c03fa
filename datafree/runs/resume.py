"""Continuing a run: which checkpoint to take, whether it is of such a run, and taking it whole or not at
all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.distiller import Distiller
from datafree.errors import Damaged, UserError
from datafree.runs.files import ASIDE, CHECKPOINT, SAMPLES
from datafree.runs.lock import RunLock
from datafree.runs.progress import Progress
from datafree.torch_utils import checkpoint
from datafree.torch_utils.processes import Processes


class Resume:
    """Continues the run in a folder.

    Args:
        folder: of the run that goes on.
        identity: what must be the same for one run to continue another, as plain data.
        epochs: of the run.
        processes: of which the first changes the folder.
        lock: of the folder, if it is held already; it is taken where samples are brought from another folder.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], epochs: int, processes: Processes, lock: RunLock | None
    ):
        self.folder, self.identity, self.epochs = folder, identity, epochs
        self.processes, self.lock = processes, lock
        self.warnings: list[str] = []

    def load(self, distiller: Distiller, named: str) -> Progress:
        """Load the state to continue from; returns how far it had come.

        Args:
            distiller: takes the state.
            named: the checkpoint that the user names, empty for the newest in the folder.

        Raises:
            UserError: there is none, it is of a run with other settings, or of another folder's run.
        """
        own = self.folder / CHECKPOINT
        if named:
            path = Path(named)
            if own.exists() and path.resolve().parent != self.folder.resolve():
                raise UserError(f"{self.folder} holds another run than {path}: choose another --save_dir")
            progress = self._load(distiller, path)
            if path.resolve() == checkpoint.previous(own).resolve() and own.exists():
                self._set_aside(own)  # it is of samples that are no more
            return progress
        candidates = [path for path in (own, checkpoint.previous(own)) if path.exists()]
        if not candidates:
            raise UserError(f"no checkpoint in {self.folder}: no epoch was finished; start with --overwrite")
        try:
            return self._load(distiller, candidates[0])
        except Damaged as error:
            if len(candidates) == 1:
                raise
            progress = self._load(distiller, candidates[1])
            self.warnings.append(f"{error}; continuing from the one before it, {candidates[1]}")
            self._set_aside(own)  # so that it never takes the place of the good one
            return progress

    def _set_aside(self, own: Path) -> None:
        if self.processes.first:
            own.replace(self.folder / ASIDE)

    def _load(self, distiller: Distiller, path: Path) -> Progress:
        """Take the state in a checkpoint.

        Raises:
            Damaged: the file, or the samples beside it, are not what was written.
            UserError: it is of a run with other settings, or no checkpoint of a run.
        """
        content = checkpoint.read(path)
        try:
            before = {**content["identity"]}
            if not {"teacher_weights", "epochs", "method"} <= before.keys():
                raise KeyError("identity")
            # A name that the checkpoint lacks is of a setting that is younger than it.
            changed = [name for name, value in self.identity.items() if before.get(name, value) != value]
            if changed:
                old, new = before[changed[0]], self.identity[changed[0]]
                raise UserError(
                    f"{path} is of a run with other settings: {changed[0]} was {old} and is {new}"
                    + (f" (also {', '.join(changed[1:])})" if changed[1:] else "")
                )
            progress = Progress.of(content["progress"], self.epochs)
            with self._samples_beside(path):
                distiller.load_state_dict(content["distiller"])
            return progress
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            RuntimeError,
            ArithmeticError,
        ) as error:
            raise UserError(
                f"{path} is no checkpoint of such a run, or was written by another version: name its "
                "checkpoint.pth, or start anew with --overwrite"
            ) from error

    @contextmanager
    def _samples_beside(self, path: Path) -> Iterator[None]:
        """Bring the samples beside another folder's checkpoint to this one; they go if the block fails."""
        source, target = path.parent / SAMPLES, self.folder / SAMPLES
        bring = self.processes.first and source.exists() and source.resolve() != target.resolve()
        try:
            if bring:
                self.lock = self.lock or RunLock(self.folder)
                shutil.copyfile(source, target)
            self.processes.wait()
            yield
        except BaseException:
            if bring:
                target.unlink(missing_ok=True)
            raise
