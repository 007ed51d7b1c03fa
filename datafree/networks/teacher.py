"""The teacher of a command: from its name and its checkpoint to a frozen network, and what it tells of its
images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from datafree.data.datasets import NORMALIZATIONS
from datafree.data.image_spec import ImageSpec, image_spec, normalization, recorded_spec, require_img_size
from datafree.errors import UserError
from datafree.networks.build import arguments_of, build
from datafree.networks.check import (
    NetworkSummary,
    check_network,
    first_convolution,
    own_settings,
    probe_input,
)
from datafree.networks.names import AND, NetworkName, parse_arguments
from datafree.settings import Settings
from datafree.torch_utils import checkpoint

PRETRAINED = Path("checkpoints/pretrained")


@dataclass(frozen=True)
class Teacher:
    """A teacher, ready to be asked."""

    network: nn.Module  # frozen, in eval mode, on the device
    file: str | None  # its checkpoint; several as `--teacher_ckpt` has them
    data: ImageSpec  # of the images that it takes
    found: NetworkSummary
    warnings: tuple[str, ...]  # what was assumed


def prepare_teacher(settings: Settings, device: torch.device) -> Teacher:
    """The teacher that the settings name.

    Raises:
        UserError: it cannot be had, does not take such images, or knows other classes than the data have.
    """
    s, warnings = settings, []
    named = _named(s)
    read = [read_teacher(s.dataset, one.name, one.checkpoint) for one in named]
    for one, (file, _) in zip(named, read, strict=True):
        if file is None:
            warnings.append(f"no --teacher_ckpt: {one.name} keeps the weights it is made with")
    recorded = _common_facts([recorded_spec(content) for _, content in read])
    known = None
    if s.dataset != "none":
        known = image_spec(s, "test", recorded)
    classes = known.num_classes if known else None
    networks = [
        load_teacher(one.name, classes, *found, device, s.channels, one.arguments)
        for one, found in zip(named, read, strict=True)
    ]
    network = networks[0] if len(networks) == 1 else MeanOfTeachers(networks).eval()
    files = [str(file) for file, _ in read if file is not None]
    if known:
        channels, _ = probe_input(network, s.channels, known.img_size, device)
        data = known.for_channels(channels)
    else:
        data, assumed = facts_without_data(settings, network, device, recorded)
        warnings += assumed
    found = check_network(
        network, f"--teacher {s.teacher}", data.channels, data.img_size, device, s.feature_layer
    )
    if known and found.num_classes != data.num_classes:
        raise UserError(other_classes("teacher", s.teacher, found.num_classes, data.num_classes))
    return Teacher(
        network, AND.join(files) or None, data.with_classes(found.num_classes), found, tuple(warnings)
    )


class MeanOfTeachers(nn.Module):
    """Several teachers as one: the mean of their logits. BatchNorm terms are sums over the layers of all, and
    the features are those of the last one.

    Args:
        teachers: frozen, in eval mode, for the same images and classes.
    """

    def __init__(self, teachers: Sequence[nn.Module]):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = [teacher(images) for teacher in self.teachers]
        classes = [one.shape[1] for one in logits]
        if len(set(classes)) > 1:
            raise UserError(
                f"the teachers give {', '.join(map(str, classes))} classes: they must know the same"
            )
        return torch.stack(logits).mean(0)


class _Named(NamedTuple):
    """A teacher as the settings name it."""

    name: NetworkName
    checkpoint: str | None
    arguments: dict[str, Any]


def _named(settings: Settings) -> list[_Named]:
    """One or several teachers.

    Raises:
        UserError: there are not as many checkpoints, or arguments, as teachers.
    """
    names = settings.teacher.parts or (settings.teacher,)
    files: list[str | None] = [None] * len(names)
    if settings.teacher_ckpt is not None:
        files = list(settings.teacher_ckpt.split(AND)) if len(names) > 1 else [settings.teacher_ckpt]
    texts: list[str | None] = [settings.teacher_args] * len(names)
    if settings.teacher_args is not None and AND in settings.teacher_args:
        texts = list(settings.teacher_args.split(AND))
    for flag, given in (("--teacher_ckpt", files), ("--teacher_args", texts)):
        if len(given) != len(names):
            raise UserError(f"{flag} has {len(given)} values for {len(names)} teachers: give one each")
    return [
        _Named(name, file, parse_arguments(text, "--teacher_args"))
        for name, file, text in zip(names, files, texts, strict=True)
    ]


def _common_facts(recorded: list[dict[str, Any]]) -> dict[str, Any]:
    """What the checkpoints of all teachers record.

    Raises:
        UserError: they record different things.
    """
    common: dict[str, Any] = {}
    for facts in recorded:
        for name, value in facts.items():
            if common.setdefault(name, value) != value:
                raise UserError(
                    f"the teachers' checkpoints have other values of {name}, {common[name]} and {value}: "
                    "name teachers of the same images"
                )
    return common


def other_classes(flag: str, name: NetworkName, found: int, wanted: int) -> str:
    """What to say of a network with another number of classes."""
    return f"--{flag} {name} gives {found} classes, not {wanted}: set its number of outputs to {wanted}"


def read_teacher(dataset: str, name: NetworkName, path: str | None) -> tuple[Path | None, Any]:
    """Where the teacher's checkpoint lies, and its content: at `path`, by default where
    `train_scratch.py` puts it. A network of a file, or of a library, may have its weights without one.

    Raises:
        UserError: it is missing or damaged.
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
    """The teacher, frozen and in eval mode, on the device.

    Args:
        name: see `build`.
        num_classes: None where the checkpoint, or the network itself, is to tell.
        file, content: its checkpoint; None for a network that has its weights already.
        channels: of its images; None where the checkpoint, or the network itself, is to tell.
        arguments: more keyword arguments of the network.

    Raises:
        UserError: the network cannot be made, or the checkpoint is of another one.
    """
    state = None if file is None else checkpoint.state_dict_of(content, file)
    if state:
        num_classes = num_classes or _classes_in(content, state)
        arguments = {**arguments_of(name, state), **(arguments or {})}
    with torch.random.fork_rng(devices=[]):  # its random start must not move others
        torch.manual_seed(0)  # and be the same in every process, where no checkpoint replaces it
        teacher = build(name, "--teacher", num_classes, channels, arguments, fresh=bool(state))
        layer, convolution = first_convolution(teacher)
        saved = state.get(f"{layer}.weight") if state else None
        own = convolution.in_channels if convolution else None
        takes = saved.shape[1] if saved is not None and saved.dim() == 4 else own
        if channels is None and own is not None and takes != own:  # the checkpoint is of other images
            teacher = build(name, "--teacher", num_classes, takes, arguments)
    if state and file:
        of = "" if num_classes is None else f" with {num_classes} classes"
        checkpoint.load_network(teacher, state, file, f"{name}{of}")
    return teacher.to(device).eval().requires_grad_(False)


