"""Tables of finished runs: means and standard deviations over seeds, beside the published figures. Imports
nothing heavy."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from datafree.errors import UserError, did_you_mean
from datafree.networks.names import Pair
from datafree.results.published import Published, number
from datafree.results.read import BALANCE, COST, PROTOCOL, FinishedRun, differing
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


Line = dict[str, str]  # of a table of measures: cells by heading


def collect(runs: Sequence[FinishedRun]) -> list[Row]:
    """Rows sorted by dataset and pair; the rows of a pair are in the order of their first runs. A label is
    the variant, and the settings that differ among runs of one variant on the same data and networks.

    Raises:
        UserError: two runs belong to the same row and seed.
    """
    variants = {run.variant for run in runs}
    names = {variant: differing([run for run in runs if run.variant == variant]) for variant in variants}
    rows: dict[tuple[str, Pair, str], Row] = {}
    for run in runs:
        settings = ", ".join(f"{name} {run.setting(name)}" for name in names[run.variant])
        label = f"{run.variant} ({settings})" if settings else run.variant
        key = run.dataset, run.pair, label
        row = rows.setdefault(key, Row(*key, []))
        for same in row.runs:
            if same.seed == run.seed:
                both = f"{same.path} and {run.path}"
                raise UserError(f"{both} are the same run, {label} with seed {run.seed}: leave one out")
        row.runs.append(run)
    return sorted(rows.values(), key=lambda row: (row.dataset, str(row.pair)))


def make_tables(
    rows: Sequence[Row],
    published: Published,
    checkpoints: Path,
    against: str | None = None,
    headings: Sequence[str] = (),
) -> Iterator[Table]:
    """For each dataset a table of methods by pairs, if there are several pairs, and for each pair a table of
    all measures.

    Args:
        rows: from `collect`.
        published: the figures of the papers.
        checkpoints: folder in which `train_scratch.py` left the accuracy of students.
        against: label of a row; adds a column of the differences from it.
        headings: the columns of the tables of measures, in this order; all if there are none.

    Raises:
        UserError: there is no such row or column.
    """
    if against is not None:
        require_known("runs of", [against], {row.label: row for row in rows})
    for dataset, of_dataset in groupby(rows, lambda row: row.dataset):
        by_pair = {pair: list(members) for pair, members in groupby(of_dataset, lambda row: row.pair)}
        lines = {}
        for pair, members in by_pair.items():
            lines[pair] = _yardsticks(members, published, checkpoints)
            lines[pair] += [_line(row, members, published, against) for row in members]
        if len(by_pair) > 1:
            yield _overview(dataset, _metric([row for members in by_pair.values() for row in members]), lines)
        for pair, members in by_pair.items():
            require_known("column", headings, lines[pair][-1])
            shown = ["method", *headings] if headings else list(lines[pair][-1])
            caption = f"{dataset}, {pair.words}: {_metric(members)} in %, balance, images, hours"
            found = [line for line in lines[pair] if (line["last"], line["published"]) != ("-", "-")]
            yield Table(caption, shown, [[line.get(heading, "") for heading in shown] for line in found])


def _yardsticks(rows: Sequence[Row], published: Published, checkpoints: Path) -> list[Line]:
    """The teacher of a pair, and its student trained on real images, from the folder that `train_scratch.py`
    left.

    Teachers with different `teacher_args` are different networks, each with its own figure. The student from
    scratch must have the same `student_args` as all rows.
    """
    dataset, pair = rows[0].dataset, rows[0].pair
    teachers: dict[Any, set[float]] = defaultdict(set)
    for row in rows:
        teachers[row.runs[0].setting("teacher_args")].update(row.values("teacher_top1"))
    students = {row.runs[0].setting("student_args") for row in rows}
    try:
        folder = checkpoints / f"{dataset}_{pair.student.stem}.pth.training"
        config, summary = (json.loads((folder / name).read_text("utf-8")) for name in (TRAINING, SUMMARY))
        scratch = float(summary["last_top1"]) if students == {config.get("model_args")} else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        scratch = None
    measured = {
        "teacher": " / ".join(spread(sorted(found)) for found in teachers.values() if found) or "-",
        "student from scratch": number(scratch),
    }
    figures = [number(published.of(name, dataset, pair)) for name in ("teacher", "student_from_scratch")]
    return [
        {"method": name, "last": last, "published": figure}
        for (name, last), figure in zip(measured.items(), figures, strict=True)
    ]


def _line(row: Row, members: Sequence[Row], published: Published, against: str | None) -> Line:
    """All cells of a row; `members` are all rows of its pair."""
    cells = {
        "method": row.label,
        "seeds": " ".join(str(seed) for seed in sorted(run.seed for run in row.runs)),
        "last": spread(row.values("last")),
        "published": published.text(row.runs[0]),
    }
    if against is not None:
        others = [one for one in members if one.label == against and one is not row]
        differences = [value for other in others for value in seed_differences(row, other)]
        cells[f"minus {against}"] = paired(differences).text if differences else "-"
    for name, measure in (PROTOCOL | BALANCE | COST).items():
        values = row.values(name)
        if values and name in COST:
            values = [mean(values)]  # without the deviation
        cells[measure.heading] = spread(values, measure.pattern)
    return cells


def _overview(dataset: str, metric: str, by_pair: dict[Pair, list[Line]]) -> Table:
    """A line for each method, a column for each pair."""
    cells: dict[str, dict[Pair, str]] = defaultdict(dict)
    for pair, lines in by_pair.items():
        for line in lines:
            figure = "" if line["published"] == "-" else f" [{line['published']}]"
            cells[line["method"]][pair] = line["last"] + figure
    caption = f"{dataset}: {metric} in % after the last epoch [published: best epoch; * other settings]"
    found = [[name, *(of_name.get(pair, "-") for pair in by_pair)] for name, of_name in cells.items()]
    return Table(caption, ["method", *map(str, by_pair)], found)


def _metric(rows: Sequence[Row]) -> str:
    """What the figures of some rows are."""
    accurate = {run.accurate for row in rows for run in row.runs}
    if accurate == {False}:
        return "agreement with the teacher (which is not accuracy)"
    return "test accuracy" if accurate == {True} else "test accuracy (agreement in rows with that word)"


def spread(values: Sequence[float], pattern: str = "{:.2f}") -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    text = pattern.format(mean(values))
    return f"{text} ± {pattern.format(stdev(values))}" if len(values) > 1 else text


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


def require_known(kind: str, names: Sequence[str], known: Collection[str]) -> None:
    """Raises:
    UserError: one of the names is not known.
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise UserError(f"no {kind} {name}{hint}")


def compare(rows: Sequence[Row], first: str, second: str) -> str:
    """The mean difference of two rows over the seeds they share, see `paired`: a line for each dataset and
    pair.

    Raises:
        UserError: there is no such row, or none of their runs share a seed.
    """
    require_known("runs of", [first, second], {row.label: row for row in rows})
    lines = []
    for (dataset, pair), members in groupby(rows, lambda row: (row.dataset, row.pair)):
        both = {row.label: row for row in members if row.label in (first, second)}
        differences = seed_differences(both[first], both[second]) if {first, second} == both.keys() else []
        if differences:
            found = paired(differences)
            text = f"{dataset}, {pair.words}: {first} minus {second}: {found.mean:+.2f} points"
            if found.seeds > 1:
                text += f", 95 % confidence {found.interval}"
            lines.append(f"{text} ({found.seeds} shared seed{'s' if found.seeds > 1 else ''})")
    if not lines:
        raise UserError(f"{first} and {second} share no seed on any pair: run both with the same --seed")
    return "\n".join(lines) + "\n"


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
    measures = {"last": "last", "best": "best", "teacher": "teacher_top1"}
    measures |= {name: name for name in (*PROTOCOL, *BALANCE, *COST, "seconds")}
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
