"""The datasets: what is known before an image is read. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]

NORMALIZATIONS: dict[str, MeanStd] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": ((0.312, 0.312, 0.312), (0.356, 0.356, 0.356)),
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "fashion_mnist": ((0.2860,) * 3, (0.3530,) * 3),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset.

    Args:
        num_classes, img_size: None if they depend on the images.
        normalization: a key of `NORMALIZATIONS`.
        reader: the function that reads a split, `module:function` in `datafree.data`. Empty for folders of
            images.
        flip: whether a mirrored image still belongs to its class.
        files, url: which files to put where, for the error message if they are missing.
        folders: of image folders: names that the dataset's folder may have; its own name by default.
        test: of image folders: names of the test split; the first that exists is used.
    """

    num_classes: int | None
    img_size: int | None
    normalization: str
    reader: str = ""
    flip: bool = True
    files: str = ""
    url: str = ""
    folders: tuple[str, ...] = ()
    test: tuple[str, ...] = ("test", "val")


_TORCHVISION = "torchvision_sets:read"
_CIFAR, _MNIST = "https://www.cs.toronto.edu/~kriz", "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION, _SVHN = (
    "https://github.com/zalandoresearch/fashion-mnist",
    "http://ufldl.stanford.edu/housenumbers/",
)
SPECS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(10, 32, "digits", "load:read_digits", flip=False),
    "cifar10": DatasetSpec(
        10, 32, "cifar10", _TORCHVISION, files="cifar-10-batches-py/", url=f"{_CIFAR}/cifar-10-python.tar.gz"
    ),
    "cifar100": DatasetSpec(
        100, 32, "cifar100", _TORCHVISION, files="cifar-100-python/", url=f"{_CIFAR}/cifar-100-python.tar.gz"
    ),
    # Normalised as by the published teachers; `--mean svhn` for the real statistics.
    "svhn": DatasetSpec(
        10, 32, "half", _TORCHVISION, flip=False, files="train_32x32.mat and test_32x32.mat", url=_SVHN
    ),
    "mnist": DatasetSpec(10, 28, "mnist", _TORCHVISION, flip=False, files="MNIST/raw/", url=_MNIST),
    "fashion_mnist": DatasetSpec(
        10, 28, "fashion_mnist", _TORCHVISION, files="FashionMNIST/raw/", url=_FASHION
    ),
    "tiny_imagenet": DatasetSpec(
        200,
        64,
        "imagenet",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        folders=("tiny-imagenet-200", "tiny_imagenet"),
        test=("val",),  # the images in its `test` have no labels
    ),
    "imagenet": DatasetSpec(1000, 224, "imagenet", url="https://image-net.org", test=("val",)),
    "imagenette2": DatasetSpec(10, 224, "imagenet", url="https://github.com/fastai/imagenette"),
    "imagenet100": DatasetSpec(
        100, 224, "imagenet", url="https://www.kaggle.com/datasets/ambityga/imagenet100"
    ),
    "folder": DatasetSpec(None, None, "imagenet"),
}
