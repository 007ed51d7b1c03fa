"""The synthesizer of a method, by the method's name."""

from __future__ import annotations

from importlib import import_module

from datafree.methods import METHODS
from datafree.settings import Settings
from datafree.synthesis.base import SynthesisInputs, Synthesizer


def create_synthesizer(inputs: SynthesisInputs, settings: Settings) -> Synthesizer:
    """The synthesizer of `settings.method`; its generator is initialised from torch's global random state."""
    module, _, name = METHODS[settings.method].synthesizer.partition(":")
    return getattr(import_module(f"datafree.synthesis.{module}"), name)(inputs, settings)
