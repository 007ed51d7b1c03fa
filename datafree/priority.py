"""Priority sampling: KD draws more often what the student last disagreed on (after SSD-KD, Liu et al., CVPR
2024, whose code is not public; formulas from secondary sources, and those of prioritised experience replay,
Schaul et al., ICLR 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datafree.repository import SampleRepository

FIRST_BETA = 0.4  # of the first epoch; 1 in the last one
LEAST, MOST = 1e-8, 1e6  # of a priority
Weigh = Callable[[Tensor], Tensor]  # losses (N,) to their weights (N,)


def draws(
    repository: SampleRepository, batch_size: int, steps: int, generator: torch.Generator, progress: float
) -> Iterator[tuple[Tensor, Weigh]]:
    """`steps` batches of places in the stored order, drawn with replacement by their priorities: the
    divergence of student and teacher when the sample was last seen, and the highest so far for new ones. With
    each comes a function that takes note of the divergences of a batch, (N,), and gives their weights in the
    loss,

        (N P_i) ** -beta, over the highest of the batch,

    with beta from 0.4 to 1 as `progress` goes from 0 to 1.

    Raises:
        ValueError: the repository is empty.
    """
    own = repository.own()
    if not len(own):
        raise ValueError("the repository is empty: synthesise before drawing from it")
    beta = FIRST_BETA + (1 - FIRST_BETA) * progress
    for _ in range(steps):
        odds = repository.priorities[own].double()
        odds /= odds.sum()
        drawn = torch.multinomial(odds, batch_size, replacement=True, generator=generator)
        weights = (len(own) * odds[drawn]) ** -beta
        weights = (weights / weights.max()).float()
        places = own[drawn]

        def weigh(seen: Tensor, places: Tensor = places, weights: Tensor = weights) -> Tensor:
            repository.prioritise(places, seen.nan_to_num(LEAST).clamp(LEAST, MOST))
            return weights

        yield places, weigh
