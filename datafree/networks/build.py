"""Builds networks by their names."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree import models
from datafree.errors import UserError, did_you_mean
from datafree.networks.names import NetworkName


def build(
    name: NetworkName,
    flag: str,
    num_classes: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    fresh: bool = True,
) -> nn.Module:
    """Build a network by its name.

    Args:
        name: the function or class of a file is called with `arguments`, and with `num_classes` and
            `in_channels` if it has such parameters.
        flag: the flag that named it, for error messages.
        num_classes: outputs; None for the network's default.
        channels: of the images; None for the network's default. If the network takes other images, its first
            convolution is replaced.
        arguments: more keyword arguments.
        pretrained: of this project's networks: start from torchvision's weights where there are any.
        fresh: whether the initial weights do not matter, so that a convolution may be replaced.

    Raises:
        UserError: there is no such network, or it cannot be built, or not for these channels.
    """
    arguments = dict(arguments or {})
    where = f"{flag} {name}"
    if name.kind == "own":
        try:
            network = models.create(name.target, num_classes or 10, pretrained, **arguments)
        except TypeError as error:
            raise UserError(f"{where} takes no such {flag}_args: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"--pretrained: {error}") from error
    elif name.kind == "timm":
        given = {**_known(num_classes=num_classes, in_chans=channels), **arguments}
        network = _from_timm(name.target, where, given)
    elif name.kind == "torchvision":
        network = _from_torchvision(name.target, where, {**_known(num_classes=num_classes), **arguments})
    else:
        network = _from_file(name.path, name.target, where, num_classes, channels, arguments)
    takes = input_channels(network)
    if channels is not None and takes is not None and channels != takes:
        if not fresh:
            raise UserError(f"{where} takes images of {takes} channels, not {channels}: see --channels")
        _replace_first_convolution(network, channels)
    return network.float().to(memory_format=torch.channels_last)


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _from_timm(name: str, where: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{where} needs a package that is missing: pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name}{did_you_mean(name, timm.list_models())}")
    return _called(lambda: timm.create_model(name, **arguments), where)


def _from_torchvision(name: str, where: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models as tv

    known = tv.list_models()
    if name not in known:
        raise UserError(f"torchvision has no model {name}{did_you_mean(name, known)}")
    # By default, detection and segmentation models download their backbones.
    takes = inspect.signature(tv.get_model_builder(name)).parameters
    no_weights: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in takes}
    arguments = {**no_weights, **arguments}
    network = _called(lambda: tv.get_model(name, **arguments), where)
    weights = str(arguments.get("weights")).rpartition(".")[2]
    trained = getattr(tv.get_model_weights(name), weights, None)
    if trained is not None:  # keep what the weights were trained on where timm keeps it too
        transforms = trained.transforms()
        size = getattr(transforms, "crop_size", [None])[0]
        network.pretrained_cfg = {
            "input_size": size and (3, size, size),
            "mean": getattr(transforms, "mean", None),
            "std": getattr(transforms, "std", None),
        }
    return network


def _from_file(
    path: Path,
    factory: str,
    where: str,
    num_classes: int | None,
    channels: int | None,
    arguments: dict[str, Any],
) -> nn.Module:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{where}: there is no Python file {path}; check the path")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"_network_{path.stem}_{digest}", path)
    assert spec is not None  # it is a Python file
    assert spec.loader is not None
    execute = spec.loader.exec_module
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, for one, look their module up there
    with _import_path_of(path):
        _called(lambda: execute(module), where)
        function = getattr(module, factory, None)
        if not callable(function):
            names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
            hint = did_you_mean(factory, names)
            raise UserError(f"{where}: the file has no function or class {factory}{hint}")
        try:
            takes = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            takes = set()
        offered = _known(num_classes=num_classes, in_channels=channels)
        given = {**{key: value for key, value in offered.items() if key in takes}, **arguments}
        network = _called(lambda: function(**given), where)
    if not isinstance(network, nn.Module):
        raise UserError(f"{where} returned a {type(network).__name__}: return a torch.nn.Module")
    return network


@contextmanager
def _import_path_of(path: Path) -> Iterator[None]:
    """Inside the block, a file may import modules from its own folder, as when it is run: even one named
    `models`, so this project's own checkout leaves the path."""
    folder, checkout = path.resolve().parent, Path(models.__file__).resolve().parent.parent
    before, loaded = list(sys.path), set(sys.modules)
    sys.path[:] = [str(folder), *(place for place in before if Path(place).resolve() != checkout)]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - loaded:  # another file may have neighbours with these names
            places = Path(getattr(sys.modules[name], "__file__", None) or "/").resolve().parents
            if folder in places and Path(sys.prefix).resolve() not in places:  # not installed packages
                del sys.modules[name]


def _called(function: Callable[[], Any], where: str) -> Any:
    """Call other people's code; whatever it raises becomes one line."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} raised {type(error).__name__}: {error}") from error


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first convolution in the order of the modules, if it takes images, and its name."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer if layer.in_channels in (1, 3) and layer.groups == 1 else None
    return "", None


def input_channels(network: nn.Module) -> int | None:
    """The channels of the images that a network's first convolution takes; None if there is no such layer."""
    convolution = _first_convolution(network)[1]
    return convolution.in_channels if convolution else None


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    name, old = _first_convolution(network)
    assert old is not None  # `input_channels` found it
    parent, _, leaf = name.rpartition(".")
    new = copy.deepcopy(old)
    new.in_channels = channels
    new.weight = nn.Parameter(old.weight.new_empty(old.out_channels, channels, *old.kernel_size))
    new.reset_parameters()
    setattr(network.get_submodule(parent), leaf, new)


def arguments_of(name: NetworkName, keys: Iterable[str]) -> dict[str, Any]:
    """The arguments of a network whose state dict has such keys, if its name stands for several layouts."""
    return models.arguments_of(name.target, keys) if name.kind == "own" else {}


def source_of(name: NetworkName) -> str | None:
    """The text of the network's file, if it has one."""
    if name.kind != "file":
        return None
    with tokenize.open(name.path) as file:
        return file.read()
