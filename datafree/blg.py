"""BLG: the biased label generator, which evens out how many samples each class has."""

from __future__ import annotations

import torch
from torch import Tensor


def label_probabilities(counts: Tensor) -> Tensor:
    """The probability of asking for each class next (BSR, section on BLG): a roulette wheel on
    which a class holds as many slots as it lacks samples against the fullest class.

    Args:
        counts: samples of each class in the repository, (C,), any integer dtype.

    Returns:
        float64 (C,) that sums to 1; uniform where all counts are equal.
    """
    shortage = (counts.max() - counts).double()
    if not shortage.any():
        shortage = torch.ones_like(shortage)
    return shortage / shortage.sum()


class UniformLabels:
    """Draws the labels of the next synthesis, all with the same probability.

    Args:
        num_classes: C.
        generator: source of the draws; labels are on its device.
    """

    def __init__(self, num_classes: int, generator: torch.Generator):
        self.counts = torch.zeros(num_classes, dtype=torch.long)
        self.generator = generator

    def update(self, counts: Tensor) -> None:
        """The samples per class, (C,), do not matter here."""

    def draw(self, batch_size: int) -> Tensor:
        """`batch_size` labels in 0 .. C-1, int64 (batch_size,)."""
        probabilities = label_probabilities(self.counts).to(self.generator.device)
        return torch.multinomial(probabilities, batch_size, replacement=True, generator=self.generator)

    def state_dict(self) -> dict:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.counts = state["counts"].cpu()


class BiasedLabelGenerator(UniformLabels):
    """Prefers the classes that have few samples. Uniform until `update` is first called."""

    def update(self, counts: Tensor) -> None:
        """Remember the samples per class, (C,), that IHO has left."""
        self.counts = counts.cpu()
