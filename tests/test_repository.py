"""The sample repository: order, slots, batches, checkpoints, memory, several processes."""

from collections import Counter

import pytest
import torch
from helpers import samples
from hypothesis import given
from hypothesis import strategies as st

from datafree.repository import FreshSamples, SampleRepository
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils.distributed import Processes


def filled(count, **settings):
    """Image i has the value i everywhere, label i % C, feature (i, -i), margin i / 1000."""
    repository = SampleRepository((3, 4, 4), 2, 3, **settings)
    grow(repository, 0, count)
    return repository


def grow(repository, start, count):
    numbers = torch.arange(start, start + count)
    images = numbers.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8)
    features = torch.stack([numbers, -numbers], 1).float()
    repository.add(samples(images, numbers % repository.num_classes, features, numbers / 1000))


def test_repository_reuses_the_slots_of_removed_samples():
    repository = filled(64)
    for start in range(0, 50):
        repository.remove(torch.arange(8))
        grow(repository, start, 8)
    assert len(repository._rows["labels"]) == 64


@pytest.mark.parametrize("logged", [False, True])
def test_repository_continues_from_its_state(logged, tmp_path):
    log = SampleLog(tmp_path / "samples.bin", (3, 4, 4), 2) if logged else None
    repository = filled(10, log=log)
    repository.remove(torch.tensor([2]))
    state = repository.state_dict()
    grow(repository, 20, 5)  # after the checkpoint: forgotten
    copy = SampleRepository((3, 4, 4), 2, 3, log=log)
    copy.load_state_dict(state)
    grow(copy, 30, 2)
    expected = [0, 1, 3, 4, 5, 6, 7, 8, 9, 30, 31]
    assert copy.features[:, 0].tolist() == expected
    assert copy.images(torch.arange(11))[:, 1, 2, 3].tolist() == expected
    assert copy.table().serials[copy.table().slots].tolist() == [0, 1, *range(3, 12)]
    if logged:
        assert "images" not in state
        assert log.path.stat().st_size == 12 * log.record.itemsize


def test_repository_with_little_memory_draws_the_same_batches(tmp_path, rng):
    whole = filled(40)
    log = SampleLog(tmp_path / "samples.bin", (3, 4, 4), 2)
    small = filled(40, log=log, resident_bytes=11 * 48)  # 11 of 40 images
    for repository in (whole, small):
        repository.remove(torch.arange(0, 40, 7))
        grow(repository, 60, 9)
    state = rng.get_state()
    expected = list(whole.batches(8, 12, rng))
    rng.set_state(state)
    for batch, other in zip(expected, small.batches(8, 12, rng), strict=True):
        assert torch.equal(batch, other)
    assert len(small._images) == 11


class Unconnected(Processes):
    def barrier(self):
        """Nobody else is there."""


def test_processes_divide_the_images_and_know_all_samples(rng):
    shards = [filled(20, processes=Unconnected(rank, 3)) for rank in range(3)]
    seen = []
    for rank, shard in enumerate(shards):
        assert shard.features[:, 0].tolist() == list(range(20))
        drawn = torch.cat(list(shard.batches(4, 10, rng)))[:, 0, 0, 0]
        assert set(drawn.tolist()) == set(range(rank, 20, 3))
        seen += set(drawn.tolist())
    assert sorted(seen) == list(range(20))


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1)), max_size=12),
    st.integers(0, 2**31),
)
def test_the_repository_is_a_list_from_which_samples_are_removed(classes, steps, seed):
    rng = torch.Generator().manual_seed(seed)
    repository, plain, number = SampleRepository((1, 2, 2), 2, classes), [], 0
    for arrivals, share in steps:
        labels = torch.randint(0, classes, (arrivals,), generator=rng)
        values = torch.arange(number, number + arrivals) % 256
        number += arrivals
        images = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        features = torch.rand(arrivals, 2, generator=rng)
        repository.add(samples(images, labels, features, values.float()))
        plain += list(zip(values.tolist(), labels.tolist(), features.tolist(), strict=True))
        gone = (torch.rand(len(plain), generator=rng) < share).nonzero().squeeze(1)
        repository.remove(gone)
        plain = [sample for place, sample in enumerate(plain) if place not in set(gone.tolist())]
        assert len(repository) == len(plain)
        assert repository.labels.tolist() == [label for _, label, _ in plain]
        assert repository.features.tolist() == [row for *_, row in plain]
        shown = repository.images(torch.arange(len(plain)))
        assert shown.amax((1, 2, 3)).tolist() == [value for value, *_ in plain]
        of_class = Counter(label for _, label, _ in plain)
        assert repository.counts().tolist() == [of_class[label] for label in range(classes)]
        if plain:
            drawn = torch.cat(list(repository.batches(5, 3 * len(plain), rng)))[:, 0, 0, 0]
            times = Counter(drawn[: len(plain) * (len(drawn) // len(plain))].tolist())
            have = Counter(value for value, *_ in plain)
            rounds = len(drawn) // len(plain)
            assert times == Counter({value: rounds * count for value, count in have.items()})


def test_the_oldest_samples_go_when_a_repository_is_full():
    repository = filled(10, max_samples=6)
    assert (repository.serials.tolist(), repository.removed) == ([4, 5, 6, 7, 8, 9], 4)


def test_fresh_samples_are_the_newest_batch_alone():
    repository = FreshSamples((3, 4, 4), 2, 3)
    for start in (0, 10):
        grow(repository, start, 5)
    assert repository.features[:, 0].tolist() == [10, 11, 12, 13, 14]
    assert (repository.stored, repository.removed) == (10, 0)
