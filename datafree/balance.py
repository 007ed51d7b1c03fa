"""How balanced a repository is over its classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA = 2  # how much it counts what the teacher is not sure of


def count_variation(counts: Tensor) -> float:
    """Coefficient of variation of the samples per class, (C,): standard deviation over mean; 0 when all
    are equal, sqrt(C - 1) when one class has everything, NaN when there are no samples."""
    counts = counts.double()
    mean = counts.mean().item()
    return counts.std(correction=0).item() / mean if mean else math.nan


def count_entropy(counts: Tensor) -> float:
    """Entropy of the distribution of the samples over the classes, (C,), divided by log C: 1 when all
    counts are equal, 0 when one class has everything, NaN when there are no samples."""
    if not counts.sum() or len(counts) < 2:
        return math.nan
    p = counts.double() / counts.sum()
    p = p[p > 0]
    return abs((p * p.log()).sum().item()) / math.log(len(counts))


def least_valuable(labels: Tensor, confidences: Tensor, count: int, num_classes: int, most: int) -> Tensor:
    """The samples to remove from a repository of bounded size: those of full classes, of which the teacher is
    sure (after SSD-KD, Liu et al., CVPR 2024, whose code is not public; the formula is from secondary
    sources). A sample is worth

        (1 - count of its class / most) * (1 - the teacher's confidence) ** 2,

    never less than nothing, with counts as they are before any of them is removed.

    Args:
        labels, confidences: (N,), oldest first.
        count: samples to remove, up to N.
        num_classes: labels are below it.
        most: samples that the repository may hold.

    Returns:
        Their places, int64 (count,), rising. Of samples worth the same those go first of which the teacher is
        surest, and of these the oldest.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    room = (1 - counts[labels].double() / most).clamp(min=0)  # a class may have more than all may be
    unsure = (1 - confidences.double()) ** GAMMA
    order = unsure.sort(stable=True).indices  # among those worth nothing
    order = order[(room * unsure)[order].sort(stable=True).indices]
    return order[:count].sort().values
