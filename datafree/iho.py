"""IHO: the intra-class homogeneity operator, which evens out the spread of samples in a class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 10


def local_outlier_factors(features: Tensor, k: int = NEIGHBOURS, chunk: int = 2048) -> Tensor:
    """Local outlier factors (Breunig et al., SIGMOD 2000, definitions 3 to 7) of the rows of one set.

    About 1: as densely surrounded as its neighbours; far above: an outlier; below: crowded. Equal to
    scikit-learn's `-LocalOutlierFactor(k).fit(x).negative_outlier_factor_`, ties between equidistant
    neighbours aside.

    Args:
        features: (N, D) with N > k, any float dtype and device; computed in float64, since distances
            between close points are differences of large numbers.
        k: neighbours (Euclidean).
        chunk: rows of the distance matrix held at a time, which bounds memory to chunk x N.

    Returns:
        float64 (N,).

    Raises:
        ValueError: not more than k rows.
    """
    count = len(features)
    if count <= k:
        raise ValueError(f"{k} neighbours need more than {k} samples, not {count}")
    x = features.double()
    x = x - x.mean(0)  # distances stay, and cancellation in them shrinks
    distances, neighbours = [], []
    for start in range(0, count, chunk):
        rows = torch.cdist(x[start : start + chunk], x)
        own = torch.arange(len(rows), device=x.device)
        rows[own, own + start] = math.inf  # nobody is a neighbour of itself
        nearest = rows.topk(k, largest=False)
        distances.append(nearest.values)
        neighbours.append(nearest.indices)
    distance, neighbour = torch.cat(distances), torch.cat(neighbours)
    k_distance = distance[:, -1]
    reachability = torch.maximum(distance, k_distance[neighbour])
    density = 1 / (reachability.mean(1) + 1e-10)  # the constant: duplicates have distance 0
    return (density[neighbour] / density[:, None]).mean(1)


@dataclass(frozen=True)
class ClassSpread:
    """How evenly the samples of one class are spread."""

    factors: Tensor  # local outlier factors, float64 (N,), in the order of the samples
    relative_iqr: float  # interquartile range over median of the factors
    outside: Tensor  # bool (N,): strictly outside the whiskers


def class_spread(features: Tensor, k: int = NEIGHBOURS) -> ClassSpread:
    """Local outlier factors of one class, (N, D) with N > k, and which lie outside Tukey's whiskers
    `[q1 - 1.5 IQR, q3 + 1.5 IQR]` (BSR, section on IHO; linear percentiles as NumPy's)."""
    factors = local_outlier_factors(features, k)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=factors.dtype, device=factors.device)
    q1, median, q3 = torch.quantile(factors, quartiles)
    iqr = q3 - q1
    outside = (factors < q1 - 1.5 * iqr) | (factors > q3 + 1.5 * iqr)
    return ClassSpread(factors, (iqr / median).item(), outside)


@dataclass(frozen=True)
class Spread:
    """How evenly the samples of all classes are spread within them."""

    outside: Tensor  # indices of the samples outside their class's whiskers, int64, ascending
    relative_iqr: float  # mean over the classes scored; NaN when none was
    outside_share: float  # of the samples scored; NaN when none was


class HomogeneityOperator:
    """Finds the samples to prune: those outside the whiskers of their class, outliers and crowded
    ones alike, oldest first.

    Args:
        num_classes: C.
        batch_size: B, the samples that a synthesis adds.
        k: neighbours of the local outlier factor. Classes of at most k samples are left alone.
    """

    def __init__(self, num_classes: int, batch_size: int, k: int = NEIGHBOURS):
        self.num_classes = num_classes
        self.k = k
        self.limit = math.ceil(batch_size / num_classes) + 1

    def measure(self, features: Tensor, labels: Tensor) -> Spread:
        """Score every class with more than k samples.

        Args:
            features: (N, D) in the order in which the samples were stored.
            labels: (N,), int64.
        """
        outside, relative_iqrs, scored = [], [], 0
        for label in range(self.num_classes):
            members = (labels == label).nonzero().squeeze(1)
            if len(members) <= self.k:
                continue
            spread = class_spread(features[members], self.k)
            outside.append(members[spread.outside])
            relative_iqrs.append(spread.relative_iqr)
            scored += len(members)
        if not scored:
            return Spread(labels.new_zeros(0), math.nan, math.nan)
        found = torch.cat(outside).sort().values
        mean_iqr = sum(relative_iqrs) / len(relative_iqrs)
        return Spread(found, mean_iqr, len(found) / scored)

    def select(self, spread: Spread, labels: Tensor) -> Tensor:
        """Indices of the samples to remove, ascending: at most `ceil(B / C) + 1` of each class, the
        ones stored first."""
        chosen = []
        for label in range(self.num_classes):
            chosen.append(spread.outside[labels[spread.outside] == label][: self.limit])
        return torch.cat(chosen).sort().values
