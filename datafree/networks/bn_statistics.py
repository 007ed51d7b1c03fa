"""The teacher's BatchNorm statistics: what a trained network keeps of its training data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.precision import at_least_single

MISFIT = (
    "the teacher's BatchNorm statistics {} (folded, averaged?): samples will be poor. Run training images "
    "through the teacher in train mode and save it again"
)
# Limits of `BNStatistics.mismatch`. Five sound teachers have 0.4 to 1.0 for noise and 0.1 to 0.2 for the
# first synthesised images; those with folded, averaged or initial statistics have 0.7 to 6 and 0.3 to 2.
FAR_FROM_NOISE, FAR_FROM_IMAGES = 0.6, 0.25


class _Moments(torch.autograd.Function):
    """Returns a layer's input (N, C, H, W), and its mean and biased variance per channel, (C,), at least in
    single precision.

    Six passes over memory where autograd needs ten: the gradient of both moments with respect to the input
    is, per channel, a constant plus a multiple of the input.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = at_least_single(inputs)
        mean = wide.mean((0, 2, 3))
        variance = (wide - mean[:, None, None]).square_().mean((0, 2, 3))
        ctx.save_for_backward(inputs, mean)
        return inputs.view_as(inputs), mean, variance

    @staticmethod
    def backward(ctx: Any, from_above: Tensor, from_mean: Tensor, from_variance: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        share = mean.numel() / inputs.numel()  # weight of one entry in its channel's mean
        slope = 2 * share * from_variance
        constant = share * from_mean - slope * mean
        gradient = torch.addcmul(constant[:, None, None], inputs, slope[:, None, None])
        return gradient.to(from_above.dtype).add_(from_above)


def _stored(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and variance, (C,)."""
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")


class BNStatistics:
    """Distance between the statistics of a batch and those stored in a network's BatchNorm2d layers that
    have any (DeepInversion, Yin et al., CVPR 2020, equation 4; momentum: Fast-Meta, Fang et al., AAAI 2022).

    Args:
        network: in eval mode whenever it is measured.
        momentum: m in [0, 1). With m > 0, from the second call of `update_averages` on the batch's mean
            and variance are mixed as `(1 - m) * value + m * average` before they are compared.
    """

    def __init__(self, network: nn.Module, momentum: float = 0.0):
        layers = (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
        self.layers = [layer for layer in layers if layer.running_mean is not None]
        self.momentum = momentum
        self._batch: dict[int, tuple[Tensor, Tensor]] = {}
        self._average: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Measure the forward passes of the network inside the block, and only there."""
        hooks = [partial(self._measure, index) for index in range(len(self.layers))]
        handles = [
            layer.register_forward_pre_hook(hook) for layer, hook in zip(self.layers, hooks, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _measure(self, index: int, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        images, mean, variance = _Moments.apply(inputs[0])
        self._batch[index] = mean, variance
        return (images,)

    def distance(self) -> Tensor:
        """Sum over the layers of `||running_var - var||_2 + ||running_mean - mean||_2` for the last
        captured forward pass; a scalar with a gradient."""
        terms = []
        for index, layer in enumerate(self.layers):
            mean, variance = self._mixed(index)
            stored_mean, stored_variance = _stored(layer)
            terms.append(torch.linalg.vector_norm(stored_variance - variance))
            terms.append(torch.linalg.vector_norm(stored_mean - mean))
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def _mixed(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the last batch in a layer, mixed with any running averages."""
        mean, variance = self._batch[index]
        if index in self._average:
            m, (mean_average, variance_average) = self.momentum, self._average[index]
            mean = (1 - m) * mean + m * mean_average
            variance = (1 - m) * variance + m * variance_average
        return mean, variance

    def mismatch(self) -> float:
        """How far the statistics of the last captured forward pass are from the stored ones, about 0.1 for
        images that fit: the shift of the mean in stored standard deviations, or the power of ten by which the
        variance is off, whichever is more; medians over the channels of a layer, and then over the layers."""
        shifts, powers = [], []
        for index, layer in enumerate(self.layers):
            mean, variance = (value.detach() for value in self._batch[index])
            stored = _stored(layer)
            width = stored[1] + layer.eps
            shifts.append(((mean - stored[0]).abs() / width.sqrt()).median())
            powers.append(((variance + layer.eps) / width).log10().abs().median())
        return max(torch.stack(values).median().item() for values in (shifts, powers))

    @property
    def untouched(self) -> bool:
        """Whether all layers still have their initial statistics: mean 0 and variance 1."""
        stored = [_stored(layer) for layer in self.layers]
        return bool(stored) and all(not mean.any() and (variance == 1).all() for mean, variance in stored)

    @torch.no_grad()
    def update_averages(self, processes: Processes = SINGLE_PROCESS) -> None:
        """Add the last captured batch (with several processes, the mean of their statistics) to the running
        averages, and free its graph. Call this at the end of a synthesis."""
        if self.momentum > 0:
            self._batch = {index: (m.detach(), v.detach()) for index, (m, v) in self._batch.items()}
            processes.all_reduce_mean([value for pair in self._batch.values() for value in pair])
            self._average.update({index: self._mixed(index) for index in self._batch})
        self._batch = {}

    def state_dict(self) -> dict:
        """The running averages."""
        return {"average": self._average}

    def load_state_dict(self, state: dict) -> None:
        """Restore a state returned by `state_dict`."""
        self._average = {
            index: tuple(value.to(self.layers[index].running_mean) for value in pair)
            for index, pair in state["average"].items()
        }


@torch.no_grad()
def check_bn_statistics(
    network: nn.Module, noise: Tensor | None = None, synthesised: Tensor | None = None
) -> str | None:
    """A warning if the BatchNorm statistics of a teacher, or of one of several, do not fit its weights.

    Args:
        network: in eval mode.
        noise, synthesised: images (N, C, H, W), normalised. Without them, only initial statistics are
            noticed.
    """
    for part in getattr(network, "teachers", [network]):
        statistics = BNStatistics(part)
        if statistics.untouched:
            return MISFIT.format("are initial: mean 0, variance 1")
        if not statistics.layers or noise is None or synthesised is None:
            continue
        far = []
        for images, limit in ((noise, FAR_FROM_NOISE), (synthesised, FAR_FROM_IMAGES)):
            with statistics.capture():
                part(images.contiguous(memory_format=torch.channels_last))
            far.append(statistics.mismatch() > limit)
        if all(far):
            return MISFIT.format("do not fit its weights")
    return None
