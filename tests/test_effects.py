"""What each component adds, from the eight variants of BSR."""

from itertools import product

import pytest
from conftest import run_here, succeed
from helpers import assert_refused, write_run
from scipy import stats

from datafree.results.effects import effects
from datafree.results.read import find_runs
from datafree.results.tables import collect


@pytest.fixture
def variants(tmp_path):
    """DLW adds 1, 2 and 3 points (seeds 0, 1, 2), and 4 more beside IHO; IHO costs 2."""
    for dlw, blg, iho, seed in product((False, True), (False, True), (False, True), range(3)):
        top1 = 70 + 5 * seed + dlw * (1 + seed) - 2 * iho + 4 * (dlw and iho)
        on = {"dlw": dlw, "blg": blg, "iho": iho}
        name = "-".join(name for name, here in on.items() if here) or "none"
        write_run(tmp_path / f"runs/{name}-{seed}", seed, float(top1), **on)
    write_run(tmp_path / "runs/none-7", 7, 0.0, dlw=False, blg=False, iho=False)  # a seed of one alone
    return tmp_path / "runs"


def test_effects_are_means_over_the_combinations_of_the_others_with_paired_intervals(variants):
    (table,) = effects(collect(find_runs([variants])[0]))
    interval = stats.ttest_1samp([3, 4, 5], 0).confidence_interval(0.95)
    assert table.caption.endswith("points that each component adds, seeds 0 1 2")
    assert table.lines == [
        [
            "DLW",
            f"+4.00 ({interval.low:+.2f} to {interval.high:+.2f})",
            "+2.00",
            "-",
            "+2.00",
            "+6.00",
            "+6.00",
        ],
        ["BLG", "+0.00 (+0.00 to +0.00)", "+0.00", "+0.00", "-", "+0.00", "+0.00"],
        ["IHO", "+0.00 (+0.00 to +0.00)", "-2.00", "+2.00", "-2.00", "-", "+2.00"],
    ]


def test_the_command_prints_them_and_says_what_is_missing(variants):
    assert "DLW" in succeed("scripts/table.py runs --effects", cwd=variants.parent)
    sorted_too = run_here("scripts/table.py runs --effects --sort", cwd=variants.parent)
    assert_refused(sorted_too, "prints a different table")
