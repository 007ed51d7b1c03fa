"""Independent random number generators."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor


class RandomGenerators:
    """One generator for each part of the method, all from one seed. Parts do not influence each other's
    numbers: runs with a component on and off differ by that component alone.

    Args:
        seed: 0 or more.
        device: of the generators.
        rank: which of several processes this is; all draw equal labels, and other numbers differ.
    """

    NAMES = ("labels", "synthesis", "distillation")

    def __init__(self, seed: int, device: torch.device | str = "cpu", rank: int = 0):
        self.device = torch.device(device)
        common = np.random.SeedSequence(seed).generate_state(len(self.NAMES), np.uint32)
        own = np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(len(self.NAMES), np.uint32)
        seeds = [common[0], *(own if rank else common)[1:]]
        self.labels, self.synthesis, self.distillation = (
            torch.Generator(self.device).manual_seed(int(seed)) for seed in seeds
        )

    def state_dict(self) -> dict:
        """The generators' states, and those of torch's global ones, which dropout uses."""
        own = {name: getattr(self, name).get_state() for name in self.NAMES}
        return {**own, **global_state(self.device)}

    def load_state_dict(self, state: dict) -> None:
        for name in self.NAMES:
            getattr(self, name).set_state(state[name])
        set_global_state(state, self.device)


def global_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global generators."""
    state = {"global": torch.get_rng_state()}
    if device.type == "cuda":
        state["global_cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `global_state` returned."""
    torch.set_rng_state(state["global"])
    if device.type == "cuda" and "global_cuda" in state:
        torch.cuda.set_rng_state(state["global_cuda"], device)


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random state after the block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
