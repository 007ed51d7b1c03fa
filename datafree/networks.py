"""Networks by what the user calls them: a name of this project, `timm:NAME`, `torchvision:NAME`, or
`path/to/file.py:factory`; and what there is to know of a network before it is used."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import sys
import tokenize
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

import models
from datafree import checkpoint
from datafree.errors import UserError, did_you_mean
from datafree.flags import is_foreign, of_file

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384)  # pixels, tried where a network does not tell
OF_WEIGHTS = (
    "pretrained",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights",
    "weights_backbone",
)  # arguments that say where weights come from
NO_STATISTICS = (
    "the teacher has no BatchNorm2d statistics to match, so the weight bn has no effect: samples will be "
    "less like what it was trained on, and the student weaker"
)


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
    name: str,
    flag: str,
    num_classes: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    fresh: bool = True,
) -> nn.Module:
    """A network by its name.

    Args:
        name: see the top of this module. Of a file, the function or class is called with `arguments`, and
            with `num_classes` and `in_channels` where it takes them.
        flag: what named it, for error messages.
        num_classes: outputs; None leaves them to the network.
        channels: of the images; None leaves them to the network. One that takes no such argument, and others,
            is given a new first convolution.
        arguments: more keyword arguments, for networks that are not this project's.
        pretrained: of this project's: start from torchvision's weights where there are any.
        fresh: whether its first weights are of no worth, so that a convolution may be replaced.

    Raises:
        UserError: there is no such network, or it cannot be made, or not for so many channels.
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
    takes = input_channels(network)
    if None not in (channels, takes) and channels != takes:
        if not fresh:
            raise UserError(f"{flag} {name} takes images of {takes} channels, not {channels}: see --channels")
        _replace_first_convolution(network, channels)
    return network.to(memory_format=torch.channels_last)


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
    given = {"weights": None, **_known(num_classes=num_classes), **arguments}
    network = _called(lambda: tv.get_model(name, **given), f"{flag} torchvision:{name}")
    if given["weights"] is not None:  # which know what they were trained on
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
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, for one, look their module up
    with _beside(path):
        _called(lambda: spec.loader.exec_module(module), f"{flag} {path}")
    function = getattr(module, factory, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where}: the file has no function or class {factory}{did_you_mean(factory, names)}")
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes = {}
    offered = _known(num_classes=num_classes, in_channels=channels)
    given = {**{key: value for key, value in offered.items() if key in takes}, **arguments}
    with _beside(path):
        network = _called(lambda: function(**given), where)
    if not isinstance(network, nn.Module):
        raise UserError(f"{where} returned a {type(network).__name__}: return a torch.nn.Module")
    return network


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Inside the block, a file may import those beside it, its own `models` included, as when it is run."""
    folder, ours = path.resolve().parent, Path(models.__file__).resolve().parent.parent
    own = folder != ours and any((folder / name).exists() for name in ("models", "models.py"))
    hidden = {name: sys.modules.pop(name) for name in _models_loaded()} if own else {}
    before, loaded = list(sys.path), set(sys.modules)
    sys.path[:] = [str(folder), *(place for place in before if not own or Path(place).resolve() != ours)]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - loaded:  # another file may have neighbours of the same names
            places = Path(getattr(sys.modules[name], "__file__", None) or "/").resolve().parents
            if folder in places and Path(sys.prefix).resolve() not in places:  # not those that are installed
                del sys.modules[name]
        sys.modules.update(hidden)


def _models_loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "models"]


def source_of(name: str) -> str | None:
    """The text of the file that makes a network, if one does."""
    if not of_file(name):
        return None
    with tokenize.open(name.rpartition(":")[0]) as file:
        return file.read()


def rebuild(path: str | Path, source: str | None = None) -> nn.Module:
    """The student in a `student.pth`, in eval mode on the CPU.

    Args:
        path: the checkpoint, which holds what is needed.
        source: `file.py:factory` of a student that is made by a file. The one that the checkpoint names is
            not run unasked; it has the file's text as `arch_source`.

    Raises:
        UserError: it is damaged or incomplete, or of another network, or needs a `source`.
    """
    path = Path(path)
    content = checkpoint.read(path)
    try:
        arch, classes, channels = content["arch"], len(content["classes"]), len(content["mean"])
        arguments = parse_arguments(content.get("arch_args"), "--student_args")
        if not isinstance(arch, str) or not (arch in models.NAMES or is_foreign(arch)):
            raise ValueError(f"no network is called {arch}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not say how to rebuild its network ({error!r})") from error
    if source is None and of_file(arch):
        raise UserError(
            f"{path} is of a file's network, which is not run unasked: add --student {arch} (source=...)"
        )
    if source is None:
        arguments = without_weights(arguments)
    network = build(source or arch, "--student", classes, channels, arguments)
    checkpoint.load_network(
        network, checkpoint.state_dict_of(content, path), path, f"{arch} with {classes} classes"
    )
    return network.to(memory_format=torch.contiguous_format).eval()


def without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a network that is only to be rebuilt: nothing is fetched or read for it."""
    return {name: value for name, value in arguments.items() if name not in OF_WEIGHTS}


