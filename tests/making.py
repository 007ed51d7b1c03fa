"""Small things that tests are made of."""

import torch

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
