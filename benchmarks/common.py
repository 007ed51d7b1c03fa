"""What the benchmarks share: networks, samples of noise, and runs of BSR that begin with such samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from datafree import assemble, models
from datafree.data.augment import Augment, Normalize
from datafree.data.datasets import NORMALIZATIONS
from datafree.distiller import Distiller
from datafree.extras.teacher_cache import TeacherCache
from datafree.networks.penultimate import PenultimateFeatures
from datafree.runs.sample_log import SampleLog
from datafree.samples import Samples
from datafree.settings import Settings
from datafree.synthesis.base import ignore_step

AUGMENT = Augment(Normalize(*NORMALIZATIONS["cifar10"]), flip=True)
CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)


def network(arch: str, device: torch.device | str = "cpu") -> nn.Module:
    """Freshly initialised, in channels-last layout."""
    return models.create(arch, CLASSES).to(device, memory_format=torch.channels_last)


def noise_samples(count: int, dim: int, device: torch.device | str = "cpu") -> Samples:
    """Images of noise, with features in a cluster for each class."""
    labels = torch.randint(0, CLASSES, (count,), device=device)
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(1)).to(device)
    features = torch.relu(centres[labels] + torch.randn(count, dim, device=device))
    images = torch.randint(0, 256, (count, *IMAGE_SHAPE), dtype=torch.uint8, device=device)
    margins = torch.rand(count, device=device)
    return Samples(images, labels, features, margins, margins)


def make_distiller(
    settings: Settings, teacher: nn.Module, student: nn.Module, count: int, log: Path | None = None
) -> Distiller:
    """A run that begins with `count` samples of noise.

    Args:
        settings: resolved.
        teacher: frozen, in eval mode; the run is on its device.
        student: what is trained.
        count: 0 or more.
        log: the file to which samples are written as well; None for none.
    """
    features, device = PenultimateFeatures(teacher), next(teacher.parameters()).device
    distiller = assemble.make_distiller(
        settings,
        teacher,
        student,
        features=features,
        img_size=IMAGE_SHAPE[-1],
        num_classes=CLASSES,
        augment=AUGMENT,
        device=device,
        log=SampleLog(log, IMAGE_SHAPE, features.dim) if log else None,
    )
    distiller.repository.add(noise_samples(count, features.dim, device))
    return distiller


def know(distiller: Distiller, share: float) -> None:
    """Mark a share of all views as known to the teacher's cache, as after many epochs."""
    cache = distiller.batches.__self__  # type: ignore[attr-defined]
    assert isinstance(cache, TeacherCache)
    rows = cache._rows_of(distiller.repository.serials)
    cache._known.view(-1, cache.views)[rows] = torch.rand(len(rows), cache.views, device=rows.device) < share


def train_student(distiller: Distiller) -> None:
    """The part of an epoch that is KD: draw `kd_steps` batches, augment them, and take a step on each."""
    distiller.student.train(distiller.batches(ignore_step))
