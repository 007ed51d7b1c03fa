"""IHO: outlier factors against scikit-learn's, and which samples are removed."""

import math

import numpy as np
import pytest
import torch
from helpers import samples
from sklearn.neighbors import LocalOutlierFactor

from datafree import neighbours
from datafree.iho import HomogeneityOperator, NoPruning
from datafree.neighbours import SlotTable
from datafree.repository import SampleRepository


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
    factors = HomogeneityOperator(1, 64, 100).measure(table(features)).factors
    np.testing.assert_allclose(factors, sklearn_factors(features.double()), rtol=1e-9)


def test_outlier_factors_of_identical_samples_are_one():
    spread = HomogeneityOperator(1, 64, 100).measure(table(torch.ones(40, 5)))
    np.testing.assert_allclose(spread.factors, 1.0)
    assert len(spread.outside) == 0


def churn(rng, epochs, num_classes, batch, make_features):
    """A repository in which samples come and go, and the operator that follows it."""
    first = make_features(torch.zeros(1, dtype=torch.long))
    repository = SampleRepository((1, 1, 1), first.shape[1], num_classes)
    operator = HomogeneityOperator(num_classes, batch, 100)
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
        anew = HomogeneityOperator(4, 24, 100).measure(repository.table())
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
    operator = HomogeneityOperator(2, 64, 100)
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
    operator = HomogeneityOperator(2, 4, 100)  # at most ceil(4 / 2) + 1 = 3 of each class
    spread = operator.measure(table(features, labels))
    removed = operator.select(spread, labels)
    assert (removed % 2).bincount().tolist() == [3, 3]
    for label in (0, 1):
        of_class = spread.outside[labels[spread.outside] == label]
        assert removed[labels[removed] == label].tolist() == of_class[:3].tolist()


def test_nothing_is_pruned_in_the_last_five_epochs_or_without_iho(rng):
    repository = SampleRepository((1, 1, 1), 4, 1)
    features = torch.randn(100, 4, generator=rng)
    features[7] = 1000
    repository.add(samples(torch.zeros(100, 1, 1, 1), torch.zeros(100, dtype=torch.long), features))
    NoPruning(1).prune(repository, 0)
    pruner = HomogeneityOperator(1, 64, epochs=8)
    pruner.prune(repository, 3)
    assert len(repository) == 100
    pruner.prune(repository, 2)
    assert 7 not in repository.serials.tolist()
