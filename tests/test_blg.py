"""BLG: how likely each class is, and what is drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datafree.blg import BiasedLabelGenerator, UniformLabels, label_probabilities


def test_blg_is_uniform_before_there_are_counts_and_when_they_are_equal(rng):
    blg = BiasedLabelGenerator(4, rng)
    before = blg.draw(8_000).bincount(minlength=4) / 8_000
    assert before.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert label_probabilities(torch.full((4,), 7)).tolist() == [0.25] * 4


def test_uniform_labels_ignore_the_counts(rng):
    labels = UniformLabels(3, rng)
    labels.update(torch.tensor([0, 9, 9]))
    drawn = labels.draw(9_000).bincount(minlength=3) / 9_000
    assert drawn.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


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
    blg = BiasedLabelGenerator(len(per_class), torch.Generator().manual_seed(seed))
    assert int(blg.draw(batch).max()) < len(per_class)  # before there are counts
    blg.update(torch.tensor(per_class))
    drawn = blg.draw(batch)
    assert drawn.shape == (batch,)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < len(per_class)
    if len(set(per_class)) > 1:
        fullest = {k for k, count in enumerate(per_class) if count == max(per_class)}
        assert not fullest & set(drawn.tolist())
