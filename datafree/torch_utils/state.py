"""Whether two networks are the same."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        if isinstance(value, Tensor):  # a module may have anything else as its extra state
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
