"""Builds networks by their names."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import sys
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree import models
from datafree.errors import UserError, did_you_mean
from datafree.networks.names import NetworkName

REASONS = 3  # why a state dict does not fit, in an error message


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
        channels: of the images; None for the network's default.
        arguments: more keyword arguments.
        pretrained: of this project's networks: start from torchvision's weights where there are any.
        fresh: whether the initial weights do not matter: the first convolution is then replaced if it takes
            other channels.

    Raises:
        UserError: there is no such network, or it cannot be built.
    """
    where = f"{flag} {name}"
    try:
        with _import_path_of(name.path) if name.kind == "file" else nullcontext():
            network = _create(name, num_classes, channels, dict(arguments or {}), pretrained)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # other people's code may raise anything
        raise UserError(f"{where} raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{where} returned a {type(network).__name__}: return a torch.nn.Module")
    if fresh and channels is not None and input_channels(network) not in (None, channels):
        _replace_first_convolution(network, channels)
    return network.float().to(memory_format=torch.channels_last)


def _create(
    name: NetworkName,
    num_classes: int | None,
    channels: int | None,
    arguments: dict[str, Any],
    pretrained: bool,
) -> Any:
    """Call what the name stands for; `arguments` go before those that the images require."""
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if name.kind == "own":
        arguments = {"num_classes": 10, **classes, **arguments}
        return models.create(name.target, pretrained=pretrained, **arguments)
    if name.kind == "timm":
        import timm

        if not timm.is_model(name.target):
            raise UserError(f"timm has no model {name.target}{did_you_mean(name.target, timm.list_models())}")
        colours = {} if channels is None else {"in_chans": channels}
        return timm.create_model(name.target, **{**classes, **colours, **arguments})
    if name.kind == "torchvision":
        return _from_torchvision(name.target, {**classes, **arguments})
    factory = _factory_of(name)
    offered = classes if channels is None else {**classes, "in_channels": channels}
    takes = inspect.signature(factory).parameters
    return factory(**{key: value for key, value in offered.items() if key in takes} | arguments)


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models as tv

    known = tv.list_models()
    if name not in known:
        raise UserError(f"torchvision has no model {name}{did_you_mean(name, known)}")
    # By default, detection and segmentation models download their backbones.
    takes = inspect.signature(tv.get_model_builder(name)).parameters
    no_weights: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in takes}
    network = tv.get_model(name, **{**no_weights, **arguments})
    weights = str(arguments.get("weights")).rpartition(".")[2]
    trained = getattr(tv.get_model_weights(name), weights, None)
    if trained is not None:  # keep what the weights were trained on where timm keeps it too
        transforms, names = trained.transforms(), {"input_size": "crop_size", "mean": "mean", "std": "std"}
        network.pretrained_cfg = {key: getattr(transforms, names[key], None) for key in names}
    return network


def _factory_of(name: NetworkName) -> Any:
    """The function or class of a file, which is run."""
    path, factory = name.path, name.target
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"there is no Python file {path}; check the path")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"_network_{path.stem}_{digest}", path)
    assert spec is not None  # it is a Python file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, for one, look their module up there
    spec.loader.exec_module(module)
    function = getattr(module, factory, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{path} has no function or class {factory}{did_you_mean(factory, names)}")
    return function


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


def build_with_weights(
    state: Mapping[str, Tensor],
    file: Path,
    name: NetworkName,
    flag: str,
    num_classes: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network with the weights of a state dict from a file; see `build`. Names of this project that
    stand for several layouts mean the one with such keys.

    Raises:
        UserError: it cannot be built, or keys or shapes differ; the first that do are named.
    """
    found = models.arguments_of(name.target, state) if name.kind == "own" else {}
    network = build(name, flag, num_classes, channels, {**found, **(arguments or {})})
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip(" .\t")[:200] for line in str(error).splitlines()[1:]]
        of = "" if num_classes is None else f" with {num_classes} classes"
        raise UserError(
            f"{file} is not a checkpoint of {name}{of}: {'; '.join(reasons[:REASONS])}; "
            "check the architecture's name and the number of classes"
        ) from error
    return network


def source_of(name: NetworkName) -> str | None:
    """The text of the network's file, if it has one."""
    if name.kind != "file":
        return None
    with tokenize.open(name.path) as file:
        return file.read()
