"""The base class of all synthesis methods, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.data.augment import Augment
from datafree.data.image_set import to_uint8
from datafree.methods import Method
from datafree.models.generator import Generator
from datafree.networks.bn_statistics import BNStatistics
from datafree.networks.penultimate import PenultimateFeatures
from datafree.samples import Samples
from datafree.settings import Settings
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.precision import Autocast, at_least_single

ADAM_BETAS = (0.5, 0.999)  # for all methods that train a generator
OnStep = Callable[[str, Tensor], None]  # phase and loss (a scalar on the device) of a step just done


def ignore_step(_phase: str, _loss: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Synthesis:
    """The result of one synthesis, all tensors detached."""

    samples: Samples  # B of them
    images: Tensor  # (B, C, H, W) in [0, 1]: the images of the samples before rounding to 8 bits
    losses: dict[str, float]  # total, oh, bn, adv and the method's own, of the step with the lowest total
    steps: dict[str, list[float]]  # the same terms at every step


@dataclass
class SynthesisInputs:
    """The networks, images and random numbers that a synthesizer needs.

    Args:
        teacher: frozen, in eval mode.
        student: for adversarial terms; its mode and gradients are left unchanged.
        augment: maps images in [0, 1] and a generator to the networks' input; differentiable.
        image_shape: (C, H, W).
        rng: source of all random numbers, on the device of the networks.
        processes: among which batches are divided.
        autocast: creates the context of the networks' forward passes.
        features: of the teacher; by default, the input of its last linear layer.
        num_classes: of the teacher; by default, the rows of that layer's weights.
    """

    teacher: nn.Module
    student: nn.Module
    augment: Augment
    image_shape: tuple[int, int, int]
    rng: torch.Generator
    processes: Processes = SINGLE_PROCESS
    autocast: Autocast = nullcontext
    features: PenultimateFeatures | None = None
    num_classes: int | None = None

    def make_generator(self, method: Method) -> Generator:
        """A generator for the method, initialised from torch's global random state."""
        channels, _, img_size = self.image_shape
        generator = Generator(method.nz, 64, img_size, channels, method.start).to(self.rng.device)
        return generator.to(memory_format=torch.channels_last)


class Synthesizer(ABC):
    """Generates batches of images that the teacher assigns to requested classes.

    The class of a method takes `SynthesisInputs` and the settings. All random numbers come from `inputs.rng`.
    State that lasts from call to call is in `state_dict`, and is the same in all processes (they resume from
    the main one's). `calls` counts the calls of `synthesize`. This base class calls the teacher, and labels
    the finished images.

    Args:
        inputs: see `SynthesisInputs`.
        bn_mmt: momentum of the batch's BatchNorm statistics, see `BNStatistics`.
    """

    calls: int = 0
    parts: tuple[str, ...] = ()  # names of the attributes whose state lasts from call to call
    asks_for_classes = True  # whether the images should be of the classes given to `synthesize`
    settings: Settings

    def __init__(self, inputs: SynthesisInputs, bn_mmt: float = 0.0):
        self.teacher, self.student, self.augment = inputs.teacher, inputs.student, inputs.augment
        self.rng, self.processes, self.autocast = inputs.rng, inputs.processes, inputs.autocast
        self.statistics = BNStatistics(inputs.teacher, bn_mmt)
        self.features = inputs.features or PenultimateFeatures(inputs.teacher)
        self.num_classes = inputs.num_classes or len(self.features.layer.get_parameter("weight"))

    @abstractmethod
    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """Generate one batch for the requested labels.

        Args:
            targets: (B,) int64 labels.
            alpha: weight of the pseudo-supervised loss.
            on_step: called after every optimisation step with the phase, "synthesis", and the loss.
        """

    def targets(self, count: int, draw: Callable[[int], Tensor]) -> Tensor:
        """The labels to request in the next call, int64; `draw(count)` draws them as BLG does."""
        return draw(count)

    def sample(self, count: int) -> Tensor:
        """Generate `count` images (count, C, H, W) in [0, 1] without optimisation, for methods whose student
        learns from fresh samples.

        Raises:
            NotImplementedError: the method's student learns from stored samples.
        """
        raise NotImplementedError(f"{type(self).__name__} generates samples only by synthesize()")

    def skip(self, calls: int) -> None:
        """Count so many calls as done."""
        self.calls = calls

    def state_dict(self) -> dict[str, Any]:
        """All that the next call depends on."""
        return {"calls": self.calls, **{name: getattr(self, name).state_dict() for name in self.parts}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            KeyError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.calls = int(state["calls"])

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, device=self.rng.device)

    def _teacher_outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and the distance to its BatchNorm statistics; its features are in
        `self.features.value`."""
        with self.autocast(), self.statistics.capture(), self.features.capture():
            logits = self.teacher(inputs)
        logits = at_least_single(logits)
        return logits, self.statistics.distance().to(logits)

    def _student_logits(self, inputs: Tensor) -> Tensor:
        with self.autocast():
            return at_least_single(self.student(inputs))

    def _inversion_loss(
        self, images: Tensor, targets: Tensor, alpha: float, adversarial: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images in [0, 1], and its terms, unweighted: requested classes, BatchNorm statistics,
        and disagreement with the student (Fast-Meta, BSR, NAYER)."""
        s = self.settings
        augmented = self.augment(images, self.rng)
        teacher_logits, loss_bn = self._teacher_outputs(augmented)
        loss_oh = F.cross_entropy(teacher_logits, targets)
        loss_adv = torch.zeros_like(loss_oh)
        if s.adv > 0 and adversarial:
            loss_adv = losses.adversarial(self._student_logits(augmented), teacher_logits)
        terms = {"oh": loss_oh, "bn": loss_bn, "adv": loss_adv}
        weights = {"bn": s.bn, "oh": alpha, "adv": s.adv}
        return weighted(terms, weights), terms

    @torch.no_grad()
    def _finished(self, best: BestStep) -> Synthesis:
        """The images of the best step, labelled by the teacher on a freshly augmented view."""
        images, features = best.kept
        with self.autocast():
            logits = self.teacher(self.augment(images, self.rng))
        losses, steps = best.losses()
        samples = Samples.seen(to_uint8(images), features, at_least_single(logits))
        return Synthesis(samples, images, losses, steps)


