#!/usr/bin/env python
"""Tables and figures of the runs that are kept in results/.

    python show_result/results.py                           # `make results`
    python show_result/results.py --add run/cifar10_cpu     # after keeping the finished runs in there, too

Draws in show_result/, as .png and .pdf: cifar10_accuracy, accuracy against student steps; cifar10_variation,
the variation of class counts by variant beside the published one; cifar10_classes, the samples and the recall
of each class; iho_removed, what removed.py wrote to results/iho_removed.csv; cifar100_growth, samples and
accuracy by epoch; balance, how much better than fast_meta a method is in each experiment. Rewrites the tables
in README.md and docs/results.md: each is between its command in a comment, `<!-- scripts/table.py ... -->`,
and `<!-- end -->`.
"""

from __future__ import annotations

import csv
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
from datafree.errors import UserError
from datafree.results.read import COMPONENTS, FinishedRun, find_runs
from datafree.results.tables import Row, collect, paired, seed_differences
from datafree.runs.files import CONFIG, METRICS, SUMMARY
from show_result.ablation import ORDER, variant_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
KEPT = (CONFIG, METRICS, SUMMARY)
FOLDER = ROOT / "show_result"
PAGES = ("README.md", "docs/results.md")
TABLE = re.compile(r"<!-- scripts/table\.py (.*?) -->\n")
END = "<!-- end -->"
# Variation of the class counts at the end of the published runs (resnet34 to resnet18, CIFAR-10,
# one run a variant), from the labels of their samples in the authors' repository.
PUBLISHED = dict(zip(ORDER, (0.192, 0.095, 0.089, 0.114, 0.001, 0.090, 0.130, 0.000), strict=True))
# The experiments of `balance`: a name, and the runs below results/ of the two methods compared.
EXPERIMENTS = (
    ("bsr, 4,200 steps", "cifar10_cpu/*-bsr-seed*", "cifar10_cpu/*-fast_meta-seed*"),
    ("bsr, 44,800 steps", "cifar10_cpu_long/*-bsr-seed*", "cifar10_cpu_long/*-fast_meta-seed*"),
    ("bsr, CIFAR-100", "cifar100_cpu/*-bsr-seed*", "cifar100_cpu/*-fast_meta-seed*"),
    ("bsr, as many images", "equal_images/*-wrn16_1-bsr-seed*", "cifar10_cpu/*-fast_meta-seed*"),
    ("bsr, 5 generator steps", "cifar10_cpu_why/*-bsr-5-seed*", "cifar10_cpu_why/*-fast_meta-5-seed*"),
    ("bsr, 2 generator steps", "cifar10_cpu_why/*-bsr-2-seed*", "cifar10_cpu_why/*-fast_meta-2-seed*"),
    ("bsr, alpha 1 after warm-up", "cifar10_cpu_why/*-bsr-con_max-seed*", "cifar10_cpu/*-fast_meta-seed*"),
    ("bsr, alpha later, up to 1", "cifar10_cpu_why/*-bsr-curve-seed*", "cifar10_cpu/*-fast_meta-seed*"),
    ("bsr, mixup", "cifar10_cpu_variants/*-bsr-mixup-*", "cifar10_cpu_variants/*-fast_meta-mixup-*"),
    ("nayer, 4,200 steps", "cifar10_cpu/*-nayer-seed*", "cifar10_cpu/*-fast_meta-seed*"),
    ("nayer, CIFAR-100", "cifar100_cpu/*-nayer-seed*", "cifar100_cpu/*-fast_meta-seed*"),
    ("nayer, mixup", "cifar10_cpu_variants/*-nayer-mixup-*", "cifar10_cpu_variants/*-fast_meta-mixup-*"),
    (
        "the recipe: nayer, mixup\nminus fast_meta without",
        "cifar10_cpu_variants/*-nayer-mixup-*",
        "cifar10_cpu/*-fast_meta-seed*",
    ),
)
WIDTH = 4.0  # inches, without the labels beside it: text stays legible on a phone


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
    """Copy the configurations, metrics and summaries of the finished runs below `folder` to a folder of the
    same name in `results`; returns the number of runs. Nothing is copied if they do not belong together.

    Raises:
        UserError: there is no finished run, or they do not belong together with the kept ones.
    """
    target = results / folder.resolve().name
    if (folder / CONFIG).is_file() or target.resolve() == folder.resolve():
        raise UserError(
            f"--add {folder}: name the folder that the runs of a script are in, such as run/digits"
        )
    runs, unfinished = find_runs([folder])
    for path in unfinished:
        print(f"not finished, left out: {path}", file=sys.stderr)
    if not runs:
        raise UserError(f"no run in {folder} is finished yet")
    names = {run.path.resolve().name for run in runs}
    before = find_runs([target])[0] if target.is_dir() else []
    require_alike(collect([*runs, *(run for run in before if run.path.name not in names)]))
    for run in runs:
        copy = target / run.path.resolve().name
        copy.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(run.path / name, copy / name)
    return len(runs)


