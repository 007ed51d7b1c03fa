"""Random generators of several processes."""

import torch

from datafree.torch_utils.random import RandomGenerators


def test_processes_draw_the_same_labels_and_all_else_differently():
    def drawn(rank):
        generators = RandomGenerators(3, rank=rank)
        return [
            torch.rand(4, generator=getattr(generators, name)).tolist() for name in RandomGenerators.NAMES
        ]

    (labels, *first), (same, *other), (again, *third) = map(drawn, range(3))
    assert labels == same == again
    assert len({tuple(values) for values in (*first, *other, *third)}) == 6
