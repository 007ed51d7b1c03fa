#!/usr/bin/env python
"""Accuracy against DLW's two settings, as published, with runs of yours laid over.

    python show_result/hyperparameters/hp.py [RUN...]

Writes hp.png and hp.pdf beside this file, and for MATLAB and GNU Octave (`hp.m`) the points of each panel as
CSV: {panel}.csv as published, {panel}_runs.csv of the runs given (value, mean, standard deviation, seeds).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.results.published import SWEPT_DATASET, SWEPT_PAIR, Published, Sweep
from datafree.results.read import FinishedRun, differing, find_runs

FOLDER = Path(__file__).resolve().parent


class Point(NamedTuple):
    """The runs at one value of the setting that is varied."""

    value: float
    mean: float  # of the last epoch's accuracy, in percent
    deviation: float  # over seeds; 0 of one seed
    seeds: int


def build_parser() -> cli.Parser:
    parser = cli.Parser("Accuracy against oh_memory_size and oh_step, published and of your runs.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder, or a folder of some")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the figure and the CSV files")
    return parser


def points_of(runs: Sequence[FinishedRun], sweep: Sweep) -> list[Point]:
    """A point for each value of the setting that a sweep varies, from the runs of whole BSR in which the
    other setting has the value that the sweep holds.

    Raises:
        UserError: these runs differ in something else, or two are the same.
    """
    chosen = [one for one in runs if one.variant == "bsr" and one.setting(sweep.held) == sweep.value]
    others = [name for name in differing(chosen) if name != sweep.varied]
    if others:
        names = ", ".join(others)
        raise UserError(f"the runs differ in {names} too: give those that differ in {sweep.varied} alone")
    found: dict[float, dict[int, float]] = defaultdict(dict)
    for one in chosen:
        value = one.setting(sweep.varied)
        of_seed = found[float(value)]
        if one.seed in of_seed:
            raise UserError(f"two runs have {sweep.varied} {value} and seed {one.seed}: leave one out")
        of_seed[one.seed] = one.last
    values = {value: list(of_seed.values()) for value, of_seed in sorted(found.items())}
    return [Point(x, mean(v), stdev(v) if len(v) > 1 else 0.0, len(v)) for x, v in values.items()]


def run() -> None:
    args = build_parser().parse_args()
    runs = find_runs(args.runs)[0] if args.runs else []
    places = {(one.dataset, one.pair) for one in runs}
    if len(places) > 1:
        named = ", ".join(sorted(f"{pair} on {dataset}" for dataset, pair in places))
        raise UserError(f"the runs are of several pairs ({named}): give those of one")
    sweeps = Published().sweeps
    overlays = {name: points_of(runs, sweep) for name, sweep in sweeps.items()}
    if runs and not any(overlays.values()):
        raise UserError("none of the runs is of whole BSR with oh_step 0.1 or oh_memory_size 8")

    # Imported late, so that --help and wrong flags are answered at once.
    import matplotlib.pyplot as plt
    from matplotlib.artist import Artist

    from datafree.results import style

    style.use()
    args.output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(sweeps), figsize=(10.5, 3.1))
    handles: list[Artist] = []
    for axis, (name, sweep) in zip(axes, sweeps.items(), strict=True):
        published = zip(sweep.x, sweep.accuracy, strict=True)
        write_csv(args.output / f"{name}.csv", "value,accuracy", published)
        label, color = "published, best epoch", style.COLORS[0]
        lines: list[Artist] = axis.plot(sweep.x, sweep.accuracy, "o-", color=color, markersize=4, label=label)
        title = f"{sweep.title}  ({sweep.held} {sweep.value:g})"
        axis.set(title=title, xlabel=sweep.varied, ylabel="test accuracy, %")
        fine = "fine" in name
        overlay = [point for point in overlays[name] if not fine or sweep.x[0] <= point.value <= sweep.x[-1]]
        (args.output / f"{name}_runs.csv").unlink(missing_ok=True)  # of an earlier call
        if overlay:
            write_csv(args.output / f"{name}_runs.csv", "value,mean,std,seeds", overlay)
            dataset, pair = next(iter(places))
            as_published = (dataset, str(pair)) == (SWEPT_DATASET, SWEPT_PAIR)
            target = axis if as_published else axis.twinx()
            bars = target.errorbar(
                [point.value for point in overlay],
                [point.mean for point in overlay],
                [point.deviation for point in overlay],
                fmt="s--",
                color=style.COLORS[6],
                markersize=4,
                capsize=2,
                label=f"these runs, last epoch ({max(point.seeds for point in overlay)} seeds)",
            )
            lines.append(bars)
            if not as_published:
                target.spines["right"].set_visible(True)
                target.set_ylabel(f"{pair.words}, {dataset}, %", color=style.COLORS[6])
        handles = lines if len(lines) > len(handles) else handles
    figure.tight_layout()
    figure.legend(handles=handles, ncol=2, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    for file in style.save(figure, args.output / "hp"):
        print(file)


def write_csv(path: Path, header: str, rows: Iterable[Iterable[float]]) -> None:
    lines = [header, *(",".join(f"{value:.10g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
