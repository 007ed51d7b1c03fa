"""DLW, BLG, IHO, the repository, augmentation, statistics and balance: one behaviour a test."""

import math

import numpy as np
import pytest
import torch
from making import samples
from sklearn.neighbors import LocalOutlierFactor
from torch import nn
from torch.nn import functional as F

from datafree import losses, neighbours
from datafree.balance import count_entropy, count_variation
from datafree.blg import BiasedLabelGenerator, label_probabilities
from datafree.data.augment import SYNTHESIS_SCALE, Augment, Normalize, crop_windows
from datafree.data.pixels import to_uint8
from datafree.dlw import DynamicLossWeight
from datafree.errors import UserError
from datafree.iho import HomogeneityOperator
from datafree.neighbours import NeighbourLists, SlotTable
from datafree.networks.bn_statistics import BNStatistics
from datafree.networks.penultimate import PenultimateFeatures
from datafree.repository import SampleRepository
from datafree.runs.sample_log import SampleLog

PLAIN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


# DLW


def alphas(mode, losses_by_epoch=(), **settings):
    settings = {
        "oh_min": 0.5,
        "oh_max": 2.0,
        "oh_step": 0.1,
        "oh_memory_size": 3,
        "warmup": 1,
        "epochs": 5,
        **settings,
    }
    dlw = DynamicLossWeight(dlw_mode=mode, **settings)
    values = []
    for epoch in range(settings["epochs"]):
        values.append(dlw.update(epoch))
        dlw.observe(*(losses_by_epoch[epoch] if losses_by_epoch else (0.0, 0.0)))
    return values


def test_dlw_grows_only_when_both_losses_are_new_minima():
    both, one_only = (1.0, 1.0), (0.5, 2.0)
    assert alphas("dynamic", [(3, 3), (2, 2), one_only, both, both]) == pytest.approx(
        [0.5, 0.5, 0.6, 0.6, 0.6]
    )


def test_dlw_compares_strictly():
    assert alphas("dynamic", [(1.0, 1.0)] * 5) == [0.5] * 5


def test_dlw_forgets_losses_that_left_its_window():
    low_then_high = [(0, 0), (9, 9), (9, 9), (5, 5), (5, 5)]
    assert alphas("dynamic", low_then_high)[-1] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("con_min", [0.5] * 5),
        ("con_max", [0.5, 2.0, 2.0, 2.0, 2.0]),
        ("line", [0.5, 0.5, 1.0, 1.5, 2.0]),
        ("curve", [0.5, 0.5, 0.5 * 4 ** (1 / 3), 0.5 * 4 ** (2 / 3), 2.0]),
    ],
)
def test_dlw_ablation_modes(mode, expected):
    assert alphas(mode) == pytest.approx(expected)


def test_dlw_refuses_a_window_of_one():
    with pytest.raises(ValueError, match="memory_size"):
        alphas("dynamic", oh_memory_size=1)


def test_dlw_continues_from_its_state():
    history = [(5 - e, 5 - e) for e in range(5)]
    whole = alphas("dynamic", history)
    first = DynamicLossWeight(0.5, 2.0, 0.1, 3, 1, 5)
    for epoch in range(3):
        first.update(epoch)
        first.observe(*history[epoch])
    second = DynamicLossWeight(0.5, 2.0, 0.1, 3, 1, 5)
    second.load_state_dict(first.state_dict())
    assert second.update(3) == whole[3]


# BLG


def test_blg_never_asks_for_the_fullest_class(rng):
    blg = BiasedLabelGenerator(3)
    blg.update(torch.tensor([5, 9, 8]))
    drawn = blg.draw(10_000, rng).bincount(minlength=3)
    assert drawn[1] == 0
    assert drawn[0] / 10_000 == pytest.approx(0.8, abs=0.02)


