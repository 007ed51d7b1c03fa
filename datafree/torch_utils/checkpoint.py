"""Checkpoints: written whole or not at all, read so that no code in a file can run and no file takes more
memory than its size allows."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from datafree.errors import Damaged, UserError
from datafree.torch_utils import unpickle

STATE_NAMES = ("state_dict", "model", "net")  # under which published checkpoints have the state dict
SHOWN = 3  # keys or shapes that an error message names
SEAL = b"\nsha256:"  # at the end of a file, before the digest of all that comes before it
SEAL_LENGTH = len(SEAL) + hashlib.sha256().digest_size
DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def save(
    content: Any, path: Path, keep_previous: bool = False, require: Callable[[], None] = lambda: None
) -> None:
    """Write `content` (tensors in plain containers) with a checksum to a temporary file beside `path`, then
    rename. With `keep_previous` the file that was there becomes `previous(path)`. `require` is called before
    each and raises where it must not be done any more."""
    require()
    temporary = path.with_name(path.name + ".tmp")
    try:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.write(SEAL + hashlib.sha256(buffer.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())
        require()
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except UserError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error}): free space or choose another folder") from error


def previous(path: Path) -> Path:
    """Where `save` keeps the checkpoint before the newest."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _flush_folder(folder: Path) -> None:
    """Return when the disk has the names of the files in it."""
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path) -> Any:
    """What a checkpoint file holds, tensors on the CPU. Only tensors and plain containers are unpickled; a
    file that asks for anything else is refused, and so is one whose checksum, if it has one, is wrong, or
    that would unpack to more than it is.

    Raises:
        Damaged: the file is not what was written.
        UserError: it is missing or holds more than data.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: check the path")
    try:
        size = path.stat().st_size
        with _unsealed(path) as source:
            content = unpickle.load(source, size)
        _refuse_virtual_tensors(content, size, path)
        return content
    except UserError:
        raise
    except unpickle.HoldsObjects as error:
        raise UserError(
            f"cannot load {path}: it holds Python objects ({error}), which could run code; "
            "save a plain state dict"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): check the path") from error
    except (Exception, MemoryError) as error:  # files that are no checkpoints fail in many ways
        raise _damaged(path) from error


def _damaged(path: Path) -> Damaged:
    return Damaged(f"cannot load {path}: it is damaged or not a PyTorch checkpoint; copy it anew")


def _unsealed(path: Path) -> BinaryIO:
    """The file, or what is before its checksum.

    Raises:
        Damaged: it has a checksum of something else.
    """
    file = open(path, "rb")  # noqa: SIM115 (returned)
    if path.stat().st_size < SEAL_LENGTH:
        return file
    file.seek(-SEAL_LENGTH, os.SEEK_END)
    seal = file.read()
    file.seek(0)
    if not seal.startswith(SEAL):
        return file
    with file:
        data = file.read()[:-SEAL_LENGTH]
    if hashlib.sha256(data).digest() != seal[len(SEAL) :]:
        raise _damaged(path)
    return io.BytesIO(data)


def _refuse_virtual_tensors(content: Any, size: int, path: Path) -> None:
    """Refuse tensors that stand for more values than the file has, as a few repeated ones can."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.is_nested or value.is_meta or value.is_quantized or value.dtype not in DTYPES:
                raise UserError(f"cannot load {path}: it holds a tensor of an odd kind; save plain ones")
            if value.layout != torch.strided or value.numel() * value.element_size() > size:
                raise UserError(f"cannot load {path}: a tensor in it is larger than the file; save it anew")
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


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
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise UserError(f'{path} holds no state dict: expected one, bare or under "state_dict"')
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def load_network(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load a state dict into a network, whole or not at all.

    Args:
        network: what to load into.
        state: from `state_dict_of`. `num_batches_tracked` may be absent, as in old checkpoints.
        path: where it is from, for the error message.
        name: what the network is, for the error message: "resnet34 with 10 classes".

    Raises:
        UserError: keys or shapes differ; the first that do are named.
    """
    own = network.state_dict()
    odd = [key for key, value in own.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{name}: {odd[0]} of its state dict is no tensor")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the network"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing ({_first(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are unknown ({_first(unexpected)})")
    if shapes:
        problems.append("; ".join(shapes[:SHOWN]))
    if problems:
        raise UserError(
            f"{path} is not a checkpoint of {name}: {'; '.join(problems)}; "
            "check the architecture's name and the number of classes"
        )
    network.load_state_dict(state, strict=False)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
