"""CIFAR-10, CIFAR-100, SVHN and the MNISTs, from the files that their authors publish. Only the files of the
requested split are read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from scipy.io import loadmat
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from datafree.data.datasets import SPECS
from datafree.data.image_set import ImageSet, in_memory
from datafree.errors import UserError

ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("numpy.core.numeric", "_frombuffer"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no data")


def _cifar(source: type[datasets.CIFAR10], root: Path, split: str) -> ImageSet:
    def load(name: str) -> dict[str, Any]:
        with open(root / source.base_folder / name, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()

    parts = [load(name) for name, _ in (source.train_list if split == "train" else source.test_list)]
    images = torch.from_numpy(np.concatenate([part["data"] for part in parts])).view(-1, 3, 32, 32)
    labels = [label for part in parts for label in part.get("labels") or part["fine_labels"]]
    return in_memory(images, torch.tensor(labels), load(source.meta["filename"])[source.meta["key"]])


def _mnist(source: type[datasets.MNIST], root: Path, split: str) -> ImageSet:
    raw, prefix = root / source.__name__ / "raw", "train" if split == "train" else "t10k"
    grey = read_image_file(str(raw / f"{prefix}-images-idx3-ubyte"))
    labels = read_label_file(str(raw / f"{prefix}-labels-idx1-ubyte"))
    return in_memory(repeat(grey, "n h w -> n c h w", c=3), labels, source.classes)


def _svhn(_source: type[datasets.SVHN], root: Path, split: str) -> ImageSet:
    with open(root / f"{split}_32x32.mat", "rb") as file:
        content = loadmat(file)
    images = torch.from_numpy(content["X"].transpose(3, 2, 0, 1))
    labels = torch.from_numpy(content["y"].ravel().astype(np.int64)) % 10  # 10 stands for the digit 0
    return in_memory(images, labels, [str(digit) for digit in range(10)])


SOURCES: dict[str, tuple[Callable[..., ImageSet], Any]] = {
    "cifar10": (_cifar, datasets.CIFAR10),
    "cifar100": (_cifar, datasets.CIFAR100),
    "mnist": (_mnist, datasets.MNIST),
    "fashion_mnist": (_mnist, datasets.FashionMNIST),
    "svhn": (_svhn, datasets.SVHN),
}


def read(dataset: str, split: str, root: Path, download: bool) -> ImageSet:
    """A dataset from `root` or `root/torchdata`; grey images become RGB.

    Raises:
        UserError: the files are absent or damaged, or the download fails.
    """
    reader, source = SOURCES[dataset]
    for place in (root, root / "torchdata"):
        try:
            return reader(source, place, split)
        except FileNotFoundError:
            continue
        except Exception as error:
            raise UserError(
                f"{dataset} in {place} cannot be read ({error}): put the original files there again"
            ) from error
    if not download:
        spec = SPECS[dataset]
        raise UserError(
            f"no {dataset} in {root} or {root / 'torchdata'}: put {spec.files} there "
            f"(from {spec.url}), or add --download"
        )
    which = {"split": split} if dataset == "svhn" else {"train": split == "train"}
    try:
        source(root=str(root), download=True, **which)  # compares checksums
    except (OSError, RuntimeError) as error:
        raise UserError(f"{dataset} could not be downloaded: {error}") from error
    return reader(source, root, split)
