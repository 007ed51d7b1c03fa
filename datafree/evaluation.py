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

from datafree.data.image_set import ImageSet, to_float
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


@torch.no_grad()
def predict(
    network: nn.Module, batches: Iterable[Tensor], normalize: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """A network's logits (N, classes), on the device, in single precision and eval mode; its mode is
    restored.

    Args:
        network: on the device.
        batches: uint8 images (n, C, H, W), N in all, 1 or more.
        normalize: maps images in [0, 1] to the network's input.
        device: of the network.
    """
    training = network.training
    network.eval()
    logits = []
    for images in batches:
        inputs = normalize(to_float(images.to(device, non_blocking=True)))
        logits.append(network(inputs.contiguous(memory_format=torch.channels_last)).float())
    network.train(training)
    return torch.cat(logits)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Top-1 and top-5 accuracy, loss, and recall of each class, of logits (N, classes) for labels (N,)."""
    labels, classes = labels.to(logits.device), logits.shape[1]
    right = logits.topk(min(5, classes)).indices == labels[:, None]
    hits = torch.bincount(labels[right[:, 0]], minlength=classes).tolist()
    counts = torch.bincount(labels, minlength=classes).tolist()
    return Evaluation(
        100 * sum(hits) / len(labels),
        100 * int(right.sum()) / len(labels),
        F.cross_entropy(logits.double(), labels).item(),
        sum(hits),
        len(labels),
        tuple(round(100 * hit / n, 2) if n else None for hit, n in zip(hits, counts, strict=True)),
    )


class Evaluator:
    """Scores networks on labelled images: accuracy, and agreement with a teacher.

    Args:
        images: to score on.
        normalize: maps images in [0, 1] to the networks' input.
        device: of the networks.
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
        """Accuracy of a network, and its agreement with the teacher if it is another network."""
        logits = self._teacher_logits if network is self.teacher else self._predict(network)
        evaluation = score(logits, self.images.labels)
        if self.teacher is None or network is self.teacher:
            return evaluation
        same = (logits.argmax(1) == self._teacher_logits.argmax(1)).double().mean().item()
        return replace(evaluation, agreement=100 * same)

    @cached_property
    def _teacher_logits(self) -> Tensor:
        assert self.teacher is not None
        with torch.autocast(self.device.type, enabled=False):  # also where the student is scored in half
            return self._predict(self.teacher)

    def _predict(self, network: nn.Module) -> Tensor:
        small = self.images.read(torch.tensor([0])).shape[-1] <= SMALL
        size = GPU_BATCH if small and self.device.type == "cuda" else BATCH
        batches = (images for images, _ in self.images.batches(size))
        return predict(network, batches, self.normalize, self.device)


class HeldOut:
    """Samples held out from training, uint8 (N, C, H, W), to evaluate a student without real images.

    Args:
        image_shape: (C, H, W).
        teacher: in eval mode; its class counts as the right one.
        normalize: maps images in [0, 1] to the networks' input.
        device: of the networks.
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
        if not len(self.images):
            return Evaluation(0.0, 0.0, 0.0, 0, 0)
        how = self.images.split(BATCH), self.normalize, self.device
        with torch.autocast(self.device.type, enabled=False):  # as `Evaluator` does
            labels = predict(self.teacher, *how).argmax(1)
        return score(predict(student, *how), labels)

    def state_dict(self) -> dict:
        return {"images": self.images, "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        """Raises:
        ValueError: the images are of another shape.
        """
        if state["images"].shape[1:] != self.images.shape[1:] or state["images"].dtype != torch.uint8:
            raise ValueError("the samples held out are of another shape")
        self.images, self.seen = state["images"], int(state["seen"])
