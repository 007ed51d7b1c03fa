"""IHO: the intra-class homogeneity operator, which evens out the spread of samples in a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datafree.neighbours import NeighbourLists, SlotTable

NEIGHBOURS = 10
LAST_UNPRUNED = 5  # last epochs without pruning


class Repository(Protocol):
    """What is pruned: see `repository.SampleRepository`."""

    @property
    def labels(self) -> Tensor: ...
    def table(self) -> SlotTable: ...
    def remove(self, indices: Tensor) -> None: ...


def outlier_factors(distances: Tensor, neighbours: Tensor) -> Tensor:
    """Local outlier factors (Breunig et al., SIGMOD 2000, definitions 3 to 7) from neighbour lists.

    About 1: as densely surrounded as its neighbours; far above: an outlier; below: crowded. Equal to
    scikit-learn's `-LocalOutlierFactor(k).fit(x).negative_outlier_factor_`, ties between equidistant
    neighbours aside.

    Args:
        distances: (N, k), floating point, ascending.
        neighbours: (N, k), int64: rows of the neighbours in these same lists.

    Returns:
        (N,), of the dtype of `distances`.
    """
    reachability = torch.maximum(distances, distances[:, -1][neighbours])
    density = 1 / (reachability.mean(1) + 1e-10)  # the constant: duplicates have distance 0
    return density[neighbours].mean(1) / density


@dataclass(frozen=True)
class OutlierScores:
    """Local outlier factors of all samples, and how they are spread."""

    factors: Tensor  # (N,) float64, local outlier factors, oldest sample first; NaN in classes too small
    outside: Tensor  # indices of the samples outside their class's whiskers, int64, ascending
    relative_iqr: float  # interquartile range over median, mean over the classes scored; NaN when none was
    outside_share: float  # of the samples scored; NaN when none was


class NoPruning:
    """Measures how the samples of a class are spread, and removes none.

    Args:
        num_classes: C.
        k: neighbours of the local outlier factor. Classes of at most k samples are not scored.
    """

    def __init__(self, num_classes: int, k: int = NEIGHBOURS):
        self.num_classes, self.k = num_classes, k
        self.reset()

    def reset(self) -> None:
        """Forget all samples: the repository has others from here on."""
        self.lists = NeighbourLists(self.k)
        self._scores: OutlierScores | None = None

    def prune(self, repository: Repository, epoch: int) -> None:
        """Leave all samples where they are."""

    def scores(self, repository: Repository) -> OutlierScores:
        """Those of the latest pruning, before its samples were removed; else of the samples there are."""
        return self.measure(repository.table())

    def measure(self, table: SlotTable) -> OutlierScores:
        """Score every class with more than k samples. Neighbours are kept, so that the next call has only the
        changes to do; the result does not depend on earlier calls."""
        self.lists.update(table)
        slots = table.slots
        labels = table.labels[slots]
        counts = torch.bincount(labels, minlength=self.num_classes)
        scored = (counts[labels] > self.k).nonzero().squeeze(1)
        factors = torch.full((len(slots),), math.nan, dtype=torch.float64, device=slots.device)
        if not len(scored):
            return OutlierScores(factors, scored, math.nan, math.nan)
        place = torch.empty_like(table.labels)  # of a slot among those scored
        place[slots[scored]] = torch.arange(len(scored), device=slots.device)
        distances = self.lists.distances[slots[scored], : self.k]
        neighbours = place[self.lists.neighbours[slots[scored], : self.k]]
        factors[scored] = outlier_factors(distances, neighbours)
        q1, median, q3 = class_quartiles(factors[scored], labels[scored], counts * (counts > self.k))
        iqr = q3 - q1
        low, high = (q1 - 1.5 * iqr)[labels], (q3 + 1.5 * iqr)[labels]
        outside = ((factors < low) | (factors > high)).nonzero().squeeze(1)
        relative_iqr = (iqr / median)[counts > self.k].mean().item()
        return OutlierScores(factors, outside, relative_iqr, len(outside) / len(scored))


class HomogeneityOperator(NoPruning):
    """Removes the samples strictly outside Tukey's whiskers `[q1 - 1.5 IQR, q3 + 1.5 IQR]` of the outlier
    factors of their class, outliers and crowded ones alike, oldest first (BSR, section on IHO; linear
    percentiles as NumPy's).

    Args:
        num_classes: C.
        batch_size: B, the samples that a synthesis adds.
        epochs: of the run; no pruning in the last 5.
        k: see `NoPruning`.
    """

    def __init__(self, num_classes: int, batch_size: int, epochs: int, k: int = NEIGHBOURS):
        super().__init__(num_classes, k)
        self.limit = math.ceil(batch_size / num_classes) + 1
        self.end = epochs - LAST_UNPRUNED

    def prune(self, repository: Repository, epoch: int) -> None:
        """Score all samples, and remove those that `select` selects."""
        if epoch < self.end:
            self._scores = self.measure(repository.table())
            repository.remove(self.select(self._scores, repository.labels))

    def scores(self, repository: Repository) -> OutlierScores:
        """See `NoPruning.scores`."""
        scores, self._scores = self._scores, None
        return scores or super().scores(repository)

    def select(self, spread: OutlierScores, labels: Tensor) -> Tensor:
        """Indices of the samples to remove, ascending: at most `ceil(B / C) + 1` of each class, the
        ones stored first. `labels`: (N,) int64, oldest sample first."""
        outside = spread.outside
        by_class = labels[outside].sort(stable=True)
        counts = torch.bincount(by_class.values, minlength=self.num_classes)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(outside), device=outside.device) - starts[by_class.values]
        return outside[by_class.indices[rank < self.limit]].sort().values


def class_quartiles(values: Tensor, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First quartile, median and third quartile of the values (N,) of each class, (C,) each, by linear
    interpolation; NaN where a class has no values. `counts` (C,) says how many each has."""
    by_value = values.sort()
    by_class = by_value.values[labels[by_value.indices].sort(stable=True).indices]
    starts = counts.cumsum(0) - counts
    quartiles = []
    for share in (0.25, 0.5, 0.75):
        position = share * (counts - 1).clamp(min=0).to(values.dtype)
        below = position.floor().long()
        last = len(values) - 1
        lower = by_class[(starts + below).clamp(max=last)]
        upper = by_class[(starts + torch.minimum(below + 1, (counts - 1).clamp(min=0))).clamp(max=last)]
        quartile = lower + (upper - lower) * (position - below)
        quartiles.append(quartile.masked_fill(counts == 0, math.nan))
    return quartiles[0], quartiles[1], quartiles[2]
