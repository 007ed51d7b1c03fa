"""NAYER: which labels, which noise, when everything is drawn anew, and what a class is told by. Its numbers
are in test_golden.py."""

import numpy as np
import pytest
import torch
from conftest import run_here
from making import flags
from test_methods import CLASSES, TINY, classifier, context, distiller
from test_scripts import assert_refused, write_teacher
from torch import nn

from datafree.errors import UserError
from datafree.models.generator import LabelGenerator
from datafree.networks.penultimate import PenultimateFeatures
from datafree.synthesis.create import create_synthesizer
from datafree.synthesis.nayer import label_embedding

NAYER = ("--method", "nayer", *TINY, "--g_loops", 2, "--gwp_loops", 3, "--g_life", 4)


def synthesizer(rng, *more):
    torch.manual_seed(0)
    networks = classifier(0).requires_grad_(False), classifier(1)
    return create_synthesizer(context(networks, rng), flags(*NAYER, *more))


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
    hidden = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
        nn.Linear(CLASSES, CLASSES),
    )
    context_of = context((hidden.requires_grad_(False), classifier(1)), rng)
    context_of.features = PenultimateFeatures(hidden, "3")
    made = create_synthesizer(context_of, flags(*NAYER))
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


def test_a_generator_drawn_anew_is_as_torch_initialises_it(rng):
    from datafree.synthesis.base import draw_as_torch

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


def test_generators_of_each_size():
    for size, uppermost, convolutions in ((32, 4, 3), (64, 4, 3), (224, 16, 5), (299, 16, 5)):
        generator = LabelGenerator(8, CLASSES, 8, width=10, img_size=size)
        assert generator(torch.randn(8, 8)).shape == (8, 3, size, size)
        assert generator(torch.randn(5, 8)).shape == (5, 3, size, size)
        assert generator.base == (128, -(-size // uppermost), -(-size // uppermost))
        assert sum(isinstance(layer, nn.Conv2d) for layer in generator.conv_blocks) == convolutions
        assert isinstance(generator.conv_blocks[0], nn.BatchNorm2d) == (size <= 64)


def test_what_a_class_is_told_by(tmp_path):
    layer = nn.Linear(6, CLASSES)
    assert torch.equal(label_embedding("onehot", layer, CLASSES), torch.eye(CLASSES))
    assert torch.equal(label_embedding("classifier", layer, CLASSES), layer.weight)
    table = np.random.RandomState(0).standard_normal((CLASSES, 5)).astype(np.float16)
    np.save(tmp_path / "t.npy", table)
    assert torch.equal(
        label_embedding(str(tmp_path / "t.npy"), layer, CLASSES), torch.from_numpy(table.astype(np.float32))
    )
    with pytest.raises(UserError, match="from no linear layer"):
        label_embedding("classifier", nn.Conv2d(3, 4, 1), 4)
    np.save(tmp_path / "objects.npy", np.array([{}] * CLASSES, dtype=object), allow_pickle=True)
    np.save(tmp_path / "few.npy", table[:2])
    np.save(tmp_path / "nan.npy", np.full((CLASSES, 2), np.nan))
    np.save(tmp_path / "flat.npy", table[0])
    np.save(tmp_path / "large.npy", np.full((CLASSES, 2), 1e300))
    np.save(tmp_path / "complex.npy", table.astype(complex))
    (tmp_path / "text.npy").write_text("no table")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 no archive")
    with open(tmp_path / "short.npy", "wb") as file:  # which promises terabytes
        np.lib.format.write_array_header_1_0(
            file, {"shape": (CLASSES, 10**11), "fortran_order": False, "descr": "<f8"}
        )
    np.save(tmp_path / "whole.npy", np.eye(CLASSES, dtype=np.int64))
    assert torch.equal(label_embedding(str(tmp_path / "whole.npy"), layer, CLASSES), torch.eye(CLASSES))
    bad = "objects few nan flat text gone large complex zip short"
    for name in (f"{word}.npy" for word in bad.split()):
        with pytest.raises(UserError, match="--label_embedding"):
            label_embedding(str(tmp_path / name), layer, CLASSES)


def test_a_run_is_not_continued_with_other_embeddings(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", np.random.RandomState(seed).standard_normal((CLASSES, 5)))
    made = distiller(flags(*NAYER, "--label_embedding", tmp_path / "a.npy"))
    made.run_epoch(0)
    state = made.synthesizer.state_dict()
    assert not any(name.startswith("le1") for name in state["generator"])
    with pytest.raises(ValueError, match="label embeddings are others"):
        distiller(flags(*NAYER, "--label_embedding", tmp_path / "b.npy")).synthesizer.load_state_dict(state)


def test_a_table_that_is_none_is_refused_before_anything_is_written(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    words = (
        "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 --device cpu".split()
    )
    done = run_here(
        "bsr_main.py",
        *words,
        *"--method nayer --label_embedding gone.npy --save_dir out".split(),
        cwd=tmp_path,
    )
    assert_refused(done, "--label_embedding gone.npy")
    assert not (tmp_path / "out/config.json").exists()
