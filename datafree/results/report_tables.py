"""The tables of a report, as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datafree.results.measures import BALANCE, COST, PROTOCOL
from datafree.results.report_runs import ReportRun

Cell = Callable[[ReportRun], str]  # what a run's column has in a row


def summary_table(shown: Sequence[ReportRun]) -> str:
    """Final figures, a column a run."""
    rows: list[tuple[str, Cell]] = [
        ("teacher", _summary("teacher_top1", "{:.2f} %")),
        ("student, last epoch", _last("test_top1", "{:.2f} %")),
        *((f"student, {measure.words}", _figures(name, "{:.2f} %")) for name, measure in PROTOCOL.items()),
    ]
    if any("agreement" in one.run.metrics[-1] for one in shown):
        rows.append(("agreement with the teacher on samples held out", _last("agreement", "{:.2f} %")))
    rows += [
        ("epochs", lambda one: f"{len(one.run.metrics)} of {one.run.told('epochs')}"),
        *((measure.words, _last(name, "{:.3f}")) for name, measure in BALANCE.items()),
        *((measure.words, _figures(name, measure.pattern)) for name, measure in COST.items()),
        ("device", lambda one: str(one.run.config.get("device"))),
    ]
    lines = (_line(text, map(cell, shown)) for text, cell in rows)
    return _table(shown, lines, "figures")


def _summary(name: str, pattern: str) -> Cell:
    """A figure of the run's summary."""
    return lambda one: _figure(one.run.summary.get(name), pattern)


def _figures(name: str, pattern: str) -> Cell:
    """A figure of the run, or of its metrics so far."""
    return lambda one: _figure(one.run.figures.get(name), pattern)


def _last(name: str, pattern: str) -> Cell:
    """A metric of the run's last epoch."""
    return lambda one: _figure(one.run.metrics[-1].get(name), pattern)


def _figure(value: Any, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def settings_table(shown: Sequence[ReportRun]) -> str:
    """The resolved configuration; rows in which the runs differ are marked and come first."""
    names = list(dict.fromkeys(name for one in shown for name in one.run.config if name != "classes"))
    cells = {
        name: [json.dumps(one.run.config.get(name), ensure_ascii=False) for one in shown] for name in names
    }
    differing = [name for name in names if len(set(cells[name])) > 1]
    ordered = differing + [name for name in names if name not in differing]
    lines = (
        _line(name, (text.strip('"') for text in cells[name]), "differs" if name in differing else "")
        for name in ordered
    )
    note = f"<p>{len(differing)} settings differ (marked, first).</p>" if len(shown) > 1 else ""
    table = _table(shown, lines)
    return f"{note}<details open><summary>{len(names)} settings</summary>{table}</details>"


def _table(shown: Sequence[ReportRun], lines: Iterable[str], kind: str = "") -> str:
    """A table with a column for each run, named at the top where there are several."""
    head = ""
    if len(shown) > 1:
        names = "".join(f"<th>{html.escape(one.name)}</th>" for one in shown)
        head = f"<tr><th></th>{names}</tr>"
    return f"<div class=scroll><table{_of_class(kind)}>{head}{''.join(lines)}</table></div>"


def _line(heading: str, cells: Iterable[str], kind: str = "") -> str:
    texts = "".join(f"<td>{html.escape(text)}</td>" for text in cells)
    return f"<tr{_of_class(kind)}><th scope=row>{html.escape(heading)}</th>{texts}</tr>"


def _of_class(kind: str) -> str:
    """The class of an element, for the style sheet."""
    return f" class={kind}" if kind else ""
