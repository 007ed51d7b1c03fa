"""Accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.data import ImageSet
from datafree.repository import to_float


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent; `correct` is the number of images whose top class is right."""

    top1: float
    top5: float
    loss: float  # mean cross entropy
    correct: int
    count: int

    def __str__(self) -> str:
        return f"{self.top1:.2f} % ({self.correct:,} of {self.count:,} right)"


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int = 128,
) -> Evaluation:
    """Top-1 and top-5 accuracy of `network` in eval mode; its mode is restored."""
    training = network.training
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch, labels in images.batches(batch_size):
        labels = labels.to(device, non_blocking=True)
        batch = normalize(to_float(batch.to(device, non_blocking=True)))
        logits = network(batch.contiguous(memory_format=torch.channels_last)).float()
        top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([top[:, 0].sum(), top.sum(), loss.double()])
    network.train(training)
    correct, correct5, loss = totals.tolist()
    count = len(images)
    return Evaluation(100 * correct / count, 100 * correct5 / count, loss / count, int(correct), count)
