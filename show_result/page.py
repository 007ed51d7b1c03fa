"""The report's page: figures by matplotlib as SVG, samples as PNG, all of it inside one HTML text."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from datafree.errors import UserError
from datafree.iho import HomogeneityOperator
from datafree.neighbours import SlotTable
from datafree.record import to_pil
from datafree.run_samples import NoSamples, RunSamples, read_samples
from datafree.runs import Run
from show_result import style

MANY = 20  # classes, from which a figure shows quartiles as bands and a sheet shows some of them
SHEET_CLASSES = 10
SHEET_COLUMNS = 6  # samples nearest to the middle of their class, and as many farthest from it
LOSSES = {
    "loss": "loss",
    "loss_kd": "distillation (KD)",
    "loss_oh": "pseudo-supervised (oh)",
    "loss_bn": "BatchNorm (bn)",
    "loss_adv": "adversarial (adv)",
    "loss_cr": "contrastive (cr)",
    "loss_act": "activation (act)",
    "loss_balance": "class balance",
    "loss_tv": "total variation (tv)",
    "loss_l2": "L2 norm",
}
BALANCE = {
    "count_variation": "variation of class counts",
    "count_entropy": "entropy of class counts",
    "lof_relative_iqr": "LOF: IQR over median",
    "lof_outside_share": "LOF: share outside the whiskers",
    "margin": "confidence margin",
}


@dataclass(frozen=True)
class Shown:
    """A run, its name on the page and its colour."""

    run: Run
    name: str
    color: str

    def column(self, name: str) -> np.ndarray:
        """A metric by epoch, NaN where there is none."""
        return np.array([np.nan if row.get(name) is None else row[name] for row in self.run.metrics], float)

    def has(self, name: str) -> bool:
        return bool(np.isfinite(self.column(name)).any())

    @property
    def epochs(self) -> np.ndarray:
        return np.array([row["epoch"] + 1 for row in self.run.metrics])

    @property
    def classes(self) -> list[str]:
        """Names as matplotlib shows them: a dollar sign begins no formula."""
        return [name.replace("$", r"\$") for name in self.run.config["classes"]]

    @cached_property
    def samples(self) -> RunSamples | None:
        """None of a run that left none."""
        try:
            return read_samples(self.run)
        except NoSamples:
            return None


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
    names = unique_names(runs)
    shown = [
        Shown(run, name, style.COLORS[place % len(style.COLORS)])
        for place, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    sections = [
        ("Result", agreement_note(shown) + summary_table(shown)),
        ("Accuracy", figure_html(accuracy_figure(shown), "Test accuracy by epoch")),
        (
            "Losses and the weight of the pseudo-supervised loss",
            figure_html(alpha_figure(shown), "Alpha by epoch; a mark where DLW raised it")
            + figure_html(losses_figure(shown), "Loss terms by epoch"),
        ),
        ("Balance over the classes", each(shown, counts_figure, "Samples of each class by epoch")),
        ("Spread within the classes", each(shown, factors_figure, "Local outlier factors")),
        (
            "Confidence margins",
            figure_html(margin_figure(shown), "The teacher's first probability less its second"),
        ),
        ("Samples", each_sheet(shown)),
        ("Time", figure_html(time_figure(shown), "Seconds an epoch by phase")),
        ("Settings", settings_table(shown)),
    ]
    title = shown[0].name if len(shown) == 1 else f"{len(shown)} runs"
    body = "".join(f"<section><h2>{name}</h2>{text}</section>" for name, text in sections if text)
    return PAGE.format(title=html.escape(f"BSR report: {title}"), css=CSS, body=body, legend=legend(shown))


def unique_names(runs: Sequence[Run]) -> list[str]:
    """Method, pair and seed; the folder's name where that is not enough to tell runs apart."""
    names = [f"{run.variant}, {run.pair.replace('-', ' to ')}, seed {run.seed}" for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.path.resolve().name})"
        for name, run in zip(names, runs, strict=True)
    ]


