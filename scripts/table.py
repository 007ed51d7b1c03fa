#!/usr/bin/env python
"""Tables of finished runs as the papers print them, with seeds, spread and the published figures.

    python scripts/table.py run/bsr run/baselines
    python scripts/table.py run/digits --format markdown --compare bsr fast_meta

`last` is the accuracy after the last epoch; `best` is the highest over epochs, chosen on test data. After
each mean stands the standard deviation over seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bsr_main import build_parser as build_bsr_parser
from bsr_main import resolve
from datafree.errors import UserError, did_you_mean
from datafree.flags import Parser, one_of
from datafree.flags import run as run_script
from datafree.runs import SETTINGS, Run, find_runs, labels

ROOT = Path(__file__).resolve().parent.parent
BALANCE = {  # measure: heading
    "count_variation": "count variation",
    "count_entropy": "count entropy",
    "lof_relative_iqr": "LOF spread",
    "lof_outside_share": "LOF outside",
    "margin": "margin",
}
PUBLISHED_ROWS = {
    "bsr": "BSR",
    "deepinv": "ADI (DeepInversion)",
    "dafl": "DAFL",
    "zskt": "ZSKT",
    "dfq": "DFQ",
}
PUBLISHED_STEPS = {  # method, g_steps
    ("fast_meta", 10): "FM10 (fast_meta, g_steps 10)",
    ("fast_meta", 5): "Fast-5",
    ("fast_meta", 2): "Fast-2",
    ("cmi", 500): "CMI-500",
}
SWEPT = "hyperparameters_cifar10_resnet34_resnet18"
FORMATS = ("text", "markdown", "csv", "latex")


class Published:
    """The figures in `show_result/paper_results.json`."""

    def __init__(self) -> None:
        self.figures = json.loads((ROOT / "show_result/paper_results.json").read_text(encoding="utf-8"))

    def of(self, row: str, dataset: str, pair: str) -> float | None:
        if row not in self.figures.get(dataset, {}) or pair not in self.figures["pairs"]:
            return None
        return self.figures[dataset][row][self.figures["pairs"].index(pair)]

    def text(self, run: Run) -> str:
        """What was published for such a run; with a star if its settings are others."""
        figure = self.of_run(run)
        return number(figure) if figure is None or self._as_published(run) else f"{number(figure)}*"

    @staticmethod
    def _as_published(run: Run) -> bool:
        args = build_bsr_parser().parse_args(["--method", run.config["method"]])
        resolve(args)
        own = {"adv", "oh_step", "oh_memory_size", "g_steps", "lr_g", "lr_z", "images", "img_size", "flip"}
        return all(
            run.config.get(name, value) == value
            for name, value in vars(args).items()
            if name in SETTINGS and name not in own
        )

    def of_run(self, run: Run) -> float | None:
        """What was published for such a run, if anything was."""
        method, c = run.config["method"], run.config
        if run.variant != method:
            return None
        swept = self._of_sweep(run) if method == "bsr" else None
        name = PUBLISHED_ROWS.get(method) or PUBLISHED_STEPS.get((method, c.get("g_steps")))
        usual = method != "bsr" or (c["oh_memory_size"], c["oh_step"]) == (8, 0.1)
        return swept or (self.of(name, run.dataset, run.pair) if name and usual else None)

    def _of_sweep(self, run: Run) -> float | None:
        c = run.config
        if (run.dataset, run.pair) != ("cifar10", "resnet34-resnet18"):
            return None
        sweeps = self.figures[SWEPT]
        lists = [("oh_memory_size (mz)", c["oh_memory_size"], c["oh_step"] == 0.1)]
        lists += [(f"oh_step, {kind}", c["oh_step"], c["oh_memory_size"] == 8) for kind in ("coarse", "fine")]
        for name, value, applies in lists:
            if applies and value in sweeps[name]["x"]:
                return sweeps[name]["accuracy"][sweeps[name]["x"].index(value)]
        return None


@dataclass(frozen=True)
class Row:
    """A line: one method on one pair of networks; `runs` differ in their seeds."""

    dataset: str
    pair: str
    label: str
    runs: list[Run]

    def values(self, name: str) -> list[float]:
        """A final figure of each run that has it; balance is one of samples that are kept."""
        found = [run.summary.get(name) for run in self.runs if run.stores or name not in BALANCE]
        return [value for value in found if value is not None]


def collect(runs: list[Run]) -> list[Row]:
    """Rows by dataset, pair and method, in the order in which the runs were given.

    Raises:
        UserError: two runs are of the same row and seed.
    """
    rows: dict[tuple[str, str, str], list[Run]] = {}
    for label, members in labels(runs).items():
        for run in members:
            rows.setdefault((run.dataset, run.pair, label), []).append(run)
    for key, members in rows.items():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            places = " and ".join(str(run.path) for run in members if run.seed == twice)
            raise UserError(f"{places} are the same run, {key[2]} with seed {twice}: leave one out")
    places = {id(run): place for place, run in enumerate(runs)}
    ordered = sorted(rows.items(), key=lambda item: (*item[0][:2], min(places[id(run)] for run in item[1])))
    return [Row(*key, members) for key, members in ordered]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def from_scratch(folder: Path, dataset: str, student: str) -> float | None:
    """Accuracy of the student trained on real images, from the file that train_scratch.py left."""
    file = folder / f"{dataset}_{student}.json"
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["test_top1"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


Table = tuple[str, list[str], list[list[str]]]  # caption, headings, rows


def make_tables(rows: list[Row], published: Published, checkpoints: Path) -> Iterable[Table]:
    """A table of methods by pairs for each dataset with several pairs, and one of all measures for each
    pair."""
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        pairs = list(dict.fromkeys(row.pair for row in here))
        yardsticks = {pair: yardsticks_of(here, dataset, pair, published, checkpoints) for pair in pairs}
        if len(pairs) > 1:
            yield overview(here, dataset, pairs, yardsticks, published)
        for pair in pairs:
            yield details(here, dataset, pair, yardsticks[pair], published)


def yardsticks_of(
    rows: list[Row], dataset: str, pair: str, published: Published, checkpoints: Path
) -> dict[str, tuple[str, str]]:
    """Teacher and student from scratch: what was measured and what was published."""
    teachers = {t for row in rows if row.pair == pair for t in row.values("teacher_top1")}
    scratch = from_scratch(checkpoints, dataset, pair.partition("-")[2])
    return {
        "teacher": (spread(sorted(teachers)), number(published.of("teacher", dataset, pair))),
        "student from scratch": (
            number(scratch),
            number(published.of("student_from_scratch", dataset, pair)),
        ),
    }


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def overview(
    rows: list[Row],
    dataset: str,
    pairs: list[str],
    yardsticks: dict[str, dict[str, tuple[str, str]]],
    published: Published,
) -> Table:
    def cell(measured: str, figure: str) -> str:
        return measured if figure == "-" else f"{measured} [{figure}]"

    lines = [
        [name, *(cell(*yardsticks[pair][name]) for pair in pairs)]
        for name in ("teacher", "student from scratch")
    ]
    for label in dict.fromkeys(row.label for row in rows):
        of_pair = {row.pair: row for row in rows if row.label == label}
        cells = []
        for pair in pairs:
            row = of_pair.get(pair)
            figure = published.text(row.runs[0]) if row else "-"
            cells.append(cell(spread(row.values("last_top1")), figure) if row else "-")
        lines.append([label, *cells])
    caption = f"{dataset}: test accuracy in % after the last epoch [published: best epoch; * other settings]"
    return caption, ["method", *pairs], lines


def details(
    rows: list[Row], dataset: str, pair: str, yardsticks: dict[str, tuple[str, str]], published: Published
) -> Table:
    headings = ["method", "seeds", "last", "best", "published", *BALANCE.values(), "minutes"]
    blank = [""] * (len(headings) - 5)
    lines = [[name, "", value, "", figure, *blank] for name, (value, figure) in yardsticks.items()]
    for row in (row for row in rows if row.pair == pair):
        minutes = [seconds / 60 for seconds in row.values("seconds")]
        lines.append(
            [
                row.label,
                " ".join(str(seed) for seed in sorted(run.seed for run in row.runs)),
                spread(row.values("last_top1")),
                spread(row.values("best_top1_chosen_on_test_data")),
                published.text(row.runs[0]),
                *(spread(row.values(name), 3) for name in BALANCE),
                f"{mean(minutes):.1f}" if minutes else "-",
            ]
        )
    return f"{dataset}, {pair.replace('-', ' to ')}: test accuracy in %, balance, time", headings, lines


def as_text(caption: str, headings: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [headings, *rows]
    ]
    return "\n".join([caption, "", lines[0], "-" * len(lines[0]), *lines[1:], ""])


def as_markdown(caption: str, headings: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *rows]]
    return "\n".join([caption, "", *lines, ""])


def as_latex(caption: str, headings: list[str], rows: list[list[str]]) -> str:
    def escape(text: str) -> str:
        for plain, command in (("_", r"\_"), ("%", r"\%"), ("±", r"$\pm$")):
            text = text.replace(plain, command)
        return text

    lines = [" & ".join(map(escape, row)) + r" \\" for row in [headings, *rows]]
    columns = "l" + "r" * (len(headings) - 1)
    start = [r"\begin{table}", rf"\caption{{{escape(caption)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    body = [r"\hline", lines[0], r"\hline", *lines[1:], r"\hline"]
    return "\n".join([*start, *body, r"\end{tabular}", r"\end{table}", ""])


RENDER: dict[str, Callable[..., str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}


def as_csv(rows: list[Row], published: Published) -> str:
    """One line a method and pair; means and standard deviations as numbers."""
    measures = {
        "last": "last_top1",
        "best": "best_top1_chosen_on_test_data",
        "teacher": "teacher_top1",
        **{name: name for name in BALANCE},
        "seconds": "seconds",
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{name}_{kind}" for name in measures for kind in ("mean", "std")]
    writer.writerow(["dataset", "pair", "method", "seeds", "published", *heads])
    for row in rows:
        cells: list[Any] = [row.dataset, row.pair, row.label, len(row.runs), published.of_run(row.runs[0])]
        for key in measures.values():
            values = row.values(key)
            cells += [mean(values) if values else None, stdev(values) if len(values) > 1 else None]
        writer.writerow(cells)
    return out.getvalue()


def compare(rows: list[Row], first: str, second: str) -> str:
    """The mean difference of two methods in the last epoch's accuracy over the seeds they share, with its
    95 % confidence interval (Student's t, paired).

    Raises:
        UserError: there is no such method, or none of their runs share a seed.
    """
    known = sorted({row.label for row in rows})
    for name in (first, second):
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise UserError(f"no runs of {name}{hint}")
    lines = []
    by_key = {(row.dataset, row.pair, row.label): row for row in rows}
    for dataset, pair in dict.fromkeys((row.dataset, row.pair) for row in rows):
        sides = [by_key.get((dataset, pair, name)) for name in (first, second)]
        if None in sides:
            continue
        a, b = ({run.seed: run.summary["last_top1"] for run in side.runs} for side in sides)
        differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
        if not differences:
            continue
        networks = pair.replace("-", " to ")
        text = f"{dataset}, {networks}: {first} minus {second}: {mean(differences):+.2f} points"
        if len(differences) > 1:
            from scipy.stats import t

            half = t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
            text += f", 95 % confidence {mean(differences) - half:+.2f} to {mean(differences) + half:+.2f}"
        lines.append(f"{text} ({len(differences)} shared seeds)")
    if not lines:
        raise UserError(f"{first} and {second} share no seed on any pair: run both with the same --seed")
    return "\n".join(lines) + "\n"


def build_parser() -> Parser:
    parser = Parser("Tables of finished runs, with seeds, spread and the published figures.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of some")
    parser.add_argument(
        "--format", type=one_of("format", FORMATS), default="text", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("METHOD", "OTHER"),
        help="mean difference of two rows over the seeds they share",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints/pretrained"),
        help="where train_scratch.py left the accuracy of students from scratch",
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.compare and args.format == "csv":
        raise UserError("--compare is a sentence, which has no place in a CSV file: use another --format")
    runs, unfinished = find_runs(args.runs)
    for path in unfinished:
        print(f"not finished, left out: {path}", file=sys.stderr)
    if not runs:
        raise UserError("no run is finished yet")
    rows, published = collect(runs), Published()
    if args.format == "csv":
        text = as_csv(rows, published)
    else:
        tables = make_tables(rows, published, args.checkpoints)
        text = "\n".join(RENDER[args.format](*table) for table in tables)
    if args.compare:
        text += "\n" + compare(rows, *args.compare)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    run_script(main, "table.py")
