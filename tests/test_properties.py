"""DLW, BLG, IHO and the repository against plain models of them, on whatever hypothesis thinks of."""

import math
from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import samples

from datafree.blg import BiasedLabelGenerator, label_probabilities
from datafree.dlw import DynamicLossWeight
from datafree.iho import HomogeneityOperator
from datafree.repository import SampleRepository
from datafree.samples import occurrences

settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("plain")

losses = st.floats(-10, 10, allow_nan=False)


@given(st.lists(st.tuples(losses, losses), max_size=40), st.integers(2, 10), st.integers(0, 8))
def test_alpha_grows_exactly_at_common_new_minima(history, window, warmup):
    dlw = DynamicLossWeight(0.5, 1.0, 0.1, window, warmup, 100)
    alpha = 0.5
    for epoch in range(len(history) + 1):
        if epoch >= warmup:
            seen = history[max(0, epoch - window) : epoch]
            if len(seen) > 1 and all(
                seen[-1][term] < earlier[term] for earlier in seen[:-1] for term in (0, 1)
            ):
                alpha += 0.1
        assert math.isclose(dlw.update(epoch), alpha)
        if epoch < len(history):
            dlw.observe(*history[epoch])


@given(st.lists(st.integers(0, 4), max_size=20))
def test_occurrences_count_what_came_before(labels):
    expected = [labels[:place].count(label) for place, label in enumerate(labels)]
    assert occurrences(torch.tensor(labels, dtype=torch.long)).tolist() == expected


counts = st.integers(1, 1000).flatmap(
    lambda classes: st.lists(st.integers(0, 5000), min_size=classes, max_size=classes)
)


@given(counts)
def test_labels_are_as_likely_as_their_classes_are_short_of_the_fullest(per_class):
    odds = label_probabilities(torch.tensor(per_class))
    short = [max(per_class) - count for count in per_class]
    expected = np.array(short) / sum(short) if sum(short) else np.full(len(short), 1 / len(short))
    np.testing.assert_allclose(odds.double(), expected, rtol=1e-4, atol=1e-7)


@given(counts, st.integers(1, 300), st.integers(0, 2**31))
def test_drawn_labels_exist_and_the_fullest_class_is_not_asked_for(per_class, batch, seed):
    blg = BiasedLabelGenerator(len(per_class))
    rng = torch.Generator().manual_seed(seed)
    assert int(blg.draw(batch, rng).max()) < len(per_class)  # before there are counts
    blg.update(torch.tensor(per_class))
    drawn = blg.draw(batch, rng)
    assert drawn.shape == (batch,)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < len(per_class)
    if len(set(per_class)) > 1:
        fullest = {k for k, count in enumerate(per_class) if count == max(per_class)}
        assert not fullest & set(drawn.tolist())


def plain_outlier_factors(features, k=10):
    """Breunig et al.'s definitions word by word, for one class; ties go to the sample stored first."""
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(distances, neighbours, 1)
    density = np.array(
        [
            1 / (np.mean([max(near[j, -1], distances[i, j]) for j in neighbours[i]]) + 1e-10)
            for i in range(len(features))
        ]
    )
    return np.array([density[neighbours[i]].mean() / density[i] for i in range(len(features))])


def plain_removals(features, labels, classes, batch):
    """What IHO removes, by the list in the paper."""
    removed = []
    limit = math.ceil(batch / classes) + 1
    for label in range(classes):
        members = [i for i, one in enumerate(labels) if one == label]
        if len(members) <= 10:
            continue
        factors = plain_outlier_factors(features[members])
        q1, q3 = np.percentile(factors, [25, 75])
        low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
        # A factor that rounding may put on either side of a whisker proves nothing; but among samples that
        # are all the same, all factors are the same and none is outside.
        near = min(np.abs(factors - low).min(), np.abs(factors - high).min())
        if len(np.unique(features[members], axis=0)) > 1 and near < 1e-9:
            return None
        removed += [i for i, f in zip(members, factors, strict=True) if f < low or f > high][:limit]
    return sorted(removed)


@st.composite
def histories(draw):
    """Classes, and epochs of arrivals: labels and features, of which many may be the same."""
    classes = draw(st.one_of(st.integers(1, 6), st.integers(100, 1000)))
    used = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=3))
    epochs = draw(st.lists(st.integers(1, 25), min_size=1, max_size=5))
    kinds = draw(st.sampled_from(["spread", "few values", "all the same"]))
    return classes, used, epochs, kinds, draw(st.integers(0, 2**31))


@given(histories())
def test_iho_removes_what_a_plain_model_of_it_removes_over_arrivals_and_removals(history):
    classes, used, epochs, kind, seed = history
    random = np.random.default_rng(seed)
    repository = SampleRepository((1, 2, 2), 3, classes)
    operator = HomogeneityOperator(classes, max(epochs))
    for count in epochs:
        labels = torch.tensor(random.choice(used, count))
        if kind == "spread":
            features = torch.tensor(random.normal(size=(count, 3)), dtype=torch.float32)
        elif kind == "few values":  # more identical features than neighbours, exactly representable
            features = torch.tensor(random.integers(0, 3, (count, 3)), dtype=torch.float32)
        else:
            features = torch.ones(count, 3)
        repository.add(samples(torch.rand(count, 1, 2, 2), labels, features))
        spread = operator.measure(repository.table())
        stored, kept = repository.features.double().numpy(), repository.labels
        expected = plain_removals(stored, kept.tolist(), classes, max(epochs))
        chosen = operator.select(spread, kept)
        assert len(set(chosen.tolist())) == len(chosen)
        if expected is not None:
            assert chosen.tolist() == expected
        repository.remove(chosen)


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
