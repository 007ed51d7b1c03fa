"""A student in a file that tells how to rebuild and use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.data.image_spec import ImageSpec
from datafree.errors import UserError
from datafree.networks.build import arguments_of, build
from datafree.networks.names import NetworkName, parse_arguments, without_weights
from datafree.torch_utils import checkpoint

# Files of an exported folder: the weights, how to use them, and the Python file of a network from a file.
WEIGHTS, EXPORT_CONFIG, SOURCE = "student.safetensors", "config.json", "network.py"
USE = ("arch", "arch_args", "classes", "img_size", "mean", "std", "flip", "dataset")  # keys of EXPORT_CONFIG


def require_storable(network: nn.Module, flag: str) -> None:
    """Refuse networks whose state dict has more than tensors: reading it could run code.

    Raises:
        UserError: the network is such a one.
    """
    for key, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{flag}: {key} of its state dict is no tensor and cannot be saved (get_extra_state): "
                "keep it in a buffer"
            )


def describe(
    network: nn.Module, name: NetworkName, arguments: str | None, source: str | None, spec: ImageSpec
) -> dict[str, Any]:
    """The content of a `student.pth`: the weights, and how to rebuild and use the network.

    Args:
        network: whose weights are saved.
        name, arguments: `build` was called with these.
        source: the text of the network's file, see `build.source_of`.
        spec: classes, image size and normalisation of its input.
    """
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    architecture = {"arch": str(name), "arch_args": arguments, "arch_source": source}
    return {"state_dict": state, **architecture, **spec.as_dict()}


def load_student(path: str | Path, source: str | NetworkName | None = None) -> nn.Module:
    """Load a student from a `student.pth`, or from a folder written by `export.py --format safetensors`; in
    eval mode, on the CPU. It takes normalised images. No pretrained weights are downloaded.

    Args:
        path: the checkpoint or the folder.
        source: `file.py:factory` of a student from a file. The checkpoint contains the file's text as
            `arch_source`, but its code is run only if you name the file here.

    Raises:
        UserError: the checkpoint is damaged, incomplete or from another network, or needs a `source`.
    """
    path = Path(path)
    return rebuild(_exported(path) if path.is_dir() else checkpoint.read(path), path, source)


def _exported(folder: Path) -> dict[str, Any]:
    """The content of an exported folder, as in a `student.pth`."""
    try:
        from safetensors import SafetensorError
        from safetensors import torch as safetensors
    except ImportError as error:
        raise UserError(
            "an exported folder needs a package that is missing: pip install safetensors"
        ) from error
    try:
        use = dict(json.loads((folder / EXPORT_CONFIG).read_text(encoding="utf-8")))
        state = safetensors.load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} is no exported student ({error!s:.200})") from error
    own = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return {**use, "state_dict": own}


def rebuild(content: Any, path: Path, source: str | NetworkName | None = None) -> nn.Module:
    """Rebuild the student from the content of a `student.pth`; see `load_student`."""
    try:
        name = NetworkName.parse(dict(content)["arch"])
        classes, channels = len(content["classes"]), len(content["mean"])
        arguments = parse_arguments(content.get("arch_args"), "--student_args")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path} does not tell how to rebuild its network ({error!r:.200})") from error
    if name.kind == "several":
        raise UserError(f"{path} names several networks instead of one: it is damaged")
    if source is None:
        if name.kind == "file":
            raise UserError(f"{path} needs the network's code: add --student {name} (source=...) to run it")
        arguments = without_weights(arguments)
    else:
        name = source if isinstance(source, NetworkName) else NetworkName.parse(source)
    state = checkpoint.state_dict_of(content, path)
    network = build(name, "--student", classes, channels, {**arguments_of(name, state), **arguments})
    checkpoint.load_network(network, state, path, f"{name} with {classes} classes")
    return network.to(memory_format=torch.contiguous_format).eval()
