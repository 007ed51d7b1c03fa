"""A student in a file that tells how to rebuild and use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.data.image_spec import ImageSpec
from datafree.errors import UserError
from datafree.networks.build import build_with_weights
from datafree.networks.names import NetworkName, parse_arguments, without_weights
from datafree.torch_utils import checkpoint

# Files of an exported folder: the weights, how to use them, and the Python file of a network from a file.
WEIGHTS, EXPORT_CONFIG, SOURCE = "student.safetensors", "config.json", "network.py"
USE = ("arch", "arch_args", "classes", "img_size", "mean", "std", "flip", "dataset")  # keys of EXPORT_CONFIG


def require_storable(network: nn.Module, flag: str) -> None:
    """Raises:
    UserError: the network's state dict has more than tensors: reading it could run code.
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
    if not path.is_dir():
        return rebuild(checkpoint.read(path), path, source)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        use = dict(json.loads((path / EXPORT_CONFIG).read_text(encoding="utf-8")))
        state = load((path / WEIGHTS).read_bytes())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} is no exported student ({error!s:.200})") from error
    own = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return rebuild({**use, "state_dict": own}, path, source)


def rebuild(content: Any, path: Path, source: str | NetworkName | None = None) -> nn.Module:
    """Rebuild the student from the content of a `student.pth`; see `load_student`."""
    try:
        name = NetworkName.parse(dict(content)["arch"])
        classes, channels = len(content["classes"]), len(content["mean"])
        arguments = parse_arguments(content.get("arch_args"), "--student_args")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path} does not tell how to rebuild its network ({error!r:.200})") from error
    if source is not None:
        name = source if isinstance(source, NetworkName) else NetworkName.parse(source)
    elif name.kind == "file":
        raise UserError(f"{path} needs the network's code: add --student {name} (source=...) to run it")
    else:
        arguments = without_weights(arguments)
    state = checkpoint.state_dict_of(content, path)
    network = build_with_weights(state, path, name, "--student", classes, channels, arguments)
    return network.to(memory_format=torch.contiguous_format).eval()
