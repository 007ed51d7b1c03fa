"""`datafree.distill` at odd sizes (more of it with strangers' networks in test_strangers.py)."""

import pytest
from helpers import FEW, small

import datafree
from datafree.errors import UserError


def test_distillation_runs_at_an_odd_size():
    _, metrics = datafree.distill(small(0), small(1), **{**FEW, "img_size": 13})
    assert metrics[-1]["repository"] == 42
    with pytest.raises(UserError, match="from 8 to 2048"):
        datafree.distill(small(0), small(1), **{**FEW, "img_size": 7})
