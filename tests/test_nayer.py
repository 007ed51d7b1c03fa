"""NAYER: labels, noise, when weights are drawn anew, label embeddings. Numbers are in test_golden.py."""

import numpy as np
import pytest
import torch
from helpers import CLASSES, SHORT, classifier, distiller, flags, synthesis_inputs
from torch import nn

from datafree.errors import UserError
from datafree.models.generator import LabelGenerator
from datafree.networks.penultimate import PenultimateFeatures
from datafree.synthesis.create import create_synthesizer
from datafree.synthesis.nayer import label_embedding

NAYER = ("--method", "nayer", *SHORT, "--g_loops", 2, "--gwp_loops", 3, "--g_life", 4)


def synthesizer(rng, *more):
    torch.manual_seed(0)
    networks = classifier(0).requires_grad_(False), classifier(1)
    return create_synthesizer(synthesis_inputs(networks, rng), flags(*NAYER, *more))


def none_left(_count):
    raise AssertionError("nothing is left to draw")


def test_a_batch_has_all_classes_in_turn_and_the_rest_at_random(rng):
    made = synthesizer(rng, "--warmup", 1)  # two rounds an epoch
    assert made.targets(8, none_left).tolist() == [0, 1, 2, 3] * 2 * 3
    for _ in range(2):
        made.synthesize(made.targets(8, none_left), 0.5)
    assert made.targets(8, none_left).tolist() == [0, 1, 2, 3] * 2 * 2
    asked = []
    rest = made.targets(6, lambda count: asked.append(count) or torch.full((count,), 3))
    assert rest.tolist() == [0, 1, 2, 3, 3, 3] * 2
    assert asked == [2, 2]
    balanced = synthesizer(rng, "--blg")
    assert balanced.targets(8, lambda count: torch.full((count,), count)).tolist() == [16] * 16


def test_every_batch_has_noise_and_an_optimiser_of_its_own(rng, monkeypatch):
    made, noise, optimisers = synthesizer(rng), [], []
    draw, adam = made._draw_noise, torch.optim.Adam
    monkeypatch.setattr(
        made, "_draw_noise", lambda: (draw(), noise.extend(one.weight.clone() for one in made.generator.le1))
    )
    monkeypatch.setattr(
        torch.optim, "Adam", lambda *args, **more: optimisers.append(more) or adam(*args, **more)
    )
    synthesis = made.synthesize(made.targets(8, none_left), 0.5)
    assert len(synthesis.samples) == len(synthesis.images) == 16
    assert optimisers == [{"betas": (0.5, 0.999)}] * 2
    assert len(noise) == 2 * 2  # two batches of eight, with a layer for four images
    assert len({weight.sum().item() for weight in noise}) == 4
    assert torch.cat(noise).std().item() == pytest.approx(1, abs=0.05)
    assert len(synthesis.steps["total"]) == 2 * 2
    lowest = [min(synthesis.steps["total"][first : first + 2]) for first in (0, 2)]
    assert synthesis.losses["total"] == pytest.approx(sum(lowest) / 2)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3] * 2, [0, 0, 0, 0, 1, 1, 2, 2], [0, 2] * 4, [3] * 8], ids=lambda one: str(one)
)
def test_no_two_images_of_a_batch_are_the_same(labels, rng):
    made = synthesizer(rng)
    synthesis = made.synthesize(torch.tensor(labels), 0.5)
    assert len(synthesis.images.flatten(1).unique(dim=0)) == 8
    # What is drawn in the next call does not depend on it.
    assert len(made.generator.le1) >= 2
    made.generator.resize(made.least_layers)
    assert len(made.generator.le1) == 2


def test_noise_has_no_bias_and_the_student_is_looked_at_in_eval_mode(rng, monkeypatch):
    made, modes, biases = synthesizer(rng), [], []
    loss = made._inversion_loss

    def looked_at(*args):
        modes.append(made.student.training)
        biases.extend(layer.bias.abs().max().item() for layer in made.generator.le1)
        return loss(*args)

    made.student.train()
    monkeypatch.setattr(made, "_inversion_loss", looked_at)
    made.synthesize(made.targets(8, none_left), 0.5)
    assert not any(modes)
    assert made.student.training
    assert biases[:2] == [0, 0]  # of the first step of a batch, before they have learned


