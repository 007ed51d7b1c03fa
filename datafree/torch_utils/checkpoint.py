"""Checkpoints: written whole or not at all, and read so that no code in a file can run."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datafree.errors import Damaged, UserError

STATE_NAMES = ("state_dict", "model", "net")  # keys under which published checkpoints have the state dict
_SCALAR = np.float64(0).__reduce__()[0]  # NumPy's constructor of scalars
# What published checkpoints contain beside what PyTorch allows: options, its version, accuracies.
HARMLESS: list[Any] = [
    argparse.Namespace,
    torch.torch_version.TorchVersion,
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f2", "f4", "f8")),
]
_lock = threading.Lock()  # `safe_globals` changes a list that all threads share


def save(content: Any, path: Path, keep_previous: bool = False) -> None:
    """Write `content` (tensors in plain containers) to a temporary file beside `path`, then rename it. With
    `keep_previous` the old file becomes `previous(path)`.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error}): free space or choose another folder") from error


def previous(path: Path) -> Path:
    """Where `save` keeps the checkpoint before the newest."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _flush_folder(folder: Path) -> None:
    """Wait until the names of the files are on the disk too."""
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path) -> Any:
    """The content of a checkpoint file, tensors on the CPU. Only data are read (`weights_only`). The CRC of
    every part is checked first, except in files from before PyTorch 1.6, which have none.

    Raises:
        Damaged: the file is not what was written, or no checkpoint.
        UserError: it is missing, or contains Python objects.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: check the path")
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): check the path") from error
    damaged = Damaged(f"cannot load {path}: it is damaged or not a PyTorch checkpoint; copy it again")
    with file:
        try:
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise damaged
            file.seek(0)
            with _lock, torch.serialization.safe_globals(HARMLESS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Damaged:
            raise
        except Exception as error:  # files that are no checkpoints fail in many ways
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if not refused:
                raise damaged from error
            raise UserError(
                f"cannot load {path}: it contains Python objects ({refused[1]}), which could run code; "
                "save a plain state dict"
            ) from error


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content, bare or under one of STATE_NAMES, without the `module.` that
    DataParallel puts before every key.

    Raises:
        UserError: there is none.
    """
    for name in STATE_NAMES if isinstance(content, Mapping) else ():
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f'{path} has no state dict: expected one, bare or under "state_dict"')
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise UserError(f"{path} has no state dict: its values are not all tensors")
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in content.items()}


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        if isinstance(value, Tensor):  # a module may have anything else as its extra state
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
