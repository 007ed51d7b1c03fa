"""What happens in which epoch, on the real loop with a synthesizer that makes noise at once."""

import itertools
import math

import numpy as np
import pytest
import torch
from making import samples
from torch import nn

from datafree.data.augment import Augment, Normalize
from datafree.distiller import Distiller
from datafree.evaluation import Evaluation
from datafree.repository import SampleRepository
from datafree.runs.loop import Progress
from datafree.settings import resolve
from datafree.synthesis.base import Synthesis, Synthesizer
from datafree.torch_utils.random import RandomGenerators

B, EPOCHS, WARMUP = 24, 10, 2


class Noise(Synthesizer):
    """Samples of class 0 mostly, a few of them far from the rest; losses as told."""

    def __init__(self, rng, losses):
        self.rng, self.losses, self.asked, self.alphas = rng, losses, [], []

    def synthesize(self, targets, alpha, on_step=None):
        adv, bn = self.losses[self.calls]
        self.calls += 1
        self.asked.append(targets)
        self.alphas.append(alpha)
        labels = torch.arange(B) % 3 // 2  # 0 0 1 0 0 1 ...
        features = torch.randn(B, 2, generator=self.rng)
        features[:4] *= 100
        terms = {"total": 1.0, "oh": 1.0, "bn": bn, "adv": adv}
        images = torch.rand(B, 3, 8, 8, generator=self.rng)
        made = samples(images, labels, features, torch.full((B,), 0.5))
        return Synthesis(made, images, terms, {})


class Recorder(Distiller):
    """Notes the order in which the parts of an epoch are used."""

    def watch(self):
        self.events = []
        for owner, name, event in [
            (self.dlw, "update", "dlw"),
            (self.synthesizer, "synthesize", "synthesis"),
            (self.repository, "remove", "iho"),
            (self.blg, "update", "blg"),
            (self.kd, "train", "kd"),
            (self, "evaluate", "evaluate"),
            (self.kd.scheduler, "step", "schedule"),
        ]:
            setattr(owner, name, self._noting(getattr(owner, name), event))

    def _noting(self, function, event):
        def noted(*args):
            self.events.append(event)
            return function(*args)

        return noted


def distiller(losses=((1.0, 1.0),) * 99, **changes):
    torch.manual_seed(0)
    given = {
        "epochs": EPOCHS,
        "warmup": WARMUP,
        "kd_steps": 2,
        "ep_steps": 2,
        "batch_size": 8,
        "synthesis_batch_size": B,
        "weight_decay": 0.0,
        "oh": 0.7,
        **changes,
    }
    streams = RandomGenerators(0)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    made = Recorder(
        teacher,
        student,
        Noise(streams.synthesis, losses),
        SampleRepository((3, 8, 8), 2, 3),
        Augment(Normalize((0.0,) * 3, (1.0,) * 3), flip=True),
        resolve(given)[0],
        streams,
        lambda network: Evaluation(50.0, 100.0, 1.0, 1, 2),
    )
    made.watch()
    return made


def run(made, epochs=EPOCHS):
    rows, events = [], []
    for epoch in range(epochs):
        made.events.clear()
        rows.append(made.run_epoch(epoch))
        events.append(list(made.events))
    return rows, events


def test_the_parts_of_an_epoch_are_used_in_the_order_of_the_algorithm():
    _, events = run(distiller())
    pruning = ["dlw", "synthesis", "iho", "blg", "kd", "evaluate", "schedule"]
    assert events[0] == ["dlw", "synthesis", "evaluate"]
    assert events[1] == ["dlw", "synthesis"]  # the student is as it was, and so is its accuracy
    assert events[2:5] == [pruning] * 3
    assert events[5:] == [[e for e in pruning if e != "iho"]] * 5  # IHO rests in the last five


def test_iho_removes_samples_only_between_the_warmup_and_the_last_five_epochs():
    rows, _ = run(distiller())
    assert [row["removed"] > 0 for row in rows] == [2 <= epoch < 5 for epoch in range(EPOCHS)]
    assert [row["added"] for row in rows] == [B] * EPOCHS
    for before, after in itertools.pairwise(rows):
        assert after["repository"] == before["repository"] + after["added"] - after["removed"]


def test_nothing_is_pruned_with_iho_off_but_the_spread_is_measured_all_the_same():
    rows, _ = run(distiller(iho=False))
    assert {row["removed"] for row in rows} == {0}
    assert rows[1]["lof_outside_share"] is None
    assert rows[-1]["lof_outside_share"] > 0


def test_blg_asks_for_what_is_short_once_the_warmup_is_over():
    made = distiller()
    run(made)
    early, late = torch.cat(made.synthesizer.asked[:3]), torch.cat(made.synthesizer.asked[3:])
    assert (early == 0).any()  # uniform: there have been no counts yet
    assert not (late == 0).any()  # class 0 is the fullest, class 2 always empty
    assert (late == 2).sum() > (late == 1).sum() > 0