def test_blg_is_uniform_before_there_are_counts_and_when_they_are_equal(rng):
    blg = BiasedLabelGenerator(4)
    before = blg.draw(8_000, rng).bincount(minlength=4) / 8_000
    assert before.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert label_probabilities(torch.full((4,), 7)).tolist() == [0.25] * 4


def test_blg_draws_int64_labels_below_the_number_of_classes(rng):
    labels = BiasedLabelGenerator(1000).draw(50_000, rng)
    assert labels.dtype == torch.int64
    assert labels.min() >= 0
    assert labels.max() < 1000


# IHO


def table(features, labels=None):
    numbers = torch.arange(len(features))
    return SlotTable(features, torch.zeros_like(numbers) if labels is None else labels, numbers, numbers)


def sklearn_factors(features):
    return -LocalOutlierFactor(10).fit(features.numpy()).negative_outlier_factor_


@pytest.mark.parametrize(("count", "dim"), [(11, 3), (60, 64), (300, 8), (1000, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outlier_factors_equal_scikit_learns(count, dim, dtype, rng, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 37 * count)
    features = torch.randn(count, dim, generator=rng, dtype=dtype) + 50
    factors = HomogeneityOperator(1, 64).measure(table(features)).factors
    np.testing.assert_allclose(factors, sklearn_factors(features.double()), rtol=1e-9)


def test_outlier_factors_of_identical_samples_are_one():
    spread = HomogeneityOperator(1, 64).measure(table(torch.ones(40, 5)))
    np.testing.assert_allclose(spread.factors, 1.0)
    assert len(spread.outside) == 0


def test_classes_may_be_empty_or_of_one_and_grow_later(rng):
    repository, operator = SampleRepository((1, 1, 1), 4, 3), HomogeneityOperator(3, 6)
    for count, label in ((1, 0), (12, 2), (1, 0), (11, 0)):
        labels = torch.full((count,), label)
        features = torch.randn(count, 4, generator=rng)
        repository.add(samples(torch.zeros(count, 1, 1, 1), labels, features))
        spread = operator.measure(repository.table())
        for scored in (0, 2):
            members = repository.labels == scored
            if members.sum() > 10:
                expected = sklearn_factors(repository.features[members])
                np.testing.assert_allclose(spread.factors[members], expected, rtol=1e-6)
            else:
                assert spread.factors[members].isnan().all()


def test_neighbours_hidden_by_rounding_are_found(rng):
    """Points far nearer to one another than single precision resolves at their distance from the rest."""
    features = torch.cat([1000 + 1e-3 * torch.randn(60, 16, generator=rng), torch.zeros(60, 16)])
    lists = NeighbourLists(10)
    lists.update(table(features))
    exact = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    exact.fill_diagonal_(math.inf)
    np.testing.assert_allclose(lists.distances, exact.sort(1).values[:, : lists.length], rtol=1e-12)
    assert lists.neighbours[60].tolist() == list(range(61, 61 + lists.length))  # of equals the oldest


def churn(rng, epochs, num_classes, batch, make_features):
    """A repository in which samples come and go, and the operator that follows it."""
    first = make_features(torch.zeros(1, dtype=torch.long))
    repository = SampleRepository((1, 1, 1), first.shape[1], num_classes)
    operator = HomogeneityOperator(num_classes, batch)
    for _ in range(epochs):
        labels = torch.randint(0, num_classes, (batch,), generator=rng)
        repository.add(samples(torch.zeros(batch, 1, 1, 1), labels, make_features(labels)))
        spread = operator.measure(repository.table())
        yield repository, operator, spread
        chosen = operator.select(spread, repository.labels)
        some = torch.rand(len(repository), generator=rng) < 0.05
        some[chosen] = True
        repository.remove(some.nonzero().squeeze(1))


@pytest.mark.parametrize("kind", ["spread", "duplicates"])
def test_following_arrivals_and_removals_gives_what_scoring_anew_gives(kind, rng):
    def make_features(labels):
        if kind == "duplicates":
            return torch.randint(0, 2, (len(labels), 3), generator=rng).float()
        return labels[:, None] + torch.randn(len(labels), 6, generator=rng)

    for repository, _, spread in churn(rng, 60, 4, 24, make_features):
        anew = HomogeneityOperator(4, 24).measure(repository.table())
        torch.testing.assert_close(spread.factors, anew.factors, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(spread.outside, anew.outside)


def test_removals_over_a_hundred_epochs_equal_those_by_scikit_learn(rng):
    removed = 0
    for repository, operator, spread in churn(
        rng, 100, 5, 40, lambda labels: torch.randn(len(labels), 16, generator=rng).exp()
    ):
        expected = []
        for label in range(5):
            members = (repository.labels == label).nonzero().squeeze(1)
            if len(members) > 10:
                factors = sklearn_factors(repository.features[members])
                q1, q3 = np.percentile(factors, [25, 75])
                outside = (factors < q1 - 1.5 * (q3 - q1)) | (factors > q3 + 1.5 * (q3 - q1))
                expected += members[outside][: operator.limit].tolist()
        chosen = operator.select(spread, repository.labels).tolist()
        assert chosen == sorted(expected)
        removed += len(chosen)
    assert removed > 1000


def test_iho_leaves_classes_of_ten_alone(rng):
    features = torch.randn(10, 4, generator=rng)
    features[0] = 1e6
    operator = HomogeneityOperator(2, batch_size=64)
    spread = operator.measure(table(features))
    assert len(spread.outside) == 0
    assert math.isnan(spread.relative_iqr)
    assert math.isnan(spread.outside_share)
    assert spread.factors.isnan().all()
    assert operator.select(spread, torch.zeros(10, dtype=torch.long)).tolist() == []


def test_iho_removes_the_oldest_outliers_of_each_class_up_to_its_limit(rng):
    features = torch.randn(200, 4, generator=rng)
    labels = torch.arange(200) % 2
    outliers = torch.arange(150, 170)  # ten of each class, each far away in a direction of its own
    features[outliers] = 1000 * torch.randn(20, 4, generator=rng)
    operator = HomogeneityOperator(2, batch_size=4)  # at most ceil(4 / 2) + 1 = 3 of each class
    spread = operator.measure(table(features, labels))
    removed = operator.select(spread, labels)
    assert (removed % 2).bincount().tolist() == [3, 3]
    for label in (0, 1):
        of_class = spread.outside[labels[spread.outside] == label]
        assert removed[labels[removed] == label].tolist() == of_class[:3].tolist()


# Repository


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


def test_repository_keeps_order_and_rows_together_through_adding_and_removing():
    repository = filled(10)
    repository.remove(torch.tensor([0, 3, 9]))
    grow(repository, 20, 15)
    repository.remove(torch.tensor([1, 7]))
    expected = [1, 4, 5, 6, 7, 8, *range(21, 35)]
    assert repository.features[:, 0].tolist() == expected
    assert repository.images(torch.arange(len(expected)))[:, 0, 0, 0].tolist() == expected
    assert repository.labels.tolist() == [n % 3 for n in expected]
    assert repository.margins.tolist() == pytest.approx([n / 1000 for n in expected])
    assert repository.counts().tolist() == [sum(n % 3 == k for n in expected) for k in range(3)]


def test_repository_reuses_the_slots_of_removed_samples():
    repository = filled(64)
    for start in range(0, 50):
        repository.remove(torch.arange(8))
        grow(repository, start, 8)
    assert len(repository._rows["labels"]) == 64


def test_repository_stores_eight_bits_truncated():
    images = torch.tensor([0.0, 0.4999, 0.999, 1.0])
    assert to_uint8(images).tolist() == [0, 127, 254, 255]


def test_repository_batches_are_always_full_and_cover_it_evenly(rng):
    repository = filled(10)
    seen = torch.cat(list(repository.batches(4, 5, rng)))[:, 0, 0, 0]
    assert len(seen) == 20
    assert seen.bincount().tolist() == [2] * 10
    assert [len(batch) for batch in filled(3).batches(8, 2, rng)] == [8, 8]


def test_repository_refuses_what_it_cannot_hold(rng):
    with pytest.raises(ValueError, match="empty"):
        next(SampleRepository((3, 4, 4), 2, 3).batches(4, 1, rng))
    with pytest.raises(ValueError, match="labels"):
        filled(1).add(samples(torch.zeros(1, 3, 4, 4), torch.tensor([3]), torch.zeros(1, 2)))


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


def test_processes_share_the_images_and_know_all_samples(tmp_path, rng):
    shards = [filled(20, rank=rank, world_size=3) for rank in range(3)]
    seen = []
    for rank, shard in enumerate(shards):
        assert shard.features[:, 0].tolist() == list(range(20))
        drawn = torch.cat(list(shard.batches(4, 10, rng)))[:, 0, 0, 0]
        assert set(drawn.tolist()) == set(range(rank, 20, 3))
        seen += set(drawn.tolist())
    assert sorted(seen) == list(range(20))


# Augmentation


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


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("flip", [True, False])
def test_stored_images_are_augmented_like_others(size, flip, rng):
    images = torch.randint(0, 256, (16, 3, size, size), generator=rng, dtype=torch.uint8)
    augment = Augment(Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125)), flip)
    state = rng.get_state()
    stored = augment(images, rng)
    rng.set_state(state)
    assert torch.equal(stored, augment(images.float() / 255, rng))


def test_nothing_is_flipped_where_a_flip_changes_the_class(rng):
    image = torch.rand(3, 32, 32, generator=rng)
    augmented = Augment(PLAIN, flip=False).warp(image.expand(64, -1, -1, -1), rng)
    unflipped = torch.stack(list(windows(image)))[::2]
    assert all((unflipped == result).flatten(1).all(1).any() for result in augmented)


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


def test_large_images_keep_three_quarters_of_their_area_or_more(rng):
    (scale_y, shift_y), (scale_x, shift_x) = crop_windows(
        torch.rand(4, 10_000, generator=rng), SYNTHESIS_SCALE
    )
    area = scale_x * scale_y
    assert area.max() <= 1
    assert area.min() >= 0.65
    assert area.quantile(0.05) >= 0.74
    assert (scale_x + shift_x.abs()).max() <= 1 + 1e-6
    assert (scale_y + shift_y.abs()).max() <= 1 + 1e-6


def test_only_synthesis_keeps_three_quarters_of_large_images(rng):
    augment = Augment(PLAIN, flip=False)
    images = torch.rand(1, 3, 80, 80, generator=rng).expand(64, -1, -1, -1)
    spread = [
        (one.warp(images, rng) - images).abs().mean().item() for one in (augment, augment.for_training())
    ]
    assert augment.for_training().large_scale == (0.08, 1.0)
    assert augment.large_scale == (0.75, 1.0)
    assert spread[1] > spread[0]
    small = torch.rand(4, 3, 64, 64)
    crops = []
    for one in (augment, augment.for_training()):
        crops.append(one.warp(small, torch.Generator().manual_seed(0)))
    assert torch.equal(*crops)  # up to 64 pixels both pad and crop


def test_gradients_pass_through_augmentation(rng):
    images = torch.rand(4, 3, 32, 32, generator=rng, requires_grad=True)
    Augment(PLAIN, flip=True).warp(images, rng).sum().backward()
    assert set(images.grad.unique().tolist()) <= {0.0, 1.0}
    assert images.grad.mean() > 0.7


def test_normalisation_is_exact_in_the_precision_of_the_images():
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    result = Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))(images)
    np.testing.assert_allclose(result[0, :, 0, 0], [0.8, 1.2, 1.6], rtol=1e-15)


