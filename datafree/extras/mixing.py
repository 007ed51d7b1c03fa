"""Mixup: each image of a student step is blended with another of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datafree.samples import Batch
from datafree.synthesis.base import OnStep, ignore_step


def mixed_batches(
    batches: Callable[[OnStep], Iterator[Batch]], generator: torch.Generator, on_step: OnStep = ignore_step
) -> Iterator[Batch]:
    """The batches of another source, each mixed; the teacher has not seen such images before."""
    for batch in batches(on_step):
        yield Batch(mixup(batch.images, generator))


def mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) blended with one of the same batch: `share * image + (1 - share) * other`, the
    share uniform in [0, 1) (Zhang et al., ICLR 2018; for distillation, where the teacher labels the blend,
    Beyer et al., CVPR 2022)."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    others = torch.randperm(len(images), generator=generator, device=images.device)
    return torch.lerp(images[others], images, share)
