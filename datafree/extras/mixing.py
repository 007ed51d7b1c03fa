"""Mixup: each image of a student step is blended with another of its batch."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) blended with one of the same batch: `share * image + (1 - share) * other`, the
    share uniform in [0, 1) (mixup, Zhang et al., ICLR 2018; for distillation, where the teacher says what a
    blend is, Beyer et al., CVPR 2022)."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    others = torch.randperm(len(images), generator=generator, device=images.device)
    return torch.lerp(images[others], images, share)
