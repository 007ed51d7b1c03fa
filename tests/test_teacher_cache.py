"""The cache of the teacher's logits: same results, no question twice, memory as requested."""

import copy

import pytest
import torch
from helpers import SHORT, assert_same_weights, distiller, flags, samples, untimed
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from datafree.data.augment import Augment, Normalize
from datafree.errors import UserError
from datafree.extras.teacher_cache import TeacherCache
from datafree.repository import SampleRepository

CLASSES, SHAPE = 4, (1, 8, 8)
ROW = 162 * (4 * CLASSES + 1)  # bytes of a sample
AUGMENT = Augment(Normalize((0.5,), (0.5,)), flip=True)


class CountingTeacher(nn.Module):
    """A teacher that counts the images it sees."""

    def __init__(self):
        super().__init__()
        self.images = 0
        self.weights = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs):
        self.images += len(inputs)
        return inputs.flatten(1) @ self.weights


def make_cache(size, teach=None, augment=AUGMENT, shape=SHAPE, batch_size=8, repository=None, rng=None):
    repository = SampleRepository(shape, 2, CLASSES) if repository is None else repository
    teach, rng = teach or CountingTeacher(), rng or torch.Generator()
    return TeacherCache(repository, teach, augment, CLASSES, batch_size, 40, size, rng)


def stored(count, start=0):
    images = torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, *SHAPE)
    images[:, :, 2:5, 3:] += 100
    return samples(images, torch.zeros(count, dtype=torch.long), torch.zeros(count, 2))


@pytest.mark.parametrize("method", ["bsr", "fast", "deepinv", "dafl"])
@pytest.mark.parametrize("size", ["1MB", "30KB"])  # for all samples, and for few of them
def test_a_student_is_the_same_bit_for_bit(method, size):
    on_top = ("--method", method, *SHORT, *"--dlw --blg --iho --store_samples --max_samples 50".split())
    plain, cached = (distiller(flags(*on_top, *more)) for more in ((), ("--reuse_teacher", size)))
    rows = [untimed(made.run_epoch(epoch) for epoch in range(4)) for made in (plain, cached)]
    assert rows[0] == rows[1]
    assert_same_weights(plain.student, cached.student)


def test_a_resumed_run_needs_no_table():
    more = "--reuse_teacher 1MB --max_samples 50 --kd_steps 60 --ep_steps 60 --lr 0.01".split()
    whole, broken = (distiller(flags(*SHORT, *more)) for _ in range(2))
    rows = untimed(whole.run_epoch(epoch) for epoch in range(4))
    for epoch in range(2):
        broken.run_epoch(epoch)
    state = copy.deepcopy(broken.state_dict())
    broken.distiller.generators.labels.manual_seed(9)
    broken.run_epoch(2)  # its samples get numbers that others have after the checkpoint
    broken.load_state_dict(state)
    assert untimed(broken.run_epoch(epoch) for epoch in range(2, 4)) == rows[2:]
    assert_same_weights(whole.student, broken.student)


@given(
    rows=st.integers(1, 12),
    rounds=st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 20), max_size=6)), max_size=6),
    seed=st.integers(0, 2**31),
)
def test_logits_are_the_teachers_and_no_view_goes_through_it_twice(rows, rounds, seed):
    """Against a plain model: a set of (sample, view) for those samples, the oldest first, that have a row."""
    teacher, repository = CountingTeacher(), SampleRepository(SHAPE, 2, CLASSES)
    draws, checks = (torch.Generator().manual_seed(seed) for _ in range(2))
    table = make_cache(rows * ROW, teacher, repository=repository, rng=draws)
    repository.add(stored(3))
    having, known = [], set()
    for added, removed in rounds:
        repository.add(stored(added, repository.stored))
        gone = torch.tensor([place for place in removed if place < len(repository) - 1], dtype=torch.long)
        repository.remove(gone)
        serials = repository.serials.tolist()
        having = [one for one in having if one in serials]
        having += [one for one in serials if one not in having][: rows - len(having)]
        known = {one for one in known if one[0] in having}
        expected, new = [], set()
        for places in repository.draws(8, 40, checks):
            views = AUGMENT.draw_views(8, checks)
            expected.append(AUGMENT.view(repository.images(places), views))
            pairs = {
                (serials[place], view) for place, view in zip(places.tolist(), views.tolist(), strict=True)
            }
            new |= pairs - known
        teacher.images = 0
        batches = list(table.batches())
        assert teacher.images == -(-len(new) // 8) * 8  # in whole batches
        for (inputs, logits), images in zip(batches, expected, strict=True):
            assert torch.equal(inputs, images)
            assert torch.equal(logits, teacher(images))
        known |= {one for one in new if one[0] in having}


def batch_norm(images):
    return images.flatten(1)[:, :CLASSES] - images.flatten(1)[:, :CLASSES].mean(0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"shape": (1, 224, 224)}, "Augment has no finite set of views of images of 224 pixels"),
        ({"size": ROW - 1}, f"one sample takes {ROW:,} bytes: give it more"),
        ({"size": 10**15}, "there is not enough memory: give it less"),
        ({"teach": batch_norm}, "depend on the rest of the batch"),
    ],
)
def test_what_cannot_be_cached_is_refused(more, words):
    with pytest.raises(UserError, match="--reuse_teacher") as refused:
        make_cache(**{"size": ROW, **more})
    assert words in str(refused.value)


def by_place(images):
    """Rounded by the place in the batch."""
    return images.flatten(1)[:, :CLASSES] * (1 + 1e-6 * torch.arange(len(images))[:, None])


@pytest.mark.parametrize(("teach", "exact"), [(None, True), (by_place, False)])
def test_a_teacher_that_rounds_by_the_place_in_a_batch_is_reported(teach, exact):
    assert (make_cache(ROW, teach).inexact == "") is exact
    assert make_cache(ROW, teach, batch_size=1).inexact == ""  # an image is always in the same place
