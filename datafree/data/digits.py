"""scikit-learn's handwritten digits."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import repeat
from torch.nn import functional as F

from datafree.data.image_set import ImageSet, in_memory


def read(_dataset: str, split: str, _root: Path, _download: bool) -> ImageSet:
    """The 1,797 digits, enlarged from 8 to 32 pixels; a fixed stratified fifth is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0)
    images, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    grey = torch.from_numpy(images)[:, None] / 16
    large = F.interpolate(grey, size=32, mode="bicubic", align_corners=False).clamp(0, 1)
    return in_memory(
        repeat((large * 255).round().to(torch.uint8), "n 1 h w -> n c h w", c=3),
        torch.from_numpy(labels).long(),
        [str(digit) for digit in range(10)],
    )
