"""A bound on the tensors that code makes: a network described by a stranger's file may be any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

META = torch.device("meta")


class TooLarge(Exception):
    """More tensors are asked for than the budget has room for."""


class _Budget(TorchDispatchMode):
    """Each operation is tried on tensors without memory first, which tells what it is going to take."""

    def __init__(self, size: int, operations: int):
        super().__init__()
        self.bytes, self.operations = size, operations

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        self.bytes -= _takes(function, args, kwargs)
        if min(self.operations, self.bytes) < 0:
            raise TooLarge
        return function(*args, **kwargs)


def _takes(function: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Bytes that an operation makes anew; 0 where that cannot be told without running it."""
    schema = function._schema
    if all(returned.alias_info for returned in schema.returns):  # a view, or in place
        return 0

    def shadow(value: Any) -> Any:
        return value.to(META) if isinstance(value, Tensor) else value

    try:
        shadows = tree_map(shadow, kwargs)
        if any(argument.name == "device" for argument in schema.arguments):
            shadows["device"] = META
        shadows.pop("pin_memory", None)
        shadows.pop("generator", None)
        made = function(*tree_map(shadow, args), **shadows)
    except Exception:  # has no such form; what it is given is of a bounded size
        return 0
    return sum(one.numel() * one.element_size() for one in tree_leaves(made) if isinstance(one, Tensor))


@contextmanager
def budget(size: int, operations: int, error: Callable[[], Exception]) -> Iterator[None]:
    """Inside the block, this thread's operations may make `size` bytes of tensors in all, and be
    `operations` in number.

    Args:
        error: makes what is raised where they are more.
    """
    bound = _Budget(size, operations)
    try:
        with bound:
            yield
    except Exception as raised:
        # Whoever built the network may have put another error around it.
        if min(bound.bytes, bound.operations) < 0:
            raise error() from raised
        raise
