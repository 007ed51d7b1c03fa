"""Penultimate features of any classifier: the input of its last linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import UserError, did_you_mean


class PenultimateFeatures:
    """Records the input of a network's classifier.

    Args:
        network: the classifier, in eval mode.
        layer: name of the layer whose input is recorded, as in `named_modules`. By default, the linear layer
            whose output is the logits in a forward pass of `images`, or else the last one used there; without
            images, the last `nn.Linear` in the order of the modules.
        images: (N, C, H, W).

    Raises:
        UserError: there is no such layer, or its input does not have one row per image.
    """

    def __init__(self, network: nn.Module, layer: str | None = None, images: Tensor | None = None):
        self.named = layer is not None
        modules = dict(network.named_modules())
        layers: list[nn.Module]
        if layer is None:
            layers = [one for one in modules.values() if isinstance(one, nn.Linear)]
        elif layer in modules:
            layers = [modules[layer]]
        else:
            hint = did_you_mean(layer, modules)
            raise UserError(f"--feature_layer {layer}: {type(network).__name__} has no such layer{hint}")
        calls: list[tuple[nn.Module, tuple[Any, ...], Any]] = []  # layer, inputs, output
        if images is not None:
            handles = [one.register_forward_hook(lambda *call: calls.append(call)) for one in layers]
            try:
                with torch.no_grad():
                    logits = network(images)
            finally:
                for handle in handles:
                    handle.remove()
            calls = [call for call in calls if call[2] is logits] or calls
            layers = [call[0] for call in calls]
        if not layers:
            raise UserError(
                f"{type(network).__name__} calls no {'such' if self.named else 'linear'} layer to take "
                "features from: name one with --feature_layer; its input is then the features"
            )
        self.layer = layers[-1]
        self.dim = getattr(self.layer, "in_features", 0)
        self._value: Tensor | None = None
        if images is not None:
            self._record(*calls[-1][:2])
            rows = 0 if self._value is None else len(self._value)
            if rows != len(images):
                raise UserError(
                    f"the layer to take features from sees {rows} rows in a forward pass of {len(images)} "
                    "images: name another with --feature_layer"
                )
            self.dim = self.value.shape[1]

    @property
    def value(self) -> Tensor:
        """(N, dim), from the last captured forward pass."""
        assert self._value is not None, "nothing was captured"
        return self._value

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Inside the block, each forward pass stores its features, (N, dim), in `value`."""
        handle = self.layer.register_forward_pre_hook(self._record)
        try:
            yield
        finally:
            handle.remove()

    def _record(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._value = inputs[0].flatten(1) if inputs and isinstance(inputs[0], Tensor) else None
