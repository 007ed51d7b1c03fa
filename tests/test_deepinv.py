"""DeepInversion: its loss against its formula in NumPy, and how a batch is shifted."""

import numpy as np
import pytest
import torch
from helpers import (
    MEAN,
    STD,
    TARGETS,
    N,
    cross_entropy,
    kl,
    make_synthesizer,
    outputs,
    softmax,
    synthesis_inputs,
)

from datafree import losses
from datafree.settings import Settings
from datafree.synthesis.deepinv import DeepInversionSynthesizer


def test_the_losses_of_deepinversion(networks, rng, monkeypatch):
    teacher, student = networks
    settings = Settings(method="deepinv", g_steps=1, lr_g=0.1, bn=2.0, adv=0.6, tv=0.5, l2=0.25)
    synthesizer = DeepInversionSynthesizer(synthesis_inputs(networks, rng), settings)
    pixels = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(synthesizer, "_noise", lambda *shape: pixels.clone())
    monkeypatch.setattr(synthesizer, "_jitter", lambda images: images)
    made = synthesizer.synthesize(TARGETS, 0.9)
    x = pixels.numpy().astype(np.float64)
    logits, _, distance = outputs(teacher, x)
    student_logits, _, student_distance = outputs(student, x)
    p, q = softmax(student_logits / 3), softmax(logits / 3)
    p, q, m = (np.clip(value, 0.01, 0.99) for value in (p, q, (p + q) / 2))
    shifted = [
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., :-1, :-1] - x[..., 1:, 1:],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    ]
    expected = {
        "oh": cross_entropy(logits, TARGETS.numpy()),
        "bn": distance - 0.001 * student_distance,
        "adv": -(kl(m, p).mean() + kl(m, q).mean()) / 2,
        "tv": sum(np.abs(difference).mean() for difference in shifted),
        "l2": np.sqrt((x**2).sum()),
    }
    weights = {"oh": 0.9, "bn": 2.0, "adv": 0.6, "tv": 0.5, "l2": 0.25}
    expected["total"] = sum(weights[name] * value for name, value in expected.items())
    assert made.losses == pytest.approx(expected, rel=1e-4)
    images = np.clip(x * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None], 0, 1)
    np.testing.assert_allclose(made.images, images, atol=1e-5)


@pytest.mark.parametrize(("name", "term"), [("tv", losses.total_variation), ("l2", losses.l2_norm)])
def test_each_prior_of_deepinversion_has_its_own_weight(name, term, networks, rng):
    zero = [word for other in ("adv", "bn", "tv", "l2") if other != name for word in (f"--{other}", 0)]
    synthesizer = make_synthesizer("deepinv", networks, rng, *zero, f"--{name}", 3)
    inputs = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(synthesizer._loss(inputs, TARGETS, 0.0)[0], 3 * term(inputs))


def test_deepinversion_shifts_a_batch_to_all_25_places_and_mirrors_it(networks, rng):
    synthesizer = make_synthesizer("deepinv", networks, rng, side=16)
    synthesizer.flip = True
    pixels = torch.arange(256.0).view(1, 1, 16, 16)
    seen = {tuple(synthesizer._jitter(pixels)[0, 0, 0, :2].tolist()) for _ in range(2000)}
    assert len(seen) == 50


def test_deepinversion_stays_in_the_range_of_images(networks, rng, monkeypatch):
    synthesizer, inputs = make_synthesizer("deepinv", networks, rng, "--lr_g", 2.0, "--g_steps", 8), []
    monkeypatch.setattr(
        synthesizer, "_jitter", lambda pixels: inputs.append(pixels.detach().clone()) or pixels
    )
    synthesizer.synthesize(TARGETS, 0.5)
    for pixels in inputs[1:]:
        assert ((synthesizer.low - 1e-6 <= pixels) & (pixels <= synthesizer.high + 1e-6)).all()
