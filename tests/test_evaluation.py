"""Accuracy, and agreement on held-out samples."""

import torch
from helpers import CPU, NORMALIZE, ConstantLogits, samples

from datafree.evaluation import MOST, HeldOut, predict, score

GREY = torch.full((4, 3, 8, 8), 128, dtype=torch.uint8)


def test_a_student_agrees_with_its_teacher_only_where_both_give_the_same_class():
    held = HeldOut((3, 8, 8), ConstantLogits(0.0, 1.0), NORMALIZE, CPU)
    held.images = GREY
    assert held.evaluate(ConstantLogits(0.0, 2.0)).top1 == 100
    assert held.evaluate(ConstantLogits(2.0, 0.0)).top1 == 0


def test_the_fifth_class_counts_for_top_5_and_the_sixth_does_not():
    network = ConstantLogits(*(6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    for label, top1, top5 in ((0, 100, 100), (4, 0, 100), (5, 0, 0)):
        scores = score(predict(network, [GREY], NORMALIZE, CPU), torch.full((4,), label))
        assert (scores.top1, scores.top5) == (top1, top5)


def test_samples_held_out_never_train_and_are_no_more_than_their_bound():
    held = HeldOut((1, 1, 1), ConstantLogits(0.0, 1.0), NORMALIZE, CPU)
    numbers = torch.arange(MOST * 8 + 160)
    images = (numbers % 256).byte().view(-1, 1, 1, 1)
    kept = []
    for part in numbers.split(7):
        some = samples(images[part], part, torch.zeros(len(part), 1))
        kept.append(held.take(some).labels)
    trained = set(torch.cat(kept).tolist())
    out = [number for number in numbers.tolist() if number not in trained]
    assert out == list(range(7, len(numbers), 8))
    assert len(held.images) == MOST == 2_000
    assert torch.equal(held.images, images[torch.tensor(out[-MOST:])])
