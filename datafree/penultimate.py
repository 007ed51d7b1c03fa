"""Penultimate features of any classifier: what goes into its last linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class PenultimateFeatures:
    """Reads the input of a network's last `nn.Linear`, in the order of its modules.

    Raises:
        ValueError: the network has no linear layer.
    """

    def __init__(self, network: nn.Module):
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ValueError(f"{type(network).__name__} has no linear layer to take features from")
        self.layer = linear[-1]
        self.dim = self.layer.in_features
        self.value: Tensor | None = None

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Inside the block, each forward pass leaves its features, (N, dim), in `value`, with
        their gradient."""

        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.value = inputs[0]

        handle = self.layer.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()
