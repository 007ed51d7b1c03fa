"""How balanced a repository is over its classes."""

from __future__ import annotations

import math

from torch import Tensor


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
