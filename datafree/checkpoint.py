"""Checkpoints: written whole or not at all, read so that no code in a file can run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import UserError

SHOWN = 3  # keys or shapes that an error message names


def save(content: Any, path: Path) -> None:
    """Write `content` (tensors in plain containers) to a temporary file beside `path`, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error}): free space or choose another folder") from error


def read(path: Path) -> Any:
    """What a checkpoint file holds, tensors on the CPU. Only tensors and plain containers are unpickled;
    a file that asks for anything else is refused.

    Raises:
        UserError: the file is missing, damaged or holds more than data.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"cannot load {path}: it holds Python objects, which could run code; save a plain state dict"
            ) from error
        raise UserError(_damaged(path)) from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): check the path") from error
    except Exception as error:  # torch raises many kinds for files that are not what they claim
        raise UserError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"cannot load {path}: it is damaged or not a PyTorch checkpoint; copy it anew"


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content, bare or under `state_dict`, without the `module.` that
    DataParallel puts before every key.

    Raises:
        UserError: there is none.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
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