def legend(shown: list[Shown]) -> str:
    if len(shown) == 1:
        return f"<p class=lead>{html.escape(shown[0].name)} on {html.escape(shown[0].run.dataset)}</p>"
    items = "".join(
        f'<li><span class=swatch style="background:{one.color}"></span>{html.escape(one.name)}</li>'
        for one in shown
    )
    return f"<ul class=legend>{items}</ul>"


# Tables


def agreement_note(shown: list[Shown]) -> str:
    """What the figures of runs without real images are."""
    names = [one.name for one in shown if not one.run.accurate]
    if not names:
        return ""
    those = "This run was" if len(shown) == 1 else f"{html.escape('; '.join(names))}: "
    return (
        f"<p class=note>{those} judged by the student's agreement with its teacher on synthetic samples "
        "held out from training. <b>This is not accuracy.</b></p>"
    )


def summary_table(shown: list[Shown]) -> str:
    """Final figures, a column a run."""

    def summary(name: str, pattern: str = "{:.2f} %") -> Callable[[Shown], str]:
        def cell(one: Shown) -> str:
            value = one.run.summary.get(name)
            return "-" if value is None else pattern.format(value)

        return cell

    def last(name: str, pattern: str) -> Callable[[Shown], str]:
        def cell(one: Shown) -> str:
            value = one.run.metrics[-1].get(name)
            return "-" if value is None else pattern.format(value)

        return cell

    rows: list[tuple[str, Callable[[Shown], str]]] = [
        ("teacher", summary("teacher_top1")),
        ("student, last epoch", last("test_top1", "{:.2f} %")),
        ("student, best epoch (chosen on test data)", summary("best_top1_chosen_on_test_data")),
        ("epochs", lambda one: f"{len(one.run.metrics)} of {one.run.config['epochs']}"),
        ("samples", last("repository", "{:,}")),
        *((text, last(name, "{:.3f}")) for name, text in BALANCE.items()),
        ("minutes", lambda one: f"{sum(sum(r['seconds'].values()) for r in one.run.metrics) / 60:.1f}"),
        ("device", lambda one: str(one.run.config.get("device"))),
    ]
    lines = "".join(
        f"<tr><th scope=row>{html.escape(text)}</th>"
        + "".join(f"<td>{html.escape(cell(one))}</td>" for one in shown)
        + "</tr>"
        for text, cell in rows
    )
    return f"<div class=scroll><table class=figures>{head(shown)}{lines}</table></div>"


def head(shown: list[Shown]) -> str:
    """Which column is which run."""
    if len(shown) == 1:
        return ""
    return "<tr><th></th>" + "".join(f"<th>{html.escape(one.name)}</th>" for one in shown) + "</tr>"


def settings_table(shown: list[Shown]) -> str:
    """The resolved configuration; rows in which the runs differ are marked and come first."""
    names = list(dict.fromkeys(name for one in shown for name in one.run.config if name != "classes"))

    def cells(name: str) -> list[str]:
        return [json.dumps(one.run.config.get(name), ensure_ascii=False) for one in shown]

    differing = [name for name in names if len(set(cells(name))) > 1]
    ordered = differing + [name for name in names if name not in differing]
    lines = "".join(
        f"<tr{' class=differs' if name in differing else ''}><th scope=row>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(text.strip(chr(34)))}</td>" for text in cells(name))
        + "</tr>"
        for name in ordered
    )
    note = f"<p>{len(differing)} settings differ (marked, first).</p>" if len(shown) > 1 else ""
    table = f"<div class=scroll><table>{head(shown)}{lines}</table></div>"
    return f"{note}<details open><summary>{len(names)} settings</summary>{table}</details>"


# Figures


def new_axis(height: float = 2.6, width: float = 6.4) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(width, height))


def line(axis: Axes, one: Shown, values: np.ndarray, **look: Any) -> None:
    """A line by epoch, with dots where there are few epochs to see."""
    marker = "o" if np.isfinite(values).sum() < 3 else None
    axis.plot(one.epochs, values, color=one.color, marker=marker, markersize=4, linewidth=1.4, **look)


