"""The methods by name: their published settings and the flags that each takes. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

WEIGHTS = ("adv", "bn", "oh", "act", "balance", "cr", "tv", "l2")  # flags that weigh a loss term


@dataclass(frozen=True)
class Method:
    """`defaults` are the published settings, by flag, where they differ from those of `bsr`; `takes` are
    the flags of synthesis that have an effect."""

    takes: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    stores: bool = True  # whether the student learns from stored samples, or else from fresh ones
    divergence: str = "kl"  # what teaches the student, see `losses.divergence`

    def settings(self, given: Container[str], g_steps: int) -> dict[str, Any]:
        """Values of the flags that the user has not given; `g_steps` is what was."""
        chosen = dict(self.defaults)
        if self.defaults.get("epochs") == 220 and "g_steps" in given and g_steps in FAST_RATES:
            chosen["lr_g"], chosen["lr_z"] = FAST_RATES[g_steps]
        return {name: value for name, value in chosen.items() if name not in given}


_CLONE = ("g_steps", "lr_g", "lr_z", "adv", "bn", "oh", "bn_mmt", "reset_l0", "reset_bn")
_GENERATIVE = ("g_steps", "lr_g", "adv", "bn", "oh", "act", "balance")
_COMMON = {"epochs": 200, "warmup": 0, "lr": 0.1}
_ADVERSARIAL = {**_COMMON, "kd_steps": 5, "g_steps": 1, "lr_g": 1e-3, "adv": 1.0, "bn": 0.0, "oh": 0.0}
FAST_RATES = {2: (5e-3, 0.015), 5: (3e-3, 0.01), 10: (2e-3, 0.01)}  # lr_g and lr_z by g_steps

METHODS = {
    "bsr": Method((*_CLONE, "is_maml")),
    "fast_meta": Method((*_CLONE, "is_maml"), {"epochs": 220}),
    "fast": Method(_CLONE, {"epochs": 220}),
    "cmi": Method(
        ("g_steps", "lr_g", "lr_z", "adv", "bn", "oh", "cr", "cr_T", "cmi_init"),
        {**_COMMON, "g_steps": 200, "lr_g": 1e-3, "lr_z": 1e-3, "adv": 0.5, "bn": 1.0, "oh": 1.0},
    ),
    "deepinv": Method(
        ("g_steps", "lr_g", "adv", "bn", "oh", "tv", "l2"),
        {**_COMMON, "g_steps": 1000, "lr_g": 0.1, "adv": 1.0, "bn": 10.0, "oh": 1.0},
    ),
    "dafl": Method(
        _GENERATIVE, {**_ADVERSARIAL, "adv": 0.0, "oh": 1.0, "act": 0.001, "balance": 20.0}, stores=False
    ),
    "zskt": Method(_GENERATIVE, _ADVERSARIAL, stores=False),
    "dfad": Method(_GENERATIVE, {**_ADVERSARIAL, "T": 1.0}, stores=False, divergence="l1"),
    "dfq": Method(
        _GENERATIVE, {**_ADVERSARIAL, "kd_steps": 10, "bn": 1.0, "oh": 1.0, "balance": 20.0}, stores=False
    ),
}
SYNTHESIS_FLAGS = tuple(dict.fromkeys(flag for method in METHODS.values() for flag in method.takes))


def published_settings() -> str:
    """What the methods' settings are, for `--help`."""
    lines = ["published settings, where they differ from the defaults above:"]
    for name, method in METHODS.items():
        if method.defaults:
            flags = " ".join(f"--{flag} {value:g}" for flag, value in method.defaults.items())
            lines.append(f"  {name:9} {flags}")
    rates = "; ".join(f"{steps} steps {g:g}, {z:g}" for steps, (g, z) in FAST_RATES.items())
    lines.append(f"  fast_meta and fast take --lr_g and --lr_z by --g_steps: {rates}")
    return "\n".join(lines)
