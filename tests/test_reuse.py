"""The teacher asked once for each view of a sample: the same results, and memory that is as asked for."""

import copy

import pytest
import torch
from conftest import run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from making import flags, samples
from test_methods import TINY, distiller
from torch import nn

from datafree.data.augment import Augment, Normalize
from datafree.errors import UserError
from datafree.extras.teacher_cache import TeacherCache
from datafree.repository import SampleRepository
from datafree.settings import resolve

settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("plain")

CLASSES, SHAPE = 4, (1, 8, 8)
ROW = 162 * (4 * CLASSES + 1)  # bytes of a sample
AUGMENT = Augment(Normalize((0.5,), (0.5,)), flip=True)


class Asked(nn.Module):
    """A teacher that counts the images it is asked about."""

    def __init__(self):
        super().__init__()
        self.images = 0
        self.weights = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs):
        self.images += len(inputs)
        return inputs.flatten(1) @ self.weights


def reuse(size, teach=None, augment=AUGMENT, shape=SHAPE, batch_size=8):
    return TeacherCache(teach or Asked(), augment, shape, CLASSES, batch_size, size, torch.device("cpu"))


def stored(count, start=0):
    images = torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, *SHAPE)
    images[:, :, 2:5, 3:] += 100
    return samples(images, torch.zeros(count, dtype=torch.long), torch.zeros(count, 2))


def test_a_view_of_a_stored_image_is_what_augment_draws(rng):
    images = torch.randint(256, (64, 3, 32, 32), generator=rng, dtype=torch.uint8)
    for flip, count in ((True, 162), (False, 81)):
        augment = Augment(Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125)), flip)
        assert augment.views((3, 32, 32)) == count
        state = rng.get_state()
        drawn = augment(images, rng)
        rng.set_state(state)
        views = augment.draw_views(64, rng)
        assert 0 <= int(views.min()) <= int(views.max()) < count
        assert torch.equal(drawn, augment.view(images, views))
        all_views = augment.view(images[:1].expand(count, -1, -1, -1), torch.arange(count))
        assert len(all_views.flatten(1).unique(dim=0)) == count


@pytest.mark.parametrize("method", ["bsr", "fast", "deepinv", "dafl"])
@pytest.mark.parametrize("size", ["1MB", "30KB"])  # for all samples, and for few of them
def test_a_student_is_the_same_bit_for_bit(method, size):
    on_top = ("--method", method, *TINY, *"--dlw --blg --iho --store_samples --max_samples 50".split())
    plain, reused = (distiller(flags(*on_top, *more)) for more in ((), ("--reuse_teacher", size)))
    rows = [[{**made.run_epoch(epoch), "seconds": 0} for epoch in range(4)] for made in (plain, reused)]
    assert rows[0] == rows[1]
    for key, value in plain.student.state_dict().items():
        assert torch.equal(value, reused.student.state_dict()[key]), key


def test_a_resumed_run_needs_no_table():
    chosen = flags(
        *TINY, *"--reuse_teacher 1MB --max_samples 50 --kd_steps 60 --ep_steps 60 --lr 0.01".split()
    )
    whole, broken = distiller(chosen), distiller(chosen)
    rows = [{**whole.run_epoch(epoch), "seconds": 0} for epoch in range(4)]
    for epoch in range(2):
        broken.run_epoch(epoch)
    state = copy.deepcopy(broken.state_dict())
    assert "reuse" not in state
    broken.streams.labels.manual_seed(9)
    broken.run_epoch(2)  # whose samples get numbers that others then have
    broken.load_state_dict(state)
    assert [{**broken.run_epoch(epoch), "seconds": 0} for epoch in range(2, 4)] == rows[2:]
    for key, value in whole.student.state_dict().items():
        assert torch.equal(value, broken.student.state_dict()[key]), key


