"""The report on runs: figures as SVG, samples as PNG and tables, in one HTML page without external
references."""

from __future__ import annotations

import base64
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
from PIL import Image, ImageDraw

from datafree.results import report_figures as figures
from datafree.results import style
from datafree.results.measures import BALANCE, COST, PROTOCOL, Measure
from datafree.results.read import FinishedRun
from datafree.results.report_runs import ReportRun, report_runs
from datafree.runs.contact_sheet import to_pil

SHEET_CLASSES = 10  # rows of a sheet at most; if there are more classes, some are left out
SHEET_SAMPLES = 6  # nearest to the mean of their class, and as many farthest from it
SHEET_CAPTION = (
    f"Each row is a class: the {SHEET_SAMPLES} samples nearest to the mean of their class in the teacher's "
    f"features (left), and the {SHEET_SAMPLES} farthest (right)."
)
MARGIN, GAP = 84, 2  # pixels at the left for the name of the class, and between images


class Picture(NamedTuple):
    """A figure of the page: `svg`, or a `png` in base64."""

    caption: str
    label: str  # for screen readers
    run: str = ""  # the run's name, where there are several
    svg: Markup | None = None
    png: str = ""


def render(runs: Sequence[FinishedRun]) -> str:
    """The page as HTML text.

    Raises:
        UserError: a run has no metrics yet, or its files are damaged.
    """
    style.use()
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "bsr"})
    shown = report_runs(runs)
    many = len(shown) > 1

    def of_all(draw: Callable[[Sequence[ReportRun]], Figure | None], caption: str) -> list[Picture]:
        figure = draw(shown)
        return [Picture(caption, caption, svg=to_svg(figure, caption))] if figure else []

    def of_each(draw: Callable[[ReportRun], Figure | None], caption: str) -> list[Picture]:
        found = []
        for one in shown:
            figure, label = draw(one), f"{caption}, {one.name}"
            if figure:
                found.append(Picture(caption, label, one.name if many else "", to_svg(figure, label)))
        return found

    metric = figures.metric_of(shown)
    sheets = [(one, sheet) for one in shown if (sheet := samples_sheet(one))]
    sections = {
        metric.capitalize(): of_all(figures.accuracy_figure, f"{metric.capitalize()} by epoch"),
        "Losses and the weight of the pseudo-supervised loss": [
            *of_all(figures.alpha_figure, "Alpha by epoch, with marks where DLW raised it"),
            *of_all(figures.losses_figure, "Loss terms by epoch"),
        ],
        "Balance over the classes": of_each(figures.counts_figure, "Samples of each class by epoch"),
        "Spread within the classes": of_each(figures.factors_figure, "Local outlier factors"),
        "Recall by class": of_each(figures.recall_figure, "The student's recall, and the samples"),
        "The teacher's confidence": of_all(
            figures.confidence_figure,
            "The teacher's probabilities of stored samples: the highest (confidence), and by how much it "
            "exceeds the second highest (margin)",
        ),
        "Samples": [
            Picture(
                SHEET_CAPTION, f"Samples of {one.name} by class", one.name if many else "", png=to_png(sheet)
            )
            for one, sheet in sheets
        ],
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


def summary_table(shown: Sequence[ReportRun]) -> dict[str, list[str]]:
    """Final figures by their words, a cell for each run."""

    def cells(figures: Callable[[ReportRun], dict[str, Any]], name: str, pattern: str) -> list[str]:
        values = [figures(one).get(name) for one in shown]
        return ["-" if value is None else pattern.format(value) for value in values]

    def last(one: ReportRun) -> dict[str, Any]:
        row = one.run.metrics[-1]
        return {**row, "last": row[one.run.metric]}

    def final(one: ReportRun) -> dict[str, Any]:
        return one.run.figures

    def words(measure: Measure) -> str:
        tested = any(one.run.accurate for one in shown)
        return measure.words if tested else measure.words.replace("test data", "held-out samples")

    lines = {
        "teacher": cells(final, "teacher_top1", "{:.2f} %"),
        "student, last epoch": cells(last, "last", "{:.2f} %"),
        **{f"student, {words(one)}": cells(final, name, "{:.2f} %") for name, one in PROTOCOL.items()},
        "agreement with the teacher on held-out samples": cells(last, "holdout_agreement", "{:.2f} %"),
        "epochs": [f"{len(one.run.metrics)} of {one.run.required('epochs')}" for one in shown],
        **{one.words: cells(last, name, "{:.3f}") for name, one in BALANCE.items()},
        **{one.words: cells(final, name, one.pattern) for name, one in COST.items()},
        "device": cells(lambda one: one.run.config, "device", "{}"),
    }
    return {words: of_runs for words, of_runs in lines.items() if set(of_runs) != {"-"}}


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


def to_png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def samples_sheet(one: ReportRun) -> Image.Image | None:
    """The samples nearest to the mean of their class and those farthest from it; None if the run left no
    samples."""
    samples = one.samples
    if samples is None or not samples.kept.any():
        return None
    classes, size = one.run.required("classes"), one.run.required("img_size")
    labels = range(0, len(classes), max(1, -(-len(classes) // SHEET_CLASSES)))
    side = max(48, size) if size <= 64 else 96
    resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BILINEAR
    width = MARGIN + 2 * SHEET_SAMPLES * (side + GAP) + 3 * GAP
    sheet = Image.new("RGB", (width, len(labels) * (side + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, label in enumerate(labels):
        top = GAP + place * (side + GAP)
        draw.text((4, top + side // 2 - 6), classes[label][:12], fill="black")
        members = ((samples.labels == label) & samples.kept).nonzero().squeeze(1)
        features = samples.features[members]
        order = members[(features - features.mean(0)).norm(dim=1).argsort()]
        nearest, farthest = order[:SHEET_SAMPLES], order[SHEET_SAMPLES:][-SHEET_SAMPLES:].flip(0)
        for chosen, left in ((nearest, MARGIN), (farthest, MARGIN + SHEET_SAMPLES * (side + GAP) + 3 * GAP)):
            for column, image in enumerate(samples.images(chosen)):
                sheet.paste(to_pil(image).resize((side, side), resample), (left + column * (side + GAP), top))
    return sheet
