#!/usr/bin/env python
"""Tables and figures of the runs that are kept in results/.

    python show_result/results.py                           # `make results`
    python show_result/results.py --add run/cifar10_cpu     # after keeping the finished runs in there, too

Draws show_result/cifar10_accuracy (.png and .pdf), accuracy against student steps, and cifar10_variation, the
variation of class counts by variant beside the published one; and writes anew the tables in README.md and
docs/results.md. A table stands between its command as a comment, `<!-- scripts/table.py ... -->`, and
`<!-- end -->`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli import parser as cli
from datafree.cli import table
from datafree.results.tables import Row, collect
from datafree.runs.files import CONFIG, METRICS, SUMMARY
from datafree.runs.read import COMPONENTS, Run, find_runs
from show_result.ablation import ORDER, variant_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
KEPT = (CONFIG, METRICS, SUMMARY)
PAGES = ("README.md", "docs/results.md")
TABLE = re.compile(r"(<!-- scripts/table\.py (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
YARDSTICKS = {"vanilla_kd": "KD, real images", "vanilla_kd_transfer": "KD, noise"}
# Variation of the class counts at the end of the published runs (resnet34 to resnet18, CIFAR-10,
# one run a variant), from the labels of their samples in the authors' repository.
PUBLISHED = dict(zip(ORDER, (0.192, 0.095, 0.089, 0.114, 0.001, 0.090, 0.130, 0.000), strict=True))
WIDTH = 4.8  # inches: text stays legible on a phone


def build_parser() -> cli.Parser:
    parser = cli.Parser("Tables and figures of the runs in results/.")
    parser.add_argument(
        "--add",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="folders of runs, such as run/cifar10_cpu: small files of the finished ones are copied first",
    )
    return parser


def keep(folder: Path, results: Path) -> int:
    """Copy the configurations, metrics and summaries of the finished runs below `folder` to a folder of its
    name in `results`; returns how many runs there are.

    Raises:
        UserError: there is no run.
    """
    runs, _ = find_runs([folder])
    for run in runs:
        target = results / folder.resolve().name / run.path.resolve().name
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(run.path / name, target / name)
    return len(runs)


def refreshed(page: str) -> str:
    """The text of a page with its tables written anew.

    Raises:
        UserError: a table's command is wrong, or there are no such runs.
    """

    def one(found: re.Match[str]) -> str:
        words = [path for word in shlex.split(found[2]) for path in sorted(ROOT.glob(word)) or [word]]
        args = table.build_parser().parse_args([*map(str, words), "--format", "markdown"])
        return f"{found[1]}\n{table.render(args)}\n{found[3]}"

    return TABLE.sub(one, page)


def student_steps(run: Run) -> np.ndarray:
    """(E,): the steps that the student has taken after each epoch."""
    import numpy as np

    setting = run.config
    of_epoch = setting["ep_steps"] // setting["kd_steps"] * setting["kd_steps"]
    return of_epoch * np.maximum(0, np.arange(1, len(run.metrics) + 1) - setting["warmup"])


def accuracy_figure(rows: list[Row]) -> Figure:
    """Mean accuracy over seeds against student steps, with a band from the lowest to the highest seed; dotted
    the teacher, dashed KD with images."""
    import matplotlib.pyplot as plt
    import numpy as np

    from datafree.results import style

    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    curves = [row for row in rows if row.label not in YARDSTICKS]
    curves.sort(key=lambda row: (row.label != "bsr", -mean(row.values("last_top1"))))
    ends = []
    for place, row in enumerate(curves):
        color = style.COLORS[place % len(style.COLORS)]
        evaluated = np.array([one["evaluated"] for one in row.runs[0].metrics])
        x = student_steps(row.runs[0])[evaluated]
        y = np.array([[one["test_top1"] for one in run.metrics] for run in row.runs])[:, evaluated]
        trained = np.append(x[1:] > 0, True)  # and the last figure from before the first step
        x, y = x[trained], y[:, trained]
        axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
        dashes = "-" if place < len(style.COLORS) else "-."
        axis.plot(x, y.mean(0), dashes, color=color, linewidth=2.2 if row.label == "bsr" else 1.2)
        ends.append((x[-1], y.mean(0)[-1], f"{y.mean(0)[-1]:.1f} {row.label}", color))
    end = max(x for x, *_ in ends)
    for row in rows:
        if row.label in YARDSTICKS:
            level = mean(row.values("last_top1"))
            axis.axhline(level, color="#555555", linewidth=0.8, linestyle="--")
            ends.append((end, level, f"{level:.1f} {YARDSTICKS[row.label]}", "#555555"))
    taught = mean(rows[0].values("teacher_top1"))
    axis.axhline(taught, color="#555555", linewidth=0.8, linestyle=":")
    ends.append((end, taught, f"{taught:.1f} teacher", "#555555"))
    axis.set(xlabel="student steps", ylabel="test accuracy, %", xlim=(0, end), ylim=(0, 100))
    style.label_ends(axis, ends)
    return figure


def variation_figure(rows: list[Row]) -> Figure:
    """Variation of the class counts at the end by variant: each seed, and the published run."""
    import matplotlib.pyplot as plt

    from datafree.results import style

    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    places = {variant: place for place, variant in enumerate(ORDER)}
    points = [(value, places[variant(row)]) for row in rows for value in row.values("count_variation")]
    axis.scatter(*zip(*points, strict=True), color=style.COLORS[0], s=22, label="here, each seed", zorder=3)
    axis.scatter(
        PUBLISHED.values(), places.values(), color=style.COLORS[2], s=26, marker="D", label="published run"
    )
    axis.set_yticks(range(len(ORDER)), ORDER)
    axis.invert_yaxis()
    axis.grid(axis="y", color="#e5e5e5")
    axis.set_axisbelow(True)
    axis.set(xlabel="variation of the class counts", xlim=(-0.005, None))
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.16), ncol=2)
    return figure


def variant(row: Row) -> str:
    """The paper's name for the components of a row."""
    return variant_of(name for name in COMPONENTS if row.runs[0].config[name])


def run() -> None:
    args = build_parser().parse_args()
    results = ROOT / "results"
    for folder in args.add:
        print(f"{keep(folder, results)} runs of {folder} kept in {results / folder.resolve().name}")

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.results import style

    style.use()
    table_rows = collect(find_runs([results / "cifar10_cpu"])[0])
    variants = [row for row in table_rows if row.label in ("bsr", "fast_meta")]
    variants += collect(find_runs([results / "cifar10_cpu_ablation"])[0])
    folder = ROOT / "show_result"
    files = style.save(accuracy_figure(table_rows), folder / "cifar10_accuracy")
    files += style.save(variation_figure(variants), folder / "cifar10_variation")
    for name in PAGES:
        page = ROOT / name
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
        files.append(page)
    for file in files:
        print(file)


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
