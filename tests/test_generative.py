"""DAFL, ZSKT, DFAD and DFQ: weights, BLG, fresh samples. The loss terms are in test_golden.py."""

import copy

import pytest
import torch
from helpers import NORMALIZE, SHORT, TARGETS, distiller, flags, make_synthesizer, synthesis_inputs
from torch.nn import functional as F

from datafree.synthesis.create import create_synthesizer


def test_methods_that_store_nothing_train_on_fresh_samples_and_store_them_on_request():
    fresh, stored = (
        distiller(flags("--method", "dfq", *SHORT, *more)) for more in ((), ("--store_samples",))
    )
    calls = []
    for one in (fresh, stored):
        synthesizer = one.distiller.synthesizer
        original = synthesizer.sample
        synthesizer.sample = lambda count, original=original: calls.append(count) or original(count)
        one.run_epoch(0)
    assert calls == [8] * 4  # two rounds of two steps, of the first alone
    assert len(stored.distiller.repository) == 16


def test_a_second_generator_follows_the_first_and_makes_half_of_the_fresh_samples(networks, rng):
    settings = flags("--method", "zskt", *SHORT, "--ema_generator", 0.75)
    made = create_synthesizer(synthesis_inputs(networks, rng), settings)
    follower = {name: value.clone() for name, value in made.follower.named_parameters()}
    steps = []
    made.synthesize(
        TARGETS, 0.5, lambda *_: steps.append(copy.deepcopy(dict(made.generator.named_parameters())))
    )
    for after in steps:
        follower = {name: 0.75 * value + 0.25 * after[name] for name, value in follower.items()}
    for name, value in made.follower.named_parameters():
        torch.testing.assert_close(value, follower[name])
    state = rng.get_state()
    images = made.sample(5)
    rng.set_state(state)
    first, second = made._generate(3), made._generate(2, made.follower)
    assert torch.equal(images, torch.cat([first, second]))
    other = create_synthesizer(synthesis_inputs(networks, rng), settings)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for name, value in other.follower.named_parameters():
        assert torch.equal(value, dict(made.follower.named_parameters())[name])


@pytest.mark.parametrize(
    ("name", "term"), [("act", "act"), ("balance", "balance"), ("bn", "bn"), ("oh", "oh")]
)
def test_each_weight_of_a_generative_method_weighs_its_own_term(name, term, networks, rng):
    others = [
        word for other in ("adv", "bn", "act", "balance") for word in (f"--{other}", 0) if other != name
    ]
    more = others if name == "oh" else [*others, f"--{name}", 3]
    synthesizer = make_synthesizer("dafl", networks, rng, *more)
    total, terms = synthesizer._loss(torch.rand(6, 3, 8, 8), TARGETS, 3.0 if name == "oh" else 0.0)
    torch.testing.assert_close(total, 3 * terms[term])


def test_fresh_samples_are_made_in_train_mode_and_cost_no_gradient(networks, rng):
    synthesizer = make_synthesizer("dfq", networks, rng)
    synthesizer.generator.eval()
    images = synthesizer.sample(6)
    assert not images.requires_grad
    assert synthesizer.generator.training
    assert 0 <= images.min() < images.max() <= 1


def test_with_blg_each_image_should_be_of_the_class_requested(networks, rng):
    images = torch.rand(6, 3, 8, 8)
    logits = networks[0](NORMALIZE(images))
    for more, classes in (((), logits.argmax(1)), (("--blg", "--store_samples"), TARGETS)):
        synthesizer = make_synthesizer("dafl", networks, rng, *more)
        terms = synthesizer._loss(images, TARGETS, 1.0)[1]
        torch.testing.assert_close(terms["oh"], F.cross_entropy(logits, classes))
        assert synthesizer.asks_for_classes == bool(more)
