"""How well a student does where there are no real images: whether it agrees with its teacher on synthetic
samples that it was not trained on. This is not accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.evaluate import Evaluation
from datafree.repository import to_float, to_uint8
from datafree.synthesis.base import Synthesis

EVERY = 8  # of so many samples one is held out
MOST = 2_000  # held out; the oldest go first
MOST_BYTES = 64 * 10**6  # of them: every checkpoint has them


class HeldOut:
    """Samples kept from training, uint8 (N, C, H, W), by which students are judged.

    Args:
        image_shape: (C, H, W).
        teacher: in eval mode; its class is the right one.
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

    def take(self, new: Synthesis) -> Synthesis:
        """Keep every eighth sample, counted over all batches; returns the others."""
        held = (torch.arange(len(new.labels), device=new.labels.device) + self.seen) % EVERY == EVERY - 1
        self.seen += len(new.labels)
        images = new.images if new.images.dtype == torch.uint8 else to_uint8(new.images)
        self.images = torch.cat([self.images, images[held].cpu()])[-self.most :]
        return replace(
            new,
            images=new.images[~held],
            labels=new.labels[~held],
            features=new.features[~held],
            margins=new.margins[~held],
        )

    @torch.no_grad()
    def evaluate(self, student: nn.Module) -> Evaluation:
        """Agreement in percent, of the first class and of it with the first five; the loss is the cross
        entropy against the teacher's class. Zeros while nothing is held out."""
        training = student.training
        student.eval()
        first = five = 0
        loss = 0.0
        for part in self.images.split(128):
            inputs = self.normalize(to_float(part.to(self.device)))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            labels = self.teacher(inputs).argmax(1)
            logits = student(inputs).float()
            top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            first, five = first + int(top[:, 0].sum()), five + int(top.sum())
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
        student.train(training)
        count = len(self.images)
        share = 100 / max(1, count)
        return Evaluation(share * first, share * five, loss / max(1, count), first, count)

    def state_dict(self) -> dict:
        return {"images": self.images, "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        """Raises:
        ValueError: the images are of another shape.
        """
        if state["images"].shape[1:] != self.images.shape[1:] or state["images"].dtype != torch.uint8:
            raise ValueError("the samples held out are of another shape")
        self.images, self.seen = state["images"], int(state.get("seen", 0))
