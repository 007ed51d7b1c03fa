"""Samples, which go from a synthesis to the repository, and batches, which go from there to the student."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """n synthesised images with the teacher's outputs for them, all detached."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64: the teacher's argmax on a freshly augmented view
    features: Tensor  # (n, D): the teacher's penultimate features when the images were generated
    margins: Tensor  # (n,) in [0, 1]: the teacher's top probability minus its second on the fresh view
    confidences: Tensor  # (n,) in [0, 1]: the teacher's top probability on the fresh view

    @classmethod
    def seen(cls, images: Tensor, features: Tensor, logits: Tensor) -> Samples:
        """Images (n, C, H, W) uint8 with the teacher's features (n, D) and logits (n, classes)."""
        top = logits.softmax(1).topk(2)
        first, second = top.values.unbind(1)
        return cls(images, top.indices[:, 0], features, first - second, first)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Samples:
        """The samples at indices (k,) or in a mask (n,)."""
        return Samples(*(getattr(self, one.name)[rows] for one in fields(self)))


class Batch(NamedTuple):
    """A batch of the student."""

    images: Tensor  # (N, C, H, W) as the networks see them: augmented and normalised
    teacher_logits: Tensor | None = None  # (N, classes), where they are known already


def occurrences(labels: Tensor) -> Tensor:
    """How often each label (N,) has come before in the list, int64 (N,): 0, 0, 1, 2 for 5, 3, 5, 5."""
    order = labels.argsort(stable=True)
    found = torch.empty_like(order)
    found[order] = torch.arange(len(labels), device=labels.device) - torch.searchsorted(
        labels[order], labels[order]
    )
    return found
