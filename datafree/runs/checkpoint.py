"""Continuing a run: which checkpoint to take, whether it is from such a run, and loading it whole or not at
all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from datafree.errors import Damaged, UserError
from datafree.runs.environment import rounding
from datafree.runs.files import CHECKPOINT, CONFIG, METRICS, PREVIOUS, SAMPLES, STUDENT_BEST, TRAINING
from datafree.runs.folder import RunFolder
from datafree.runs.loop import Epochs, Progress
from datafree.torch_utils import checkpoint
from datafree.torch_utils.distributed import Processes

T = TypeVar("T")
# What loading a state raises that does not fit.
WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
BEGUN = (CONFIG, TRAINING, METRICS, CHECKPOINT, PREVIOUS, SAMPLES)  # files of a run that has begun


def resume(
    trained: Epochs, folder: RunFolder, named: str, identity: dict[str, Any], processes: Processes
) -> Progress:
    """Load the state to continue from; returns how far the run had come.

    Args:
        trained: takes the state.
        folder: of the run, locked.
        named: the checkpoint that the user names; empty for the newest in the folder.
        identity: what must be equal for one run to continue another, as plain data.
        processes: the first of them changes the folder.

    Raises:
        UserError: there is no checkpoint, or it is from a run with other settings.
    """
    own = folder.path / CHECKPOINT
    before = checkpoint.previous(own)
    if named:
        path = Path(named)
        begun = any((folder.path / name).exists() for name in BEGUN)
        if begun and path.resolve().parent != folder.path.resolve():
            raise UserError(f"{folder.path} contains another run than {path}: choose another {folder.flag}")
        progress = _load(trained, folder, path, identity, processes)
        outdated = path.resolve() == before.resolve()  # the samples of the newest one are gone now
    elif own.exists():
        try:
            progress, outdated = _load(trained, folder, own, identity, processes), False
        except Damaged as error:
            if not before.exists():
                raise
            progress, outdated = _load(trained, folder, before, identity, processes), True
            folder.warn(f"{error}; continuing from the one before it, {before}")
    elif before.exists():
        progress, outdated = _load(trained, folder, before, identity, processes), False
    else:
        raise UserError(
            f"no checkpoint in {folder.path}: no epoch was finished; start again with --overwrite"
        )
    processes.barrier()
    if outdated and processes.is_main:  # or else the next checkpoint would keep it, not the good one
        own.unlink(missing_ok=True)
    return progress


def _load(
    trained: Epochs, folder: RunFolder, path: Path, identity: dict[str, Any], processes: Processes
) -> Progress:
    """Take the state in a checkpoint: all processes, or none."""
    content = _in_all(processes, lambda: _read(path, identity))

    def take() -> Progress:
        try:
            progress = Progress(**content["progress"])
            trained.load_state_dict(content["distiller"])
            return progress
        except WRONG as error:
            raise Damaged(
                f"{path} is not a checkpoint of such a run: name its checkpoint.pth, or start again with "
                "--overwrite"
            ) from error

    with _samples_beside(path, folder, processes):
        progress = _in_all(processes, take)
    for name, now in rounding().items():
        was = content["rounding"].get(name)
        if was != now:
            folder.warn(
                f"the run was stopped with {name} {was} and continues with {now}: numbers may differ by "
                "rounding from a run that was not stopped"
            )
    return progress


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    content = checkpoint.read(path)
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise UserError(f"{path} is not a checkpoint of a run: name its checkpoint.pth")
    before = content["identity"]
    changed = [name for name, value in identity.items() if before.get(name) != value]
    if changed:
        old, new = before.get(changed[0]), identity[changed[0]]
        also = f" (also {', '.join(changed[1:])})" if changed[1:] else ""
        raise UserError(
            f"{path} is from a run with other settings: {changed[0]} was {old} and is {new}{also}"
        )
    return content


def _in_all(processes: Processes, part: Callable[[], T]) -> T:
    """The result of `part`. An error of one process is raised in all: only the first reads the samples."""
    result: Any = None
    try:
        result = part()
    except UserError as error:
        result = error
    errors = [one for one in processes.all_gather_object(isinstance(result, UserError) and result) if one]
    if errors:
        raise errors[0]
    return result


@contextmanager
def _samples_beside(path: Path, folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Copy the samples and the best student beside a checkpoint of another folder to this one; they are
    deleted if the block fails."""
    elsewhere = path.parent.resolve() != folder.path.resolve()
    names = [name for name in (SAMPLES, STUDENT_BEST) if elsewhere and (path.parent / name).exists()]
    if not processes.is_main:
        names = []
    try:
        for name in names:
            shutil.copyfile(path.parent / name, folder.path / name)
        processes.barrier()
        yield
    except BaseException:
        for name in names:
            (folder.path / name).unlink(missing_ok=True)
        raise


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of the trained network in the content of a run's checkpoint, or of any other.

    Raises:
        UserError: there is none.
    """
    if isinstance(content, dict) and isinstance(content.get("distiller"), dict):
        state = content["distiller"]
        content = {"state_dict": state.get("student", state.get("network"))}
    return checkpoint.state_dict_of(content, path)
