"""Labelled images, as training and evaluation take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ImageSet:
    """Labelled images, uint8 (N, 3, H, W), kept in memory or decoded as they are asked for.

    `read` maps a tensor of indices to images; `labels` is int64 (N,).
    """

    read: Callable[[Tensor], Tensor]
    labels: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def for_channels(self, channels: int) -> ImageSet:
        """The same images, in grey for 1 channel."""
        if channels == 3:
            return self

        def read(indices: Tensor) -> Tensor:
            return self.read(indices).float().mean(1, keepdim=True).round().to(torch.uint8)

        return ImageSet(read, self.labels, self.classes)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, `batch_size` at a time (the last batch may be smaller), in stored order or
        in the order of the indices given."""
        order = torch.arange(len(self)) if order is None else order
        for indices in order.split(batch_size):
            yield self.read(indices), self.labels[indices]


def in_memory(images: Tensor, labels: Tensor, classes: Sequence[str]) -> ImageSet:
    return ImageSet(images.__getitem__, labels, classes)
