"""What every synthesis method takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AugmentFunction = Callable[[Tensor, torch.Generator], Tensor]
OnStep = Callable[[str, Tensor], None]  # phase and loss (a scalar on the device) of a step just done


def ignore_step(_phase: str, _loss: Tensor) -> None:
    pass



@dataclass(frozen=True)
class Synthesis:
    """One batch of B samples, everything detached."""

    images: Tensor  # (B, 3, H, W) in [0, 1], before augmentation
    labels: Tensor  # (B,) int64: the teacher's argmax on a freshly augmented view
    features: Tensor  # (B, D): the teacher's penultimate features on the augmented images
    margins: Tensor  # (B,): the teacher's top probability minus its second on the fresh view
    losses: dict[str, float]  # total, oh, bn, adv of the step with the lowest total
    steps: dict[str, list[float]]  # the same terms at every step


class Synthesizer(ABC):
    """Makes batches of images that the teacher takes for given classes.

    Whatever is random is drawn from `rng`; state that lasts from call to call is in `state_dict`.
    `calls` counts the calls of `synthesize`.
    """

    calls: int = 0

    @abstractmethod
    def synthesize(
        self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step
    ) -> Synthesis:
        """One batch for the labels asked for.

        Args:
            targets: (B,) int64 labels.
            oh_weight: weight of the pseudo-supervised loss (alpha).
            on_step: called after every optimisation step with the phase, "synthesis", and the loss.
        """

    @abstractmethod
    def state_dict(self) -> dict: ...

    @abstractmethod
    def load_state_dict(self, state: dict) -> None: ...


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients to the weights inside the block; both as before after it."""
    training = network.training
    flags = [parameter.requires_grad for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter, flag in zip(network.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
