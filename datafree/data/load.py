"""The images of a dataset's split. Distillation reads none: only evaluation (the test split) and training on
real images do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from einops import repeat
from torch.nn import functional as F

from datafree.data.datasets import SPECS
from datafree.data.image_folders import find_split, load_labelled, probe_img_size
from datafree.data.image_set import ImageSet, in_memory


def load_split(
    dataset: str,
    split: str,
    data_root: str | Path,
    img_size: int | None = None,
    download: bool = False,
    workers: int = 4,
) -> ImageSet:
    """Images of one split. Files of the other split are not opened.

    Args:
        dataset: a name in `datasets.SPECS`.
        split: `"train"` or `"test"`.
        data_root: folder with the data.
        img_size: pixels a side; the dataset's own by default.
        download: download missing files, if the dataset has a public address.
        workers: threads that decode image files.

    Raises:
        UserError: the data are absent or unreadable.
    """
    module, _, function = SPECS[dataset].reader.partition(":")
    if module:
        reader = getattr(import_module(f"datafree.data.{module}"), function)
        return reader(dataset, split, Path(data_root), download).resized(img_size)
    folder = find_split(dataset, split, Path(data_root))
    return load_labelled(folder, img_size or probe_img_size(folder), workers=workers)


def read_digits(_dataset: str, split: str, _root: Path, _download: bool) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 to 32 pixels; a fixed stratified fifth is the
    test split."""
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
