"""Labelled images for training and evaluation, 8 bits a channel, and conversions from and to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class ImageSet:
    """Labelled images, uint8 (N, C, H, W), in memory or decoded when they are read.

    `read` maps a tensor of indices to images; `labels` is int64 (N,). If the files are larger than the
    images, `read_crops` maps indices (n,) and uniform numbers (4, n) to random crops of the whole files.
    """

    read: Callable[[Tensor], Tensor]
    labels: Tensor
    classes: Sequence[str]
    read_crops: Callable[[Tensor, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def resized(self, img_size: int | None) -> ImageSet:
        """These images with `img_size` pixels a side, resized when they are read."""
        if img_size is None or self.read(torch.tensor([0])).shape[2:] == (img_size, img_size):
            return self

        def read(indices: Tensor) -> Tensor:
            images = self.read(indices).float()
            large = F.interpolate(images, size=img_size, mode="bilinear", antialias=True)
            return large.round().to(torch.uint8)

        return ImageSet(read, self.labels, self.classes)

    def for_channels(self, channels: int) -> ImageSet:
        """These images, in grey for 1 channel."""
        if channels == 3:
            return self

        def grey(images: Tensor) -> Tensor:
            return images.float().mean(1, keepdim=True).round().to(torch.uint8)

        crops, read = self.read_crops, self.read
        return ImageSet(
            lambda indices: grey(read(indices)),
            self.labels,
            self.classes,
            crops and (lambda indices, u: grey(crops(indices, u))),
        )

    def batches(
        self, batch_size: int, order: Tensor | None = None, rng: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, `batch_size` at a time (the last batch may be smaller), in stored order or in
        the order of the given indices. With `rng`, random crops if there are `read_crops`."""
        order = torch.arange(len(self)) if order is None else order
        for indices in order.split(batch_size):
            if rng is not None and self.read_crops:
                u = torch.rand(4, len(indices), generator=rng, device=rng.device).cpu()
                yield self.read_crops(indices, u), self.labels[indices]
            else:
                yield self.read(indices), self.labels[indices]


def in_memory(images: Tensor, labels: Tensor, classes: Sequence[str]) -> ImageSet:
    return ImageSet(images.__getitem__, labels, classes)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] with 8 bits a channel: 255 times the value, truncated."""
    return (images * 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def noise_like(count: int, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images (count, C, H, W) of uniform noise from seed 0."""
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
