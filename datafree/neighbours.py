"""Nearest neighbours within classes, kept up to date while samples come and go."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SPARES = 6  # neighbours kept beyond k: a list is recomputed only after so many of its samples were removed
EXTRA = 4  # candidates beyond a list's length, so that rounding cannot hide a neighbour
CHUNK = 1 << 24  # entries of a distance matrix computed at a time: bounds memory


class SlotTable(NamedTuple):
    """Samples in fixed slots: a row stays where it is while others are added and removed."""

    features: Tensor  # (S, D), one row for each slot, floating point
    labels: Tensor  # (S,) int64
    serials: Tensor  # (S,) int64: how many samples were stored before this one, ever
    slots: Tensor  # (N,) int64: the slots in use, oldest sample first


class NeighbourLists:
    """For each sample the nearest others of its class (Euclidean), exact at any time.

    Features never change, so an update compares only the new samples with their classes and drops the removed
    ones from the lists: its cost is linear in the number of samples. Candidates are found by single-precision
    matrix products with a bound on their rounding error (double precision on a GPU), and measured in double
    precision as the norm of the difference. Among equally distant samples the one stored first counts as
    nearer, so that lists do not depend on the order of updates (except, on a GPU, for the last bit of a
    distance).

    `distances` (S, k + spares), float64, ascending, and `neighbours` (S, k + spares), int64 slots, are the
    lists by slot; past the end of a list they are infinity and -1.

    Args:
        k: neighbours wanted.
        spares: how many more a list may have.
    """

    def __init__(self, k: int, spares: int = SPARES):
        self.k = k
        self.length = k + spares
        self.distances = torch.empty(0, self.length, dtype=torch.float64)
        self.neighbours = torch.empty(0, self.length, dtype=torch.long)
        # Every sample of the class nearer than the horizon is in the list.
        self._horizon = torch.empty(0, dtype=torch.float64)
        self._known = torch.empty(0, dtype=torch.long)  # serial of the sample a list is of, or -1

    def update(self, table: SlotTable) -> None:
        """Add the samples that are new since the last call, and drop those that were removed."""
        self._grow(table)
        live = torch.full_like(self._known, -1)
        live[table.slots] = table.serials[table.slots]
        self._drop((self._known >= 0) & (self._known != live), live)
        labels = table.labels[table.slots]
        order = labels.sort(stable=True)
        members_by_class = table.slots[order.indices].split(torch.bincount(labels).tolist())
        is_new = live != self._known
        counts = (self.neighbours >= 0).sum(1)
        arrivals = []
        for members in members_by_class:
            wanted = min(self.k, len(members) - 1)
            query = is_new[members] | (counts[members] < wanted)
            if len(members) > 1 and query.any():
                arrivals.append(self._update_class(table.features, members, query, is_new[members]))
        if arrivals:
            self._insert(*(torch.cat(parts) for parts in zip(*arrivals, strict=True)))
        self._known = live

    def _grow(self, table: SlotTable) -> None:
        more, device = max(0, len(table.labels) - len(self._known)), table.labels.device
        if more or self._known.device != device:

            def grown(rows: Tensor, fill: float) -> Tensor:
                return torch.cat([rows, rows.new_full((more, *rows.shape[1:]), fill)]).to(device)

            self.distances, self.neighbours = grown(self.distances, math.inf), grown(self.neighbours, -1)
            self._horizon, self._known = grown(self._horizon, math.inf), grown(self._known, -1)

    def _drop(self, gone: Tensor, live: Tensor) -> None:
        """Forget the samples in the slots `gone` (S,), and close the gaps they leave in lists."""
        if not gone.any():
            return
        self.neighbours[gone], self.distances[gone], self._horizon[gone] = -1, math.inf, math.inf
        dropped = gone[self.neighbours] & (self.neighbours >= 0)
        rows = dropped.any(1).nonzero().squeeze(1)
        distances = self.distances[rows].masked_fill(dropped[rows], math.inf)
        neighbours = self.neighbours[rows].masked_fill(dropped[rows], -1)
        distances, order = distances.sort(dim=1, stable=True)
        self.distances[rows], self.neighbours[rows] = distances, neighbours.gather(1, order)

    def _update_class(
        self, features: Tensor, members: Tensor, query: Tensor, is_new: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Recompute the lists of the members marked in `query` (n,), and find where the new ones among them
        enter the other members' lists: slots of owners, slots of arrivals (by age), distances."""
        # Double precision is fast on a GPU, and safe from TF32.
        x, squares = _centred(features, members, torch.float64 if features.is_cuda else features.dtype)
        # Only lists that are not recomputed have a horizon to be crossed.
        horizon = self._horizon[members].square().masked_fill(query, -math.inf).to(x.dtype)
        pairs = []
        for chunk in query.nonzero().squeeze(1).split(max(1, CHUNK // len(members))):
            at_least = _lower_bounds(x, squares, chunk)
            self._count(features, members, chunk, at_least)
            near = (at_least[is_new[chunk]] <= horizon).nonzero()
            pairs.append(torch.stack([members[near[:, 1]], members[chunk[is_new[chunk]][near[:, 0]]]]))
        owners, arrivals = torch.cat(pairs, 1)
        distances = pair_distances(features, owners, arrivals)
        inside = distances < self._horizon[owners]
        return owners[inside], arrivals[inside], distances[inside]

    def _count(self, features: Tensor, members: Tensor, rows: Tensor, at_least: Tensor) -> None:
        """Recompute the lists of the members `rows` (r,) from lower bounds of squared distances (r, n)."""
        n = len(members)
        at_least[torch.arange(len(rows), device=rows.device), rows] = math.inf  # itself
        width = min(self.length + EXTRA, n - 1)
        found = at_least.topk(width, largest=False)
        candidates = found.indices.sort(1).values  # by age, which a stable sort keeps among equals
        slots = members[rows]
        distances = pair_distances(
            features, slots[:, None].expand(-1, width).flatten(), members[candidates].flatten()
        )
        distances, order = distances.view(-1, width).sort(dim=1, stable=True)
        neighbours = members[candidates.gather(1, order)]
        kept = min(self.length, width)
        if width < n - 1:
            unsafe = (distances[:, kept - 1].square() >= found.values[:, -1]).nonzero().squeeze(1)
            if len(unsafe) and at_least.dtype != torch.float64:  # a tight cluster: look more closely
                x, squares = _centred(features, members, torch.float64)
                for part in unsafe.split(max(1, CHUNK // n)):
                    self._count(features, members, rows[part], _lower_bounds(x, squares, rows[part]))
                resolved = slots[unsafe]
                distances[unsafe, :kept] = self.distances[resolved, :kept]
                neighbours[unsafe, :kept] = self.neighbours[resolved, :kept]
                unsafe = unsafe[:0]
            for row in unsafe.tolist():  # more equals than candidates: measure the whole class
                others = members[members != slots[row]]
                exact = pair_distances(features, slots[row].expand(n - 1), others).sort(stable=True)
                distances[row, :kept] = exact.values[:kept]
                neighbours[row, :kept] = others[exact.indices[:kept]]
        self.distances[slots], self.neighbours[slots] = math.inf, -1
        self.distances[slots, :kept] = distances[:, :kept]
        self.neighbours[slots, :kept] = neighbours[:, :kept]
        self._horizon[slots] = distances[:, kept - 1] if kept < n - 1 else math.inf

    def _insert(self, owners: Tensor, arrivals: Tensor, distances: Tensor) -> None:
        """Insert arrivals (P,) into their owners' lists; those of one owner are ordered by age."""
        if not len(owners):
            return
        owners, by_owner = owners.sort(stable=True)
        arrivals, distances = arrivals[by_owner], distances[by_owner]
        rows, group, sizes = owners.unique_consecutive(return_inverse=True, return_counts=True)
        place = torch.arange(len(owners), device=owners.device) - (sizes.cumsum(0) - sizes)[group]
        shape = len(rows), int(sizes.max())
        new_distances = distances.new_full(shape, math.inf)
        new_neighbours = arrivals.new_full(shape, -1)
        new_distances[group, place], new_neighbours[group, place] = distances, arrivals
        merged = torch.cat([self.distances[rows], new_distances], 1)
        merged, order = merged.sort(dim=1, stable=True)
        neighbours = torch.cat([self.neighbours[rows], new_neighbours], 1).gather(1, order)
        self.distances[rows] = merged[:, : self.length]
        self.neighbours[rows] = neighbours[:, : self.length]
        overflowed = merged[:, self.length].isfinite()
        last = merged[:, self.length - 1]
        self._horizon[rows] = torch.where(overflowed, last, self._horizon[rows])


def _centred(features: Tensor, members: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features of the members minus their mean, which keeps distances and reduces rounding errors, and their
    squared norms minus the largest rounding error of a squared distance."""
    x = features.index_select(0, members).to(dtype)
    x -= x.mean(0)
    rounding = 2 * (x.shape[1] + 8) * torch.finfo(dtype).eps
    return x, torch.linalg.vector_norm(x, dim=1).square() * (1 - rounding)


def _lower_bounds(x: Tensor, squares: Tensor, rows: Tensor) -> Tensor:
    """Lower bounds (r, n) of the squared distances between the rows (r,) of x (n, D) and all its rows."""
    return torch.addmm(squares, x[rows], x.T, alpha=-2).add_(squares[rows, None])


def pair_distances(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances, float64 (P,), of the rows `first` (P,) and `second` (P,) of features (S, D)."""
    chunk = max(1, (CHUNK if features.is_cuda else 1 << 18) // features.shape[1])  # a CPU has its cache
    distances = torch.empty(len(first), dtype=torch.float64, device=features.device)
    for a, b, result in zip(first.split(chunk), second.split(chunk), distances.split(chunk), strict=True):
        difference = features.index_select(0, a).double().sub_(features.index_select(0, b))
        torch.linalg.vector_norm(difference, dim=1, out=result)
    return distances
