"""Augmentation: crops and flips pixel for pixel, views by number, normalisation."""

import numpy as np
import torch
from helpers import NORMALIZE
from torch.nn import functional as F

from datafree.data.augment import ASPECT, SYNTHESIS_SCALE, Augment, Normalize, crop_windows

PLAIN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def windows(image):
    """All the crops of a padded image, and their mirror images."""
    padded = F.pad(image, (4, 4, 4, 4))
    _, height, width = image.shape
    for top in range(9):
        for left in range(9):
            crop = padded[:, top : top + height, left : left + width]
            yield from (crop, crop.flip(2))


def test_small_images_are_padded_cropped_and_flipped_pixel_for_pixel(rng):
    image = torch.rand(3, 32, 32, generator=rng)
    augmented = Augment(PLAIN, flip=True).warp(image.expand(64, -1, -1, -1), rng)
    possible = torch.stack(list(windows(image)))
    which = [(possible == result).flatten(1).all(1).nonzero().squeeze(1).tolist() for result in augmented]
    assert all(which)
    assert len({tuple(w) for w in which}) > 30  # each image has an offset of its own
    assert 16 < sum(w[0] % 2 for w in which) < 48  # about half are mirrored
    unflipped = Augment(PLAIN, flip=False).warp(image.expand(64, -1, -1, -1), rng)
    assert all((possible[::2] == result).flatten(1).all(1).any() for result in unflipped)


def test_crops_equal_kornias(rng):
    from kornia.geometry.transform import crop_and_resize

    images = torch.rand(8, 3, 96, 80, generator=rng)
    augment = Augment(PLAIN, flip=False)
    state = rng.get_state()
    actual = augment.warp(images, rng)
    rng.set_state(state)
    (scale_y, shift_y), (scale_x, shift_x) = crop_windows(torch.rand(4, 8, generator=rng), SYNTHESIS_SCALE)
    # Kornia's boxes join pixel centres; ours are shares of the image between its outer edges.
    left, right = ((shift_x + side * scale_x + 1) / 2 * 80 - 0.5 - side * 0.5 * scale_x for side in (-1, 1))
    top, bottom = ((shift_y + side * scale_y + 1) / 2 * 96 - 0.5 - side * 0.5 * scale_y for side in (-1, 1))
    boxes = torch.stack(
        [torch.stack(p, 1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))], 1
    )
    expected = crop_and_resize(images, boxes, (96, 80))
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # edges are padded differently
    torch.testing.assert_close(actual[inner], expected[inner], rtol=0, atol=1e-3)


def test_gradients_pass_through_augmentation(rng):
    images = torch.rand(4, 3, 32, 32, generator=rng, requires_grad=True)
    Augment(PLAIN, flip=True).warp(images, rng).sum().backward()
    assert set(images.grad.unique().tolist()) <= {0.0, 1.0}
    assert images.grad.mean() > 0.7


def test_normalisation_is_exact_in_the_precision_of_the_images():
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    result = Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))(images)
    np.testing.assert_allclose(result[0, :, 0, 0], [0.8, 1.2, 1.6], rtol=1e-15)


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


def test_all_81_crops_are_drawn_about_equally_often_and_half_are_mirrored(rng):
    augment = Augment(NORMALIZE, flip=True)
    shifts = augment._pixel_shifts(81_000, rng)
    counts = torch.bincount((shifts[0] + 4) * 9 + shifts[1] + 4, minlength=81)
    assert len(counts) == 81
    assert 850 < counts.min() <= counts.max() < 1150


def test_windows_reach_both_ends_of_aspect_area_and_place():
    u = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    (height, top), (width, left) = crop_windows(u, (0.08, 0.75))
    area = torch.tensor([0.08, 0.08, 0.75, 0.75])
    torch.testing.assert_close(height * width, area)
    ratio = torch.tensor([ASPECT[0], ASPECT[1]] * 2)
    torch.testing.assert_close(width / height, ratio)
    assert ASPECT == (3 / 4, 4 / 3)
    torch.testing.assert_close(top, torch.tensor([-1.0, -1.0, 1.0, 1.0]) * (1 - height))
    torch.testing.assert_close(left, torch.tensor([-1.0, 1.0, -1.0, 1.0]) * (1 - width))


def test_students_see_smaller_crops_of_large_images_than_a_synthesis():
    augment = Augment(PLAIN, flip=False)
    assert augment.large_scale == (0.75, 1.0)
    assert augment.for_training().large_scale == (0.08, 1.0)