def require_alike(rows: list[Row]) -> None:
    """Raises:
    UserError: rows are of several datasets or pairs of networks, or runs of a row were evaluated at other
        epochs than its first one, or have no metrics.
    """
    first = rows[0]
    for row in rows:
        if (row.dataset, row.pair) != (first.dataset, first.pair):
            raise UserError(
                f"{row.runs[0].path} is of {row.dataset}, {row.pair.words}, and {first.runs[0].path} of "
                f"{first.dataset}, {first.pair.words}: keep them in folders of their own"
            )
        for run in row.runs:
            if evaluated(run) != evaluated(row.runs[0]):
                raise UserError(
                    f"{run.path} was not evaluated at the same epochs as {row.runs[0].path}: leave one out"
                )


def evaluated(run: FinishedRun) -> list[bool]:
    """Whether the student was evaluated after each epoch; KD with images always evaluates."""
    return [one.get("evaluated", True) for one in run.metrics]


def refreshed(page: str, name: str) -> str:
    """The text of a page with its tables rewritten, each after its command.

    Raises:
        UserError: a table has no end, its command is wrong, or there are no such runs.
    """
    start, *tables = TABLE.split(page)
    parts = [start]
    for command, text in zip(tables[::2], tables[1::2], strict=True):
        _, end, rest = text.partition(END)
        try:
            if not end:
                raise UserError(f"there is no {END} behind it")
            text_now = printed(command)
        except UserError as error:
            raise UserError(f"{name}, the table of {command!r}: {error}") from error
        comment = f"<!-- scripts/table.py {command} -->"
        parts.append(f"{comment}\n\n    python scripts/table.py {command}\n\n{text_now}\n{END}{rest}")
    return "".join(parts)


