"""What all methods have in common: drawing weights, freezing, optimisers, exact continuation."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    NORMALIZE,
    SHORT,
    TARGETS,
    assert_same_weights,
    classifier,
    distiller,
    flags,
    make_synthesizer,
    synthesis_inputs,
    untimed,
)
from torch import nn

from datafree.data.augment import Augment
from datafree.methods import METHODS
from datafree.models.generator import Generator, LabelGenerator
from datafree.synthesis import cmi
from datafree.synthesis.base import SynthesisInputs, draw_as_torch, draw_weights, frozen
from datafree.synthesis.create import create_synthesizer


@pytest.mark.parametrize("components", [False, True], ids=["alone", "with BSR on top"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_distils_and_continues_exactly_where_it_stopped(method, components):
    on_top = ("--dlw", "--blg", "--iho", "--store_samples") if components else ("--ema_generator", 0.9)
    settings = flags("--method", method, *SHORT, *on_top)
    whole, continued = distiller(settings), distiller(settings)
    rows = untimed(whole.run_epoch(epoch) for epoch in range(2))
    state = copy.deepcopy(whole.state_dict())
    rows += untimed(whole.run_epoch(epoch) for epoch in range(2, 4))
    continued.load_state_dict(state)
    assert untimed(continued.run_epoch(epoch) for epoch in range(2, 4)) == rows[2:]
    assert_same_weights(whole.student, continued.student)
    for row in rows:
        assert np.isfinite([row[name] for name in row if name.startswith("loss_")]).all()
        assert row["hit_rate"] is None or 0 <= row["hit_rate"] <= 1
        assert (row["hit_rate"] is None) == (not components and not METHODS[method].stores)
    generated = 64 * (settings.g_loops if method == "nayer" else 1)
    stored = generated - sum(row["removed"] for row in rows)
    assert rows[-1]["repository"] == (stored if settings.store_samples else 8)
    if components:
        assert rows[-1]["alpha"] >= 0.5
        assert whole.distiller.labels.counts.tolist() == rows[-1]["counts"]


class Watched:
    """Settings that note what is asked of them."""

    def __init__(self, settings):
        self.settings, self.asked = settings, set()

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_settings_that_its_synthesizer_asks_for(method):
    teacher, student = classifier(0).requires_grad_(False), classifier(1)
    augment = Augment(NORMALIZE, flip=True)
    rng = torch.Generator().manual_seed(0)
    context = SynthesisInputs(teacher, student, augment, (3, 8, 8), rng, autocast=nullcontext)
    watched = Watched(flags("--method", method, "--g_steps", 1, "--warmup", 0, "--is_maml", 1))
    synthesizer = create_synthesizer(context, watched)
    synthesizer.calls = 119  # so that the next one draws layers anew, where a method does
    targets = synthesizer.targets(4, lambda count: torch.zeros(count, dtype=torch.long))
    synthesizer.synthesize(targets, 0.5)
    elsewhere = {"oh", "cmi_init"}  # asked for by the distiller and by the run
    common = {"method", "warmup", "blg", "rounds", "synthesis_batch_size"}
    assert watched.asked - common == set(METHODS[method].takes) - elsewhere


@pytest.mark.parametrize("size", [8, 13, 30, 299])
def test_a_generator_makes_images_of_any_size(size):
    images = Generator(nz=4, ngf=2, img_size=size)(torch.randn(2, 4))
    assert images.shape == (2, 3, size, size)


def test_the_optimisers_have_the_published_rates(networks, rng, monkeypatch):
    made = []
    real = torch.optim.Adam

    def adam(groups, lr=1e-3, betas=(0.9, 0.999)):
        made.append(real(groups, lr, betas=betas))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", adam)
    generator = Generator(256, 64, 8, 3)
    synthesizer = cmi.CMISynthesizer(
        synthesis_inputs(networks, rng),
        flags("--method", "cmi", *SHORT, "--lr_g", 0.003, "--lr_z", 0.07),
        generator,
    )
    synthesizer.synthesize(TARGETS, 1.0)
    head, own = made
    assert [group["lr"] for group in head.param_groups] == [0.003]
    assert [group["lr"] for group in own.param_groups] == [0.003, 0.07]
    assert own.defaults["betas"] == (0.5, 0.999)
    made.clear()
    make_synthesizer("deepinv", networks, rng, "--lr_g", 0.2).synthesize(TARGETS, 1.0)
    assert (made[0].defaults["lr"], made[0].defaults["betas"]) == (0.2, (0.5, 0.99))
    made.clear()
    synthesizer = make_synthesizer("bsr", networks, rng, "--lr_g", 0.003, "--lr_z", 0.07)
    synthesizer.synthesize(TARGETS, 1.0)
    assert [group["lr"] for group in made[0].param_groups] == [0.006]  # the meta step: times g_steps
    assert [group["lr"] for group in made[1].param_groups] == [0.003, 0.07]


def test_weights_are_drawn_with_the_published_moments():
    network = nn.Sequential(nn.Linear(200, 200), nn.Conv2d(40, 40, 5), nn.BatchNorm2d(5000))
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(7.0)
    draw_weights(network, torch.Generator().manual_seed(0))
    for layer, mean in zip(network, (0, 0, 1), strict=True):
        assert abs(layer.weight.mean() - mean) < 2e-3
        assert abs(layer.weight.std() - 0.02) < 1e-3
        assert not layer.bias.any()


def test_what_was_frozen_before_stays_frozen_and_what_was_in_eval_mode_in_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[0].requires_grad_(False)
    network.train()
    network[1].eval()
    with frozen(network):
        assert not any(value.requires_grad for value in network.parameters())
        assert not any(module.training for module in network.modules())
    assert [value.requires_grad for value in network.parameters()] == [False, False, True, True]
    assert [module.training for module in network] == [True, False, True]


def test_a_generator_drawn_anew_is_as_torch_initialises_it(rng):

    torch.manual_seed(0)
    fresh, drawn = LabelGenerator(8, CLASSES, 8), LabelGenerator(8, CLASSES, 8)
    with torch.no_grad():
        for value in drawn.parameters():
            value.fill_(9)
    drawn.conv_blocks[0].running_mean.fill_(9)
    draw_as_torch(drawn, rng)
    for (name, value), (_, other) in zip(fresh.state_dict().items(), drawn.state_dict().items(), strict=True):
        if value.numel() > 500:
            assert value.std().item() == pytest.approx(other.std().item(), rel=0.1), name
            assert value.max().item() == pytest.approx(other.max().item(), rel=0.1), name
        assert other.abs().max() < 2, name
