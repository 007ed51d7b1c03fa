"""Real datasets: what each is, and how its images are read. Distillation itself reads none of them;
only evaluation (the test split) and training from scratch do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS

from datafree.datasets import SPECS
from datafree.errors import UserError

ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("numpy.core.numeric", "_frombuffer"),
}
IN_MEMORY_SIZE = 64  # images up to this many pixels a side are decoded once and kept


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


def load(
    dataset: str,
    split: str,
    data_root: str | Path,
    img_size: int | None = None,
    download: bool = False,
    workers: int = 4,
) -> ImageSet:
    """Images of one split.

    Args:
        dataset: a name in `datasets.SPECS`.
        split: `"train"` or `"test"`. Files of the other split are not opened.
        data_root: folder with the data.
        img_size: pixels a side; the dataset's own by default. Only image folders are resized.
        download: fetch what is missing, where the dataset has a public address.
        workers: threads that decode image files.

    Raises:
        UserError: the data are absent or unreadable.
    """
    root = Path(data_root)
    if dataset == "digits":
        return _digits(split)
    if dataset in ("cifar10", "cifar100", "svhn"):
        return _torchvision(dataset, split, root, download)
    folder = find_split(dataset, split, root)
    return _image_folder(folder, img_size or probe_img_size(folder), workers)


def _in_memory(images: Tensor, labels: Tensor, classes: Sequence[str]) -> ImageSet:
    return ImageSet(images.__getitem__, labels, classes)


def _digits(split: str) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 to 32 pixels; a fixed stratified fifth
    of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0)
    images, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    grey = torch.from_numpy(images)[:, None] / 16
    large = F.interpolate(grey, size=32, mode="bicubic", align_corners=False).clamp(0, 1)
    return _in_memory(
        repeat((large * 255).round().to(torch.uint8), "n 1 h w -> n c h w", c=3),
        torch.from_numpy(labels).long(),
        [str(digit) for digit in range(10)],
    )


class _CIFAR10(torchvision.datasets.CIFAR10):
    """Checks for the files of its own split only: torchvision reads all of them for their checksums,
    the training images among them. (An archive it downloads is still checked as a whole.) The files are
    pickles, as the dataset's authors publish them; they are read as data before torchvision reads them."""

    meta: ClassVar = {**torchvision.datasets.CIFAR10.meta, "md5": None}

    def _check_integrity(self) -> bool:
        names = [name for name, _ in (self.train_list if self.train else self.test_list)]
        files = [Path(self.root) / self.base_folder / name for name in (*names, self.meta["filename"])]
        if not all(file.is_file() for file in files):
            return False
        for file in files:
            with open(file, "rb") as opened:
                _PlainUnpickler(opened, encoding="latin1").load()
        return True


class _PlainUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")


class _CIFAR100(_CIFAR10):
    base_folder = torchvision.datasets.CIFAR100.base_folder
    url = torchvision.datasets.CIFAR100.url
    filename = torchvision.datasets.CIFAR100.filename
    tgz_md5 = torchvision.datasets.CIFAR100.tgz_md5
    train_list = torchvision.datasets.CIFAR100.train_list
    test_list = torchvision.datasets.CIFAR100.test_list
    meta: ClassVar = {**torchvision.datasets.CIFAR100.meta, "md5": None}


class _SVHN(torchvision.datasets.SVHN):
    def _check_integrity(self) -> bool:
        return (Path(self.root) / self.split_list[self.split][1]).is_file()


def _torchvision(dataset: str, split: str, root: Path, download: bool) -> ImageSet:
    """CIFAR-10, CIFAR-100 or SVHN from `root` or `root/torchdata`."""
    if dataset == "svhn":
        factory = partial(_SVHN, split=split)
    else:
        factory = partial(_CIFAR10 if dataset == "cifar10" else _CIFAR100, train=split == "train")
    found = None
    for place in (root, root / "torchdata"):
        try:
            found = factory(root=str(place))
            break
        except RuntimeError:  # torchvision's word for files that are not there
            continue
        except Exception as error:
            raise UserError(
                f"{dataset} in {place} cannot be read ({error}): put the original files there anew"
            ) from error
    if found is None and download:
        try:
            found = factory(root=str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{dataset} could not be downloaded: {error}") from error
    if found is None:
        spec = SPECS[dataset]
        raise UserError(
            f"no {dataset} in {root} or {root / 'torchdata'}: put {spec.files} there "
            f"(from {spec.url}), or add --download"
        )
    if dataset == "svhn":
        images, labels = torch.from_numpy(found.data), torch.from_numpy(found.labels).long()
        return _in_memory(images, labels, [str(digit) for digit in range(10)])
    images = rearrange(torch.from_numpy(found.data), "n h w c -> n c h w").contiguous()
    return _in_memory(images, torch.tensor(found.targets), found.classes)


def load_folder(folder: Path, img_size: int, workers: int = 4) -> ImageSet:
    """Every image in a folder and those below it, unlabelled: in one class of no name.

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
        UserError: they are none of both, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of images at {folder}: check the path")
    images = _image_folder(folder, img_size, workers)
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


def find_split(dataset: str, split: str, root: Path) -> Path:
    """The folder of a split of an image-folder dataset: `train`, or `test` or `val`, in `root`,
    `root/{dataset}` or `root/torchdata/{dataset}`.

    Raises:
        UserError: there is none.
    """
    places = [root] if dataset == "folder" else [root / dataset, root / "torchdata" / dataset, root]
    names = ["train"] if split == "train" else ["test", "val"]
    for place in places:
        for name in names:
            if (place / name).is_dir():
                return place / name
    url = SPECS[dataset].url
    raise UserError(
        f"no {' or '.join(f'{name}/' for name in names)} in {' or '.join(map(str, places))}: put one "
        f"folder of images per class there" + (f" (from {url})" if url else "")
    )


def image_classes(folder: Path) -> list[str]:
    """Names of the class folders in a split, in alphabetical order.

    Raises:
        UserError: there are fewer than two.
    """
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} class folders: put one folder of images per class there, 2 or more"
        )
    return classes


def _image_files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)


def probe_img_size(folder: Path) -> int:
    """Pixels a side for an image folder: the first image's shorter side, rounded down to a multiple of
    4, where that is small enough for a network of the CIFAR kind; otherwise 224."""
    for label in image_classes(folder):
        for path in _image_files(folder / label):
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


def _image_folder(folder: Path, img_size: int, workers: int) -> ImageSet:
    classes = image_classes(folder)
    files, labels = [], []
    for label, name in enumerate(classes):
        found = _image_files(folder / name)
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{folder} has class folders but no images in them")
    return _read_files(files, torch.tensor(labels), classes, img_size, workers)


def _read_files(
    files: list[Path], labels: Tensor, classes: Sequence[str], img_size: int, workers: int
) -> ImageSet:
    reader = _FolderReader(files, img_size, workers)
    if img_size <= IN_MEMORY_SIZE:
        return _in_memory(reader(torch.arange(len(files))), labels, classes)
    return ImageSet(reader, labels, classes)