def printed(command: str) -> str:
    """What table.py prints for a command, as Markdown; paths in results/ are relative to the project.

    Raises:
        UserError: the words are wrong, or there are no such runs.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = [
        str(path)
        for word in words
        for path in (sorted(ROOT.glob(word)) if word.startswith("results/") else ()) or [word]
    ]
    fixed = ("--format", "markdown", "--checkpoints", str(ROOT / "results"))  # and nothing of this machine
    return table.render(table.build_parser().parse_args([*found, *fixed]))


def student_steps(run: FinishedRun) -> np.ndarray:
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

    colors = (*style.COLORS, "#1b7837", "#222222")
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    yardsticks = [row for row in rows if row.label.startswith("vanilla_kd")]
    curves = [row for row in rows if row not in yardsticks]
    curves.sort(key=lambda row: (row.label != "bsr", -mean(row.values("last"))))
    ends = []
    for place, row in enumerate(curves):
        color = colors[place % len(colors)]
        due = np.array(evaluated(row.runs[0]))
        x = student_steps(row.runs[0])[due]
        y = np.array([[one["test_top1"] for one in run.metrics] for run in row.runs])[:, due]
        trained = np.append(x[1:] > 0, True)  # and the last figure from before the first step
        x, y = x[trained], y[:, trained]
        axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
        width, above = (2.2, 3) if row.label == "bsr" else (1.2, 2)
        axis.plot(x, y.mean(0), color=color, linewidth=width, zorder=above)
        ends.append((x[-1], y.mean(0)[-1], f"{y.mean(0)[-1]:.1f} {row.label}", color))
    end = max((x for x, *_ in ends), default=1)
    for row in yardsticks:
        level, images = mean(row.values("last")), row.runs[0].setting("transfer_set") or "real images"
        axis.axhline(level, color="#555555", linewidth=0.8, linestyle="--")
        ends.append((end, level, f"{level:.1f} KD, {images}", "#555555"))
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


def classes_figure(rows: list[Row]) -> Figure:
    """The samples of each class at the end and the student's recall, a colour for each row. The class with
    the most samples in the last row is at the top."""
    import numpy as np

    counts, recall = (
        {row.label: np.array([run.metrics[-1][name] for run in row.runs]) for row in rows}
        for name in ("counts", "test_recall")
    )
    order = counts[rows[-1].label].mean(0).argsort()
    return by_class(rows[0].runs[0].required("classes"), order, {"samples": counts, "recall, %": recall})


def removed_figure(lines: list[dict[str, str]]) -> Figure:
    """The distance of another student from the teacher on the samples of each class that IHO kept and
    removed, and how many it removed, from the lines of removed.py. The class that lost most is at the top."""
    import numpy as np

    runs, classes = (list(dict.fromkeys(line[name] for line in lines)) for name in ("run", "class"))
    loss, count = np.zeros((2, 2, len(runs), len(classes)))  # kept and removed, sums over a run's parts
    for line in lines:
        here = runs.index(line["run"]), classes.index(line["class"])
        gone = int(line["removed"])
        for place, (number, name) in enumerate(
            ((int(line["made"]) - gone, "loss_kept"), (gone, "loss_removed"))
        ):
            if number:
                loss[place][here] += number * float(line[name])
                count[place][here] += number
    kept, removed = loss / count
    order = count[1].mean(0).argsort()
    panels = {"KD loss": {"kept by IHO": kept, "removed": removed}, "samples removed": {"removed": count[1]}}
    return by_class(classes, order, panels)


def by_class(
    classes: Sequence[str], order: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Values (seeds, classes) of each label in each panel: means as points, with bars from the lowest seed to
    the highest. Classes from the bottom up in this order; labels have the first panel's colours."""
    import matplotlib.pyplot as plt
    import numpy as np

    from datafree.results import style

    figure, axes = plt.subplots(1, len(panels), sharey=True, figsize=(WIDTH, 3.6))
    names = list(next(iter(panels.values())))
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        for name, of_name in values.items():
            place = names.index(name)
            low, middle, high = (of(0)[order] for of in (of_name.min, of_name.mean, of_name.max))
            y = np.arange(len(order)) + 0.3 * (0.5 - place / max(1, len(names) - 1))
            axis.hlines(y, low, high, color=style.COLORS[place], linewidth=1)
            axis.scatter(middle, y, color=style.COLORS[place], s=16, label=name, zorder=3)
        axis.grid(axis="y", color="#e5e5e5")
        axis.set_axisbelow(True)
        axis.set_xlabel(label)
    axes[0].set_yticks(range(len(order)), np.array(classes)[order])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncol=len(names))
    return figure


