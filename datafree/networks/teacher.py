"""The teacher of a command: its checkpoint, its network, and the images that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.data.datasets import NORMALIZATIONS
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.errors import UserError
from datafree.networks.build import build, build_with_weights, input_channels
from datafree.networks.check import NetworkSummary, check_network
from datafree.networks.names import NetworkName, parse_arguments
from datafree.settings import Settings
from datafree.torch_utils import checkpoint

PRETRAINED = Path("checkpoints/pretrained")


@dataclass(frozen=True)
class Teacher:
    """A teacher, ready to be evaluated on images."""

    network: nn.Module  # frozen, in eval mode, on the device
    file: str | None  # its checkpoint; of several teachers as `--teacher_ckpt` has them
    data: ImageSpec  # of its images
    found: NetworkSummary
    warnings: tuple[str, ...]  # assumptions


def prepare_teacher(settings: Settings, device: torch.device) -> Teacher:
    """Load and check the settings' teacher, which is a single one.

    Raises:
        UserError: the teacher cannot be loaded, something about its images is unknown, it does not take such
            images, or its classes are not the data's.
    """
    s, warnings = settings, []
    file, content = read_teacher(s.dataset, s.teacher, s.teacher_ckpt)
    if file is None:
        warnings.append(f"no --teacher_ckpt: {s.teacher} keeps its initial weights")
    recorded = recorded_spec(content)
    spec = image_spec(s, "test", recorded) if s.dataset != "none" else None
    classes = spec.num_classes if spec else None
    arguments = parse_arguments(s.teacher_args, "--teacher_args")
    network = load_teacher(s.teacher, classes, file, content, device, s.channels, arguments)
    if spec is None:
        known = {**own_settings(network), **recorded}
        spec = image_spec(s, "test", known)
        if not (s.mean or known.get("mean")) or not (s.std or s.mean in NORMALIZATIONS or known.get("std")):
            warnings.append("no --mean and --std: the teacher's images are assumed to be in -1 .. 1")
    channels = s.channels or input_channels(network) or len(recorded.get("mean", "rgb"))
    spec = spec.for_channels(channels)
    name, layer = f"--teacher {s.teacher}", s.feature_layer
    found = check_network(network, name, channels, spec.img_size, device, layer, num_classes=classes)
    spec = spec.with_classes(found.num_classes)
    return Teacher(network, None if file is None else str(file), spec, found, tuple(warnings))


def read_teacher(dataset: str, name: NetworkName, path: str | None) -> tuple[Path | None, Any]:
    """The file and the content of the teacher's checkpoint: `path`, by default the file that
    `train_scratch.py` writes. Networks from a file or a library may have their weights without a checkpoint:
    then both are None.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    if path is None and name.kind != "own":
        return None, None
    file = Path(path) if path else PRETRAINED / f"{dataset}_{name.stem}.pth"
    if path is None and not file.is_file():
        raise UserError(
            f"no teacher at {file}: name one with --teacher_ckpt, or train it with "
            f"`python train_scratch.py --model {name} --dataset {dataset}`"
        )
    return file, checkpoint.read(file)


def load_teacher(
    name: NetworkName,
    num_classes: int | None,
    file: Path | None,
    content: Any,
    device: torch.device,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the teacher and load its weights. It is frozen, in eval mode, and on the device.

    Args:
        name: see `build`.
        num_classes: None for the checkpoint's, or else the network's.
        file, content: the checkpoint; None for a network that has its weights already.
        channels: of its images; None for the checkpoint's, or else the network's.
        arguments: more keyword arguments of the network.

    Raises:
        UserError: the network cannot be built, or the checkpoint is from another one.
    """
    state = checkpoint.state_dict_of(content, file) if file else {}
    if state:
        matrices, kernels = ([value for value in state.values() if value.dim() == n] for n in (2, 4))
        if isinstance(content.get("classes"), list):
            num_classes = num_classes or len(content["classes"])
        elif matrices:
            num_classes = num_classes or len(matrices[-1])
        if kernels and kernels[0].shape[1] in (1, 3):
            channels = channels or kernels[0].shape[1]
    with torch.random.fork_rng(devices=[]):  # leaves the random state of what follows as it is
        torch.manual_seed(0)  # without a checkpoint, every process needs the same weights
        if file:
            teacher = build_with_weights(state, file, name, "--teacher", num_classes, channels, arguments)
        else:
            teacher = build(name, "--teacher", num_classes, channels, arguments, fresh=False)
    return teacher.to(device).eval().requires_grad_(False)


def own_settings(network: nn.Module) -> dict[str, Any]:
    """Image size, mean and standard deviation in a network's own configuration, as timm's have one."""
    config = getattr(network, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    found = {"img_size": size and int(size[-1]), "mean": config.get("mean"), "std": config.get("std")}
    return {name: value for name, value in found.items() if value}
