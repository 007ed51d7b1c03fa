"""What every synthesis method takes and gives, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datafree.bn_statistics import BNStatistics
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast, at_least_single

ADAM_BETAS = (0.5, 0.999)  # of every method that trains a generator
AugmentFunction = Callable[[Tensor, torch.Generator], Tensor]
OnStep = Callable[[str, Tensor], None]  # phase and loss (a scalar on the device) of a step just done


def ignore_step(_phase: str, _loss: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Synthesis:
    """One batch of B samples, everything detached."""

    images: Tensor  # (B, 3, H, W) in [0, 1], before augmentation
    labels: Tensor  # (B,) int64: the teacher's argmax on a freshly augmented view
    features: Tensor  # (B, D): the teacher's penultimate features at the step that made the images
    margins: Tensor  # (B,): the teacher's top probability minus its second on the fresh view
    losses: dict[str, float]  # total, oh, bn, adv and the method's own, of the step with the lowest total
    steps: dict[str, list[float]]  # the same terms at every step


class Synthesizer(ABC):
    """Makes batches of images that the teacher takes for given classes.

    Whatever is random is drawn from a generator of its own; state that lasts from call to call is in
    `state_dict`. `calls` counts the calls of `synthesize`.
    """

    calls: int = 0

    @abstractmethod
    def synthesize(self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step) -> Synthesis:
        """One batch for the labels asked for.

        Args:
            targets: (B,) int64 labels.
            oh_weight: weight of the pseudo-supervised loss (alpha).
            on_step: called after every optimisation step with the phase, "synthesis", and the loss.
        """

    def sample(self, count: int) -> Tensor:
        """`count` images (count, 3, H, W) in [0, 1] that cost no optimisation, of methods whose student
        learns from fresh ones.

        Raises:
            NotImplementedError: the method's student learns from stored samples.
        """
        raise NotImplementedError(f"{type(self).__name__} makes its samples only by synthesize()")

    @abstractmethod
    def state_dict(self) -> dict: ...

    @abstractmethod
    def load_state_dict(self, state: dict) -> None: ...


class GuidedSynthesizer(Synthesizer):
    """A synthesizer that a teacher guides, with the means of looking at it.

    Args:
        teacher: frozen, in eval mode.
        student: what adversarial terms compare with; its mode and gradients are left as they were.
        augment: maps images in [0, 1] and `rng` to what the networks see; differentiable.
        rng: source of everything random, on the device of the networks.
        processes: among which batches are divided.
        autocast: makes the context in which the networks run forwards.
        features: of the teacher; found by the order of its modules where they are not given.
        bn_momentum: of the statistics, see `BNStatistics`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        augment: AugmentFunction,
        rng: torch.Generator,
        processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
        features: PenultimateFeatures | None = None,
        bn_momentum: float = 0.0,
    ):
        self.teacher, self.student, self.augment, self.rng = teacher, student, augment, rng
        self.processes, self.autocast = processes, autocast
        self.statistics = BNStatistics(teacher, bn_momentum)
        self.features = features or PenultimateFeatures(teacher)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, device=self.rng.device)

    def _ask_teacher(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Its logits, and the distance to its BatchNorm statistics; its features are in
        `self.features.value`."""
        with self.autocast(), self.statistics.capture(), self.features.capture():
            logits = self.teacher(inputs)
        logits = at_least_single(logits)
        return logits, self.statistics.distance().to(logits)

    def _ask_student(self, inputs: Tensor) -> Tensor:
        with self.autocast():
            return at_least_single(self.student(inputs))

    @torch.no_grad()
    def _finished(self, trace: Trace) -> Synthesis:
        """The batch of the best step, with the labels that the teacher gives a fresh view of it."""
        images, features = trace.best
        with self.autocast():
            logits = self.teacher(self.augment(images, self.rng))
        top = at_least_single(logits).softmax(1).topk(2)
        losses, steps = trace.losses()
        margins = top.values[:, 0] - top.values[:, 1]
        return Synthesis(images, top.indices[:, 0], features, margins, losses, steps)


class Trace:
    """The loss terms of every step of a synthesis, and what was made at the step with the lowest total.
    Nothing is asked of the device before `losses`."""

    def __init__(self) -> None:
        self.best: list[Tensor] = []
        self._lowest: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []

    def add(self, total: Tensor, terms: dict[str, Tensor], *made: Tensor) -> None:
        """Take note of a step: the loss, its terms (scalars, unweighted), and what may be kept of it."""
        total, made = total.detach(), [tensor.detach() for tensor in made]
        self._names = ("total", *terms)
        self._rows.append(torch.stack([total, *(term.detach() for term in terms.values())]))
        if self._lowest is None:
            self._lowest, self.best = total, made
            return
        better = total < self._lowest
        self._lowest = torch.where(better, total, self._lowest)
        self.best = [torch.where(better, new, old) for new, old in zip(made, self.best, strict=True)]

    def losses(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The terms of the best step, and those of all steps."""
        rows = torch.stack(self._rows).tolist()
        steps = {name: [row[i] for row in rows] for i, name in enumerate(self._names)}
        lowest = min(range(len(rows)), key=steps["total"].__getitem__)
        return {name: values[lowest] for name, values in steps.items()}, steps


def weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum of the terms times their weights; terms of no weight cost no backward pass."""
    return sum(weight * terms[name] for name, weight in weights.items() if weight)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients to the weights inside the block; both as before after it."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in zip(network.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


@torch.no_grad()
def draw_weights(layers: nn.Module, rng: torch.Generator) -> None:
    """Draw a generator's weights anew: N(0, 0.02), those of BatchNorm layers N(1, 0.02), biases 0."""
    for layer in layers.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            layer.weight.normal_(1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02, generator=rng)
            if layer.bias is not None:
                layer.bias.zero_()