class BestStep:
    """The images of the step with the lowest total loss, and the loss terms of every step of a synthesis.
    Does not wait for the device before `losses`."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self._lowest: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []

    def add(self, total: Tensor, terms: dict[str, Tensor], *tensors: Tensor) -> None:
        """Record a step: the loss, its terms (scalars, unweighted), and the tensors to keep if it is the
        best."""
        total, new = total.detach(), [tensor.detach() for tensor in tensors]
        self._names = ("total", *terms)
        self._rows.append(torch.stack([total, *(term.detach() for term in terms.values())]))
        if self._lowest is None:
            self._lowest, self.kept = total, new
            return
        better = total < self._lowest
        self._lowest = torch.where(better, total, self._lowest)
        self.kept = [torch.where(better, *pair) for pair in zip(new, self.kept, strict=True)]

    def losses(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The terms of the best step, and of all steps."""
        rows = torch.stack(self._rows).tolist()
        steps = {name: [row[i] for row in rows] for i, name in enumerate(self._names)}
        lowest = min(range(len(rows)), key=steps["total"].__getitem__)
        return {name: values[lowest] for name, values in steps.items()}, steps


def weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum of the terms times their weights; terms with weight 0 cost no backward pass."""
    parts = [weight * terms[name] for name, weight in weights.items() if weight]
    return sum(parts[1:], parts[0])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients to the weights inside the block; both are restored after it."""
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


def generator_optimizer(generator: nn.Module, z: Tensor, lr_g: float, lr_z: float) -> torch.optim.Adam:
    """An optimiser of a generator together with latent codes z (B, nz)."""
    codes: dict[str, Any] = {"params": [z], "lr": lr_z}
    return torch.optim.Adam([{"params": list(generator.parameters())}, codes], lr=lr_g, betas=ADAM_BETAS)


def gradients(network: nn.Module) -> list[Tensor]:
    """The gradients of the parameters, after a backward pass."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@torch.no_grad()
def draw_as_torch(layers: nn.Module, rng: torch.Generator) -> None:
    """Reinitialise weights as PyTorch does, uniform in +- 1 / sqrt(fan_in), and reset BatchNorm layers."""
    for layer in layers.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = layer.weight[0].numel() ** -0.5
            for value in (layer.weight, layer.bias):
                if value is not None:
                    value.uniform_(-bound, bound, generator=rng)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_parameters()


@torch.no_grad()
def draw_weights(layers: nn.Module, rng: torch.Generator) -> None:
    """Reinitialise a generator's weights: N(0, 0.02), in BatchNorm layers N(1, 0.02), biases 0."""
    for layer in layers.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            layer.weight.normal_(1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02, generator=rng)
            if layer.bias is not None:
                layer.bias.zero_()
