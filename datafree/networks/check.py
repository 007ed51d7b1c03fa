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
from datafree.networks.bn_statistics import BNStatistics
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
    own, layout = images.clone(), torch.preserve_format
    try:
        with torch.no_grad():
            network(own)
        if torch.equal(own, images):
            return None
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        # Cloned, since of one channel both layouts are the same memory with other strides, and neither
        # `to` nor `contiguous` changes these.
        layout = torch.contiguous_format
        for parameter in network.parameters():
            parameter.data = parameter.data.clone(memory_format=layout)
    return network.register_forward_pre_hook(
        lambda _network, inputs: tuple(value.clone(memory_format=layout) for value in inputs)
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


def require_usable(network: nn.Module, name: str) -> None:
    """Check a network before anything is done with it; `name` is for the error message.

    Raises:
        UserError: it cannot be frozen and hooked, or a weight is in half precision or not finite.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{name} is a TorchScript module: give the nn.Module it was compiled from")
    finite = weights_and_statistics(network)
    for key, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            continue
        if value.is_inference():
            raise UserError(f"{name} was created under torch.inference_mode: create it outside")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise UserError(
                f"{name}: {key} is {value.dtype}: call .float() on it (--amp gives half precision)"
            )
        if key in finite and not value.isfinite().all():
            raise UserError(f"{name} has values in {key} that are not finite: it is damaged")


@torch.no_grad()
def check_network(
    network: nn.Module,
    name: str,
    channels: int,
    img_size: int,
    device: torch.device,
    feature_layer: str | None = None,
    trained: bool = False,
    num_classes: int | None = None,
) -> NetworkSummary:
    """Run a network on two images: it must return finite logits; a teacher must have penultimate features and
    pass gradients to its images, a student must pass gradients to its parameters. Torch's random state does
    not change.

    Args:
        network: on the device.
        name: for error messages.
        channels, img_size: of the images.
        device: where to put the images.
        feature_layer: see `PenultimateFeatures`.
        trained: whether the network is a student; it must return logits in train mode too.
        num_classes: that it must have, if known.

    Raises:
        UserError: a check fails, or the network does not take such images.
    """
    require_usable(network, name)
    training, hook, features = network.training, None, None
    unused: tuple[str, ...] = ()
    images = torch.rand(2, channels, img_size, img_size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)
    shape = f"{channels} x {img_size} x {img_size}"
    try:
        hook = settle_layout(network.eval(), images)
        with FlopCounterMode(display=False) as counter:
            logits = _logits(network, images)
        if not logits.isfinite().all():
            raise UserError("returns logits that are not finite: its weights are damaged")
        if trained:
            with random_state_kept(device):  # from which dropout draws
                unused = _without_gradient(copy.deepcopy(network).train(), images, trained)
        else:
            _without_gradient(network, images, trained)
            features = PenultimateFeatures(network, feature_layer, images)
        classes = logits.shape[1]
        if num_classes not in (None, classes):
            raise UserError(
                f"has {classes} classes, not {num_classes}: set its number of outputs to {num_classes}"
            )
    except Exception as error:
        if hook:
            hook.remove()
        if isinstance(error, UserError):
            raise UserError(f"{name}: {error}") from error
        raise UserError(f"{name} cannot take images of {shape}: {type(error).__name__}: {error}") from error
    finally:
        network.train(training)
    return NetworkSummary(
        num_classes=classes,
        bn_layers=len(BNStatistics(network).layers),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops=counter.get_total_flops() // 2,
        features=features,
        hook=hook,
        unused=unused,
    )


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """What the network returns for two images, if it is logits."""
    output = network(images)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2 or output.shape[1] < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        shape, mode = " x ".join(map(str, images.shape[1:])), " in train mode" if network.training else ""
        raise UserError(f"returns {got} for 2 images of {shape}{mode}, not logits (2, classes)")
    return output


@torch.enable_grad()
def _without_gradient(network: nn.Module, images: Tensor, trained: bool) -> tuple[str, ...]:
    """Names of the parameters that get no gradient. For a teacher, empty.

    Raises:
        UserError: nothing gets a gradient, neither any parameter of a student, nor the images of a teacher.
    """
    leaves = {"images": images.clone().requires_grad_()}
    if trained:
        leaves = {name: value for name, value in network.named_parameters() if value.requires_grad}
        if not leaves:
            raise UserError("has no parameters to train: all are frozen, call .requires_grad_(True)")
    logits = _logits(network, images if trained else leaves["images"])
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if logits.requires_grad:  # weight the logits differently: their plain sum may be constant
        weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
        gradients = torch.autograd.grad((logits * weights).sum(), [*leaves.values()], allow_unused=True)
    names = zip(leaves, gradients, strict=True)
    unused = [name for name, value in names if value is None or not (trained or value.any())]
    if len(unused) == len(leaves):
        what = "its parameters" if trained else "its images, so that none can be synthesised"
        raise UserError(f"passes no gradient to {what}: its forward is under no_grad, detaches, or rounds")
    return tuple(unused)
