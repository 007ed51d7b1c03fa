"""Neighbour lists are exact whatever the precision."""

import math

import numpy as np
import torch

from datafree.neighbours import NeighbourLists, SlotTable


def test_neighbours_hidden_by_rounding_are_found(rng):
    """Points far nearer to one another than single precision resolves at their distance from the rest."""
    features = torch.cat([1000 + 1e-3 * torch.randn(60, 16, generator=rng), torch.zeros(60, 16)])
    lists = NeighbourLists(10)
    numbers = torch.arange(120)
    lists.update(SlotTable(features, torch.zeros_like(numbers), numbers, numbers))
    exact = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    exact.fill_diagonal_(math.inf)
    np.testing.assert_allclose(lists.distances, exact.sort(1).values[:, : lists.length], rtol=1e-12)
    assert lists.neighbours[60].tolist() == list(range(61, 61 + lists.length))  # of equals the oldest