def test_blg_sees_the_counts_that_iho_left():
    made = distiller()
    rows, _ = run(made, 4)
    assert rows[-1]["removed"] > 0
    assert made.blg.counts.tolist() == rows[-1]["counts"]


def test_mixup_blends_what_student_and_teacher_see():
    made, images = distiller(mixup=True, warmup=0), []
    made.run_epoch(0)
    plain = made.augment
    made.augment = lambda stored, rng: images.append(plain(stored, rng)) or images[-1]
    shares = []
    for blends, answers in made._batches():
        assert answers is None  # the teacher is asked what the blends are
        batch = images[-1].flatten(1)
        for blend, image in zip(blends.flatten(1), batch, strict=True):
            others = batch - image
            along = (others @ (blend - image) / others.square().sum(1)).nan_to_num()
            left = (image + along[:, None] * others - blend).abs().amax(1)
            assert left.min() < 1e-5
            shares.append(along[left.argmin()].item())
    assert len(shares) == 2 * 8
    assert all(0 <= share <= 1 for share in shares)
    assert np.ptp(shares) > 0.3


def test_labels_stay_uniform_with_blg_off():
    made = distiller(blg=False)
    run(made)
    shares = torch.cat(made.synthesizer.asked).bincount(minlength=3) / (B * EPOCHS)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_alpha_grows_in_the_epoch_after_two_new_minima_and_not_in_the_warmup():
    losses = [(5 - e, 5 - e) for e in range(5)] + [(9, 9)] * 5
    made = distiller(losses)
    rows, _ = run(made)
    expected = [0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert [row["alpha"] for row in rows] == pytest.approx(expected)
    assert made.synthesizer.alphas == pytest.approx(expected)


def test_what_one_part_draws_does_not_move_the_others():
    made = [distiller(), distiller(kd_steps=1, ep_steps=1, blg=False)]
    for one in made:
        run(one, 4)
    images = [one.repository.images(torch.arange(B)) for one in made]
    assert torch.equal(*images)
    states = [one.streams.synthesis.get_state() for one in made]
    assert torch.equal(*states)
    assert not torch.equal(*(one.streams.distillation.get_state() for one in made))


def test_alpha_is_constant_with_dlw_off():
    rows, _ = run(distiller(dlw=False))
    assert {row["alpha"] for row in rows} == {0.7}


def test_the_learning_rate_falls_by_a_cosine_after_the_warmup():
    rows, _ = run(distiller())
    span = EPOCHS - WARMUP
    cosine = [2e-4 + 0.5 * (0.2 - 2e-4) * (1 + math.cos(math.pi * t / span)) for t in range(span)]
    assert [row["lr"] for row in rows] == pytest.approx([0.2, 0.2, *cosine])


def test_more_rounds_than_one_make_an_epoch():
    _, events = run(distiller(ep_steps=5), 3)
    assert events[0] == ["dlw", "synthesis", "synthesis", "evaluate"]
    assert events[2] == ["dlw", *["synthesis", "iho", "blg", "kd"] * 2, "evaluate", "schedule"]


def test_skipping_epochs_advances_the_schedule_and_the_count_of_calls():
    whole, skipped = distiller(), distiller()
    rows, _ = run(whole)
    skipped.skip_to(6)
    assert skipped.run_epoch(6)["lr"] == pytest.approx(rows[6]["lr"])
    assert skipped.synthesizer.calls == 7


def test_evaluations_are_as_rare_as_asked_and_the_last_epoch_has_one():
    made = distiller(eval_every=4)
    scores = itertools.chain([10.0, 70.0, 50.0, 70.0], itertools.repeat(60.0))
    made.evaluate = lambda _student: Evaluation(next(scores), 100.0, 1.0, 1, 2)
    rows, _ = run(made)
    assert [row["evaluated"] for row in rows] == [
        epoch in (0, 3, 7, 9) for epoch in range(EPOCHS)
    ]  # the first is needed
    assert [row["test_top1"] for row in rows] == [10, 10, 10, 70, 70, 70, 70, 50, 50, 70]
    progress = Progress(0)
    best = [row["epoch"] for row in rows if progress.add(row, 0.0)]
    assert best == [0, 3]  # of those evaluated; of equals the first
    assert progress.best == 70


def test_the_last_student_is_evaluated_in_single_precision_and_those_before_it_as_asked():
    made = distiller(amp="bf16")
    seen = []
    made.evaluate = lambda network: (
        seen.append(network(torch.rand(2, 3, 8, 8)).dtype) or Evaluation(50.0, 100.0, 1.0, 1, 2)
    )
    run(made)
    assert seen == [torch.bfloat16] * (len(seen) - 1) + [torch.float32]
    assert len(seen) == 1 + EPOCHS - WARMUP
