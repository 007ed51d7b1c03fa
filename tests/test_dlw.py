"""DLW: when alpha grows, and the ablation modes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafree.dlw import DynamicLossWeight, FixedWeight


def alphas(mode, losses_by_epoch=(), **settings):
    given = {"oh_min": 0.5, "oh_max": 2.0, "oh_step": 0.1, "oh_memory_size": 3, "warmup": 1, "epochs": 5}
    dlw = DynamicLossWeight(dlw_mode=mode, **{**given, **settings})
    values = []
    for epoch in range(5):
        values.append(dlw.update(epoch))
        dlw.observe(*(losses_by_epoch[epoch] if losses_by_epoch else (0.0, 0.0)))
    return values


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


def test_a_fixed_weight_depends_on_nothing():
    fixed = FixedWeight(0.7)
    fixed.observe(0.0, 0.0)
    assert [fixed.update(epoch) for epoch in range(3)] == [0.7] * 3
