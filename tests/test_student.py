"""The student's steps: divergence, temperature, known logits. The published numbers are in test_golden.py."""

import torch
from helpers import CPU, classifier

from datafree import losses
from datafree.samples import Batch
from datafree.settings import resolve
from datafree.student import StudentTrainer


def trainer(method, **given):
    teacher, student = classifier(0).requires_grad_(False), classifier(1)
    return StudentTrainer(teacher, student, resolve({"method": method, **given})[0], CPU)


def test_the_loss_is_the_methods_divergence_at_its_temperature(rng):
    images = torch.rand(6, 3, 8, 8, generator=rng)
    for method, T, kind in (("bsr", 20, "kl"), ("dfad", 1, "l1"), ("zskt", 1, "kl")):
        made = trainer(method)
        student, teacher = made.network.train()(images), made.teacher(images)
        torch.testing.assert_close(made.loss(Batch(images)), losses.divergence(kind, student, teacher, T))


def test_the_teacher_is_not_called_where_its_logits_are_known(rng):
    made, images = trainer("bsr"), torch.rand(6, 3, 8, 8, generator=rng)
    expected = made.loss(Batch(images)).item()
    known = made.teach(images)
    made.teacher = None
    assert made.loss(Batch(images, known)).item() == expected


def test_the_schedule_stands_still_in_an_epoch_without_training():
    made = trainer("bsr", lr=0.1)
    made.end_epoch()
    assert made.lr == 0.1
    made.train([Batch(torch.rand(4, 3, 8, 8))])
    made.end_epoch()
    assert made.lr < 0.1
