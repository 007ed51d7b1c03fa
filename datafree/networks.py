"""Networks by what the user calls them: a name of this project, `timm:NAME`, `torchvision:NAME`, or
`path/to/file.py:factory`; and what there is to know of a network before it is used."""

from __future__ import annotations

import importlib.util
import inspect
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
from datafree.errors import UserError, did_you_mean


def parse_arguments(text: str | None, flag: str) -> dict[str, Any]:
    """`{"width": 2, "act": "gelu"}` from `width=2,act=gelu`.

    Raises:
        UserError: a part has no `=`.
    """
    arguments: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"{flag} {text}: {part!r} is not name=value")
        try:
            arguments[name.strip()] = literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[name.strip()] = value.strip()
    return arguments


def build(
    name: str, flag: str, num_classes: int | None = None, channels: int = 3,
    arguments: Mapping[str, Any] | None = None, pretrained: bool = False,
) -> nn.Module:
    """A network by its name.

    Args:
        name: see the top of this module. Of a file, the function or class is called with `arguments`, and
            with `num_classes` and `in_channels` where it takes them.
        flag: what named it, for error messages.
        num_classes: outputs; None leaves them to the network.
        channels: of the images; a network made for 3 is given a new first convolution for another number.
        arguments: more keyword arguments, for networks that are not this project's.
        pretrained: of this project's: start from torchvision's weights where there are any.

    Raises:
        UserError: there is no such network, or it cannot be made.
    """
    source, _, what = name.rpartition(":")
    arguments = dict(arguments or {})
    if not source:
        if arguments:
            raise UserError(f"{flag} {name} takes no {flag}_args: it is one of this project's networks")
        try:
            network = models.create(name, num_classes or 10, pretrained)
        except KeyError as error:
            raise UserError(f"unknown network {name}{did_you_mean(name, models.NAMES)}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"--pretrained: {error}") from error
    elif source == "timm":
        network = _from_timm(what, flag, num_classes, channels, arguments)
    elif source == "torchvision":
        network = _from_torchvision(what, flag, num_classes, arguments)
    else:
        network = _from_file(Path(source), what, flag, num_classes, channels, arguments)
    return _for_channels(network, channels).to(memory_format=torch.channels_last)


def _from_timm(
    name: str, flag: str, num_classes: int | None, channels: int, arguments: dict[str, Any]
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{flag} timm:{name} needs a package that is missing: pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name}{did_you_mean(name, timm.list_models())}")
    given = {"in_chans": channels, **arguments}
    if num_classes is not None:
        given.setdefault("num_classes", num_classes)
    return _called(lambda: timm.create_model(name, **given), f"{flag} timm:{name}")


def _from_torchvision(name: str, flag: str, num_classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models as tv

    known = tv.list_models()
    if name not in known:
        raise UserError(f"torchvision has no model {name}{did_you_mean(name, known)}")
    given = {**({} if num_classes is None else {"num_classes": num_classes}), **arguments}
    return _called(lambda: tv.get_model(name, **{"weights": None, **given}), f"{flag} torchvision:{name}")


def _from_file(
    path: Path, factory: str, flag: str, num_classes: int | None, channels: int, arguments: dict[str, Any]
) -> nn.Module:
    where = f"{flag} {path}:{factory}"
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{where}: there is no Python file {path}; check the path")
    spec = importlib.util.spec_from_file_location(f"_network_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    _called(lambda: spec.loader.exec_module(module), f"{flag} {path}")
    function = getattr(module, factory, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where}: the file has no function or class {factory}{did_you_mean(factory, names)}")
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes = {}
    offered = {"in_channels": channels, **({} if num_classes is None else {"num_classes": num_classes})}
    given = {**{key: value for key, value in offered.items() if key in takes}, **arguments}
    network = _called(lambda: function(**given), where)
    if not isinstance(network, nn.Module):
        raise UserError(f"{where} returned a {type(network).__name__}: return a torch.nn.Module")
    return network


def _called(function: Any, where: str) -> Any:
    """What foreign code returns; whatever it raises becomes one line."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} raised {type(error).__name__}: {error}") from error


def _for_channels(network: nn.Module, channels: int) -> nn.Module:
    """The network with a new first convolution where it is made for 3 channels and `channels` are others."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d):
                if layer.in_channels == 3 != channels:
                    fresh = nn.Conv2d(
                        channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                        layer.dilation, 1, layer.bias is not None, layer.padding_mode,
                    )  # fmt: skip
                    setattr(parent, name, fresh)
                return network
    return network


def input_channels(network: nn.Module) -> int:
    """Of the images that a network takes: those of its first convolution; 3 of one that has none."""
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return convolutions[0].in_channels if convolutions else 3


def own_settings(network: nn.Module) -> dict[str, Any]:
    """Image size, mean and standard deviation that a network says it wants (timm's do)."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not isinstance(config, Mapping):
        return {}
    found: dict[str, Any] = {}
    size = config.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3:
        found["img_size"] = int(size[-1])
    for name in ("mean", "std"):
        values = config.get(name)
        if isinstance(values, (list, tuple)) and values:
            found[name] = tuple(float(value) for value in values)
    return found


@dataclass(frozen=True)
class NetworkFacts:
    """What one forward pass shows of a network."""

    num_classes: int
    bn_layers: int  # BatchNorm2d layers with statistics
    parameters: int
    flops: int  # of one image: multiplications and additions
    feature_dim: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e6:,.0f} MFLOPs an image, "
            f"{self.bn_layers} BatchNorm layers with statistics, {self.feature_dim} features, "
            f"{self.num_classes} classes"
        )


@torch.no_grad()
def examine(
    network: nn.Module, name: str, channels: int, img_size: int, device: torch.device,
    feature_layer: str | None = None,
) -> NetworkFacts:
    """Run a network on two images, and see that it gives logits and has features.

    Args:
        network: on the device.
        name: for error messages.
        feature_layer: see `penultimate.find_layer`.

    Raises:
        UserError: it does not take such images, or gives something else than logits (N, C).
    """
    from datafree.penultimate import PenultimateFeatures

    training = network.training
    network.eval()
    images = torch.rand(2, channels, img_size, img_size, device=device)
    shape = f"{channels} x {img_size} x {img_size}"
    try:
        features = PenultimateFeatures(network, feature_layer, images)
        with FlopCounterMode(display=False) as counter, features.capture():
            logits = network(images)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:
        raise UserError(f"{name} cannot take images of {shape}: {type(error).__name__}: {error}") from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{name} gives {got} for 2 images of {shape}: it must give logits (2, classes)")
    statistics = [
        layer for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    ]  # fmt: skip
    return NetworkFacts(
        logits.shape[1], len(statistics), sum(p.numel() for p in network.parameters()),
        counter.get_total_flops() // 2, features.dim,
    )  # fmt: skip
