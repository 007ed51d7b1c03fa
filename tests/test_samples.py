"""Samples in eight bits; how often a label has come before."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from datafree.data.image_set import to_uint8
from datafree.samples import occurrences


def test_repository_stores_eight_bits_truncated():
    images = torch.tensor([0.0, 0.4999, 0.999, 1.0])
    assert to_uint8(images).tolist() == [0, 127, 254, 255]


@given(st.lists(st.integers(0, 4), max_size=20))
def test_occurrences_count_what_came_before(labels):
    expected = [labels[:place].count(label) for place, label in enumerate(labels)]
    assert occurrences(torch.tensor(labels, dtype=torch.long)).tolist() == expected
