"""Mixup: student and teacher see blends of two images of a batch."""

import numpy as np
import torch
from helpers import SHORT, distiller, flags

from datafree.extras.mixing import mixed_batches, mixup
from datafree.samples import Batch


def test_each_image_is_blended_with_one_of_its_batch_by_a_share_between_0_and_1(rng):
    images, shares = torch.rand(64, 3, 8, 8, generator=rng), []
    (batch,) = mixed_batches(lambda _on_step: iter([Batch(images, torch.zeros(64, 4))]), rng)
    assert batch.teacher_logits is None  # the teacher has not seen the blends
    images = images.flatten(1)
    for blend, image in zip(batch.images.flatten(1), images, strict=True):
        others = images - image
        along = (others @ (blend - image) / others.square().sum(1)).nan_to_num()
        left = (image + along[:, None] * others - blend).abs().amax(1)
        assert left.min() < 1e-5
        shares.append(along[left.argmin()].item())
    assert all(0 <= share <= 1 for share in shares)
    assert np.ptp(shares) > 0.8


def test_mixup_is_switched_on_by_its_flag(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "datafree.extras.mixing.mixup", lambda images, rng: calls.append(len(images)) or mixup(images, rng)
    )
    for more in ((), ("--mixup",)):
        distiller(flags(*SHORT, *more)).run_epoch(0)
    assert calls == [8] * 4
