"""The line of metrics of an epoch: counts, evaluations, samples held out, losses that are not finite."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import CLASSES, CPU, NORMALIZE, SHORT, distiller, flags, noise_distiller, run

from datafree.errors import UserError
from datafree.evaluation import Evaluation, HeldOut


def test_the_spread_is_measured_with_iho_off_too():
    rows = run(noise_distiller(iho=False))
    assert {row["removed"] for row in rows} == {0}
    assert rows[1]["lof_outside_share"] is None  # in the warm-up
    assert rows[-1]["lof_outside_share"] > 0


def test_the_hit_rate_is_the_share_of_the_last_synthesis_that_got_its_class(monkeypatch):
    made = distiller(flags(*SHORT))
    finished = made.distiller.synthesizer._finished

    def a_quarter_right(best):
        one = finished(best)
        rows = torch.arange(len(one.samples)) % 4 == 0
        labels = torch.where(rows, requested[-1], (requested[-1] + 1) % CLASSES)
        return replace(one, samples=replace(one.samples, labels=labels))

    draw, requested = made.distiller.labels.draw, []
    monkeypatch.setattr(made.distiller.labels, "draw", lambda n: requested.append(draw(n)) or requested[-1])
    monkeypatch.setattr(made.distiller.synthesizer, "_finished", a_quarter_right)
    assert made.run_epoch(0)["hit_rate"] == 0.25
    assert requested


def test_evaluations_are_as_rare_as_requested_and_the_last_epoch_has_one():
    made = noise_distiller(eval_every=4)
    scores = itertools.chain([10.0, 70.0, 50.0, 70.0], itertools.repeat(60.0))
    made.evaluate = lambda _student: Evaluation(next(scores), 100.0, 1.0, 1, 2)
    rows = run(made)
    assert [row["epoch"] for row in rows if row["evaluated"]] == [0, 3, 7, 9]  # the first is needed
    assert [row["test_top1"] for row in rows] == [10, 10, 10, 70, 70, 70, 70, 50, 50, 70]


def test_the_last_student_is_evaluated_in_single_precision_and_those_before_it_as_requested():
    made, dtypes = noise_distiller(amp="bf16"), []

    def evaluate(network):
        dtypes.append(network(torch.rand(2, 3, 8, 8)).dtype)
        return Evaluation(50.0, 100.0, 1.0, 1, 2)

    made.evaluate = evaluate
    run(made)
    assert dtypes == [torch.bfloat16] * 8 + [torch.float32]  # at first, and in 8 epochs after the warm-up


def test_agreement_is_measured_in_the_warmup_too_while_accuracy_waits():
    made = distiller(flags("--method", "bsr", *SHORT, "--warmup", 2))
    made.held_out = HeldOut((3, 8, 8), made.distiller.student.teacher, NORMALIZE, CPU)
    scored, real = [], made.evaluate
    made.evaluate = lambda network: (scored.append(1), real(network))[1]
    rows = [made.run_epoch(epoch) for epoch in range(4)]
    assert all("holdout_agreement" in row for row in rows)
    assert len(scored) == 3  # once at first, and after each of the two trained epochs
    removed = sum(row["removed"] for row in rows)
    assert len(made.held_out.images) + len(made.distiller.repository) + removed == 4 * 16


def test_without_test_images_only_agreement_is_in_the_metrics_and_resuming_keeps_it():
    made, again = (distiller(flags(*SHORT, "--eval_every", 5)) for _ in range(2))
    for one in (made, again):
        one.evaluate = None
        one.held_out = HeldOut((3, 8, 8), one.distiller.student.teacher, NORMALIZE, CPU)
    row = made.run_epoch(0)
    assert "holdout_agreement" in row
    assert not [name for name in row if name.startswith("test_")]
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.held_out.images, made.held_out.images)
    assert again.run_epoch(1)["holdout_agreement"] == row["holdout_agreement"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("losses", "in the synthesis of epoch 3 the loss term adv is nan: try a lower --lr_g"),
        ("student", "in the synthesis of epoch 3 the loss term adv is nan: try a lower --lr"),
        ("weights", "in the distillation of epoch 3 the weights are no longer finite: try a lower --lr"),
    ],
)
def test_a_run_ends_where_a_loss_or_a_weight_is_not_finite_and_names_the_flag(part, words):
    made = noise_distiller([*[(1.0, 1.0)] * 2, (math.nan if part != "weights" else 1.0, 1.0)])
    run(made, 2)
    with torch.no_grad():
        if part != "losses":
            next(made.student.parameters())[0] = math.nan
    with pytest.raises(UserError) as refused:
        made.run_epoch(2)
    assert str(refused.value) == words