@given(
    rows=st.integers(1, 12),
    rounds=st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 20), max_size=6)), max_size=6),
    seed=st.integers(0, 2**31),
)
def test_answers_are_the_teachers_and_known_ones_are_not_asked_again(rows, rounds, seed):
    """Against a plain model: a set of (sample, view) for those samples, the oldest first, that have a row."""
    teacher, repository = Asked(), SampleRepository(SHAPE, 2, CLASSES)
    table = reuse(rows * ROW, teacher)
    draws, checks = (torch.Generator().manual_seed(seed) for _ in range(2))
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
        batches = list(table.batches(repository, 40, draws))
        assert teacher.images == -(-len(new) // 8) * 8  # in whole batches
        for (inputs, logits), images in zip(batches, expected, strict=True):
            assert torch.equal(inputs, images)
            assert torch.equal(logits, teacher(images))
        known |= {one for one in new if one[0] in having}


def test_rows_go_to_the_oldest_and_are_used_again():
    table = reuse(3 * ROW)
    assert table._rows_of(torch.tensor([4, 7, 8, 9])).tolist() == [0, 1, 2, -1]
    assert table._rows_of(torch.tensor([4, 8, 9, 10])).tolist() == [0, 2, 1, -1]
    assert table._rows_of(torch.tensor([10, 11])).tolist() == [0, 1]
    assert table._rows_of(torch.tensor([], dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("size", [10 * ROW, 10 * ROW + 7, 1_000_000])
def test_the_table_takes_the_memory_asked_for(size):
    table = reuse(size)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in (table._logits, table._known))
    assert size - ROW < taken <= size


class Mirrored(Augment):
    def warp(self, images, generator):
        return images.flip(3)


def batch_norm(images):
    return images.flatten(1)[:, :CLASSES] - images.flatten(1)[:, :CLASSES].mean(0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"shape": (1, 224, 224)}, "Augment has no finite set of views of images of 224 pixels"),
        ({"augment": Mirrored(AUGMENT.normalize, True)}, "Mirrored has no finite set of views"),
        ({"size": ROW - 1}, f"one sample takes {ROW:,} bytes: give it more"),
        ({"size": 10**15}, "there is not so much memory: give it less"),
        ({"teach": batch_norm}, "depends on the rest of the batch"),
    ],
)
def test_what_cannot_be_reused_is_refused(more, words):
    with pytest.raises(UserError, match="--reuse_teacher") as refused:
        reuse(**{"size": ROW, **more})
    assert words in str(refused.value)


def by_place(images):
    """Rounded by the place in the batch."""
    return images.flatten(1)[:, :CLASSES] * (1 + 1e-6 * torch.arange(len(images))[:, None])


@pytest.mark.parametrize(("teach", "exact"), [(None, True), (by_place, False)])
def test_a_teacher_that_rounds_by_place_is_found_out(teach, exact):
    assert reuse(ROW, teach).exact is exact
    assert reuse(ROW, teach, batch_size=1).exact is True  # an image is always in the same place


def test_fresh_samples_are_refused(tmp_path):
    done = run_here("bsr_main.py", "--method", "dafl", "--reuse_teacher", "1MB", cwd=tmp_path)
    assert done.returncode == 2
    assert "--reuse_teacher needs stored samples" in done.stderr


def test_the_runs_of_the_benchmarks_ask_for_as_much_as_they_say():
    from benchmarks.common import know, make_distiller, network

    steps = {"kd_steps": 6, "ep_steps": 6, "batch_size": 16, "warmup": 0, "lr": 1e-3, "reuse_teacher": 10**7}
    teacher = network("resnet8").eval().requires_grad_(False)
    made = make_distiller(resolve(steps)[0], teacher, network("resnet8"), 200)
    for share, batches in ((1.0, 0), (0.5, 3), (0.0, 6)):
        phases = []
        know(made, share)
        made.kd.train(made._batches(lambda phase, _loss, phases=phases: phases.append(phase)))
        assert abs(len(phases) - batches) <= 1, share
