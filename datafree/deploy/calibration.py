"""Images for a network that is to be quantised and not distilled: made from the network alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from datafree.data.augment import Augment
from datafree.networks.bn_statistics import BNStatistics
from datafree.settings import Settings
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.create import create_synthesizer
from datafree.torch_utils.precision import autocast
from datafree.torch_utils.random import RandomGenerators, random_state_kept

# Of the BatchNorm term beside the class term, on noise, where no weight is given: what both weigh depends on
# the network, whose statistics may be of any size.
BN_SHARE = 25.0
NOISE = 16  # images of it


class NoStudent(nn.Module):
    """Takes the place of the student, which no loss looks at."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(len(inputs), self.num_classes)


def make_images(
    settings: Settings,
    teacher: nn.Module,
    augment: Augment,
    img_size: int,
    num_classes: int,
    device: torch.device,
    count: int,
    weigh_bn: bool = False,
    on_step: Callable[[], Any] = lambda: None,
) -> tuple[Tensor, float]:
    """Images for calibration, classes in turn.

    Args:
        settings: resolved, with `adv` 0: `method`, `synthesis_batch_size`, `seed`, `amp`, and those of the
            method's synthesis.
        teacher: frozen, in eval mode, on the device.
        augment: of the teacher's images.
        img_size: pixels a side.
        num_classes: of the teacher.
        device: where the teacher is.
        count: how many.
        weigh_bn: choose the weight of the BatchNorm term by the network, see `BN_SHARE`.
        on_step: called after every step of a synthesis.

    Returns:
        Images, uint8 (count, C, H, W) on the CPU, and the share of them that got the class asked for.
    """
    streams = RandomGenerators(settings.seed, device)
    shape = (augment.normalize.channels, img_size, img_size)
    amp = settings.amp if settings.amp != "fp16" else "off"
    if weigh_bn:
        noise = torch.rand(NOISE, *shape, generator=streams.labels, device=device)
        settings = replace(settings, bn=_bn_weight(teacher, augment.normalize(noise)))
    context = SynthesisInputs(
        teacher,
        NoStudent(num_classes).to(device),
        augment,
        shape,
        streams.synthesis,
        autocast=autocast(amp, device),
        num_classes=num_classes,
    )
    with random_state_kept(device):
        torch.manual_seed(settings.seed)  # by which a generator is initialised
        synthesizer = create_synthesizer(context, settings)
        in_turn = _in_turn(num_classes, streams.labels)
        made: list[Tensor] = []
        hits = total = 0
        while total < count:
            asked = synthesizer.targets(
                settings.synthesis_batch_size,
                lambda n: torch.tensor([next(in_turn) for _ in range(n)], device=device),
            )
            samples = synthesizer.synthesize(asked, settings.oh, lambda *_: on_step()).samples
            made.append(samples.images.cpu())
            hits += int((samples.labels == asked).sum())
            total += len(asked)
    return torch.cat(made)[:count], hits / total


def _in_turn(num_classes: int, rng: torch.Generator) -> Iterator[int]:
    """All classes in a random order, again and again."""
    order = torch.randperm(num_classes, generator=rng, device=rng.device).tolist()
    while True:
        yield from order


@torch.no_grad()
def _bn_weight(teacher: nn.Module, noise: Tensor) -> float:
    """See `BN_SHARE`."""
    statistics = BNStatistics(teacher)
    with statistics.capture():
        logits = teacher(noise)
    loss_oh = -logits.log_softmax(1).mean()  # of the average class
    return BN_SHARE * (loss_oh / statistics.distance().clamp_min(1e-6)).item()
