"""What happens in which epoch, with a synthesizer that makes noise at once."""

import itertools
import math

import pytest
import torch
from helpers import noise_distiller, run

B, EPOCHS, WARMUP = 24, 10, 2


def noting(function, events, event):
    return lambda *given: events.append(event) or function(*given)


def watched(**changes):
    """A distiller, and the list of what its parts do as they do it."""
    made = noise_distiller(**changes)
    parts, events = made.distiller, []
    for owner, name, event in [
        (parts.loss_weight, "update", "dlw"),
        (parts.synthesizer, "synthesize", "synthesis"),
        (parts.repository, "remove", "iho"),
        (parts.labels, "update", "blg"),
        (parts.student, "train", "kd"),
        (parts.student.scheduler, "step", "schedule"),
        (made, "evaluate", "evaluate"),
    ]:
        setattr(owner, name, noting(getattr(owner, name), events, event))
    return made, events


def events_by_epoch(**changes):
    made, events = watched(**changes)
    by_epoch = []
    for epoch in range(EPOCHS):
        made.run_epoch(epoch)
        by_epoch.append(events.copy())
        events.clear()
    return by_epoch


def test_the_parts_of_an_epoch_are_used_in_the_order_of_the_algorithm():
    events = events_by_epoch()
    pruning = ["dlw", "synthesis", "iho", "blg", "kd", "schedule", "evaluate"]
    assert events[0] == ["dlw", "synthesis", "evaluate"]
    assert events[1] == ["dlw", "synthesis"]  # the student is as it was, and so is its accuracy
    assert events[2:5] == [pruning] * 3
    assert events[5:] == [[e for e in pruning if e != "iho"]] * 5


def test_an_epoch_may_have_more_rounds_than_one():
    events = events_by_epoch(ep_steps=5)
    assert events[0] == ["dlw", "synthesis", "synthesis", "evaluate"]
    assert events[2] == ["dlw", *["synthesis", "iho", "blg", "kd"] * 2, "schedule", "evaluate"]


def test_iho_removes_samples_only_between_the_warmup_and_the_last_five_epochs():
    rows = run(noise_distiller())
    assert [row["removed"] > 0 for row in rows] == [2 <= epoch < 5 for epoch in range(EPOCHS)]
    assert [row["added"] for row in rows] == [B] * EPOCHS
    for before, after in itertools.pairwise(rows):
        assert after["repository"] == before["repository"] + after["added"] - after["removed"]


def test_blg_requests_what_is_short_once_the_warmup_is_over():
    made = noise_distiller()
    run(made)
    requested = made.distiller.synthesizer.requested
    early, late = torch.cat(requested[:3]), torch.cat(requested[3:])
    assert (early == 0).any()  # uniform: there have been no counts yet
    assert not (late == 0).any()  # class 0 is the fullest, class 2 always empty
    assert (late == 2).sum() > (late == 1).sum() > 0


def test_alpha_grows_in_the_epoch_after_two_new_minima_and_not_in_the_warmup():
    losses = [(5 - e, 5 - e) for e in range(5)] + [(9, 9)] * 5
    made = noise_distiller(losses)
    expected = [0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert [row["alpha"] for row in run(made)] == pytest.approx(expected)
    assert made.distiller.synthesizer.alphas == pytest.approx(expected)


def test_what_one_part_draws_does_not_move_the_others():
    runs = [noise_distiller(), noise_distiller(kd_steps=1, ep_steps=1, blg=False)]
    for one in runs:
        run(one, 4)
    made = [one.distiller for one in runs]
    assert torch.equal(*(one.repository.images(torch.arange(B)) for one in made))
    assert torch.equal(*(one.generators.synthesis.get_state() for one in made))
    assert not torch.equal(*(one.generators.distillation.get_state() for one in made))


def test_the_learning_rate_falls_by_a_cosine_after_the_warmup():
    span = EPOCHS - WARMUP
    cosine = [2e-4 + 0.5 * (0.2 - 2e-4) * (1 + math.cos(math.pi * t / span)) for t in range(span)]
    assert [row["lr"] for row in run(noise_distiller())] == pytest.approx([0.2, 0.2, *cosine])


def test_skipping_epochs_advances_the_schedule_and_the_count_of_calls():
    rows, skipped = run(noise_distiller()), noise_distiller()
    skipped.distiller.skip_to(6)
    assert skipped.run_epoch(6)["lr"] == pytest.approx(rows[6]["lr"])
    assert skipped.distiller.synthesizer.calls == 7
