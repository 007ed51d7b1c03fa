"""From a method's name to its synthesizer."""

from __future__ import annotations

from importlib import import_module

from datafree.methods import METHODS
from datafree.settings import Settings
from datafree.synthesis.base import SynthesisInputs, Synthesizer


def create_synthesizer(context: SynthesisInputs, settings: Settings) -> Synthesizer:
    """The synthesizer of `settings.method`; its generator is initialised by torch's global random state."""
    module, _, name = METHODS[settings.method].synthesizer.partition(":")
    return getattr(import_module(f"datafree.synthesis.{module}"), name)(context, settings)
