"""Networks made by their names."""

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
from datafree.networks.check import first_convolution, input_channels
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
    """A network by its name.

    Args:
        name: the function or class of a file is called with `arguments`, and with `num_classes` and
            `in_channels` where it takes them.
        flag: what named it, for error messages.
        num_classes: outputs; None leaves them to the network.
        channels: of the images; None leaves them to the network. One that takes no such argument, and others,
            is given a new first convolution.
        arguments: more keyword arguments.
        pretrained: of this project's: start from torchvision's weights where there are any.
        fresh: whether its initial weights do not matter, so that a convolution may be replaced.

    Raises:
        UserError: there is no such network, or it cannot be made, or not for so many channels.
    """
    arguments = dict(arguments or {})
    if name.kind == "own":
        try:
            network = models.create(name.target, num_classes or 10, pretrained, **arguments)
        except TypeError as error:
            raise UserError(f"{flag} {name} takes no such {flag}_args: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"--pretrained: {error}") from error
    elif name.kind == "timm":
        network = _from_timm(name.target, flag, num_classes, channels, arguments)
    elif name.kind == "torchvision":
        network = _from_torchvision(name.target, flag, num_classes, arguments)
    else:
        network = _from_file(name.path, name.target, flag, num_classes, channels, arguments)
    takes = input_channels(network)
    if channels is not None and takes is not None and channels != takes:
        if not fresh:
            raise UserError(f"{flag} {name} takes images of {takes} channels, not {channels}: see --channels")
        _replace_first_convolution(network, channels)
    return network.float().to(memory_format=torch.channels_last)


def _from_timm(
    name: str, flag: str, num_classes: int | None, channels: int | None, arguments: dict[str, Any]
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{flag} timm:{name} needs a package that is missing: pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name}{did_you_mean(name, timm.list_models())}")
    given = {**_known(num_classes=num_classes, in_chans=channels), **arguments}
    return _called(lambda: timm.create_model(name, **given), f"{flag} timm:{name}")


def _from_torchvision(name: str, flag: str, num_classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models as tv

    known = tv.list_models()
    if name not in known:
        raise UserError(f"torchvision has no model {name}{did_you_mean(name, known)}")
    # Detection and segmentation models fetch their backbones unless they are told not to.
    takes = inspect.signature(tv.get_model_builder(name)).parameters
    unfetched: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in takes}
    given = {**unfetched, **_known(num_classes=num_classes), **arguments}
    network = _called(lambda: tv.get_model(name, **given), f"{flag} torchvision:{name}")
    if given.get("weights") is not None:  # which know what they were trained on
        weights = given["weights"]
        trained = getattr(tv.get_model_weights(name), str(weights).rpartition(".")[2], None)
        wants = trained and trained.transforms()
        size = getattr(wants, "crop_size", [None])[0]
        network.pretrained_cfg = {
            "input_size": size and (3, size, size),
            "mean": getattr(wants, "mean", None),
            "std": getattr(wants, "std", None),
        }
    return network


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _from_file(
    path: Path,
    factory: str,
    flag: str,
    num_classes: int | None,
    channels: int | None,
    arguments: dict[str, Any],
) -> nn.Module:
    where = f"{flag} {path}:{factory}"
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{where}: there is no Python file {path}; check the path")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"_network_{path.stem}_{digest}", path)
    assert spec is not None  # the file is there, and is Python's
    assert spec.loader is not None
    execute = spec.loader.exec_module
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, for one, look their module up
    with _beside(path):
        _called(lambda: execute(module), f"{flag} {path}")
    function = getattr(module, factory, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where}: the file has no function or class {factory}{did_you_mean(factory, names)}")
    try:
        takes = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        takes = set()
    offered = _known(num_classes=num_classes, in_channels=channels)
    given = {**{key: value for key, value in offered.items() if key in takes}, **arguments}
    with _beside(path):
        network = _called(lambda: function(**given), where)
    if not isinstance(network, nn.Module):
        raise UserError(f"{where} returned a {type(network).__name__}: return a torch.nn.Module")
    return network


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Inside the block, a file may import those beside it, as when it is run. A checkout of this project,
    which scripts have on the path, has a folder `models` that is not the file's: it is left out."""
    folder, checkout = path.resolve().parent, Path(models.__file__).resolve().parent.parent
    before, loaded = list(sys.path), set(sys.modules)
    sys.path[:] = [str(folder), *(place for place in before if Path(place).resolve() != checkout)]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - loaded:  # another file may have neighbours of the same names
            places = Path(getattr(sys.modules[name], "__file__", None) or "/").resolve().parents
            if folder in places and Path(sys.prefix).resolve() not in places:  # not those that are installed
                del sys.modules[name]


def _called(function: Callable[[], Any], where: str) -> Any:
    """What foreign code returns; whatever it raises becomes one line."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} raised {type(error).__name__}: {error}") from error


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Give a network a new first convolution, for images of so many channels."""
    name, old = first_convolution(network)
    assert old is not None  # which told the channels
    parent, _, leaf = name.rpartition(".")
    fresh = copy.deepcopy(old)
    fresh.in_channels = channels
    fresh.weight = nn.Parameter(old.weight.new_empty(old.out_channels, channels, *old.kernel_size))
    fresh.reset_parameters()
    setattr(network.get_submodule(parent), leaf, fresh)


def arguments_of(name: NetworkName, keys: Iterable[str]) -> dict[str, Any]:
    """The arguments of a network whose state dict has such keys, where its name stands for several."""
    return models.arguments_of(name.target, keys) if name.kind == "own" else {}


def source_of(name: NetworkName) -> str | None:
    """The text of the file that makes a network, if one does."""
    if name.kind != "file":
        return None
    with tokenize.open(name.path) as file:
        return file.read()