def test_the_classifier_is_the_last_layer_whichever_the_features_are_of(rng):
    body = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    hidden = nn.Sequential(*body, nn.Linear(4, CLASSES), nn.Linear(CLASSES, CLASSES))
    inputs = synthesis_inputs((hidden.requires_grad_(False), classifier(1)), rng)
    inputs.features = PenultimateFeatures(hidden, "3")
    made = create_synthesizer(inputs, flags(*NAYER))
    assert torch.equal(made.table, hidden[4].weight)


def test_the_generator_is_drawn_anew_after_so_many_calls_and_at_the_end_of_the_warmup(rng, monkeypatch):
    made, drawn = synthesizer(rng, "--warmup", 3), []
    monkeypatch.setattr(
        "datafree.synthesis.nayer.draw_as_torch", lambda layers, _rng: drawn.append(made.calls)
    )
    loss, adversarial = made._inversion_loss, []
    monkeypatch.setattr(made, "_inversion_loss", lambda *args: adversarial.append(args[3]) or loss(*args))
    for _ in range(15):
        made.synthesize(made.targets(8, none_left), 0.5)
    assert drawn == [4, 6, 10, 14]
    steps = 2  # of a batch
    assert adversarial == [False] * 6 * 3 * steps + [True] * 9 * 2 * steps


def test_generators_of_each_size():
    for size, uppermost, convolutions in ((32, 4, 3), (64, 4, 3), (100, 16, 5)):
        generator = LabelGenerator(8, CLASSES, 8, width=10, img_size=size)
        assert generator(torch.randn(8, 8)).shape == (8, 3, size, size)
        assert generator(torch.randn(5, 8)).shape == (5, 3, size, size)
        assert generator.base == (128, -(-size // uppermost), -(-size // uppermost))
        assert sum(isinstance(layer, nn.Conv2d) for layer in generator.conv_blocks) == convolutions
        assert isinstance(generator.conv_blocks[0], nn.BatchNorm2d) == (size <= 64)


def test_label_embeddings(tmp_path):
    layer, file = nn.Linear(6, CLASSES), tmp_path / "table.npy"
    assert torch.equal(label_embedding("onehot", layer, CLASSES), torch.eye(CLASSES))
    assert torch.equal(label_embedding("classifier", layer, CLASSES), layer.weight)
    for dtype in (np.float16, np.int64):
        table = np.arange(CLASSES * 3).reshape(CLASSES, 3).astype(dtype)
        np.save(file, table)
        assert label_embedding(str(file), layer, CLASSES).tolist() == table.tolist()
    with pytest.raises(UserError, match="not come from a linear layer"):
        label_embedding("classifier", nn.Conv2d(3, 4, 1), 4)


NO_TABLES = [np.zeros((CLASSES - 1, 3)), np.zeros(CLASSES), np.full((CLASSES, 2), np.nan)]


@pytest.mark.parametrize("table", NO_TABLES, ids=["few rows", "flat", "NaN"])
def test_what_is_no_table_of_embeddings_is_refused(table, tmp_path):
    np.save(tmp_path / "table.npy", table)
    with pytest.raises(UserError, match="--label_embedding"):
        label_embedding(str(tmp_path / "table.npy"), nn.Linear(6, CLASSES), CLASSES)


def test_a_run_is_not_continued_with_other_embeddings(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", np.random.RandomState(seed).standard_normal((CLASSES, 5)))
    made = distiller(flags(*NAYER, "--label_embedding", tmp_path / "a.npy"))
    made.run_epoch(0)
    state = made.distiller.synthesizer.state_dict()
    assert not any(name.startswith("le1") for name in state["generator"])
    other = distiller(flags(*NAYER, "--label_embedding", tmp_path / "b.npy")).distiller
    with pytest.raises(ValueError, match="label embeddings"):
        other.synthesizer.load_state_dict(state)
