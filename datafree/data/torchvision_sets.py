"""CIFAR-10, CIFAR-100, SVHN and the MNISTs, read by torchvision from the files that their authors publish."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from einops import rearrange, repeat

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


class _PlainUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")


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


class _MNIST(torchvision.datasets.MNIST):
    """Checks for the files of its own split only, and reads no other than those that are published."""

    folder = "MNIST"

    @property
    def raw_folder(self) -> str:
        return str(Path(self.root) / self.folder / "raw")

    def _check_exists(self) -> bool:
        split = "train" if self.train else "t10k"
        files = (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
        return all((Path(self.raw_folder) / file).is_file() for file in files)

    def _check_legacy_exist(self) -> bool:
        return False


class _FashionMNIST(_MNIST):
    mirrors = torchvision.datasets.FashionMNIST.mirrors
    resources = torchvision.datasets.FashionMNIST.resources
    classes = torchvision.datasets.FashionMNIST.classes
    folder = "FashionMNIST"


_BY_SPLIT: dict[str, Any] = {
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    "mnist": _MNIST,
    "fashion_mnist": _FashionMNIST,
}


def read(dataset: str, split: str, root: Path, download: bool) -> ImageSet:
    """A dataset from `root` or `root/torchdata`; grey images become RGB."""
    factory: Any
    if dataset == "svhn":
        factory = partial(_SVHN, split=split)
    else:
        factory = partial(_BY_SPLIT[dataset], train=split == "train")
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
        return in_memory(images, labels, [str(digit) for digit in range(10)])
    if dataset.endswith("mnist"):
        grey = repeat(found.data, "n h w -> n c h w", c=3)
        return in_memory(grey, found.targets.long(), found.classes)
    images = rearrange(torch.from_numpy(found.data), "n h w c -> n c h w").contiguous()
    return in_memory(images, torch.tensor(found.targets), found.classes)
