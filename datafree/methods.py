"""The methods by name: their synthesizers, the settings they take, and their published settings. Imports
nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        synthesizer: the class that synthesises its samples, `module:Class` below `datafree.synthesis`.
        takes: the settings of synthesis that have an effect on it.
        defaults: its published settings that differ from the defaults in `settings.Settings`.
        stores: whether the student learns from stored samples or from fresh ones.
        divergence: what the student minimises, see `losses.divergence`.
        nz: length of a latent code.
        start: width at the start of its generator, see `models.generator.Generator`.
        T: the temperature of KD if it is fixed; `--T` then has no effect.
        rates: published `lr_g` and `lr_z` by `g_steps`, used when `g_steps` is given.
        by_teacher, by_dataset: published settings for some teachers and data sets.
    """

    synthesizer: str
    takes: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    stores: bool = True
    divergence: str = "kl"
    nz: int = 256
    start: int = 2
    T: float | None = None
    rates: dict[int, tuple[float, float]] = field(default_factory=dict)
    by_teacher: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings, without those that are given."""
        of_teacher = self.by_teacher.get(str(given.get("teacher")), {})
        chosen = {**self.defaults, **of_teacher, **self.by_dataset.get(given.get("dataset", ""), {})}
        if given.get("g_steps") in self.rates:
            chosen["lr_g"], chosen["lr_z"] = self.rates[given["g_steps"]]
        return {name: value for name, value in chosen.items() if name not in given}


# Settings of the loss that bsr, fast_meta, fast and (without latent codes) nayer share; of the meta step.
_FAST = ("g_steps", "lr_g", "lr_z", "adv", "bn", "oh", "bn_mmt")
_META = (*_FAST, "reset_l0", "reset_bn", "is_maml")
_RATES = {2: (5e-3, 0.015), 5: (3e-3, 0.01), 10: (2e-3, 0.01)}
_COMMON = {"epochs": 200, "warmup": 0, "lr": 0.1}


def _adversarial(defaults: dict[str, Any], nz: int = 256, divergence: str = "kl") -> Method:
    """A method whose generator is trained against the student and generates its fresh samples."""
    takes = ("g_steps", "lr_g", "adv", "bn", "oh", "act", "balance", "ema_generator")
    common = {**_COMMON, "kd_steps": 5, "g_steps": 1, "lr_g": 1e-3, "adv": 1.0, "bn": 0.0, "oh": 0.0}
    synthesizer, settings = "generative:GenerativeSynthesizer", {**common, **defaults}
    return Method(synthesizer, takes, settings, stores=False, divergence=divergence, nz=nz, start=4, T=1.0)


METHODS = {
    "bsr": Method("fast_meta:FastMetaSynthesizer", _META, {"dlw": True, "blg": True, "iho": True}),
    "fast_meta": Method(
        "fast_meta:FastMetaSynthesizer",
        (*_META, "cmi_init"),
        {"epochs": 220},
        rates=_RATES,
        by_teacher={"wrn40_2": {"oh": 0.4}},
    ),
    "fast": Method("fast_meta:FastSynthesizer", (*_FAST, "cmi_init"), {"epochs": 220}, rates=_RATES),
    "cmi": Method(
        "cmi:CMISynthesizer",
        ("g_steps", "lr_g", "lr_z", "adv", "bn", "oh", "cr", "cr_T", "cmi_init"),
        {**_COMMON, "g_steps": 200, "lr_g": 1e-3, "lr_z": 1e-3, "adv": 0.5, "bn": 1.0, "oh": 1.0},
    ),
    "deepinv": Method(
        "deepinv:DeepInversionSynthesizer",
        ("g_steps", "lr_g", "adv", "bn", "oh", "tv", "l2"),
        {**_COMMON, "g_steps": 1000, "lr_g": 0.1, "adv": 1.0, "bn": 10.0, "oh": 1.0},
    ),
    "nayer": Method(
        "nayer:NayerSynthesizer",
        (*(name for name in _FAST if name != "lr_z"), "g_loops", "gwp_loops", "g_life", "label_embedding"),
        {"epochs": 320, "batch_size": 512, "synthesis_batch_size": 400, "g_steps": 30, "lr_g": 4e-3},
        by_dataset={
            "cifar100": {"g_steps": 40},
            "tiny_imagenet": {
                "batch_size": 256,
                "synthesis_batch_size": 200,
                "g_steps": 60,
                "g_loops": 4,
                "gwp_loops": 20,
                "kd_steps": 1000,
                "ep_steps": 1000,
                "lr": 0.1,
            },
        },
    ),
    "dafl": _adversarial({"adv": 0.0, "oh": 1.0, "act": 0.001, "balance": 20.0}, nz=512),
    "zskt": _adversarial({}),
    "dfad": _adversarial({}, divergence="l1"),
    "dfq": _adversarial({"kd_steps": 10, "bn": 1.0, "oh": 1.0, "balance": 20.0}),
}


def taken_by(setting: str) -> list[str]:
    """The methods that a setting of synthesis has an effect on; empty for other settings."""
    return [name for name, method in METHODS.items() if setting in method.takes]


def synthesis_settings() -> tuple[str, ...]:
    """The settings of synthesis that some method takes."""
    return tuple(dict.fromkeys(name for method in METHODS.values() for name in method.takes))


def published_settings() -> dict[str, str]:
    """The published settings of each method as flags, where they differ from the defaults."""

    def flags(values: Mapping[str, Any]) -> str:
        words = (f"--{name}" if value is True else f"--{name} {value:g}" for name, value in values.items())
        return " ".join(words)

    lines = {}
    for name, method in METHODS.items():
        parts = [flags(method.defaults)] if method.defaults else []
        for steps, (lr_g, lr_z) in method.rates.items():
            parts.append(f"{flags({'lr_g': lr_g, 'lr_z': lr_z})} with --g_steps {steps}")
        for which in ("teacher", "dataset"):
            for value, values in getattr(method, f"by_{which}").items():
                parts.append(f"{flags(values)} with --{which} {value}")
        lines[name] = "; ".join(parts)
    return lines
