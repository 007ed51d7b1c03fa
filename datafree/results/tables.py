"""Tables of finished runs: means and standard deviations over seeds, beside the published figures. Imports
nothing heavy."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from datafree.errors import UserError, did_you_mean
from datafree.networks.names import NetworkName, Pair
from datafree.results.measures import BALANCE, COST, PROTOCOL
from datafree.results.published import Published, number
from datafree.results.read import FinishedRun, labels
from datafree.runs.files import SUMMARY, TRAINING


@dataclass(frozen=True)
class Row:
    """One method on one pair of networks; `runs` differ only in their seeds."""

    dataset: str
    pair: Pair
    label: str
    runs: list[FinishedRun]

    def values(self, name: str) -> list[float]:
        """A final figure of each run that has it. Balance is a property of stored samples: runs that store
        none have no such figures."""
        runs = [run for run in self.runs if run.stores or name not in BALANCE]
        return [run.figures[name] for run in runs if name in run.figures]


class Table(NamedTuple):
    """A table as text; every line has a cell for each heading."""

    caption: str
    headings: list[str]
    lines: list[list[str]]


# The yardsticks of a pair by name: each as measured and as published.
Yardsticks = dict[str, tuple[str, str]]


def collect(runs: Sequence[FinishedRun]) -> list[Row]:
    """Rows sorted by dataset and pair; the rows of a pair are in the order of their first runs.

    Raises:
        UserError: two runs belong to the same row and seed.
    """
    rows: dict[tuple[str, Pair, str], dict[int, FinishedRun]] = defaultdict(dict)
    for label, members in labels(runs).items():
        for run in members:
            same = rows[run.dataset, run.pair, label].setdefault(run.seed, run)
            if same is not run:
                both = f"{same.path} and {run.path}"
                raise UserError(f"{both} are the same run, {label} with seed {run.seed}: leave one out")
    places = {run.path: place for place, run in enumerate(runs)}

    def order(row: Row) -> tuple[str, str, int]:
        return row.dataset, str(row.pair), min(places[run.path] for run in row.runs)

    return sorted((Row(*key, list(members.values())) for key, members in rows.items()), key=order)


def make_tables(
    rows: Sequence[Row], published: Published, checkpoints: Path, against: str | None = None
) -> Iterator[Table]:
    """For each dataset a table of methods by pairs, if there are several pairs, and for each pair a table of
    all measures.

    Args:
        rows: from `collect`.
        published: the figures of the papers.
        checkpoints: folder in which `train_scratch.py` left the accuracy of students.
        against: label of a row; adds a column of the differences from it.

    Raises:
        UserError: there is no such row.
    """
    if against is not None:
        require_known(rows, against)
    for dataset, of_dataset in _grouped(rows, lambda row: row.dataset):
        by_pair = dict(_grouped(of_dataset, lambda row: row.pair))
        yardsticks = {
            pair: yardsticks_of(members, published, checkpoints) for pair, members in by_pair.items()
        }
        if len(by_pair) > 1:
            yield _overview(dataset, by_pair, yardsticks, published)
        for pair, members in by_pair.items():
            yield _details(members, yardsticks[pair], published, against)


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return list(found.items())


def yardsticks_of(rows: Sequence[Row], published: Published, checkpoints: Path) -> Yardsticks:
    """The teacher of a pair, and its student trained on real images.

    Teachers with different `teacher_args` are different networks, each with its own figure. The student from
    scratch must have the same `student_args` as all rows.
    """
    dataset, pair = rows[0].dataset, rows[0].pair
    teachers: dict[Any, set[float]] = defaultdict(set)
    for row in rows:
        teachers[row.runs[0].setting("teacher_args")].update(row.values("teacher_top1"))
    measured = " / ".join(spread(sorted(figures)) for figures in teachers.values() if figures)
    students = {row.runs[0].setting("student_args") for row in rows}
    scratch = from_scratch(checkpoints, dataset, pair.student, *students) if len(students) == 1 else None
    return {
        "teacher": (measured or "-", number(published.of("teacher", dataset, pair))),
        "student from scratch": (
            number(scratch),
            number(published.of("student_from_scratch", dataset, pair)),
        ),
    }


def from_scratch(folder: Path, dataset: str, student: NetworkName, arguments: str | None) -> float | None:
    """Accuracy of the student trained on real images, from the folder that `train_scratch.py` left; None if
    there is no such folder or it is of a network with other arguments."""
    folder /= f"{dataset}_{student.stem}.pth.training"
    try:
        config, summary = (json.loads((folder / name).read_text("utf-8")) for name in (TRAINING, SUMMARY))
        return float(summary["last_top1"]) if config.get("model_args") == arguments else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _metric(rows: Sequence[Row]) -> str:
    """What the figures of some rows are."""
    accurate = {run.accurate for row in rows for run in row.runs}
    if accurate == {False}:
        return "agreement with the teacher (which is not accuracy)"
    return "test accuracy" if accurate == {True} else "test accuracy (agreement in rows with that word)"


def _overview(
    dataset: str, by_pair: dict[Pair, list[Row]], yardsticks: dict[Pair, Yardsticks], published: Published
) -> Table:
    """A line for each method, a column for each pair."""

    def cell(measured: str, figure: str) -> str:
        return measured if figure == "-" else f"{measured} [{figure}]"

    rows = [row for members in by_pair.values() for row in members]
    found = {
        (row.label, row.pair): cell(spread(row.values("last")), published.text(row.runs[0])) for row in rows
    }
    names = next(iter(yardsticks.values()))
    lines = [[name, *(cell(*yardsticks[pair][name]) for pair in by_pair)] for name in names]
    for label in dict.fromkeys(row.label for row in rows):
        lines.append([label, *(found.get((label, pair), "-") for pair in by_pair)])
    caption = (
        f"{dataset}: {_metric(rows)} in % after the last epoch [published: best epoch; * other settings]"
    )
    return Table(caption, ["method", *map(str, by_pair)], lines)


def _details(rows: Sequence[Row], yardsticks: Yardsticks, published: Published, against: str | None) -> Table:
    """A line for each method on one pair, a column for each measure, and one for the differences from the row
    `against`."""
    other = next((row for row in rows if row.label == against), None)
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.label,
        "seeds": lambda row: " ".join(str(seed) for seed in sorted(run.seed for run in row.runs)),
        "last": lambda row: spread(row.values("last")),
        "published": lambda row: published.text(row.runs[0]),
    }
    if against is not None:
        columns[f"minus {against}"] = lambda row: _minus(row, other)
    columns |= {measure.heading: _spreads(name, 2) for name, measure in PROTOCOL.items()}
    columns |= {measure.heading: _spreads(name, 3) for name, measure in BALANCE.items()}
    columns |= {measure.heading: _means(name, measure.pattern) for name, measure in COST.items()}
    lines = [
        [name, "", measured, figure, *[""] * (len(columns) - 4)]
        for name, (measured, figure) in yardsticks.items()
        if (measured, figure) != ("-", "-")
    ]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    caption = f"{rows[0].dataset}, {rows[0].pair.words}: {_metric(rows)} in %, balance, images, hours"
    return Table(caption, list(columns), lines)


def _spreads(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: spread(row.values(name), digits)


def _means(name: str, pattern: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        values = row.values(name)
        return pattern.format(mean(values)) if values else "-"

    return cell


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


class Difference(NamedTuple):
    """The mean difference of two rows over the seeds they share, in points of the last epoch's accuracy, and
    the half width of its 95 % confidence interval (Student's t, paired); NaN for a single seed."""

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
    """How much higher the first row's last accuracy is, in points, for each seed that both have."""
    a, b = ({run.seed: run.last for run in row.runs} for row in (first, second))
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def paired(differences: Sequence[float]) -> Difference:
    """The mean of differences by seed, with its confidence interval."""
    half = math.nan
    if len(differences) > 1:
        from scipy.stats import t  # takes long to import, and only this needs it

        half = t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return Difference(mean(differences), half, len(differences))


def _minus(row: Row, other: Row | None) -> str:
    """The cell of a row's difference from another."""
    found = seed_differences(row, other) if other and row is not other else []
    return paired(found).text if found else "-"


def require_known(rows: Sequence[Row], *names: str) -> None:
    """Raises:
    UserError: no row has such a label.
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
    for (dataset, pair), members in _grouped(rows, lambda row: (row.dataset, row.pair)):
        by_label = {row.label: row for row in members}
        both = first in by_label and second in by_label
        differences = seed_differences(by_label[first], by_label[second]) if both else []
        if differences:
            found = paired(differences)
            text = f"{dataset}, {pair.words}: {first} minus {second}: {found.mean:+.2f} points"
            if found.seeds > 1:
                text += f", 95 % confidence {found.interval}"
            lines.append(f"{text} ({found.seeds} shared seed{'s' if found.seeds > 1 else ''})")
    if not lines:
        raise UserError(f"{first} and {second} share no seed on any pair: run both with the same --seed")
    return "\n".join(lines) + "\n"


def by_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Rows of each pair, the highest mean of the last epoch's accuracy first."""
    return sorted(rows, key=lambda row: (row.dataset, str(row.pair), -mean(row.values("last"))))


def only(table: Table, headings: Sequence[str]) -> Table:
    """A table with the first column and only these others, in this order.

    Raises:
        UserError: it has no such column.
    """
    for heading in headings:
        if heading not in table.headings:
            hint = did_you_mean(heading, table.headings) or f"; there are: {', '.join(table.headings)}"
            raise UserError(f"no column {heading!r}{hint}")
    places = [0, *map(table.headings.index, headings)]
    chosen = [[line[place] for place in places] for line in (table.headings, *table.lines)]
    return Table(table.caption, chosen[0], chosen[1:])


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
    first = {"last": "last", "best": "best", "teacher": "teacher_top1"}
    measures = first | {name: name for name in (*PROTOCOL, *BALANCE, *COST, "seconds") if name not in first}
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
