"""The report on runs: figures as SVG, samples as PNG and tables, in one HTML page without external
references."""

from __future__ import annotations

import html
import io
import json
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from datafree.results import report_figures as figures
from datafree.results import style
from datafree.results.read import BALANCE, COST, PROTOCOL, FinishedRun
from datafree.results.report_figures import ReportRun

SAMPLES_CAPTION = (
    f"Each row is a class: the {figures.SHEET_SAMPLES} samples nearest to the mean of their class in the "
    f"teacher's features (left), and the {figures.SHEET_SAMPLES} farthest (right)."
)
CONFIDENCE_CAPTION = (
    "The teacher's probabilities of stored samples: the highest (confidence), and by how much it exceeds the "
    "second highest (margin)"
)


class Picture(NamedTuple):
    """A figure of the page."""

    caption: str
    run: str  # the run's name, where there are several
    svg: Markup


def render(runs: Sequence[FinishedRun]) -> str:
    """The page as HTML text.

    Raises:
        UserError: a run has no metrics yet, or its files are damaged.
    """
    style.use()
    plt.rcParams["svg.hashsalt"] = "bsr"
    shown = report_runs(runs)
    many = len(shown) > 1

    def of_all(draw: Callable[[Sequence[ReportRun]], Figure | None], caption: str) -> list[Picture]:
        figure = draw(shown)
        return [Picture(caption, "", to_svg(figure, caption))] if figure else []

    def of_each(draw: Callable[[ReportRun], Figure | None], caption: str) -> list[Picture]:
        drawn = [(one.name, draw(one)) for one in shown]
        return [
            Picture(caption, name if many else "", to_svg(figure, f"{caption}, {name}"))
            for name, figure in drawn
            if figure
        ]

    metric = figures.metric_of(shown).capitalize()
    sections = {
        metric: of_all(figures.accuracy_figure, f"{metric} by epoch"),
        "Losses and the weight of the pseudo-supervised loss": [
            *of_all(figures.alpha_figure, "Alpha by epoch, with marks where DLW raised it"),
            *of_all(figures.losses_figure, "Loss terms by epoch"),
        ],
        "Balance over the classes": of_each(figures.counts_figure, "Samples of each class by epoch"),
        "Spread within the classes": of_each(figures.factors_figure, "Local outlier factors"),
        "Recall by class": of_each(figures.recall_figure, "The student's recall, and the samples"),
        "The teacher's confidence": of_all(figures.confidence_figure, CONFIDENCE_CAPTION),
        "Samples": of_each(figures.samples_figure, SAMPLES_CAPTION),
        "Time": of_all(figures.time_figure, "Seconds an epoch by phase"),
    }
    loader = PackageLoader("datafree.results", ".")
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html.j2")
    settings, differing = settings_table(shown)
    return template.render(
        title=f"BSR report: {f'{len(shown)} runs' if many else shown[0].name}",
        runs=shown,
        without_images=[one.name for one in shown if not one.run.accurate],
        summary=summary_table(shown),
        sections=sections,
        settings=settings,
        differing=differing,
    )


def report_runs(runs: Sequence[FinishedRun]) -> list[ReportRun]:
    """Runs with different names and, up to ten runs, different colours. A name is method, pair and seed, with
    the folder's name where several runs share these."""
    names = [f"{run.variant}, {run.pair.words}, seed {run.seed}" for run in runs]
    shown = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        name = name if names.count(name) == 1 else f"{name} ({run.path.resolve().name})"
        shown.append(ReportRun(run, name, style.COLORS[place % len(style.COLORS)]))
    return shown


def summary_table(shown: Sequence[ReportRun]) -> dict[str, list[str]]:
    """Final figures by their words, a cell for each run."""
    found: list[dict[str, Any]] = []
    for run in (one.run for one in shown):
        last, epochs = run.metrics[-1], f"{len(run.metrics)} of {run.required('epochs')}"
        more = {"last": last[run.metric], "epochs": epochs, "device": run.config.get("device")}
        found.append({**run.figures, **last, **more})
    tested = any(one.run.accurate for one in shown)
    measures = [
        ("teacher", "teacher_top1", "{:.2f} %"),
        ("student, last epoch", "last", "{:.2f} %"),
        *((f"student, {one.words}", name, "{:.2f} %") for name, one in PROTOCOL.items()),
        ("agreement with the teacher on held-out samples", "holdout_agreement", "{:.2f} %"),
        ("epochs", "epochs", "{}"),
        *((one.words, name, one.pattern) for name, one in (BALANCE | COST).items()),
        ("device", "device", "{}"),
    ]
    lines = {}
    for words, name, pattern in measures:
        values = [of_run.get(name) for of_run in found]
        if any(value is not None for value in values):
            words = words if tested else words.replace("test data", "held-out samples")
            lines[words] = ["-" if value is None else pattern.format(value) for value in values]
    return lines


def settings_table(shown: Sequence[ReportRun]) -> tuple[dict[str, list[str]], list[str]]:
    """The resolved settings by name, a cell for each run; and the names of those in which the runs differ,
    which come first."""
    names = list(dict.fromkeys(name for one in shown for name in one.run.config if name != "classes"))
    cells = {
        name: [json.dumps(one.run.config.get(name), ensure_ascii=False).strip('"') for one in shown]
        for name in names
    }
    differing = [name for name in names if len(set(cells[name])) > 1]
    return {name: cells[name] for name in dict.fromkeys([*differing, *names])}, differing


def to_svg(figure: Figure, label: str) -> Markup:
    """A figure as inline SVG; closes it. `label` must differ from those of the page's other figures."""
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    salt = f"f{zlib.crc32(label.encode())}"  # figures of one page must not share the ids of their parts
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", svg)
    role = f'role="img" aria-label="{html.escape(label)}"'
    return Markup(re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: role, svg, count=1))
