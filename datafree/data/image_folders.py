"""Folders of image files, decoded to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from datafree.data.augment import TRAINING_SCALE, crop_windows
from datafree.data.datasets import SPECS
from datafree.data.image_set import ImageSet, in_memory
from datafree.errors import UserError

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: the class of each file
IN_MEMORY_SIZE = 64  # images up to this many pixels a side are decoded once and kept


def find_split(dataset: str, split: str, root: Path) -> Path:
    """The folder of a dataset's split: `train`, or `test` or `val`, in `root`, or in the dataset's own folder
    in `root` or `root/torchdata`.

    Raises:
        UserError: there is none.
    """
    spec, places = SPECS[dataset], [root]
    if dataset != "folder":
        own = spec.folders or (dataset,)
        places = [*(base / name for base in (root, root / "torchdata") for name in own), root]
    names = ("train",) if split == "train" else spec.test
    for place in places:
        for name in names:
            if (place / name).is_dir():
                return place / name
    raise UserError(
        f"no {' or '.join(f'{name}/' for name in names)} in {' or '.join(map(str, places))}: put one "
        f"folder of images per class there" + (f" (from {spec.url})" if spec.url else "")
    )


def image_classes(folder: Path) -> list[str]:
    """Names of a split's classes in alphabetical order, from its class folders or its annotations.

    Raises:
        UserError: there are fewer than two.
    """
    names = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if (folder / ANNOTATIONS).is_file():
        names = {name for name, _ in _annotated(folder)}
    if len(names) < 2:
        raise UserError(
            f"{folder} has {len(names)} class folders: put one folder of images per class there, 2 or more"
        )
    return sorted(names)


def _annotated(folder: Path) -> list[tuple[str, Path]]:
    """The class and the file of each image, if all are in one folder, `images`.

    Raises:
        UserError: the annotations cannot be read.
    """
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8", errors="replace").splitlines()
    fields = [line.split("\t") for line in lines if line]
    if not fields or min(map(len, fields)) < 2:
        raise UserError(f"{folder / ANNOTATIONS} has no class beside each file: put the original there again")
    return sorted((label, folder / "images" / Path(name).name) for name, label, *_ in fields)


def _image_files(folder: Path) -> list[Path]:
    """The images in a class folder or, if there are none, in its folder `images` (Tiny ImageNet)."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
    inner = folder / "images"
    return _image_files(inner) if not found and inner.is_dir() else found


def _labelled_files(folder: Path) -> tuple[list[str], list[tuple[int, Path]]]:
    """The classes of a split, and the class number and the file of each image.

    Raises:
        UserError: there are fewer than two classes, or no images.
    """
    classes = image_classes(folder)
    if (folder / ANNOTATIONS).is_file():
        found = [(classes.index(name), file) for name, file in _annotated(folder)]
    else:
        files = [_image_files(folder / name) for name in classes]
        found = [(number, file) for number, some in enumerate(files) for file in some]
    if not found:
        raise UserError(f"{folder} has class folders but no images in them")
    return classes, found


def probe_img_size(folder: Path) -> int:
    """Pixels a side for an image folder: the first image's shorter side, rounded down to a multiple of 4, if
    that is at most 64; else 224."""
    side = min(_open(_labelled_files(folder)[1][0][1]).size)
    return max(4, side // 4 * 4) if side <= IN_MEMORY_SIZE else 224


def _open(path: Path) -> Image.Image:
    """An image as RGB with 8 bits a channel; 16-bit grey is scaled. UserError if it cannot be read."""
    try:
        image = Image.open(path)
        if image.mode.startswith("I"):  # Pillow would clip values above 255
            grey = np.asarray(image, np.int64).clip(0, 65535) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"cannot read the image {path} ({error}): replace or remove it") from error


def _decode(path: Path, img_size: int) -> Tensor:
    """uint8 (3, img_size, img_size). Up to 64 pixels, images are stretched; for more, the shorter side is
    resized to 8/7 of the size (256 for 224) and the centre is cropped, as usual for ImageNet."""
    image = _open(path)
    if img_size <= IN_MEMORY_SIZE:
        image = image.resize((img_size, img_size), Image.Resampling.BILINEAR)
    elif image.size != (img_size, img_size):
        factor = img_size * 8 / 7 / min(image.size)
        size = [max(img_size, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - img_size) // 2 for side in size)
        image = image.crop((left, top, left + img_size, top + img_size))
    return torch.from_numpy(rearrange(np.array(image), "h w c -> c h w"))


def _crop(path: Path, img_size: int, u: Tensor) -> Tensor:
    """uint8 (3, img_size, img_size): a random crop of the image, see `crop_windows`, resized."""
    image = _open(path)
    width, height = image.size
    rows, columns = crop_windows(u[:, None], TRAINING_SCALE, height / width)
    top, bottom = ((rows[1] + side * rows[0] + 1).item() / 2 * height for side in (-1, 1))
    left, right = ((columns[1] + side * columns[0] + 1).item() / 2 * width for side in (-1, 1))
    box = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    image = image.resize((img_size, img_size), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(rearrange(np.array(image), "h w c -> c h w"))


def load_folder(folder: Path, img_size: int, workers: int = 4) -> ImageSet:
    """All images in a folder and its subfolders, without labels: one class with an empty name.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise UserError(f"{folder} is no folder with images in it: name another")
    return _read_files(files, torch.zeros(len(files), dtype=torch.long), [""], img_size, workers)


def load_labelled(folder: Path, img_size: int, num_classes: int | None = None, workers: int = 4) -> ImageSet:
    """Images in one folder per class, or with annotations; the classes in alphabetical order. With
    `num_classes`, folders named by class numbers need not be complete; others must be all the classes.

    Raises:
        UserError: the folder names fit neither rule, there are no images, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of images at {folder}: check the path")
    classes, found = _labelled_files(folder)
    if num_classes is not None:
        if all(name.isdecimal() and int(name) < num_classes for name in classes):
            found = [(int(classes[number]), file) for number, file in found]
            classes = [str(number) for number in range(num_classes)]
        elif len(classes) != num_classes:
            raise UserError(
                f"{folder} has {len(classes)} class folders, and the teacher {num_classes} classes: one "
                "folder each, in the teacher's order by name, or folders named by class numbers from 0"
            )
    labels, files = zip(*found, strict=True)
    return _read_files(files, torch.tensor(labels), classes, img_size, workers)


def _read_files(
    files: Sequence[Path], labels: Tensor, classes: Sequence[str], img_size: int, workers: int
) -> ImageSet:
    pool = ThreadPoolExecutor(max(1, workers))

    def read(indices: Tensor) -> Tensor:
        return torch.stack(list(pool.map(lambda i: _decode(files[i], img_size), indices.tolist())))

    def read_crops(indices: Tensor, u: Tensor) -> Tensor:
        return torch.stack(list(pool.map(lambda i, u: _crop(files[i], img_size, u), indices.tolist(), u.T)))

    if img_size <= IN_MEMORY_SIZE:
        return in_memory(read(torch.arange(len(files))), labels, classes)
    return ImageSet(read, labels, classes, read_crops)
