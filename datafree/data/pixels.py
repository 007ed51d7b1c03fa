"""Conversions between stored images, 8 bits a channel, and images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] with 8 bits a channel: 255 times the value, truncated."""
    return (images * 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def noise_like(count: int, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images (count, C, H, W) of uniform noise from seed 0."""
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
