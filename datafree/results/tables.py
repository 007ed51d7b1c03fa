"""Tables of finished runs: means and deviations over seeds, beside the published figures. Imports nothing
heavy."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from datafree.errors import UserError, did_you_mean
from datafree.networks.names import NetworkName, Pair
from datafree.results.measures import BALANCE, COST, PROTOCOL
from datafree.results.published import Published, number
from datafree.results.read import Run, labels
from datafree.runs.schema import read_json


@dataclass(frozen=True)
class Row:
    """One method on one pair of networks; `runs` differ in their seeds alone."""

    dataset: str
    pair: Pair
    label: str
    runs: list[Run]

    def values(self, name: str) -> list[float]:
        """A final figure, of each run that has it. Balance is a property of stored samples: runs that store
        none have no such figures."""
        runs = [run for run in self.runs if run.stores or name not in BALANCE]
        return [run.figures[name] for run in runs if name in run.figures]


class Table(NamedTuple):
    """A table as text; every line has a cell for each heading."""

    caption: str
    headings: list[str]
    lines: list[list[str]]


# The yardsticks of a pair by name, each as it was measured and as it was published.
Yardsticks = dict[str, tuple[str, str]]


def collect(runs: Sequence[Run]) -> list[Row]:
    """Rows sorted by dataset and pair; those of one pair in the order in which their runs were given.

    Raises:
        UserError: two runs are of the same row and seed.
    """
    rows: dict[tuple[str, Pair, str], list[Run]] = defaultdict(list)
    for label, members in labels(runs).items():
        for run in members:
            rows[run.dataset, run.pair, label].append(run)
    for (_, _, label), members in rows.items():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            both = " and ".join(str(run.path) for run in members if run.seed == twice)
            raise UserError(f"{both} are the same run, {label} with seed {twice}: leave one out")
    places = {run.path: place for place, run in enumerate(runs)}

    def order(row: Row) -> tuple[str, str, int]:
        return row.dataset, str(row.pair), min(places[run.path] for run in row.runs)

    return sorted((Row(*key, members) for key, members in rows.items()), key=order)


def make_tables(
    rows: Sequence[Row], published: Published, checkpoints: Path, against: str | None = None
) -> Iterator[Table]:
    """For each dataset: a table of methods by pairs, if there are several pairs; then for each pair a table
    of all measures.

    Args:
        rows: from `collect`.
        published: the figures of the papers.
        checkpoints: folder in which `train_scratch.py` left the accuracy of students.
        against: label of a row; the tables of a pair then have a column of the others' differences from it.

    Raises:
        UserError: there is no such row.
    """
    if against is not None:
        require_known(rows, against)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        by_pair: dict[Pair, list[Row]] = defaultdict(list)
        for row in rows:
            if row.dataset == dataset:
                by_pair[row.pair].append(row)
        yardsticks = {
            pair: yardsticks_of(members, published, checkpoints) for pair, members in by_pair.items()
        }
        if len(by_pair) > 1:
            yield overview(dataset, by_pair, yardsticks, published)
        for pair, members in by_pair.items():
            yield details(members, yardsticks[pair], published, against)


def yardsticks_of(rows: Sequence[Row], published: Published, checkpoints: Path) -> Yardsticks:
    """What the rows of one pair are compared with: their teacher, and the student trained on real images.

    Teachers with different `teacher_args` are different networks: each has its own figure. Rows with
    different `student_args` are compared with no student from scratch, and others with one of the same
    arguments.
    """
    dataset, pair = rows[0].dataset, rows[0].pair
    teachers: dict[Any, set[float]] = defaultdict(set)
    for row in rows:
        teachers[row.runs[0].setting("teacher_args")].update(row.values("teacher_top1"))
    measured = " / ".join(spread(sorted(figures)) for figures in teachers.values() if figures)
    students = {row.runs[0].setting("student_args") for row in rows}
    alone = len(students) == 1
    scratch = from_scratch(checkpoints, dataset, pair.student, *students) if alone else None
    return {
        "teacher": (measured or "-", number(published.of("teacher", dataset, pair))),
        "student from scratch": (
            number(scratch),
            number(published.of("student_from_scratch", dataset, pair)),
        ),
    }


def from_scratch(folder: Path, dataset: str, student: NetworkName, arguments: str | None) -> float | None:
    """Accuracy of the student trained on real images, from the file that `train_scratch.py` left; None if
    there is no such file, or it is of a network with other arguments."""
    file = folder / f"{dataset}_{student.stem}.json"
    try:
        content = read_json(file)
        return float(content["test_top1"]) if content.get("model_args") == arguments else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _judged(rows: Sequence[Row]) -> str:
    """What the figures of some rows are."""
    accurate = {run.accurate for row in rows for run in row.runs}
    if accurate == {False}:
        return "agreement with the teacher (which is not accuracy)"
    return "test accuracy" if accurate == {True} else "test accuracy (or agreement, where a row says so)"


def overview(
    dataset: str, by_pair: dict[Pair, list[Row]], yardsticks: dict[Pair, Yardsticks], published: Published
) -> Table:
    """A line for each method, a column for each pair."""

    def cell(measured: str, figure: str) -> str:
        return measured if figure == "-" else f"{measured} [{figure}]"

    lines = [
        [name, *(cell(*yardsticks[pair][name]) for pair in by_pair)]
        for name in next(iter(yardsticks.values()))
    ]
    for label in dict.fromkeys(row.label for rows in by_pair.values() for row in rows):
        cells = []
        for rows in by_pair.values():
            row = next((row for row in rows if row.label == label), None)
            text = cell(spread(row.values("last_top1")), published.text(row.runs[0])) if row else "-"
            cells.append(text)
        lines.append([label, *cells])
    caption = (
        f"{dataset}: {_judged(rows)} in % after the last epoch [published: best epoch; * other settings]"
    )
    return Table(caption, ["method", *map(str, by_pair)], lines)


def details(
    rows: Sequence[Row], yardsticks: Yardsticks, published: Published, against: str | None = None
) -> Table:
    """A line for each method on one pair, a column for each measure, and one for the differences from the row
    `against`."""
    rest = [measure.heading for measure in (*PROTOCOL.values(), *BALANCE.values(), *COST.values())]
    if against is not None:
        rest = [f"minus {against}", *rest]
    other = next((row for row in rows if row.label == against), None)
    headings = ["method", "seeds", "last", "published", *rest]
    blank = [""] * len(rest)
    lines = [
        [name, "", measured, figure, *blank]
        for name, (measured, figure) in yardsticks.items()
        if (measured, figure) != ("-", "-")
    ]
    for row in rows:
        lines.append(
            [
                row.label,
                " ".join(str(seed) for seed in sorted(run.seed for run in row.runs)),
                spread(row.values("last_top1")),
                published.text(row.runs[0]),
                *([] if against is None else [_minus(row, other)]),
                *(spread(row.values(name)) for name in PROTOCOL),
                *(spread(row.values(name), 3) for name in BALANCE),
                *(
                    measure.pattern.format(mean(values)) if (values := row.values(name)) else "-"
                    for name, measure in COST.items()
                ),
            ]
        )
    return Table(
        f"{rows[0].dataset}, {rows[0].pair.words}: {_judged(rows)} in %, balance, images, hours",
        headings,
        lines,
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


class Difference(NamedTuple):
    """Of two rows in the last epoch's accuracy, in points, over the seeds they share: the mean, and the half
    width of its 95 % confidence interval (Student's t, paired), NaN for a single seed."""

    mean: float
    half: float
    seeds: int

    @property
    def interval(self) -> str:
        return f"{self.mean - self.half:+.2f} to {self.mean + self.half:+.2f}"

    @property
    def text(self) -> str:
        return f"{self.mean:+.2f}" + (f" ({self.interval})" if self.seeds > 1 else "")


def seed_differences(first: Row, second: Row) -> list[float]:
    """How much higher the first one's last accuracy is, in points, seed by seed of those that both have."""
    a, b = ({run.seed: run.summary["last_top1"] for run in row.runs} for row in (first, second))
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def difference(first: Row, second: Row) -> Difference | None:
    """None where they share no seed."""
    found = seed_differences(first, second)
    return paired(found) if found else None


def paired(differences: Sequence[float]) -> Difference:
    """Their mean, and how sure it is; a difference of each seed."""
    half = math.nan
    if len(differences) > 1:
        from scipy.stats import t  # it takes long to import, and only this needs it

        half = t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return Difference(mean(differences), half, len(differences))


def _minus(row: Row, other: Row | None) -> str:
    """The cell of a row's difference from another."""
    found = None if other is None or row is other else difference(row, other)
    return "-" if found is None else found.text


def require_known(rows: Sequence[Row], *names: str) -> None:
    """Raises:
    UserError: no row has that label.
    """
    known = sorted({row.label for row in rows})
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise UserError(f"no runs of {name}{hint}")


def compare(rows: Sequence[Row], first: str, second: str) -> str:
    """The mean difference of two methods in the last epoch's accuracy over the seeds they share, with its
    95 % confidence interval (Student's t, paired): a line for each dataset and pair.

    Args:
        rows: from `collect`.
        first, second: labels of rows.

    Raises:
        UserError: there is no such method, or none of their runs share a seed.
    """
    require_known(rows, first, second)
    lines = []
    by_key = {(row.dataset, row.pair, row.label): row for row in rows}
    for dataset, pair in dict.fromkeys((row.dataset, row.pair) for row in rows):
        a, b = (by_key.get((dataset, pair, name)) for name in (first, second))
        found = difference(a, b) if a and b else None
        if found is None:
            continue
        text = f"{dataset}, {pair.words}: {first} minus {second}: {found.mean:+.2f} points"
        if found.seeds > 1:
            text += f", 95 % confidence {found.interval}"
        lines.append(f"{text} ({found.seeds} shared seed{'s' if found.seeds > 1 else ''})")
    if not lines:
        raise UserError(f"{first} and {second} share no seed on any pair: run both with the same --seed")
    return "\n".join(lines) + "\n"


def by_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Rows of each pair from the highest mean of the last epoch's accuracy to the lowest."""

    def place(row: Row) -> tuple[str, str, float]:
        return row.dataset, str(row.pair), -mean(row.values("last_top1"))

    return sorted(rows, key=place)


def only(table: Table, headings: Sequence[str]) -> Table:
    """A table of a pair with these columns alone behind the first, in this order.

    Raises:
        UserError: it has no such column.
    """
    for heading in headings:
        if heading not in table.headings:
            hint = did_you_mean(heading, table.headings) or f"; there are: {', '.join(table.headings)}"
            raise UserError(f"no column {heading!r}{hint}")
    places = [0, *map(table.headings.index, headings)]
    return Table(
        table.caption,
        [table.headings[place] for place in places],
        [[line[place] for place in places] for line in table.lines],
    )


# Rendering


def as_text(table: Table) -> str:
    """For the terminal, in columns."""
    widths = [max(map(len, column)) for column in zip(table.headings, *table.lines, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [table.headings, *table.lines]
    ]
    return "\n".join([table.caption, "", lines[0], "-" * len(lines[0]), *lines[1:], ""])


def as_markdown(table: Table) -> str:
    rule = ["---"] * len(table.headings)
    lines = ["| " + " | ".join(line) + " |" for line in [table.headings, rule, *table.lines]]
    return "\n".join([table.caption, "", *lines, ""])


def as_latex(table: Table) -> str:
    def escape(text: str) -> str:
        for plain, command in (("_", r"\_"), ("%", r"\%"), ("±", r"$\pm$")):
            text = text.replace(plain, command)
        return text

    lines = [" & ".join(map(escape, line)) + r" \\" for line in [table.headings, *table.lines]]
    columns = "l" + "r" * (len(table.headings) - 1)
    start = [r"\begin{table}", rf"\caption{{{escape(table.caption)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    body = [r"\hline", lines[0], r"\hline", *lines[1:], r"\hline"]
    return "\n".join([*start, *body, r"\end{tabular}", r"\end{table}", ""])


RENDER: dict[str, Callable[[Table], str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}


def as_csv(rows: Sequence[Row], published: Published) -> str:
    """For other programs: a line for each method and pair, with means and standard deviations as numbers."""
    measures = {
        "last": "last_top1",
        "best": "best_top1_chosen_on_test_data",
        "teacher": "teacher_top1",
        **{name: name for name in (*PROTOCOL, *BALANCE, *COST) if name != "best_top1_chosen_on_test_data"},
        "seconds": "seconds",
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    headings = [f"{name}_{kind}" for name in measures for kind in ("mean", "std")]
    writer.writerow(["dataset", "pair", "method", "seeds", "published", *headings])
    for row in rows:
        figure = published.of_run(row.runs[0])
        cells: list[Any] = [row.dataset, row.pair, row.label, len(row.runs), figure]
        for name in measures.values():
            values = row.values(name)
            cells += [mean(values) if values else None, stdev(values) if len(values) > 1 else None]
        writer.writerow(cells)
    return out.getvalue()
