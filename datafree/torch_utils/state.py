"""The state of optimisers and of other parts of a run: whether a saved one fits, and loading it whole or
not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights, to tell whether two are the same."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        if isinstance(value, Tensor):  # a module may have anything else as its extra state
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_like(state: Any, fresh: Any, name: str) -> None:
    """See that a saved state is of the make of a fresh one: the same keys and types, tensors of the same
    shape and dtype. Lists may differ in length.

    Raises:
        ValueError: it is not; the message names the entry.
    """
    number = (int, float)
    if isinstance(fresh, Mapping):
        if not isinstance(state, Mapping) or state.keys() != fresh.keys():
            raise ValueError(f"{name} has other entries")
        for key, value in fresh.items():
            require_like(state[key], value, f"{name}.{key}")
    elif isinstance(fresh, Tensor):
        if not isinstance(state, Tensor) or (state.shape, state.dtype) != (fresh.shape, fresh.dtype):
            raise ValueError(f"{name} is no tensor of its shape")
    elif isinstance(fresh, (list, tuple)):
        if not isinstance(state, (list, tuple)) or not all(isinstance(value, number) for value in state):
            raise ValueError(f"{name} is no list of numbers")
    elif isinstance(fresh, number) and not isinstance(fresh, bool):
        if not isinstance(state, number):
            raise ValueError(f"{name} is no number")
    elif type(state) is not type(fresh):
        raise ValueError(f"{name} is of another type")


def list_of(value: Any) -> Any:
    """Tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimizer's state, whole or not at all.

    Raises:
        ValueError: it is of other parameters.
        KeyError, TypeError: it is no optimizer's state.
    """
    fresh = optimizer.state_dict()["param_groups"]
    require_like(dict(enumerate(state["param_groups"])), dict(enumerate(fresh)), "param_groups")
    for group, own in zip(state["param_groups"], fresh, strict=True):
        for name, value in own.items():
            if name not in ("lr", "initial_lr") and list_of(group[name]) != list_of(value):
                raise ValueError(f"{name} of the optimizer is another")
    adam = {"step", "exp_avg", "exp_avg_sq"}
    kept = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else adam
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        if set(values) != kept:
            raise ValueError(f"the state of parameter {index} is no such optimizer's")
        for name, value in values.items():
            shape = () if name == "step" else parameters[index].shape
            if value is not None and not (isinstance(value, Tensor) and value.shape == shape):
                raise ValueError(f"{name} of parameter {index} is not of its shape")
    optimizer.load_state_dict(state)
