"""Small things that tests are made of."""

import torch
from torch import nn

from datafree.cli.bsr import build_parser
from datafree.data.pixels import to_uint8
from datafree.networks.names import NetworkName
from datafree.samples import Samples
from datafree.settings import Settings, resolve


def flags(*words: object) -> Settings:
    """The settings that `bsr_main.py` has with these flags."""
    return resolve(build_parser().given([str(word) for word in words]))[0]


def named(text: str) -> NetworkName:
    return NetworkName.parse(text)


def samples(images, labels, features, margins=None) -> Samples:
    """Samples of images in [0, 1] or uint8."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    margins = torch.zeros(len(labels)) if margins is None else margins
    return Samples(images, labels, features, margins, (1 + margins) / 2)


def small(seed, width=8, classes=4):
    """A network of one convolution, with dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


# The shortest distillation.
FEW = {
    **{"img_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    **{"epochs": 3, "warmup": 1, "kd_steps": 2, "ep_steps": 2, "batch_size": 16, "g_steps": 2, "lr": 0.01},
}
