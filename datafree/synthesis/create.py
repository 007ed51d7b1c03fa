"""From flags to the synthesizer they name."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from datafree.augment import Augment
from datafree.methods import METHODS
from datafree.parallel import Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast
from datafree.synthesis.base import Synthesizer
from datafree.synthesis.cmi import CMISettings, CMISynthesizer
from datafree.synthesis.deepinv import DeepInversionSettings, DeepInversionSynthesizer
from datafree.synthesis.fast_meta import FastMetaSettings, FastMetaSynthesizer
from datafree.synthesis.generative import GenerativeSettings, GenerativeSynthesizer
from models.generator import Generator

LATENT = {"dafl": 512, "zskt": 512}  # values of a latent code; 256 for the other methods


def create_synthesizer(
    args: argparse.Namespace,
    teacher: nn.Module,
    student: nn.Module,
    img_size: int,
    augment: Augment,
    rng: torch.Generator,
    processes: Processes,
    autocast: Autocast,
    features: PenultimateFeatures | None = None,
    channels: int = 3,
) -> Synthesizer:
    """The synthesizer of `args.method`, with the settings in `args` (flags of `bsr_main.py`, resolved); its
    generator is initialised by torch's global random state."""
    a = args
    common = rng, processes, autocast, features
    if a.method == "deepinv":
        settings = DeepInversionSettings(a.g_steps, a.lr_g, a.bn, a.adv, a.tv, a.l2)
        return DeepInversionSynthesizer(
            teacher, student, (channels, img_size, img_size), augment, settings, *common
        )
    generator = Generator(LATENT.get(a.method, 256), 64, img_size, channels)
    generator = generator.to(rng.device, memory_format=torch.channels_last)
    networks = teacher, student, generator, augment
    if a.method == "cmi":
        settings = CMISettings(a.g_steps, a.lr_g, a.lr_z, a.bn, a.adv, a.cr, a.cr_T)
        return CMISynthesizer(*networks, settings, *common)
    if a.method in ("dafl", "zskt", "dfad", "dfq"):
        settings = GenerativeSettings(
            a.g_steps, a.lr_g, a.adv, a.bn, a.act, a.balance, METHODS[a.method].divergence, a.blg
        )
        return GenerativeSynthesizer(*networks, settings, *common)
    settings = FastMetaSettings(
        a.g_steps,
        a.lr_g,
        a.lr_z,
        a.bn,
        a.adv,
        a.warmup,
        a.bn_mmt,
        bool(a.reset_l0),
        bool(a.reset_bn),
        bool(a.is_maml),
        meta=a.method != "fast",
    )
    return FastMetaSynthesizer(*networks, settings, *common)
