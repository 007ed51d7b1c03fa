"""Independent sources of randomness."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor


class RandomGenerators:
    """One generator for each part of the method, all from one seed: what one part draws does not move
    the others, so that runs with a component on and off differ by that component alone and can be
    compared in pairs.

    Args:
        seed: 0 or more.
        device: where the generators draw.
        rank: of several processes, which draw differently but for the labels, which all draw alike.
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
        """States of the streams, and of torch's global generators (dropout in a student draws there)."""
        own = {name: getattr(self, name).get_state() for name in self.NAMES}
        return {**own, **global_state(self.device)}

    def load_state_dict(self, state: dict) -> None:
        for name in self.NAMES:
            getattr(self, name).set_state(state[name])
        set_global_state(state, self.device)


def global_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global generators, from which dropout draws."""
    state = {"global": torch.get_rng_state()}
    if device.type == "cuda":
        state["global_cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's global generators into the states that `global_state` gave."""
    torch.set_rng_state(state["global"])
    if device.type == "cuda" and "global_cuda" in state:
        torch.cuda.set_rng_state(state["global_cuda"], device)


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside the block does not move torch's global random state."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