def _called(function: Any, where: str) -> Any:
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
    parent, _, leaf = name.rpartition(".")
    fresh = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        old.dilation,
        1,
        old.bias is not None,
        old.padding_mode,
    )
    setattr(network.get_submodule(parent), leaf, fresh)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first one in the order of the modules, if it is one that images go into; its name."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer if layer.in_channels in (1, 3) and layer.groups == 1 else None
    return "", None


def input_channels(network: nn.Module) -> int | None:
    """Of the images that a network takes, if its first convolution tells."""
    convolution = first_convolution(network)[1]
    return convolution and convolution.in_channels


def probe_input(
    network: nn.Module, channels: int | None, img_size: int | None, device: torch.device
) -> tuple[int, int | None]:
    """Channels and size of the images that a network takes, where they are not known: by trying.

    Args:
        network: in eval mode, on the device.
        channels: None if not known; then those of its first convolution, else 3 or 1.
        img_size: None if not known; then the one of SIZES that works, if it is one alone.

    Returns:
        Channels; size, None if several work or none does.
    """
    channels = channels or input_channels(network)
    if channels and img_size:
        return channels, img_size
    works: list[tuple[int, int]] = []
    for count in (channels,) if channels else (3, 1):
        for size in (img_size,) if img_size else SIZES:
            images = torch.zeros(1, count, size, size, device=device)
            with torch.no_grad(), suppress(Exception):
                settle_layout(network, images)
                network(images)
                works.append((count, size))
            if len(works) == 2:
                return works[0][0], img_size
    if not works:
        return channels or 3, img_size
    return works[0]


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
    feature_dim: int | None  # None where they were not looked for
    hook: RemovableHandle | None = None  # of a network that takes no channels-last images

    def __str__(self) -> str:
        features = "" if self.feature_dim is None else f"{self.feature_dim} features, "
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e6:,.0f} MFLOPs an image, "
            f"{self.bn_layers} BatchNorm2d layers with statistics, {features}{self.num_classes} classes"
        )


def settle_layout(network: nn.Module, images: Tensor) -> RemovableHandle | None:
    """Channels-last images are the faster ones, but a network may rely on plain ones (`x.view` after a
    convolution does). If it does, a hook makes them plain from now on, and is returned.

    Args:
        network: in eval mode.
        images: such as it takes, channels-last.
    """
    try:
        with torch.no_grad():
            network(images)
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        network.to(memory_format=torch.contiguous_format)
        return network.register_forward_pre_hook(
            lambda _network, inputs: tuple(value.contiguous() for value in inputs)
        )
    return None


@torch.no_grad()
def examine(
    network: nn.Module,
    name: str,
    channels: int,
    img_size: int,
    device: torch.device,
    feature_layer: str | None = None,
    trained: bool = False,
) -> NetworkFacts:
    """Run a network on two images, and see that it gives logits and, if it is a teacher, has features.

    Args:
        network: on the device.
        name: for error messages.
        feature_layer: see `penultimate.find_layer`.
        trained: whether it is the student, which must give logits in train mode too, and needs no features.

    Raises:
        UserError: it does not take such images, or gives something else than logits (N, C).
    """
    from datafree.penultimate import PenultimateFeatures

    training = network.training
    network.eval()
    images = torch.rand(2, channels, img_size, img_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    shape = f"{channels} x {img_size} x {img_size}"
    hook, dim = None, None
    try:
        hook = settle_layout(network, images)
        with FlopCounterMode(display=False) as counter:
            logits = network(images)
        outputs = [(logits, "")]
        if trained:
            outputs.append((copy.deepcopy(network).train()(images), " in train mode"))
        for output, mode in outputs:
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2 or output.shape[1] < 2:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UserError(f"gives {got} for 2 images of {shape}{mode}, not logits (2, classes)")
        if not trained:
            dim = PenultimateFeatures(network, feature_layer, images).dim
    except Exception as error:
        if hook:
            hook.remove()
        if isinstance(error, UserError):
            raise UserError(f"{name}: {error}") from error
        raise UserError(f"{name} cannot take images of {shape}: {type(error).__name__}: {error}") from error
    finally:
        network.train(training)
    statistics = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    ]
    return NetworkFacts(
        logits.shape[1],
        len(statistics),
        sum(p.numel() for p in network.parameters()),
        counter.get_total_flops() // 2,
        dim,
        hook,
    )
