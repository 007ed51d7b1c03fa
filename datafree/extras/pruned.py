"""Networks that have been pruned: weights that are zero, and are to stay so."""

from __future__ import annotations

from torch import Tensor, nn


def zeros_of(network: nn.Module) -> tuple[int, int]:
    """How many weights of a network's layers are zero, and how many there are. Biases and the parameters of
    normalisations are not counted."""
    weights = _weights(network)
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def keep_zeros(network: nn.Module) -> None:
    """From here on, SGD leaves those weights at zero that are zero now: they get no gradient, and momentum
    and weight decay add nothing to a zero."""
    for weight in _weights(network):
        mask = weight.detach() != 0
        if not mask.all():
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)


def _weights(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]
