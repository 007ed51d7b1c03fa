"""Penultimate features of any classifier: the input of its last linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from datafree.errors import UserError, did_you_mean


class PenultimateFeatures:
    """Records the input of a network's classifier, the layer that `find_layer` finds.

    Args:
        network: the classifier.
        layer: name of the layer, as in `named_modules`.
        images: (N, C, H, W) for a forward pass that finds the layer; without them it is the last `nn.Linear`
            in the order of the modules.

    Raises:
        UserError: there is no such layer, or its input does not have one row per image.
    """

    def __init__(self, network: nn.Module, layer: str | None = None, images: Tensor | None = None):
        self.layer, self.named = find_layer(network, layer, images), layer is not None
        self.dim = getattr(self.layer, "in_features", 0)
        self._value: Tensor | None = None
        if images is not None:
            with torch.no_grad(), self.capture():
                network(images)
            if self._value is None or len(self._value) != len(images):
                got = "is not used" if self._value is None else f"sees {len(self._value)} rows"
                raise UserError(
                    f"the layer to take features from {got} in a forward pass of {len(images)} images: name "
                    "another with --feature_layer"
                )
            self.dim = self._value.shape[1]

    @property
    def value(self) -> Tensor:
        """(N, dim), from the last captured forward pass."""
        assert self._value is not None, "nothing was captured"
        return self._value

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Inside the block, each forward pass stores its features, (N, dim), in `value`."""

        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._value = inputs[0].flatten(1) if inputs and isinstance(inputs[0], Tensor) else None

        handle = self.layer.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def find_layer(network: nn.Module, name: str | None = None, images: Tensor | None = None) -> nn.Module:
    """The layer whose input is the features: the named one; else the linear layer whose output is the logits
    in a forward pass of `images`; else the last linear layer used there (without images, the last one).

    Raises:
        UserError: there is none.
    """
    modules = dict(network.named_modules())
    if name is not None:
        if name not in modules:
            hint = did_you_mean(name, modules)
            raise UserError(f"--feature_layer {name}: {type(network).__name__} has no such layer{hint}")
        return modules[name]
    linear: list[nn.Module] = [layer for layer in modules.values() if isinstance(layer, nn.Linear)]
    if images is not None:
        used: list[tuple[nn.Module, Tensor]] = []
        handles = [
            layer.register_forward_hook(lambda layer, _inputs, output: used.append((layer, output)))
            for layer in linear
        ]
        try:
            with torch.no_grad():
                logits = network(images)
        finally:
            for handle in handles:
                handle.remove()
        linear = [layer for layer, output in used if output is logits] or [layer for layer, _ in used]
    if not linear:
        raise UserError(
            f"{type(network).__name__} has no linear layer to take features from: name a layer with "
            "--feature_layer; its input is then the features"
        )
    return linear[-1]