def growth_figure(rows: list[Row]) -> Figure:
    """The samples stored and the accuracy by epoch: means over seeds, with bands from the lowest to the
    highest."""
    import matplotlib.pyplot as plt
    import numpy as np

    from datafree.results import style

    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(WIDTH, 4.6))
    for axis, name, label in zip(
        axes, ("repository", "test_top1"), ("samples stored", "test accuracy, %"), strict=True
    ):
        ends = []
        for place, row in enumerate(rows):
            color = style.COLORS[place]
            due = np.array(evaluated(row.runs[0])) if name == "test_top1" else slice(None)
            y = np.array([[one[name] for one in run.metrics] for run in row.runs])[:, due]
            x = np.arange(1, len(row.runs[0].metrics) + 1)[due]
            axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
            axis.plot(x, y.mean(0), color=color)
            ends.append((x[-1], y.mean(0)[-1], row.label, color))
        axis.set(ylabel=label, xlim=(0, None), ylim=(0, None))
        style.label_ends(axis, ends)
    axes[1].set_xlabel("epoch")
    figure.align_ylabels()
    return figure


def balance_figure(compared: list[tuple[str, Row, Row]]) -> Figure:
    """The difference at the last epoch of each experiment (its name, a row, the row it is compared with):
    each seed as a small point, the mean as a large one, its 95 % interval as a line."""
    import matplotlib.pyplot as plt

    from datafree.results import style

    figure, axis = plt.subplots(figsize=(WIDTH, 0.5 + 0.34 * len(compared)))
    axis.axvline(0, color="#555555", linewidth=0.8)
    shown: list[float] = []
    for place, (_, row, other) in enumerate(compared):
        seeds = seed_differences(row, other)
        found = paired(seeds)
        axis.scatter(seeds, [place] * len(seeds), s=8, color="#555555", zorder=3)
        axis.scatter(found.mean, place, s=30, color=style.COLORS[0], zorder=2)
        axis.hlines(place, found.mean - found.half, found.mean + found.half, color=style.COLORS[0])
        text = found.text if len(seeds) > 1 else f"{found.text} (one seed)"
        axis.annotate(
            text, (1.02, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False
        )
        shown += seeds
    axis.set_yticks(range(len(compared)), [words for words, *_ in compared])
    axis.invert_yaxis()
    # All seeds, but not the whole interval of very few.
    axis.set(xlabel="points more than fast_meta", xlim=(min(shown) - 3, max(shown) + 3))
    axis.grid(axis="y", color="#e5e5e5")
    axis.set_axisbelow(True)
    return figure


def variant(row: Row) -> str:
    """The paper's name for the components of a row."""
    return variant_of(name for name in COMPONENTS if row.runs[0].config[name])


def row_of(pattern: str) -> Row:
    """The row of these runs in results/."""
    (row,) = collect(find_runs(sorted((ROOT / "results").glob(pattern)))[0])
    return row


def run() -> None:
    args = build_parser().parse_args()
    results = ROOT / "results"
    for folder in args.add:
        print(f"{keep(folder, results)} runs of {folder} kept in {results / folder.resolve().name}")

    # Imported late, so that --help and wrong flags are answered at once.
    from datafree.results import style

    style.use()
    table_rows = collect(find_runs([results / "cifar10_cpu"])[0])
    require_alike(table_rows)
    variants = [row for row in table_rows if row.label in ("bsr", "fast_meta")]
    variants += collect(find_runs([results / "cifar10_cpu_ablation"])[0])
    hundred = collect(find_runs([results / "cifar100_cpu"])[0])
    figures = {
        "cifar10_accuracy": accuracy_figure(table_rows),
        "cifar10_variation": variation_figure(variants),
        "cifar10_classes": classes_figure(variants[:2]),
        "cifar100_growth": growth_figure(hundred),
        "balance": balance_figure([(words, row_of(one), row_of(other)) for words, one, other in EXPERIMENTS]),
    }
    with open(results / "iho_removed.csv", encoding="utf-8", newline="") as file:
        figures["iho_removed"] = removed_figure(list(csv.DictReader(file)))
    pages = {ROOT / name: refreshed((ROOT / name).read_text(encoding="utf-8"), name) for name in PAGES}
    # Only now is anything written.
    files = [file for name, figure in figures.items() for file in style.save(figure, FOLDER / name)]
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    for file in [*files, *pages]:
        print(file)


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
