"""Priority sampling: odds, weights and what is noted, against a plain model; the same after a stop."""

import copy

import numpy as np
import pytest
import torch
from conftest import run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from making import flags, samples
from test_methods import TINY, distiller
from test_scripts import assert_refused

from datafree import losses, priority
from datafree.repository import SampleRepository

settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("plain")
PRIORITY = (*TINY, "--sampling", "priority", "--lr", 0.01)


def filled(count, **shard):
    repository = SampleRepository((1, 2, 2), 1, 2, **shard)
    repository.add(stored(count))
    return repository


def stored(count):
    return samples(torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.long), torch.zeros(count, 1))


@given(st.integers(2, 12), st.integers(0, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_samples_are_drawn_by_what_was_noted_and_new_ones_by_the_highest(count, more, progress, seed):
    repository, rng = filled(count), torch.Generator().manual_seed(seed)
    known, noted = dict.fromkeys(range(count), 1.0), np.random.default_rng(seed)
    beta = 0.4 + 0.6 * progress
    for places, weigh in priority.draws(repository, 4, 3, rng, progress):
        odds = np.array([known[place] for place in range(count)])
        odds /= odds.sum()
        weights = (count * odds[places.numpy()]) ** -beta
        seen = torch.from_numpy(noted.uniform(0.1, 3, 4)).float()
        given = weigh(seen)
        np.testing.assert_allclose(given, weights / weights.max(), rtol=1e-4)
        known |= dict(zip(places.tolist(), seen.tolist(), strict=True))
    repository.remove(torch.tensor([0]))
    repository.add(stored(more))
    # What has been noted at all, of samples that have been seen again since, too.
    highest = repository._highest.item() or 1.0
    assert highest >= max(value for value in (*known.values(), 0) if value != 1.0)
    found = repository.priorities.tolist()
    assert found[: count - 1] == pytest.approx([known[place] for place in range(1, count)])
    assert all(one >= max(found[: count - 1]) for one in found[count - 1 :])
    assert all(one >= highest - 1e-6 for one in found[count - 1 :])


def test_new_samples_begin_with_the_highest_that_was_noted_even_if_it_is_low():
    repository = filled(2)
    assert repository.priorities.tolist() == [1, 1]  # nothing is known
    repository.prioritise(torch.tensor([0, 1]), torch.tensor([0.25, 0.5]))
    repository.prioritise(torch.tensor([1]), torch.tensor([0.125]))
    repository.add(stored(2))
    assert repository.priorities.tolist() == [0.25, 0.125, 0.5, 0.5]


def test_the_loss_is_weighed_and_beta_rises_from_the_warmup_on(monkeypatch):
    made = distiller(flags(*PRIORITY, "--epochs", 4, "--warmup", 1))
    progress, drawn = [], priority.draws
    monkeypatch.setattr(priority, "draws", lambda *args: progress.append(args[-1]) or drawn(*args))
    for epoch in range(4):
        made.run_epoch(epoch)
    assert (
        progress == [0.0] * made.settings.rounds + [0.5] * made.settings.rounds + [1.0] * made.settings.rounds
    )
    inputs = made.augment.normalize(torch.rand(4, 3, 8, 8))
    weights = torch.tensor([1.0, 0.5, 0.25, 0.0])
    made.student.eval()
    seen = []
    weighed = made.kd.loss(inputs, None, lambda each: seen.append(each) or weights)
    torch.testing.assert_close(weighed, (weights * seen[0]).mean())
    assert not torch.allclose(weighed, made.kd.loss(inputs))


def test_odds_are_the_priorities():
    repository = filled(3)
    repository.prioritise(torch.arange(3), torch.tensor([1.0, 2.0, 5.0]))
    drawn = [
        place for places, _ in priority.draws(repository, 1000, 8, torch.Generator(), 0.0) for place in places
    ]
    shares = torch.bincount(torch.stack(drawn)) / 8000
    assert shares.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_divergences_that_are_not_finite_leave_odds_to_draw_by():
    repository = filled(4)
    for _, weigh in priority.draws(repository, 4, 3, torch.Generator(), 0.5):
        weigh(torch.tensor([float("nan"), float("inf"), 0.0, -1.0]))
    assert repository.priorities.isfinite().all()
    assert repository.priorities.max() <= priority.MOST
    assert (repository.priorities > 0).all()


@pytest.mark.parametrize("kind", ["kl", "l1"])
def test_the_divergences_of_images_have_the_batchs_as_their_mean(kind, rng):
    student, teacher = (torch.randn(6, 4, generator=rng) for _ in range(2))
    each = losses.divergences(kind, student, teacher, 3.0)
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), losses.divergence(kind, student, teacher, 3.0))


@pytest.mark.parametrize("more", [(), ("--iho", "--max_samples", 20, "--evict", "balanced")])
def test_a_run_continues_exactly_with_its_priorities(more):
    chosen = flags(*PRIORITY, *more)
    whole, broken, continued = (distiller(chosen) for _ in range(3))
    rows = [{**whole.run_epoch(epoch), "seconds": 0} for epoch in range(4)]
    for epoch in range(2):
        broken.run_epoch(epoch)
    assert len(set(broken.repository.priorities.tolist())) > 5
    continued.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert torch.equal(continued.repository.priorities, broken.repository.priorities)
    assert [{**continued.run_epoch(epoch), "seconds": 0} for epoch in range(2, 4)] == rows[2:]
    for mine, theirs in zip(whole.student.parameters(), continued.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_each_process_tells_the_others_of_its_own_samples():
    shards = [filled(6, rank=rank, world_size=2) for rank in range(2)]
    shards[0].prioritise(torch.tensor([0, 2]), torch.tensor([3.0, 4.0]))
    shards[1].prioritise(torch.tensor([1, 5]), torch.tensor([7.0, 0.5]))

    class Two:
        world_size = 2

        def __init__(self):
            self.tensors, self.values = [], []

        def average(self, tensors):
            self.tensors += tensors

        def collect(self, value):
            self.values.append(value)
            return [7.0, value]

    pair = [Two(), Two()]
    for shard, two in zip(shards, pair, strict=True):
        shard.share_priorities(two)
    mean = (pair[0].tensors[0] + pair[1].tensors[0]) / 2
    assert mean.tolist() == [3, 7, 4, 1, 1, 0.5]
    assert [two.values for two in pair] == [[4.0], [7.0]]
    assert all(shard._highest == 7 for shard in shards)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method dafl --sampling priority", "--sampling priority needs stored samples"),
        ("--sampling priority --reuse_teacher 1GB", "needs to know all draws of an epoch before"),
        ("--sampling priority --mixup", "--sampling priority goes by what is known of single images"),
        ("--mixup --reuse_teacher 1GB", "--reuse_teacher goes by what is known of single images"),
    ],
)
def test_what_contradicts_priorities_is_refused(words, message, tmp_path):
    assert_refused(run_here("bsr_main.py", *words.split(), cwd=tmp_path), message)


@pytest.mark.parametrize("spoilt", [torch.ones(3), torch.full((4,), float("nan")), torch.zeros(4)])
def test_priorities_that_are_none_are_refused_before_samples_are_touched(spoilt):
    repository = filled(4)
    state = {**repository.state_dict(), "priorities": spoilt}
    with pytest.raises(ValueError, match="priorities are not of samples stored"):
        repository.load_state_dict(state)
    assert len(repository) == 4