def _classes_in(content: Any, state: Mapping[str, torch.Tensor]) -> int | None:
    """How many classes a checkpoint is of: what it records, else the rows of its last matrix."""
    if isinstance(content, Mapping) and isinstance(content.get("classes"), list):
        return len(content["classes"])
    matrices = [value for value in state.values() if value.dim() == 2]
    return len(matrices[-1]) if matrices else None


def facts_without_data(
    settings: Settings, teacher: nn.Module, device: torch.device, recorded: Mapping[str, Any]
) -> tuple[ImageSpec, list[str]]:
    """What `--dataset none` knows, all but the classes: from the flags, else what the teacher's checkpoint
    records, else what the teacher itself says, or takes when it is tried. With warnings of what was assumed.

    Raises:
        UserError: the image size is nowhere to be found.
    """
    s, warnings = settings, []
    own = {**own_settings(teacher), **recorded}
    img_size = s.img_size or own.get("img_size")
    channels, found = probe_input(teacher, s.channels, img_size, device)
    if img_size is None:
        if found is None:
            raise UserError("the teacher does not say how large its images are: give --img_size")
        img_size = found
        warnings.append(f"no --img_size: {found} is the only size of those tried that the teacher takes")
    img_size = require_img_size(img_size)
    has_mean, has_std = s.mean or own.get("mean"), s.std or s.mean in NORMALIZATIONS or own.get("std")
    if not has_mean or not has_std:
        warnings.append("no --mean and --std: the teacher's input is taken to be normalised to -1 .. 1")
    half = (0.5,) * channels
    mean, std = normalization(s, own.get("mean") or half, own.get("std") or half)
    flip = own.get("flip", True) if s.flip is None else s.flip
    facts = ImageSpec("none", (), img_size, mean, std, flip)
    return facts.for_channels(channels), warnings
