"""Measures of balance at their extremes."""

import math

import pytest
import torch

from datafree.balance import count_entropy, count_variation


def test_balance_measures_at_their_extremes():
    even, all_in_one = torch.full((4,), 25), torch.tensor([100, 0, 0, 0])
    assert (count_variation(even), count_entropy(even)) == (0, pytest.approx(1))
    assert count_variation(all_in_one) == pytest.approx(math.sqrt(3))
    assert count_entropy(all_in_one) == 0
    assert math.isnan(count_variation(torch.zeros(4)))
    assert math.isnan(count_entropy(torch.zeros(4)))
