"""How good a student is: its accuracy on labelled images, or its agreement with the teacher on synthetic
samples held out from training. Agreement is not accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.data.image_set import ImageSet
from datafree.data.pixels import to_float
from datafree.samples import Samples

# Images scored at a time: on a CPU more are slower (500 take twice as long), since they leave its cache. A
# GPU takes more of small ones.
BATCH, GPU_BATCH, SMALL = 128, 1_000, 64
EVERY = 8  # one of eight samples is held out
MOST = 2_000  # held-out samples; the oldest are dropped first
MOST_BYTES = 64 * 10**6  # for held-out samples: every checkpoint contains them


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent; `correct` is the number of images whose top class is right."""

    top1: float
    top5: float
    loss: float  # mean cross entropy
    correct: int
    count: int
    recall: tuple[float | None, ...] = ()  # percent of the images of each class; None where there are none
    agreement: float | None = None  # percent of the images to which another network gives the same class

    def row(self) -> dict[str, Any]:
        """The figures by their names in `metrics.jsonl`."""
        figures: dict[str, Any] = {
            "test_top1": self.top1,
            "test_top5": self.top5 if math.isfinite(self.top5) else None,
            "test_loss": self.loss if math.isfinite(self.loss) else None,
        }
        if self.recall:
            figures["test_recall"] = list(self.recall)
        return figures if self.agreement is None else {**figures, "test_agreement": self.agreement}

    def __str__(self) -> str:
        return f"{self.top1:.2f} % ({self.correct:,} of {self.count:,} right)"


def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Evaluation:
    """Top-1 and top-5 accuracy, and recall of each class, of a network in eval mode; its mode is restored.

    Args:
        network: on the device.
        batches: uint8 images (N, C, H, W) and labels (N,).
        normalize: maps images in [0, 1] to what the network sees.
        device: where the network is.
    """
    return _evaluate(network, batches, normalize, device)[0]


@torch.no_grad()
def _evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[Evaluation, Tensor]:
    """Like `evaluate`; also returns the predicted classes, int64 (N,)."""
    training = network.training
    network.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    by_class = torch.zeros(2, 0, dtype=torch.long, device=device)
    classes: list[Tensor] = []
    for images, labels in batches:
        labels = labels.to(device, non_blocking=True)
        inputs = normalize(to_float(images.to(device, non_blocking=True)))
        logits = network(inputs.contiguous(memory_format=torch.channels_last)).float()
        top = logits.topk(min(5, logits.shape[1])).indices
        right = top == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        seen = torch.full_like(loss, len(labels))
        totals += torch.stack([right[:, 0].sum(), right.sum(), loss.double(), seen])
        if not classes:
            by_class = by_class.new_zeros(2, logits.shape[1])
        by_class.index_add_(1, labels, torch.stack([right[:, 0].long(), torch.ones_like(labels)]))
        classes.append(top[:, 0])
    network.train(training)
    correct, correct5, loss_sum, total = totals.tolist()
    count = max(1.0, total)
    recall = [round(100 * hits / n, 2) if n else None for hits, n in by_class.T.tolist()]
    evaluation = Evaluation(
        100 * correct / count,
        100 * correct5 / count,
        loss_sum / count,
        int(correct),
        int(total),
        tuple(recall),
    )
    return evaluation, torch.cat(classes) if classes else torch.zeros(0, dtype=torch.long, device=device)


class Evaluator:
    """Scores networks on labelled images: accuracy, and agreement with a teacher.

    Args:
        images: to score on.
        normalize: maps images in [0, 1] to what the networks see.
        device: where the networks are.
        teacher: in eval mode; evaluated once, when it is first needed. None where there is none.
    """

    def __init__(
        self,
        images: ImageSet,
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
        teacher: nn.Module | None = None,
    ):
        self.images, self.normalize, self.device, self.teacher = images, normalize, device, teacher

    def __call__(self, network: nn.Module) -> Evaluation:
        """Accuracy of a network, and its agreement with the teacher."""
        if network is self.teacher:
            return self._teacher[0]
        evaluation, classes = self._evaluate(network)
        if self.teacher is None:
            return evaluation
        same = (classes == self._teacher[1]).double().mean().item()
        return replace(evaluation, agreement=100 * same)

    @cached_property
    def _teacher(self) -> tuple[Evaluation, Tensor]:
        assert self.teacher is not None
        with torch.autocast(self.device.type, enabled=False):  # also where the student is scored in half
            return self._evaluate(self.teacher)

    def _evaluate(self, network: nn.Module) -> tuple[Evaluation, Tensor]:
        batch = BATCH
        if self.device.type == "cuda" and self.images.read(torch.tensor([0])).shape[-1] <= SMALL:
            batch = GPU_BATCH
        return _evaluate(network, self.images.batches(batch), self.normalize, self.device)


class HeldOut:
    """Samples held out from training, uint8 (N, C, H, W), to evaluate a student without real images.

    Args:
        image_shape: (C, H, W).
        teacher: in eval mode; its class counts as the right one.
        normalize: maps images in [0, 1] to what the networks see.
        device: where the networks are.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        teacher: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
    ):
        self.images = torch.empty((0, *image_shape), dtype=torch.uint8)
        self.most = min(MOST, MOST_BYTES // math.prod(image_shape))
        self.seen = 0
        self.teacher, self.normalize, self.device = teacher, normalize, device

    def take(self, samples: Samples) -> Samples:
        """Keep every eighth sample, counted over all batches; returns the others."""
        held = (torch.arange(len(samples), device=samples.labels.device) + self.seen) % EVERY == EVERY - 1
        self.seen += len(samples)
        self.images = torch.cat([self.images, samples.images[held].cpu()])[-self.most :]
        return samples[~held]

    def evaluate(self, student: nn.Module) -> Evaluation:
        """Agreement of the student with the teacher: accuracy against the teacher's class. Zeros while
        nothing is held out."""
        return evaluate(student, self._labelled(), self.normalize, self.device)

    def _labelled(self) -> Iterable[tuple[Tensor, Tensor]]:
        for images in self.images.split(BATCH):
            inputs = self.normalize(to_float(images.to(self.device)))
            with torch.autocast(self.device.type, enabled=False):  # as `Evaluator` does
                logits = self.teacher(inputs.contiguous(memory_format=torch.channels_last))
            yield images, logits.argmax(1)

    def state_dict(self) -> dict:
        return {"images": self.images, "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        """Raises:
        ValueError: the images are of another shape.
        """
        if state["images"].shape[1:] != self.images.shape[1:] or state["images"].dtype != torch.uint8:
            raise ValueError("the samples held out are of another shape")
        self.images, self.seen = state["images"], int(state.get("seen", 0))