def accuracy_figure(shown: list[Shown]) -> Figure:
    figure, axis = new_axis(3.0)
    for one in shown:
        accuracy = one.column("test_top1")
        line(axis, one, accuracy)
        axis.annotate(
            f"{accuracy[-1]:.2f}",
            (one.epochs[-1], accuracy[-1]),
            xytext=(4, 0),
            color=one.color,
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
        teacher = one.run.summary.get("teacher_top1")
        if teacher is not None:
            axis.axhline(teacher, color=one.color, linewidth=0.8, linestyle=":")
    what = "test accuracy" if all(one.run.accurate for one in shown) else "accuracy or agreement"
    axis.set(xlabel="epoch", ylabel=f"{what}, %  (dotted: teacher)")
    return figure


def alpha_figure(shown: list[Shown]) -> Figure | None:
    if not any(one.has("alpha") for one in shown):
        return None
    figure, axis = new_axis(2.2)
    for one in shown:
        alpha = one.column("alpha")
        axis.step(one.epochs, alpha, where="post", color=one.color, linewidth=1.4)
        stepped = np.flatnonzero(np.diff(alpha) > 0) + 1
        axis.plot(one.epochs[stepped], alpha[stepped], "^", color=one.color, markersize=5)
    axis.set(xlabel="epoch", ylabel="alpha")
    return figure


def losses_figure(shown: list[Shown]) -> Figure | None:
    names = [name for name in LOSSES if any(one.has(name) for one in shown)]
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(6.4, 2.0 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for one in shown:
            line(axis, one, one.column(name))
        axis.set(title=LOSSES[name], xlabel="epoch")
    return figure


def counts_figure(one: Shown) -> Figure | None:
    """A heat map of the samples of each class over epochs."""
    if not all("counts" in row for row in one.run.metrics) or not one.run.stores:
        return None
    counts = np.array([row["counts"] for row in one.run.metrics], float).T
    classes = len(counts)
    # Each epoch against its own mean, so that the first ones are as readable as the last.
    mean = np.maximum(counts.mean(0), 1e-9)
    height = 2.6 if classes <= MANY else 4.2
    figure, axis = new_axis(height)
    extent = (one.epochs[0] - 0.5, one.epochs[-1] + 0.5, classes - 0.5, -0.5)
    shown = axis.imshow(
        counts / mean, aspect="auto", cmap="PuOr_r", vmin=0, vmax=2, extent=extent, interpolation="nearest"
    )
    if classes <= MANY:
        axis.set_yticks(range(classes), [name[:14] for name in one.classes])
    else:
        axis.set_ylabel("class")
    axis.set_xlabel("epoch")
    final = counts[:, -1]
    axis.set_title(
        f"samples over the epoch's mean; at the end {final.min():.0f} to {final.max():.0f} a class"
    )
    bar = figure.colorbar(shown, ax=axis, pad=0.02, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["0", "1", "2 or more"])
    return figure


def outlier_factors(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    numbers = torch.arange(len(labels))
    table = SlotTable(features, labels, numbers, numbers)
    return HomogeneityOperator(classes, 1).measure(table).factors.numpy()


def quartiles_by_class(factors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(5, classes): lower whisker, quartiles, upper whisker; NaN where a class is too small to be scored."""
    out = np.full((5, classes), np.nan)
    for label in range(classes):
        values = factors[(labels == label) & np.isfinite(factors)]
        if len(values):
            q1, q2, q3 = np.percentile(values, [25, 50, 75])
            out[:, label] = q1 - 1.5 * (q3 - q1), q1, q2, q3, q3 + 1.5 * (q3 - q1)
    return out


def factors_figure(one: Shown) -> Figure | None:
    """Outlier factors by class of all samples ever made, and of those kept."""
    samples = one.samples
    if samples is None or samples.features is None:
        return None
    classes = len(one.classes)
    parts = [("every sample made", torch.ones_like(samples.kept)), ("those kept", samples.kept)]
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True, sharey=True)
    top = 1.0
    for axis, (text, chosen) in zip(axes, parts, strict=True):
        labels = samples.labels[chosen].numpy()
        factors = outlier_factors(samples.features[chosen], samples.labels[chosen], classes)
        low, q1, q2, q3, high = box = quartiles_by_class(factors, labels, classes)
        outside = np.isfinite(factors) & ((factors < low[labels]) | (factors > high[labels]))
        places = np.arange(classes)
        if classes <= MANY:
            spread = np.random.default_rng(0).uniform(-0.15, 0.15, outside.sum())
            axis.plot(labels[outside] + spread, factors[outside], ".", color=style.COLORS[2], markersize=3)
            axis.bar(places, q3 - q1, bottom=q1, width=0.6, color="#cfe3f7", edgecolor=style.COLORS[0])
            axis.hlines(q2, places - 0.3, places + 0.3, color=style.COLORS[0], linewidth=1.6)
            axis.vlines(places, low, q1, color=style.COLORS[0], linewidth=0.8)
            axis.vlines(places, q3, high, color=style.COLORS[0], linewidth=0.8)
        else:
            axis.fill_between(places, low, high, color="#cfe3f7", linewidth=0)
            axis.fill_between(places, q1, q3, color=style.COLORS[0], alpha=0.5, linewidth=0)
            axis.plot(labels[outside], factors[outside], ".", color=style.COLORS[2], markersize=1.5)
        share = outside.sum() / max(1, np.isfinite(factors).sum())
        axis.set_title(f"{text}: {len(labels):,}; {100 * share:.1f} % outside the whiskers (red)")
        axis.set_ylabel("LOF")
        if np.isfinite(box).any():
            top = max(top, float(np.nanmax(np.append(high, np.nanpercentile(factors, 99.5)))))
    axes[0].set_ylim(max(0, float(np.nanmin(low)) - 0.1) if np.isfinite(low).any() else 0, top * 1.05)
    if classes <= MANY:
        axes[1].set_xticks(range(classes), [name[:8] for name in one.classes])
    axes[1].set_xlabel("class")
    return figure


def margin_figure(shown: list[Shown]) -> Figure | None:
    if not any(one.has("margin") for one in shown):
        return None
    with_samples = [one for one in shown if one.samples is not None and one.samples.margins is not None]
    figure, axes = plt.subplots(1, 2 if with_samples else 1, figsize=(6.4, 2.5), squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    for one in shown:
        line(left, one, one.column("margin"))
    left.set(xlabel="epoch", ylabel="mean margin", ylim=(0, 1.02))
    for one in with_samples:
        margins = one.samples.margins[one.samples.kept].numpy()
        shares = np.full(len(margins), 100 / max(1, len(margins)))
        right.hist(
            margins,
            bins=np.linspace(0, 1, 26),
            histtype="step",
            color=one.color,
            linewidth=1.4,
            weights=shares,
        )
        right.set(xlabel="margin of a sample at the end", ylabel="samples, %")
    return figure


def time_figure(shown: list[Shown]) -> Figure:
    phases = list(dict.fromkeys(p for one in shown for row in one.run.metrics for p in row["seconds"]))
    figure, axis = new_axis(0.9 + 0.4 * len(shown))
    left = np.zeros(len(shown))
    for place, phase in enumerate(phases):
        seconds = np.array(
            [np.mean([row["seconds"].get(phase, 0) for row in one.run.metrics]) for one in shown]
        )
        # The first colours tell runs apart; phases take the others, from the end.
        axis.barh(range(len(shown)), seconds, left=left, color=style.COLORS[-1 - place % 10], label=phase)
        left += seconds
    axis.set_yticks(
        range(len(shown)),
        [f"run {place + 1}" for place in range(len(shown))] if len(shown) > 1 else ["epoch"],
    )
    axis.invert_yaxis()
    axis.set_xlabel("seconds, mean of the epochs")
    axis.legend(ncol=len(phases), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, handlelength=1)
    return figure


# Samples


def each_sheet(shown: list[Shown]) -> str:
    """Contact sheets of each run that has samples with features."""
    parts = []
    for one in shown:
        if one.samples is not None and one.samples.features is not None and one.samples.kept.any():
            text = (
                f"{heading(one, shown)}A row a class: at the left the {SHEET_COLUMNS} samples nearest to the "
                f"mean of their class in the teacher's features, at the right the {SHEET_COLUMNS} farthest."
            )
            image = png_html(contact_sheet(one), f"Samples of {one.name} by class")
            parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return "".join(parts)


def contact_sheet(one: Shown) -> Image.Image:
    """The samples nearest to the mean of their class and those farthest from it."""
    samples, classes = one.samples, len(one.classes)
    step = max(1, -(-classes // SHEET_CLASSES))  # some of the classes where there are many
    labels = list(range(0, classes, step))[:SHEET_CLASSES]
    size = int(one.run.config["img_size"])
    side = max(48, size) if size <= 64 else 96
    margin, gap = 84, 2
    width = margin + (2 * SHEET_COLUMNS) * (side + gap) + 3 * gap
    sheet = Image.new("RGB", (width, len(labels) * (side + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        top = gap + row * (side + gap)
        draw.text((4, top + side // 2 - 6), one.run.config["classes"][label][:12], fill="black")
        members = ((samples.labels == label) & samples.kept).nonzero().squeeze(1)
        if not len(members):
            continue
        features = samples.features[members]
        order = members[(features - features.mean(0)).norm(dim=1).argsort()]
        nearest = order[:SHEET_COLUMNS]
        farthest = order[len(nearest) :][-SHEET_COLUMNS:].flip(0)
        for start, chosen in ((0, nearest), (SHEET_COLUMNS, farthest)):
            if not len(chosen):
                continue
            for column, image in enumerate(samples.images(chosen)):
                left = margin + (start + column) * (side + gap) + (3 * gap if start else 0)
                resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BILINEAR
                sheet.paste(to_pil(image).resize((side, side), resample), (left, top))
    return sheet


# Into the page


def each(shown: list[Shown], draw: Callable[[Shown], Figure | None], text: str) -> str:
    """A figure a run, of those that have what it shows."""
    drawn = [(one, draw(one)) for one in shown]
    return "".join(
        figure_html(figure, f"{text}, {one.name}", heading(one, shown)) for one, figure in drawn if figure
    )


def heading(one: Shown, shown: list[Shown]) -> str:
    return f"<b>{html.escape(one.name)}</b>. " if len(shown) > 1 else ""


def figure_html(figure: Figure | None, text: str, before: str = "") -> str:
    """A figure as inline SVG with its caption; closes it."""
    if figure is None:
        return ""
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    salt = f"f{abs(hash(text)) % 10**8}"  # the figures of a page must not share the names of their parts
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", svg)
    label = f'role="img" aria-label="{html.escape(text)}"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: label, svg, count=1)
    return f"<figure>{svg}<figcaption>{before}{html.escape(text)}</figcaption></figure>"


def png_html(image: Image.Image, text: str) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" width="{image.width}" src="data:image/png;base64,{data}">'


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; color: #1b1b1b; background: #fff;
       font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.lead { color: #444; margin: 0; } .legend { list-style: none; padding: 0; margin: 0; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border-radius: 2px; }
figure { margin: .5rem 0 1rem; } figure svg, figure img { width: 100%; max-width: 720px; height: auto; }
figcaption { color: #444; font-size: .875rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
         border-bottom: 1px solid #ddd; }
th[scope=row] { font-weight: 500; } .differs { background: #fff1d6; }
.differs th::before { content: "\\2260 "; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.note { background: #fff1d6; padding: .5rem; }
.figures td { white-space: nowrap; } summary { cursor: pointer; }
@media print {
  body { max-width: none; font-size: 10pt; } section, figure { break-inside: avoid; }
  section:last-child, .scroll { break-inside: auto; overflow: visible; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{css}</style></head>
<body><h1>{title}</h1>{legend}{body}</body></html>
"""
