"""What there is to know of a network before it is used, found by looking at it and by trying it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from datafree.errors import UserError
from datafree.networks.penultimate import PenultimateFeatures
from datafree.torch_utils.random import random_state_kept

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384)  # pixels, tried where a network does not tell
NO_STATISTICS = (
    "the teacher has no BatchNorm2d statistics to match, so the weight bn has no effect: samples will be "
    "less like what it was trained on, and the student weaker"
)


@dataclass(frozen=True)
class NetworkSummary:
    """What one look at a network shows."""

    num_classes: int
    bn_layers: int  # BatchNorm2d layers with statistics
    parameters: int
    flops: int  # of one image: multiplications and additions
    features: PenultimateFeatures | None  # None where they were not looked for
    hook: RemovableHandle | None = None  # of a network that takes no channels-last images, or writes to them
    unused: tuple[str, ...] = ()  # parameters of a student that take no part in its logits

    def __str__(self) -> str:
        features = "" if self.features is None else f"{self.features.dim} features, "
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e6:,.0f} MFLOPs an image, "
            f"{self.bn_layers} BatchNorm2d layers with statistics, {features}{self.num_classes} classes"
        )


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first one in the order of the modules, if it is one that images go into; its name."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer if layer.in_channels in (1, 3) and layer.groups == 1 else None
    return "", None


def input_channels(network: nn.Module) -> int | None:
    """Of the images that a network takes, if its first convolution tells."""
    convolution = first_convolution(network)[1]
    return convolution.in_channels if convolution else None


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


def settle_layout(network: nn.Module, images: Tensor) -> RemovableHandle | None:
    """Channels-last images are the faster ones, but a network may rely on plain ones (`x.view` after a
    convolution does), or write to those that it is given. If it does, a hook gives it plain ones, or its own,
    from now on, and is returned.

    Args:
        network: in eval mode.
        images: such as it takes, channels-last.
    """
    own = images.clone()
    try:
        with torch.no_grad():
            network(own)
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        # Cloned, since of one channel both layouts are the same memory with other strides, and neither
        # `to` nor `contiguous` changes these.
        plain = torch.contiguous_format
        for parameter in network.parameters():
            parameter.data = parameter.data.clone(memory_format=plain)
        return network.register_forward_pre_hook(
            lambda _network, inputs: tuple(value.clone(memory_format=plain) for value in inputs)
        )
    if not torch.equal(own, images):
        return network.register_forward_pre_hook(lambda _network, inputs: tuple(v.clone() for v in inputs))
    return None


def require_usable(network: nn.Module, name: str) -> None:
    """See that a network can be frozen and hooked; `name` is for the error message.

    Raises:
        UserError: it cannot.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{name} is of TorchScript: give the network that it was made from")
    values = (value for value in (*network.parameters(), *network.buffers()) if not is_lazy(value))
    if any(value.is_inference() for value in values):
        raise UserError(f"{name} was made under torch.inference_mode: make it outside")


@torch.no_grad()
def check_network(
    network: nn.Module,
    name: str,
    channels: int,
    img_size: int,
    device: torch.device,
    feature_layer: str | None = None,
    trained: bool = False,
) -> NetworkSummary:
    """Run a network on two images, and see that it gives logits, that a student's weights have gradients, and
    that a teacher has features and its images have gradients. Leaves torch's random state as it was.

    Args:
        network: on the device.
        name: for error messages.
        feature_layer: see `penultimate.find_layer`.
        trained: whether it is the student, which must give logits in train mode too, and needs no features.

    Raises:
        UserError: it does not take such images, gives something else than logits (N, C), or cannot be
            learned from, or trained.
    """
    require_usable(network, name)
    training = network.training
    network.eval()
    images = torch.rand(2, channels, img_size, img_size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)
    shape = f"{channels} x {img_size} x {img_size}"
    hook, features = None, None
    unused: tuple[str, ...] = ()
    try:
        _require_plain_weights(network)
        hook = settle_layout(network, images)
        with FlopCounterMode(display=False) as counter:
            logits = network(images)
        _require_logits(logits, f"2 images of {shape}")
        if not logits.isfinite().all():
            raise UserError("gives logits that are not finite: it is damaged")
        if trained:
            with random_state_kept(device):  # from which dropout draws
                unused = _train(copy.deepcopy(network), images, f"2 images of {shape} in train mode")
        else:
            _require_gradient(network, images)
            features = PenultimateFeatures(network, feature_layer, images)
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
    return NetworkSummary(
        logits.shape[1],
        len(statistics),
        sum(p.numel() for p in network.parameters()),
        counter.get_total_flops() // 2,
        features,
        hook,
        unused,
    )


def weights_and_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the buffers of BatchNorm layers, by name: what is finite in a network that is sound. A
    buffer of another kind may be infinite, as a mask of attention is."""
    statistics = {
        f"{module}.{name}".removeprefix("."): value
        for module, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        for name, value in layer.named_buffers()
    }
    return {**dict(network.named_parameters()), **statistics}


def _require_logits(output: Any, images: str) -> None:
    """Raises:
    UserError: it is something else.
    """
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2 or output.shape[1] < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"gives {got} for {images}, not logits (2, classes)")


def _require_plain_weights(network: nn.Module) -> None:
    """Raises:
    UserError: weights or statistics are not finite, or of a kind that cannot be used here.
    """
    finite = weights_and_statistics(network)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            continue
        if value.is_floating_point() and value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"has {name} in {kind}: call .float() on it (--amp gives half precision)")
        if name in finite and not value.isfinite().all():
            raise UserError(f"has values in {name} that are not finite: it is damaged")


@torch.enable_grad()
def _train(network: nn.Module, images: Tensor, shown: str) -> tuple[str, ...]:
    """Go through one training step of a copy; returns the parameters that take no part in it.

    Raises:
        UserError: there is nothing to train.
    """
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    if not trained:
        frozen = any(True for _ in network.parameters())
        hint = ": all are frozen, call .requires_grad_(True)" if frozen else ""
        raise UserError(f"has no parameters to train{hint}")
    logits = network.train()(images)
    _require_logits(logits, shown)
    if logits.requires_grad:
        logits.sum().backward()
    unused = tuple(name for name, value in trained.items() if value.grad is None)
    if len(unused) == len(trained):
        raise UserError("gives no gradient to its parameters: its forward is under no_grad, or detaches")
    return unused


@torch.enable_grad()
def _require_gradient(network: nn.Module, images: Tensor) -> None:
    """Raises:
    UserError: the logits do not tell how to change the images.
    """
    images = images.clone().requires_grad_()
    logits = network(images)
    gradient = None
    if logits.requires_grad:  # each logit weighs something else: their sum may be constant
        weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), images, allow_unused=True)
    if gradient is None or not gradient.any():
        raise UserError(
            "gives no gradient to its images, by which samples are made: its forward is under no_grad, "
            "detaches, or rounds"
        )
