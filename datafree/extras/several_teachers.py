"""Several teachers as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from datafree.errors import UserError
from datafree.networks.check import check_network
from datafree.networks.names import AND
from datafree.networks.teacher import Teacher
from datafree.networks.teacher import prepare_teacher as prepare_one
from datafree.settings import Settings


class MeanOfTeachers(nn.Module):
    """The mean of several teachers' logits. BatchNorm terms are sums over the layers of all teachers;
    features are the last teacher's.

    Args:
        teachers: frozen, in eval mode, for the same images and classes.
    """

    def __init__(self, teachers: Sequence[nn.Module]):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([teacher(images) for teacher in self.teachers]).mean(0)


def prepare_teacher(settings: Settings, device: torch.device) -> Teacher:
    """Load and check the settings' teacher, one or several.

    Raises:
        UserError: a teacher cannot be loaded, the teachers take different images or know different classes,
            or there are not as many checkpoints or arguments as teachers.
    """
    s, names = settings, settings.teacher.parts
    if not names:
        return prepare_one(s, device)
    files = _one_each("--teacher_ckpt", s.teacher_ckpt, len(names))
    arguments = [s.teacher_args] * len(names)
    if s.teacher_args is not None and AND in s.teacher_args:
        arguments = _one_each("--teacher_args", s.teacher_args, len(names))
    teachers = []
    for name, file, text in zip(names, files, arguments, strict=True):
        one = replace(s, teacher=name, teacher_ckpt=file, teacher_args=text, feature_layer=None)
        teachers.append(prepare_one(one, device))
    first = teachers[0].data
    for field in fields(first):
        values = [getattr(teacher.data, field.name) for teacher in teachers]
        values = [len(value) if field.name == "classes" else value for value in values]
        if len(set(values)) > 1:
            raise UserError(
                f"the teachers differ in {field.name} ({', '.join(map(str, values))}): name teachers of the "
                "same images and classes, or give the flags of the images"
            )
    network = MeanOfTeachers([teacher.network for teacher in teachers]).eval()
    title = f"--teacher {s.teacher}"
    found = check_network(network, title, first.channels, first.img_size, device, s.feature_layer)
    used = [teacher.file for teacher in teachers if teacher.file is not None]
    warnings = dict.fromkeys(warning for teacher in teachers for warning in teacher.warnings)
    return Teacher(network, AND.join(used) or None, first, found, tuple(warnings))


def _one_each(flag: str, text: str | None, count: int) -> list[str | None]:
    """The values of a flag, one for each teacher. UserError if there are more or fewer."""
    values: list[str | None] = [None] * count if text is None else [*text.split(AND)]
    if len(values) != count:
        raise UserError(f"{flag} has {len(values)} values for {count} teachers: give one each")
    return values
