#!/usr/bin/env python
"""Accuracy against DLW's two settings, as published, with runs of yours laid over.

    python show_result/hyperparameters/hp.py [RUN...]

Writes hp.png and hp.pdf beside this file, and for MATLAB and GNU Octave (`hp.m`) the points of each panel as
CSV: {panel}.csv as published, {panel}_runs.csv of the runs given (value, mean, standard deviation, seeds).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datafree.errors import UserError
from datafree.flags import Parser, run
from datafree.runs import Run, differing, find_runs

FOLDER = Path(__file__).resolve().parent
PANELS = {  # file name: name in paper_results.json, flag swept, flag held, its value
    "oh_memory_size": ("oh_memory_size (mz)", "oh_memory_size", "oh_step", 0.1),
    "oh_step_coarse": ("oh_step, coarse", "oh_step", "oh_memory_size", 8),
    "oh_step_fine": ("oh_step, fine", "oh_step", "oh_memory_size", 8),
}
PUBLISHED_ON = ("cifar10", "resnet34-resnet18")


def build_parser() -> Parser:
    parser = Parser("Accuracy against oh_memory_size and oh_step, published and of your runs.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder, or a folder of some")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the figure and the CSV files")
    return parser


def swept(runs: list[Run], flag: str, held: str, value: float) -> list[tuple[float, float, float, int]]:
    """Value of the flag, mean of the last epoch's accuracy, its standard deviation over seeds, and how many,
    of the runs of whole BSR in which the other flag is as given.

    Raises:
        UserError: these runs differ in something else, or two are the same.
    """
    chosen = [one for one in runs if one.variant == "bsr" and one.config.get(held) == value]
    others = [name for name in differing(chosen) if name != flag]
    if others:
        raise UserError(f"the runs differ in {', '.join(others)} too: give those that differ in {flag} alone")
    found: dict[float, dict[int, float]] = defaultdict(dict)
    for one in chosen:
        of_seed = found[float(one.config[flag])]
        if one.seed in of_seed:
            raise UserError(f"two runs have {flag} {one.config[flag]} and seed {one.seed}: leave one out")
        of_seed[one.seed] = one.summary["last_top1"]
    sweep = [(x, list(of_seed.values())) for x, of_seed in sorted(found.items())]
    return [(x, mean(v), stdev(v) if len(v) > 1 else 0.0, len(v)) for x, v in sweep]


def main() -> None:
    args = build_parser().parse_args()
    runs = find_runs(args.runs)[0] if args.runs else []
    places = {(one.dataset, one.pair) for one in runs}
    if len(places) > 1:
        named = ", ".join(f"{pair} on {dataset}" for dataset, pair in sorted(places))
        raise UserError(f"the runs are of several pairs ({named}): give those of one")
    overlays = {name: swept(runs, *settings) for name, (_, *settings) in PANELS.items()}
    if runs and not any(overlays.values()):
        raise UserError("none of the runs is of whole BSR with oh_step 0.1 or oh_memory_size 8")
    results = json.loads((FOLDER.parent / "paper_results.json").read_text(encoding="utf-8"))
    published = results["hyperparameters_cifar10_resnet34_resnet18"]

    # Only now, so that --help and mistakes in flags answer at once.
    import matplotlib.pyplot as plt

    from show_result import style

    style.use()
    args.output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1))
    handles: list[plt.Artist] = []
    for axis, (name, (title, flag, held, value)) in zip(axes, PANELS.items(), strict=True):
        x, accuracy = published[title]["x"], published[title]["accuracy"]
        write_csv(args.output / f"{name}.csv", "value,accuracy", zip(x, accuracy, strict=True))
        look = {"color": style.COLORS[0], "markersize": 4, "label": "published, best epoch"}
        lines = axis.plot(x, accuracy, "o-", **look)
        axis.set(title=f"{title}  ({held} {value:g})", xlabel=flag, ylabel="test accuracy, %")
        fine = "fine" in name
        overlay = [point for point in overlays[name] if not fine or x[0] <= point[0] <= x[-1]]
        (args.output / f"{name}_runs.csv").unlink(missing_ok=True)  # of an earlier call
        if overlay:
            write_csv(args.output / f"{name}_runs.csv", "value,mean,std,seeds", overlay)
            same = places == {PUBLISHED_ON}
            target = axis if same else axis.twinx()
            dataset, pair = next(iter(places))
            label = f"these runs, last epoch ({max(point[3] for point in overlay)} seeds)"
            values, means, deviations, _ = zip(*overlay, strict=True)
            bars = target.errorbar(
                values,
                means,
                deviations,
                fmt="s--",
                color=style.COLORS[6],
                markersize=4,
                capsize=2,
                label=label,
            )
            lines.append(bars)
            if not same:
                target.spines["right"].set_visible(True)
                target.set_ylabel(f"{pair.replace('-', ' to ')}, {dataset}, %", color=style.COLORS[6])
        handles = lines if len(lines) > len(handles) else handles
    figure.tight_layout()
    figure.legend(handles=handles, ncol=2, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    for file in style.save(figure, args.output / "hp"):
        print(file)


def write_csv(path: Path, header: str, rows: object) -> None:
    lines = [header, *(",".join(f"{value:.10g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, "hp.py")
