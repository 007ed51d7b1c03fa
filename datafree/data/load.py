"""The images of a dataset's split. Distillation reads none: only evaluation (the test split) and training on
real images do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from datafree.data.datasets import SPECS
from datafree.data.image_folders import class_folders, find_split, probe_img_size
from datafree.data.image_set import ImageSet


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
    return class_folders(folder, img_size or probe_img_size(folder), workers)
