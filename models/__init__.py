"""Networks by the names the field knows them by: `create("wrn16_1", num_classes=10)`.

The names can be listed without importing torch; a network's module is imported when it is created.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_FAMILIES = {
    "resnet": ("resnet18", "resnet34", "resnet50"),
    "vgg": ("vgg8", "vgg11", "vgg13"),
    "wide_resnet": ("wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2"),
    "mobilenetv2": ("mobilenetv2",),
    "shufflenetv2": ("shufflenetv2",),
    "cifar_resnet": (
        *("resnet8x4", "resnet32x4", "resnet8", "resnet14", "resnet20"),
        *("resnet32", "resnet44", "resnet56", "resnet110"),
    ),
    "imagenet": ("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet"),
}

MODULE_OF = {name: module for module, names in _FAMILIES.items() for name in names}
NAMES = tuple(MODULE_OF)


def create(name: str, num_classes: int, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A freshly initialised network (torch's global random state) that maps images (N, 3, H, W) to
    logits (N, num_classes).

    Args:
        name: one of `NAMES`.
        num_classes: number of outputs.
        pretrained: start from torchvision's ImageNet weights where there are any: the `*_imagenet`
            networks, all layers but the classifier when `num_classes` is not 1,000.
        arguments: of the network's function: `projection=True` for `resnet8 .. resnet110`.

    Raises:
        KeyError: no network has this name.
        TypeError: the network takes no such arguments.
        ValueError: `pretrained` asked of a network that has no published weights.
    """
    factory = getattr(import_module(f"{__name__}.{MODULE_OF[name]}"), name)
    if not pretrained:
        return factory(num_classes, **arguments)
    if MODULE_OF[name] != "imagenet":
        raise ValueError(f"there are no ImageNet weights for {name}")
    return factory(num_classes, pretrained=True, **arguments)


def arguments_of(name: str, keys: Iterable[str]) -> dict[str, Any]:
    """The arguments of `create` with which a network's state dict has such keys, where one name stands for
    several layouts."""
    find = getattr(import_module(f"{__name__}.{MODULE_OF[name]}"), "arguments_of", None)
    return find(name, keys) if find else {}
