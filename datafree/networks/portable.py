"""A network in a file that says how it is rebuilt and used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.data.facts import DataFacts
from datafree.errors import UserError
from datafree.networks.build import arguments_of, build
from datafree.networks.names import NetworkName, parse_arguments, without_weights
from datafree.torch_utils import checkpoint


def describe(
    network: nn.Module, name: NetworkName, arguments: str | None, source: str | None, facts: DataFacts
) -> dict[str, Any]:
    """A checkpoint that says how the network is rebuilt and used.

    Args:
        network: whose weights are taken.
        name, arguments: by which it was made.
        source: the text of its file, if it is made by one, see `build.source_of`.
        facts: classes, image size and normalisation of its input.
    """
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    made = {"arch": str(name), "arch_args": arguments, "arch_source": source}
    return {"state_dict": state, **made, **facts.as_dict()}


def load_student(path: str | Path, source: str | NetworkName | None = None) -> nn.Module:
    """The student in a `student.pth`, in eval mode on the CPU.

    Args:
        path: the checkpoint, which holds what is needed.
        source: `file.py:factory` of a student that is made by a file. The one that the checkpoint names is
            not run unasked; it has the file's text as `arch_source`.

    Raises:
        UserError: the checkpoint is damaged, incomplete or of another network, or needs a `source`.
    """
    path = Path(path)
    content = checkpoint.read(path)
    try:
        name = NetworkName.parse(content["arch"])
        classes, channels = len(content["classes"]), len(content["mean"])
        arguments = parse_arguments(content.get("arch_args"), "--student_args")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not say how to rebuild its network ({error!r})") from error
    if source is None:
        if name.kind == "file":
            raise UserError(
                f"{path} is of a file's network, which is not run unasked: add --student {name} (source=...)"
            )
        arguments = without_weights(arguments)
    made_by = source if isinstance(source, NetworkName) else NetworkName.parse(source) if source else name
    state = checkpoint.state_dict_of(content, path)
    network = build(made_by, "--student", classes, channels, {**arguments_of(made_by, state), **arguments})
    checkpoint.load_network(network, state, path, f"{name} with {classes} classes")
    return network.to(memory_format=torch.contiguous_format).eval()
