"""A network in a file that says how it is rebuilt and used."""

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
from datafree.torch_utils.budget import budget

# What building a network may take beside a few times its weights: buffers that are not saved, weights that
# are replaced, and initial values that are worked out.
SPARE_BYTES, SPARE_OPERATIONS = 64 << 20, 5_000
LONGEST = 10_000  # characters, of arguments
# An exported folder: the weights, what tells how they are used, and the file of a network of a user's own.
WEIGHTS, EXPORT_CONFIG, SOURCE = "student.safetensors", "config.json", "network.py"
TOLD = ("arch", "arch_args", "classes", "img_size", "mean", "std", "flip", "dataset")


def require_storable(network: nn.Module, flag: str) -> None:
    """See that a network's state can be written to a file and read without running code.

    Raises:
        UserError: a part of it is no tensor.
    """
    for key, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{flag}: {key} of its state dict is no tensor, and cannot be saved (get_extra_state): "
                "keep it in a buffer"
            )


def describe(
    network: nn.Module, name: NetworkName, arguments: str | None, source: str | None, facts: ImageSpec
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
    """The student in a `student.pth`, or in a folder that `export.py --format safetensors` has written, in
    eval mode on the CPU. It takes normalised images.

    Args:
        path: the checkpoint or the folder, which hold what is needed.
        source: `file.py:factory` of a student that is made by a file. The one that the checkpoint names is
            not run unasked; it has the file's text as `arch_source`.

    Raises:
        UserError: the checkpoint is damaged, incomplete or of another network, or needs a `source`; or what
            it describes is larger than its weights.
    """
    path = Path(path)
    return rebuild(_exported(path) if path.is_dir() else checkpoint.read(path), path, source)


def _exported(folder: Path) -> dict[str, Any]:
    """What a `student.pth` would hold."""
    try:
        from safetensors import SafetensorError
        from safetensors import torch as safetensors
    except ImportError as error:
        raise UserError(
            "an exported folder needs a package that is missing: pip install safetensors"
        ) from error
    try:
        told = json.loads((folder / EXPORT_CONFIG).read_text(encoding="utf-8"))
        state = safetensors.load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} holds no exported student ({error!s:.200})") from error
    if not isinstance(told, dict):
        raise UserError(f"{folder / EXPORT_CONFIG} is not as it was written")
    own = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return {**told, "state_dict": own}


def rebuild(content: Any, path: Path, source: str | NetworkName | None = None) -> nn.Module:
    """The student in the content of a `student.pth`; see `load_student`."""
    try:
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, no dict")
        name = NetworkName.parse(content["arch"])
        classes, channels = len(content["classes"]), len(content["mean"])
        text = content.get("arch_args")
        if text is not None and len(text) > LONGEST:
            raise ValueError(f"arch_args of {len(text)} characters")
        arguments = parse_arguments(text, "--student_args")
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's file may hold
        raise UserError(f"{path} does not say how to rebuild its network ({error!r:.200})") from error
    if name.kind == "several":
        raise UserError(f"{path} names several networks where one is wanted: it is damaged")
    if source is None:
        if name.kind == "file":
            raise UserError(
                f"{path} is of a file's network, which is not run unasked: add --student {name} (source=...)"
            )
        arguments = without_weights(arguments)
    made_by = source if isinstance(source, NetworkName) else NetworkName.parse(source) if source else name
    state = checkpoint.state_dict_of(content, path)
    arguments = {**arguments_of(made_by, state), **arguments}
    weights = sum(value.numel() * value.element_size() for value in state.values())

    def too_large() -> UserError:
        return UserError(
            f"{path} describes a larger network than its weights are of: it is damaged or a trap"
        )

    with budget(8 * weights + SPARE_BYTES, 50 * len(state) + SPARE_OPERATIONS, too_large):
        network = build(made_by, "--student", classes, channels, arguments)
    checkpoint.load_network(network, state, path, f"{name} with {classes} classes")
    return network.to(memory_format=torch.contiguous_format).eval()
