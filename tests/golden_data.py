"""The golden numbers: where they lie, and the fill rule of `tests/golden/README.md`."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


def load(name: str):
    return json.loads((FOLDER / name).read_text())


META = load("meta.json")


def random_state(offset: int) -> np.random.RandomState:
    return np.random.RandomState(META["seed_base"] + offset)


def fill(network: nn.Module, prefix: str) -> nn.Module:
    """Set every entry of the state dict by the fill rule; in float64, eval mode."""
    network = network.double()
    filled = {}
    for key, value in network.state_dict().items():
        name = (META["salt"] + prefix + key).encode()
        r = np.random.RandomState(zlib.crc32(name) % 2**31)
        shape = tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            filled[key] = value
            continue
        if key.endswith("running_mean"):
            entry = 0.1 * r.standard_normal(shape)
        elif key.endswith("running_var"):
            entry = np.exp(0.1 * r.standard_normal(shape))
        elif len(shape) >= 2:
            entry = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("weight"):
            entry = 1 + 0.1 * r.standard_normal(shape)
        else:
            entry = 0.1 * r.standard_normal(shape)
        filled[key] = torch.from_numpy(np.asarray(entry))
    network.load_state_dict(filled)
    return network.eval()