# The teacher's statistics and features


def bn_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7)
    ).eval()


def test_distance_to_the_statistics_of_a_batch(rng):
    network, images = bn_network(), torch.rand(6, 3, 8, 8, generator=rng)
    statistics = BNStatistics(network)
    with statistics.capture():
        network(images)
    inputs = network[0](images).detach().numpy()
    mean, variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))
    expected = np.linalg.norm(1 - variance) + np.linalg.norm(0 - mean)
    assert statistics.distance().item() == pytest.approx(expected, rel=1e-5)


def test_momentum_mixes_in_the_batches_before(rng):
    network = bn_network().double()
    batches = [torch.rand(6, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(3)]
    statistics = BNStatistics(network, momentum=0.9)
    moments, distances = [], []
    for batch in batches:
        with statistics.capture():
            network(batch)
        distances.append(statistics.distance().item())
        statistics.update_averages()
        inputs = network[0](batch).detach().numpy()
        moments.append(np.stack([inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))]))
    target = np.stack([np.zeros(5), np.ones(5)])
    average = 0.9 * moments[0] + 0.1 * moments[1]
    mixed = [moments[0], 0.1 * moments[1] + 0.9 * moments[0], 0.1 * moments[2] + 0.9 * average]
    expected = [np.linalg.norm(target - m, axis=1).sum() for m in mixed]
    assert distances == pytest.approx(expected, rel=1e-10)


