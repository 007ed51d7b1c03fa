"""The report on runs: figures as SVG, samples as PNG and tables, all of it in one HTML text that refers to
nothing outside itself."""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from datafree.errors import UserError
from datafree.results import report_figures as figures
from datafree.results import style
from datafree.results.read import Run
from datafree.results.report_runs import ReportRun, report_runs
from datafree.results.report_samples import CAPTION, samples_sheet
from datafree.results.report_tables import settings_table, summary_table


def render(runs: Sequence[Run]) -> str:
    """The page as HTML text.

    Raises:
        UserError: a run has no metrics yet, or its files are damaged.
    """
    for run in runs:
        if not run.config.get("classes"):
            raise UserError(f"{run.path}/config.json names no classes: leave this run out")
    style.use()
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "bsr"})
    shown = report_runs(runs)
    sections = [
        ("Result", agreement_note(shown) + summary_table(shown)),
        ("Accuracy", figure_html(figures.accuracy_figure(shown), "Test accuracy by epoch")),
        (
            "Losses and the weight of the pseudo-supervised loss",
            figure_html(figures.alpha_figure(shown), "Alpha by epoch; a mark where DLW raised it")
            + figure_html(figures.losses_figure(shown), "Loss terms by epoch"),
        ),
        ("Balance over the classes", each(shown, figures.counts_figure, "Samples of each class by epoch")),
        ("Spread within the classes", each(shown, figures.factors_figure, "Local outlier factors")),
        ("Recall by class", each(shown, figures.recall_figure, "The student's recall, and the samples")),
        (
            "The teacher's confidence",
            figure_html(
                figures.confidence_figure(shown),
                "Of stored samples: the teacher's first probability less its second (margin), and its first",
            ),
        ),
        ("Samples", each_sheet(shown)),
        ("Time", figure_html(figures.time_figure(shown), "Seconds an epoch by phase")),
        ("Settings", settings_table(shown)),
    ]
    title = shown[0].name if len(shown) == 1 else f"{len(shown)} runs"
    return Template(_read("report.html")).substitute(
        title=html.escape(f"BSR report: {title}"),
        css=_read("report.css"),
        legend=legend(shown),
        body="\n".join(f"<section><h2>{name}</h2>{text}</section>" for name, text in sections if text),
    )


def _read(name: str) -> str:
    """A file beside this module."""
    return (files("datafree.results") / name).read_text(encoding="utf-8")


def legend(shown: Sequence[ReportRun]) -> str:
    """What is shown, below the title: the run, or the colours of several."""
    if len(shown) == 1:
        return f"<p class=lead>{html.escape(shown[0].name)} on {html.escape(shown[0].run.dataset)}</p>"
    items = "".join(
        f'<li><span class=swatch style="background:{one.color}"></span>{html.escape(one.name)}</li>'
        for one in shown
    )
    return f"<ul class=legend>{items}</ul>"


def agreement_note(shown: Sequence[ReportRun]) -> str:
    """What the figures of runs without real images are."""
    names = [one.name for one in shown if not one.run.accurate]
    if not names:
        return ""
    those = "This run was" if len(shown) == 1 else f"{html.escape('; '.join(names))}: "
    return (
        f"<p class=note>{those} judged by the student's agreement with its teacher on synthetic samples "
        "held out from training. <b>This is not accuracy.</b></p>"
    )


def each(shown: Sequence[ReportRun], draw: Callable[[ReportRun], Figure | None], text: str) -> str:
    """A figure for each run that has what it shows."""
    return "".join(
        figure_html(draw(one), text, caption_start(one, shown), f"{text}, {one.name}") for one in shown
    )


def each_sheet(shown: Sequence[ReportRun]) -> str:
    """A sheet of samples for each run that has left some."""
    parts = []
    for one in shown:
        sheet = samples_sheet(one)
        if sheet is not None:
            caption = caption_start(one, shown) + CAPTION
            parts.append(_in_figure(png_html(sheet, f"Samples of {one.name} by class"), caption))
    return "".join(parts)


def caption_start(one: ReportRun, shown: Sequence[ReportRun]) -> str:
    """The run's name, where there are several."""
    return f"<b>{html.escape(one.name)}</b>. " if len(shown) > 1 else ""


def figure_html(figure: Figure | None, text: str, before: str = "", told: str = "") -> str:
    """A figure as inline SVG with its caption; closes it.

    Args:
        figure: nothing comes of None.
        text: the caption.
        before: HTML that the caption begins with.
        told: what is read to those who cannot see the figure, different from that of the page's other
            figures; by default the caption.
    """
    told = told or text
    if figure is None:
        return ""
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    salt = f"f{zlib.crc32(told.encode())}"  # figures of one page must not share the names of their parts
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", svg)
    label = f'role="img" aria-label="{html.escape(told)}"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: label, svg, count=1)
    return _in_figure(svg, before + html.escape(text))


def _in_figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def png_html(image: Image.Image, text: str) -> str:
    """An image as HTML that holds it; `text` is for those who cannot see it."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" width="{image.width}" src="data:image/png;base64,{data}">'
