"""Folders of image files, decoded as 8-bit RGB. Image names and sizes are looked at only where nothing else
tells."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
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
    """The folder of a split of an image-folder dataset: `train`, or `test` or `val`, in `root`, or in the
    dataset's own folder in `root` or `root/torchdata`.

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
    url = spec.url
    raise UserError(
        f"no {' or '.join(f'{name}/' for name in names)} in {' or '.join(map(str, places))}: put one "
        f"folder of images per class there" + (f" (from {url})" if url else "")
    )


def image_classes(folder: Path) -> list[str]:
    """Names of the classes of a split, in alphabetical order: of its class folders, or in its annotations.

    Raises:
        UserError: there are fewer than two.
    """
    if (folder / ANNOTATIONS).is_file():
        classes = sorted({name for name, _ in _annotated(folder)})
    else:
        classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} class folders: put one folder of images per class there, 2 or more"
        )
    return classes


def _image_files(folder: Path) -> list[Path]:
    """Of a class: in its folder or, if there are none, in `images` in that, as Tiny ImageNet has it."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
    inner = folder / "images"
    return _image_files(inner) if not found and inner.is_dir() else found


def _annotated(folder: Path) -> list[tuple[str, Path]]:
    """The class and the file of each image of a split that has them in one folder, `images`.

    Raises:
        UserError: the annotations cannot be read.
    """
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8", errors="replace").splitlines()
    fields = [line.split("\t") for line in lines if line]
    if not fields or min(map(len, fields)) < 2:
        raise UserError(f"{folder / ANNOTATIONS} has no class beside each file: put the original there anew")
    return sorted((label, folder / "images" / Path(name).name) for name, label, *_ in fields)


def _labelled_files(folder: Path, classes: Sequence[str]) -> list[tuple[int, Path]]:
    """The number of its class and the file of each image of a split."""
    if (folder / ANNOTATIONS).is_file():
        numbers = {name: number for number, name in enumerate(classes)}
        return [(numbers[name], file) for name, file in _annotated(folder)]
    return [(number, file) for number, name in enumerate(classes) for file in _image_files(folder / name)]


def probe_img_size(folder: Path) -> int:
    """Pixels a side for an image folder: the first image's shorter side, rounded down to a multiple of
    4, where that is small enough for a network of the CIFAR kind; otherwise 224."""
    for _, path in _labelled_files(folder, image_classes(folder)):
        side = min(_open(path).size)
        return max(4, side // 4 * 4) if side <= IN_MEMORY_SIZE else 224
    raise UserError(f"{folder} has class folders but no images in them")


def _open(path: Path) -> Image.Image:
    """An image as RGB with 8 bits a channel, whatever its own mode; grey ones of 16 bits are scaled.

    Raises:
        UserError: it cannot be read whole, or is as large as only a file made to harm would be.
    """
    try:
        image = Image.open(path)
        if image.mode.startswith("I"):  # Pillow would cut off what is above 255
            grey = np.asarray(image, np.int64).clip(0, 65535) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for files that are not what they claim
        raise UserError(f"cannot read the image {path} ({error}): replace or remove it") from error


def _decode(path: Path, img_size: int) -> Tensor:
    """uint8 (3, img_size, img_size). Small sizes are stretched; large ones are cut from the middle
    after the shorter side was resized to 8/7 of the size (256 for 224), as usual for ImageNet."""
    image = _open(path)
    if image.size != (img_size, img_size):
        if img_size <= IN_MEMORY_SIZE:
            image = image.resize((img_size, img_size), Image.Resampling.BILINEAR)
        else:
            factor = img_size * 8 / 7 / min(image.size)
            size = [max(img_size, round(side * factor)) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = ((side - img_size) // 2 for side in size)
            image = image.crop((left, top, left + img_size, top + img_size))
    return torch.from_numpy(rearrange(np.array(image), "h w c -> c h w"))


def _decode_crop(path: Path, u: Tensor, img_size: int) -> Tensor:
    """uint8 (3, img_size, img_size): a random crop of the whole image, see `crop_windows`, resized."""
    image = _open(path)
    width, height = image.size
    rows, columns = crop_windows(u[:, None], TRAINING_SCALE, height / width)
    top, bottom = ((rows[1] + side * rows[0] + 1).item() / 2 * height for side in (-1, 1))
    left, right = ((columns[1] + side * columns[0] + 1).item() / 2 * width for side in (-1, 1))
    box = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    image = image.resize((img_size, img_size), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(rearrange(np.array(image), "h w c -> c h w"))


@dataclass
class _FolderReader:
    files: list[Path]
    img_size: int
    workers: int
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(max(1, self.workers))

    def __call__(self, indices: Tensor) -> Tensor:
        paths = [self.files[index] for index in indices.tolist()]
        return torch.stack(list(self.pool.map(partial(_decode, img_size=self.img_size), paths)))

    def crops(self, indices: Tensor, u: Tensor) -> Tensor:
        """See `ImageSet.read_crops`."""
        paths = [self.files[index] for index in indices.tolist()]
        return torch.stack(list(self.pool.map(partial(_decode_crop, img_size=self.img_size), paths, u.T)))


def class_folders(folder: Path, img_size: int, workers: int) -> ImageSet:
    """Images in one folder for each class, or with annotations; the classes in alphabetical order.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    classes = image_classes(folder)
    found = _labelled_files(folder, classes)
    if not found:
        raise UserError(f"{folder} has class folders but no images in them")
    labels, files = zip(*found, strict=True)
    return _read_files(list(files), torch.tensor(labels), classes, img_size, workers)


def _read_files(
    files: list[Path], labels: Tensor, classes: Sequence[str], img_size: int, workers: int
) -> ImageSet:
    reader = _FolderReader(files, img_size, workers)
    if img_size <= IN_MEMORY_SIZE:
        return in_memory(reader(torch.arange(len(files))), labels, classes)
    return ImageSet(reader, labels, classes, reader.crops)


def load_folder(folder: Path, img_size: int, workers: int = 4) -> ImageSet:
    """All images in a folder and its subfolders, without labels: a single class with an empty name.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of images at {folder}: check the path")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise UserError(f"{folder} has no images in it: name a folder that has")
    return _read_files(files, torch.zeros(len(files), dtype=torch.long), [""], img_size, workers)


def load_labelled(folder: Path, img_size: int, num_classes: int, workers: int = 4) -> ImageSet:
    """Images in one folder a class: folders named by numbers, of which some may be missing, are the classes
    of these numbers; others are all the classes, in alphabetical order.

    Raises:
        UserError: the folder names fit neither rule, or an image cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of images at {folder}: check the path")
    images = class_folders(folder, img_size, workers)
    names = images.classes
    if all(name.isdecimal() and int(name) < num_classes for name in names):
        labels = torch.tensor([int(name) for name in names])[images.labels]
        return replace(images, labels=labels, classes=[str(label) for label in range(num_classes)])
    if len(names) != num_classes:
        raise UserError(
            f"{folder} has {len(names)} class folders, and the teacher {num_classes} classes: one folder "
            "each, in the teacher's order by name, or folders named by class numbers from 0"
        )
    return images