def test_gradients_of_the_distance_are_those_of_autograd(rng):
    network = bn_network().double()
    images = torch.rand(6, 3, 8, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    statistics = BNStatistics(network)
    with statistics.capture():
        logits = network(images)
    (statistics.distance() + logits.square().sum()).backward()
    actual, images.grad = images.grad, None
    inputs = network[0](images)
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    (torch.norm(1 - variance) + torch.norm(mean) + network(images).square().sum()).backward()
    torch.testing.assert_close(actual, images.grad, rtol=1e-9, atol=1e-12)


def test_statistics_are_taken_only_while_captured():
    network = bn_network()
    statistics, features = BNStatistics(network), PenultimateFeatures(network)
    with statistics.capture(), features.capture():
        pass
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_penultimate_features_are_the_input_of_the_last_linear_layer(rng):
    network, images = bn_network(), torch.rand(2, 3, 8, 8, generator=rng)
    features = PenultimateFeatures(network)
    with features.capture():
        logits = network(images)
    torch.testing.assert_close(network[-1](features.value), logits)
    with pytest.raises(UserError, match="no linear layer"):
        PenultimateFeatures(nn.Conv2d(3, 3, 1))


# Losses and balance, in closed form


def test_kl_of_equal_logits_is_zero_and_of_known_distributions_known():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert losses.kldiv(p, p).item() == pytest.approx(0, abs=1e-7)
    assert losses.kldiv(q, p).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_adversarial_loss_counts_only_samples_on_whose_class_both_agree():
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    one = losses.kldiv(student[:1], teacher[:1]).item()
    assert losses.adversarial(student, teacher).item() == pytest.approx(-one / 2)


def test_class_balance_is_lowest_for_even_predictions():
    assert losses.class_balance(torch.zeros(3, 8)).item() == pytest.approx(-math.log(8))


def test_l2_norm_is_of_the_whole_batch():
    assert losses.l2_norm(torch.full((2, 2), 3.0)).item() == pytest.approx(6.0)


def test_balance_measures_at_their_extremes():
    even, all_in_one = torch.full((4,), 25), torch.tensor([100, 0, 0, 0])
    assert (count_variation(even), count_entropy(even)) == (0, pytest.approx(1))
    assert count_variation(all_in_one) == pytest.approx(math.sqrt(3))
    assert count_entropy(all_in_one) == 0
    assert math.isnan(count_variation(torch.zeros(4)))
    assert math.isnan(count_entropy(torch.zeros(4)))
