"""Starting or continuing a run: which checkpoint to take, whether it is from such a run, and loading it whole
or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from datafree.data.image_spec import ImageSpec
from datafree.errors import Damaged, UserError
from datafree.runs.environment import environment, rounding
from datafree.runs.files import CHECKPOINT, CONFIG, FILES, METRICS, SAMPLES, STUDENT_BEST, TRAINING
from datafree.runs.folder import RunFolder
from datafree.runs.loop import Epochs, Progress
from datafree.settings import KDSettings, Settings, TrainSettings, as_dict, identity
from datafree.torch_utils import checkpoint
from datafree.torch_utils.distributed import Processes

T = TypeVar("T")
# What loading a state raises that does not fit.
WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)


def start_or_resume(
    trained: Epochs,
    folder: RunFolder,
    settings: Settings | TrainSettings | KDSettings,
    spec: ImageSpec,
    device: torch.device,
    same: dict[str, Any],
    also: dict[str, Any],
    first: int = 0,
    events: bool = False,
) -> tuple[Progress, dict[str, Any]]:
    """Lock and open the run folder, and load the checkpoint to continue from, if any.

    Args:
        trained: takes the state.
        folder: checked.
        settings: of the run.
        spec: of its images.
        device: of its networks.
        same: what must be equal for one run to continue another, beside settings, images, kind of device
            and number of processes; plain data.
        also: what else `config.json` contains.
        first: the epoch to start with.
        events: write TensorBoard events.

    Returns:
        How far the run has come; what its checkpoints contain beside their state.

    Raises:
        UserError: another command writes to the folder, there is no checkpoint, or it is from a run with
            other settings.
    """
    s, processes, facts = settings, trained.processes, spec.as_dict()
    own = {**identity(s), **facts, **same, "processes": processes.world_size, "device_type": device.type}
    if processes.is_main:
        folder.lock()
    else:  # all have built the same networks; from here on dropout differs
        torch.manual_seed(s.seed + processes.rank)
    progress = Progress(first, first=first)
    if s.resume is not None:
        progress = _resume(trained, folder, s.resume, own, processes)
    if processes.is_main:
        config = {**as_dict(s), **also, **facts, **environment(device), "processes": processes.world_size}
        name = TRAINING if isinstance(s, TrainSettings) else CONFIG
        folder.open(name, config, progress.epoch if events else None)
        folder.truncate_metrics(progress.first, progress.epoch)
    processes.barrier()  # until there is a folder for the samples
    return progress, {"identity": own, "facts": facts}


def _resume(
    trained: Epochs, folder: RunFolder, named: str, own: dict[str, Any], processes: Processes
) -> Progress:
    """Continue from the checkpoint that the user names, else from the newest in the folder, else from the one
    before it."""
    newest = folder.path / CHECKPOINT
    before = checkpoint.previous(newest)
    path = Path(named or (newest if newest.exists() else before))
    elsewhere = path.resolve().parent != folder.path.resolve()
    if elsewhere and any((folder.path / name).exists() for name in FILES):
        raise UserError(f"{folder.path} contains another run than {path}: choose another {folder.flag}")
    if not named and not path.exists():
        raise UserError(f"no checkpoint in {folder.path}: no epoch was finished; start with --overwrite")
    try:
        progress = _load(trained, folder, path, own, processes)
    except Damaged as error:
        if named or path == before or not before.exists():
            raise
        path = before
        progress = _load(trained, folder, path, own, processes)
        folder.warn(f"{error}; continuing from the one before it, {path}")
    processes.barrier()
    if path.resolve() == before.resolve() and processes.is_main:
        newest.unlink(missing_ok=True)  # or else the next checkpoint would keep it in place of the good one
    return progress


def _load(
    trained: Epochs, folder: RunFolder, path: Path, own: dict[str, Any], processes: Processes
) -> Progress:
    """Take the state in a checkpoint: all processes, or none."""
    content = _in_all(processes, lambda: _read(path, own))

    def take() -> Progress:
        try:
            trained.load_state_dict(content["distiller"])
            return Progress(**content["progress"])
        except WRONG as error:
            raise Damaged(f"{path} is not a checkpoint of such a run ({error!r:.100})") from error

    # Samples, metrics and the best student beside a checkpoint of another folder come along.
    names = [name for name in (SAMPLES, METRICS, STUDENT_BEST) if (path.parent / name).exists()]
    if path.parent.resolve() == folder.path.resolve() or not processes.is_main:
        names = []
    for name in names:
        shutil.copyfile(path.parent / name, folder.path / name)
    processes.barrier()
    try:
        progress = _in_all(processes, take)
    except UserError:
        for name in names:
            (folder.path / name).unlink()
        raise
    for name, now in rounding().items():
        was = content["rounding"][name]
        if was != now:
            folder.warn(
                f"the run was stopped with {name} {was} and continues with {now}: its numbers may differ by "
                "rounding from a run that was not stopped"
            )
    return progress


def _read(path: Path, own: dict[str, Any]) -> dict[str, Any]:
    content = checkpoint.read(path)
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise UserError(f"{path} is not a checkpoint of a run: name its checkpoint.pth")
    before = content["identity"]
    changed = [name for name, value in own.items() if before.get(name) != value]
    if changed:
        was, now = before.get(changed[0]), own[changed[0]]
        also = f" (also {', '.join(changed[1:])})" if changed[1:] else ""
        raise UserError(
            f"{path} is from a run with other settings: {changed[0]} was {was} and is {now}{also}"
        )
    return content


def _in_all(processes: Processes, part: Callable[[], T]) -> T:
    """The result of `part`. An error of one process is raised in all: only the first reads the samples."""
    result: Any = None
    error: UserError | None = None
    try:
        result = part()
    except UserError as raised:
        error = raised
    for one in processes.all_gather_object(error):
        if one is not None:
            raise one
    return result


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of the trained network in the content of a run's checkpoint, or of any other.

    Raises:
        UserError: there is none.
    """
    if isinstance(content, dict) and isinstance(content.get("distiller"), dict):
        state = content["distiller"]
        content = {"state_dict": state.get("student", state.get("network"))}
    return checkpoint.state_dict_of(content, path)
