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
        special: other published settings for some values of other settings, such as a data set.
    """

    synthesizer: str
    takes: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    stores: bool = True
    divergence: str = "kl"
    nz: int = 256
    start: int = 2
    T: float | None = None
    special: dict[tuple[str, Any], dict[str, Any]] = field(default_factory=dict)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings, without those that are given."""
        chosen = dict(self.defaults)
        for (name, value), settings in self.special.items():
            if str(given.get(name)) == str(value):
                chosen |= settings
        return {name: value for name, value in chosen.items() if name not in given}


# Settings of the loss that bsr, fast_meta, fast and (without latent codes) nayer share; of the meta step.
_FAST = ("g_steps", "lr_g", "lr_z", "adv", "bn", "oh", "bn_mmt")
_META = (*_FAST, "reset_l0", "reset_bn", "is_maml")
_RATES: dict[tuple[str, Any], dict[str, Any]] = {
    ("g_steps", 2): {"lr_g": 5e-3, "lr_z": 0.015},
    ("g_steps", 5): {"lr_g": 3e-3, "lr_z": 0.01},
}
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
        special={**_RATES, ("teacher", "wrn40_2"): {"oh": 0.4}},
    ),
    "fast": Method("fast_meta:FastSynthesizer", (*_FAST, "cmi_init"), {"epochs": 220}, special=_RATES),
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
        special={
            ("dataset", "cifar100"): {"g_steps": 40},
            ("dataset", "tiny_imagenet"): {
                **{"batch_size": 256, "synthesis_batch_size": 200, "kd_steps": 1000, "ep_steps": 1000},
                **{"g_steps": 60, "g_loops": 4, "gwp_loops": 20, "lr": 0.1},
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

    published = {}
    for name, method in METHODS.items():
        special = (f"{flags(values)} with --{one} {value}" for (one, value), values in method.special.items())
        published[name] = "; ".join(filter(None, (flags(method.defaults), *special)))
    return published
