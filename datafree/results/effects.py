"""What each component of BSR adds, alone and beside the others. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import mean

from datafree.errors import UserError
from datafree.results.read import COMPONENTS
from datafree.results.tables import Row, Table, paired

NONE, ALL = frozenset[str](), frozenset(COMPONENTS)
SINGLE = [frozenset({name}) for name in COMPONENTS]
VARIANTS = [NONE, *SINGLE, *(ALL - one for one in SINGLE), ALL]


def effects(rows: Sequence[Row]) -> list[Table]:
    """A table for each dataset and pair: the points of the last epoch's accuracy that each component adds,
    means over the seeds that all variants have. `mean` is over the four combinations of the others (the main
    effect of a factorial design), with its 95 % confidence interval (Student's t, paired by seed).

    Args:
        rows: from `collect`, the eight variants of BSR.

    Raises:
        UserError: a variant is missing or occurs twice, or no seed has them all.
    """
    pairs = groupby(rows, lambda row: (row.dataset, row.pair))
    return [_of_pair(list(members)) for _, members in pairs]


def _of_pair(rows: Sequence[Row]) -> Table:
    by_variant: dict[frozenset[str], Row] = {}
    for row in rows:
        on = frozenset(name for name in COMPONENTS if row.runs[0].setting(name))
        if on in by_variant:
            both = f"{by_variant[on].label} and {row.label}"
            raise UserError(f"--effects: {both} have the same components: leave one out")
        by_variant[on] = row
    missing = [_words(on) for on in VARIANTS if on not in by_variant]
    if missing:
        raise UserError(f"--effects needs all eight variants, and there are no runs of {', '.join(missing)}")
    last = {on: {run.seed: run.last for run in row.runs} for on, row in by_variant.items()}
    seeds = sorted(set.intersection(*map(set, last.values())))
    if not seeds:
        raise UserError("--effects: no seed has all eight variants: run them with the same --seed")
    lines = []
    for name in COMPONENTS:
        without = [others for others in VARIANTS if name not in others]
        gains = {on: [last[on | {name}][seed] - last[on][seed] for seed in seeds] for on in without}
        main = paired([mean(of_seed) for of_seed in zip(*gains.values(), strict=True)])
        beside = [NONE, *SINGLE, ALL - {name}]
        cells = [f"{mean(gains[others]):+.2f}" if others in gains else "-" for others in beside]
        lines.append([name.upper(), main.text, *cells])
    beside_one = [f"beside {_words(on)}" for on in (NONE, *SINGLE)]
    over = f"seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"
    caption = f"{rows[0].dataset}, {rows[0].pair.words}: points that each component adds, {over}"
    return Table(caption, ["component", "mean", *beside_one, "beside both others"], lines)


def _words(on: frozenset[str]) -> str:
    return "+".join(name.upper() for name in COMPONENTS if name in on) or "none"
