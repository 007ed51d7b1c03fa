"""Fast-Meta and Fast: what is optimised, and when layers are drawn anew. Numbers are in test_golden.py."""

import copy

import pytest
import torch
from helpers import TARGETS, TinyGenerator, make_synthesizer, synthesis_inputs
from torch import nn

from datafree.models.generator import Generator
from datafree.settings import Settings
from datafree.synthesis.fast_meta import FastMetaSynthesizer, FastSynthesizer


def test_fast_optimises_the_generator_itself(networks):
    made = {}
    for meta in (False, True):
        torch.manual_seed(3)
        generator = TinyGenerator()
        settings = Settings(g_steps=2, lr_g=1e-3, lr_z=0.01, bn=1.0, adv=1.0, warmup=0, bn_mmt=0.9)
        kind = FastMetaSynthesizer if meta else FastSynthesizer
        synthesizer = kind(synthesis_inputs(networks, torch.Generator().manual_seed(0)), settings, generator)
        before = copy.deepcopy(generator)
        made[meta] = synthesizer.synthesize(TARGETS, 0.5)
        moved = (generator.linear.weight - before.linear.weight).abs()
        # Two steps of Adam at lr_g; or one meta step at lr_g times the steps.
        assert moved.median().item() == pytest.approx(2e-3, rel=0.05)
        assert bool(synthesizer.meta_optimizer.state) == meta
    assert torch.equal(made[False].images, made[True].images)  # the same steps, of a clone or not


def test_fast_never_draws_layers_anew(networks):
    made = {}
    for kind in (FastMetaSynthesizer, FastSynthesizer):
        torch.manual_seed(3)
        generator = Generator(nz=5, ngf=2, img_size=8)
        settings = Settings(g_steps=1, lr_g=1e-9, bn=1.0, adv=0.0, warmup=0, reset_l0=1)
        synthesizer = kind(synthesis_inputs(networks, torch.Generator().manual_seed(0)), settings, generator)
        synthesizer.calls = 119
        before = generator.l1[0].bias.detach().clone()
        synthesizer.synthesize(TARGETS, 0.5)
        made[kind] = torch.allclose(before, generator.l1[0].bias, atol=1e-6)
    assert made == {FastMetaSynthesizer: False, FastSynthesizer: True}


@pytest.mark.parametrize("reset", ["reset_l0", "reset_bn"])
def test_the_generator_is_drawn_anew_once_and_only_its_first_layers_or_its_batchnorm(
    reset, networks, rng, monkeypatch
):
    other = {"reset_l0": "reset_bn", "reset_bn": "reset_l0"}[reset]
    synthesizer = make_synthesizer("bsr", networks, rng, f"--{reset}", 1, f"--{other}", 0, "--warmup", 3)
    drawn, real = [], synthesizer._reset_generator
    monkeypatch.setattr(synthesizer, "_reset_generator", lambda: drawn.append(synthesizer.calls))
    synthesizer.calls = 121
    for _ in range(4):
        synthesizer.synthesize(TARGETS, 1.0)
    assert drawn == [123]
    generator = synthesizer.generator
    with torch.no_grad():
        for value in generator.parameters():
            value.fill_(7.0)
    real()
    for name, layer in generator.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        bn = isinstance(layer, nn.BatchNorm2d)
        if bn if reset == "reset_bn" else name in ("l1.0", "conv_blocks.0"):
            assert abs(layer.weight.mean() - int(reset == "reset_bn")) < 0.01, name
            assert 0.017 < layer.weight.std() < 0.023 or len(layer.weight) < 100, name
            assert not layer.bias.any()
        else:
            assert (layer.weight == 7).all(), name
