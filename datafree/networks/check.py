"""Checks of a network before it is used: it is run on two images."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from datafree.errors import UserError
from datafree.networks.bn_statistics import layers_with_statistics
from datafree.networks.penultimate import PenultimateFeatures
from datafree.torch_utils.random import random_state_kept

NO_STATISTICS = (
    "the teacher has no BatchNorm2d statistics to match, so the weight bn has no effect: samples will be "
    "less like its training images, and the student weaker"
)


@dataclass(frozen=True)
class NetworkSummary:
    """What `check_network` finds out about a network."""

    num_classes: int
    bn_layers: int  # BatchNorm2d layers with statistics
    parameters: int
    flops: int  # of one image: multiplications and additions
    features: PenultimateFeatures | None  # of a teacher
    hook: RemovableHandle | None = None  # see `settle_layout`
    unused: tuple[str, ...] = ()  # parameters of a student that have no effect on its logits

    def __str__(self) -> str:
        features = "" if self.features is None else f"{self.features.dim} features, "
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e6:,.0f} MFLOPs an image, "
            f"{self.bn_layers} BatchNorm2d layers with statistics, {features}{self.num_classes} classes"
        )


def settle_layout(network: nn.Module, images: Tensor) -> RemovableHandle | None:
    """Channels-last images are faster, but some networks need contiguous ones (`x.view` after a convolution),
    and some write to their input. Finds out by a forward pass; if so, returns a new hook that passes the
    network contiguous images, or a copy.

    Args:
        network: in eval mode.
        images: (N, C, H, W), channels-last.
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
    """Refuse networks that cannot be frozen and hooked; `name` is for the error message.

    Raises:
        UserError: the network is such a one.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{name} is a TorchScript module: give the nn.Module it was compiled from")
    values = (value for value in (*network.parameters(), *network.buffers()) if not is_lazy(value))
    if any(value.is_inference() for value in values):
        raise UserError(f"{name} was created under torch.inference_mode: create it outside")


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
    """Run a network on two images: it must return finite logits; a teacher must have penultimate features and
    pass gradients to its images, a student must pass gradients to its parameters. Torch's random state does
    not change.

    Args:
        network: on the device.
        name: for error messages.
        channels, img_size: of the images.
        device: where to put the images.
        feature_layer: see `penultimate.find_layer`.
        trained: whether the network is a student; it must return logits in train mode too.

    Raises:
        UserError: a check fails, or the network does not take such images.
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
        _require_sound_weights(network)
        hook = settle_layout(network, images)
        with FlopCounterMode(display=False) as counter:
            logits = network(images)
        _require_logits(logits, f"2 images of {shape}")
        if not logits.isfinite().all():
            raise UserError("returns logits that are not finite: its weights are damaged")
        if trained:
            with random_state_kept(device):  # from which dropout draws
                unused = _unused_in_training(copy.deepcopy(network), images, f"2 images of {shape}")
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
    return NetworkSummary(
        num_classes=logits.shape[1],
        bn_layers=len(layers_with_statistics(network)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops=counter.get_total_flops() // 2,
        features=features,
        hook=hook,
        unused=unused,
    )


def weights_and_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the buffers of BatchNorm layers, by name: all must be finite. Other buffers may be
    infinite, such as attention masks."""
    statistics = {
        f"{module}.{name}".removeprefix("."): value
        for module, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        for name, value in layer.named_buffers()
    }
    return {**dict(network.named_parameters()), **statistics}


def _require_logits(output: object, images: str) -> None:
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2 or output.shape[1] < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"returns {got} for {images}, not logits (2, classes)")


def _require_sound_weights(network: nn.Module) -> None:
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
def _unused_in_training(network: nn.Module, images: Tensor, shown: str) -> tuple[str, ...]:
    """Names of the parameters that get no gradient in a training step.

    Raises:
        UserError: there is nothing to train, or no parameter gets a gradient.
    """
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    if not trained:
        frozen = any(True for _ in network.parameters())
        hint = ": all are frozen, call .requires_grad_(True)" if frozen else ""
        raise UserError(f"has no parameters to train{hint}")
    logits = network.train()(images)
    _require_logits(logits, f"{shown} in train mode")
    if logits.requires_grad:
        logits.sum().backward()
    unused = tuple(name for name, value in trained.items() if value.grad is None)
    if len(unused) == len(trained):
        raise UserError("passes no gradient to its parameters: its forward is under no_grad, or detaches")
    return unused


@torch.enable_grad()
def _require_gradient(network: nn.Module, images: Tensor) -> None:
    images = images.clone().requires_grad_()
    logits = network(images)
    gradient = None
    if logits.requires_grad:  # weight the logits differently: their plain sum may be constant
        weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), images, allow_unused=True)
    if gradient is None or not gradient.any():
        raise UserError(
            "passes no gradient to its images, and samples cannot be synthesised without: its forward is "
            "under no_grad, detaches, or rounds"
        )
