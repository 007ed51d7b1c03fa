"""The figures of a report, by matplotlib. Each function returns a figure, or None if the runs lack what it
shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datafree.iho import NoPruning, class_quartiles
from datafree.neighbours import SlotTable
from datafree.results import style
from datafree.results.read import FinishedRun
from datafree.results.stored import NoSamples, StoredSamples, read_samples
from datafree.runs.contact_sheet import to_pil

MANY = 20  # classes: where there are more, quartiles are bands and classes have no names
WIDTH = 6.4  # inches
SHEET_CLASSES = 10  # in the sheet of samples at most; if there are more classes, some are left out
SHEET_SAMPLES = 6  # nearest to the mean of their class, and as many farthest from it
BOX = "#cfe3f7"  # between the quartiles, and between the whiskers of many classes
LOSSES = {  # titles; other loss terms are shown by name
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


@dataclass(frozen=True)
class ReportRun:
    """A run, its name on the page and its colour."""

    run: FinishedRun
    name: str
    color: str

    def column(self, name: str) -> np.ndarray:
        """A metric by epoch; NaN where it is missing."""
        return np.array([np.nan if row.get(name) is None else row[name] for row in self.run.metrics], float)

    def has(self, name: str) -> bool:
        """Whether any epoch has the metric."""
        return bool(np.isfinite(self.column(name)).any())

    @property
    def epochs(self) -> np.ndarray:
        """The epochs of the metrics, counted from 1."""
        return np.array([row["epoch"] + 1 for row in self.run.metrics])

    @property
    def classes(self) -> list[str]:
        """Names of the classes for matplotlib, to which a dollar sign begins a formula."""
        names = self.run.required("classes")
        shown = ("".join(c if c.isprintable() else "?" for c in name) for name in names)
        return [name.replace("$", r"\$") for name in shown]

    @cached_property
    def samples(self) -> StoredSamples | None:
        """None if the run left none."""
        try:
            return read_samples(self.run)
        except NoSamples:
            return None


def _line(axis: Axes, one: ReportRun, values: np.ndarray) -> None:
    """A line by epoch, with dots if there are few epochs."""
    there = np.isfinite(values)
    marker = "o" if there.sum() < 3 else None
    axis.plot(one.epochs[there], values[there], color=one.color, marker=marker, markersize=4, linewidth=1.4)
    axis.set_xlabel("epoch")


def _name_classes(axis: Axes, one: ReportRun) -> None:
    """Put the names of the classes along the bottom, unless there are many."""
    names = [name[:14] for name in one.classes]
    if len(names) <= MANY:
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xlabel("class")


def metric_of(shown: Sequence[ReportRun]) -> str:
    """What the students are evaluated by."""
    accurate = {one.run.accurate for one in shown}
    if len(accurate) > 1:
        return "accuracy or agreement"
    return "test accuracy" if accurate == {True} else "agreement"


def accuracy_figure(shown: Sequence[ReportRun]) -> Figure:
    """The student's accuracy (or agreement) by epoch, and the teacher's."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.0))
    ends = []
    for one in shown:
        accuracy = one.column(one.run.metric)
        if one.has("evaluated"):  # KD with images is evaluated after every epoch
            accuracy = np.where(one.column("evaluated") == 1, accuracy, np.nan)
        _line(axis, one, accuracy)
        for place in np.flatnonzero(np.isfinite(accuracy))[-1:]:
            ends.append((one.epochs[place], accuracy[place], f"{accuracy[place]:.2f}", one.color))
        teacher = one.run.summary.get("teacher_top1")
        if teacher is not None:
            axis.axhline(teacher, color=one.color, linewidth=0.8, linestyle=":")
    axis.set_ylabel(f"{metric_of(shown)}, %  (dotted: teacher)")
    style.label_ends(axis, ends)
    return figure


def alpha_figure(shown: Sequence[ReportRun]) -> Figure | None:
    """Alpha by epoch, with marks where DLW raised it."""
    if not any(one.has("alpha") for one in shown):
        return None
    figure, axis = plt.subplots(figsize=(WIDTH, 2.2))
    for one in shown:
        alpha = one.column("alpha")
        axis.step(one.epochs, alpha, where="post", color=one.color, linewidth=1.4)
        raised = np.flatnonzero(np.diff(alpha) > 0) + 1
        axis.plot(one.epochs[raised], alpha[raised], "^", color=one.color, markersize=5)
    axis.set(xlabel="epoch", ylabel="alpha")
    return figure


def losses_figure(shown: Sequence[ReportRun]) -> Figure | None:
    """Each loss term by epoch."""
    found = {name for one in shown for row in one.run.metrics for name in row if name.startswith("loss")}
    found -= {"loss_total"}  # the sum of the others times their weights
    known = [*LOSSES, *sorted(found - LOSSES.keys())]
    names = [name for name in known if any(one.has(name) for one in shown)]
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, 2.0 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for one in shown:
            _line(axis, one, one.column(name))
        axis.set_title(LOSSES.get(name, name.removeprefix("loss_")))
    return figure


def counts_figure(one: ReportRun) -> Figure | None:
    """A heat map of the samples of each class over epochs."""
    if not all("counts" in row for row in one.run.metrics) or not one.run.stores:
        return None
    counts = np.array([row["counts"] for row in one.run.metrics], float).T
    # Each epoch against its own mean, so that the first ones are as readable as the last.
    relative = counts / np.maximum(counts.mean(0), 1e-9)
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    extent = (one.epochs[0] - 0.5, one.epochs[-1] + 0.5, len(counts) - 0.5, -0.5)
    image = axis.imshow(
        relative, "PuOr_r", aspect="auto", extent=extent, interpolation="nearest", clim=(0, 2)
    )
    if len(counts) <= MANY:
        axis.set_yticks(range(len(counts)), [name[:14] for name in one.classes])
    low, high = counts[:, -1].min(), counts[:, -1].max()
    title = f"samples over the epoch's mean; at the end {low:.0f} to {high:.0f} a class"
    axis.set(title=title, xlabel="epoch")
    bar = figure.colorbar(image, ax=axis, pad=0.02, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["0", "1", "2 or more"])
    return figure


def factors_figure(one: ReportRun) -> Figure | None:
    """Local outlier factors by class, as IHO measures them, of all samples ever stored, and of those kept."""
    samples = one.samples
    if samples is None:
        return None
    classes = len(one.classes)
    parts = {"all samples stored": torch.ones_like(samples.kept), "samples kept": samples.kept}
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 4.6), sharex=True, sharey=True)
    bottom, top = 0.0, 1.0
    for axis, (text, chosen) in zip(axes, parts.items(), strict=True):
        labels, numbers = samples.labels[chosen], torch.arange(int(chosen.sum()))
        table = SlotTable(samples.features[chosen], labels, numbers, numbers)
        scores = NoPruning(classes).measure(table)
        scored = scores.factors.isfinite()  # not in classes that are too small
        share = len(scores.outside) / max(1, int(scored.sum()))
        title = f"{text}: {len(labels):,}; {100 * share:.1f} % outside the whiskers (red)"
        axis.set(title=title, ylabel="LOF")
        if scored.any():
            factors, counts = scores.factors[scored], torch.bincount(labels[scored], minlength=classes)
            q1, q2, q3 = class_quartiles(factors, labels[scored], counts)
            box = torch.stack([q1 - 1.5 * (q3 - q1), q1, q2, q3, q3 + 1.5 * (q3 - q1)]).numpy()
            _draw_boxes(axis, box, labels[scores.outside].numpy(), scores.factors[scores.outside].numpy())
            bottom = max(0.0, np.nanmin(box) - 0.1)
            top = max(top, np.nanmax(box), np.percentile(factors, 99.5))
    axes[0].set_ylim(bottom, top * 1.05)
    _name_classes(axes[1], one)
    return figure


def _draw_boxes(axis: Axes, box: np.ndarray, labels: np.ndarray, factors: np.ndarray) -> None:
    """Draw a box with whiskers for each class, or bands if there are many classes, and the samples outside
    the whiskers, by label and factor, as dots."""
    low, q1, q2, q3, high = box
    places = np.arange(box.shape[1])
    blue, red = style.COLORS[0], style.COLORS[2]
    if len(places) > MANY:
        axis.fill_between(places, low, high, color=BOX, linewidth=0)
        axis.fill_between(places, q1, q3, color=blue, alpha=0.5, linewidth=0)
        axis.plot(labels, factors, ".", color=red, markersize=1.5)
        return
    apart = np.random.default_rng(0).uniform(-0.15, 0.15, len(labels))
    axis.plot(labels + apart, factors, ".", color=red, markersize=3)
    axis.bar(places, q3 - q1, bottom=q1, width=0.6, color=BOX, edgecolor=blue)
    axis.hlines(q2, places - 0.3, places + 0.3, color=blue, linewidth=1.6)
    axis.vlines(np.tile(places, 2), np.append(low, q3), np.append(q1, high), color=blue, linewidth=0.8)


def recall_figure(one: ReportRun) -> Figure | None:
    """The student's recall of each class in the last epoch, above the samples of each class."""
    row = one.run.metrics[-1]
    recall = np.array([np.nan if value is None else value for value in row.get("test_recall", [])], float)
    if not np.isfinite(recall).any():
        return None
    counts = row.get("counts") if one.run.stores else None
    rows, height = (2, 3.6) if counts else (1, 2.2)
    figure, axes = plt.subplots(rows, 1, figsize=(WIDTH, height), sharex=True, squeeze=False)
    places, width = range(len(recall)), 0.8 if len(recall) <= MANY else 1.0
    axes[0, 0].bar(places, recall, width, color=one.color)
    lowest = one.classes[int(np.nanargmin(recall))]
    title = f"{np.nanmin(recall):.1f} % ({lowest}) to {np.nanmax(recall):.1f} %"
    axes[0, 0].set(title=title, ylabel="recall, %", ylim=(0, 102))
    if counts:
        axes[1, 0].bar(places, counts, width, color="#b0b0b0")
        axes[1, 0].set_ylabel("samples")
    _name_classes(axes[-1, 0], one)
    return figure


def confidence_figure(shown: Sequence[ReportRun]) -> Figure | None:
    """The mean margin by epoch, and the distributions of margins and confidences of the samples kept."""
    if not any(one.has("margin") for one in shown):
        return None
    left = [(one, one.samples) for one in shown if one.samples]
    figure, axes = plt.subplots(1, 3 if left else 1, figsize=(WIDTH, 2.5), squeeze=False)
    for one in shown:
        _line(axes[0, 0], one, one.column("margin"))
    axes[0, 0].set(ylabel="mean margin", ylim=(0, 1.02))
    for axis, name in zip(axes[0, 1:], ("margins", "confidences"), strict=False):
        for one, samples in left:
            values = getattr(samples, name)[samples.kept].numpy()
            shares = np.full(len(values), 100 / max(1, len(values)))
            bins = np.linspace(0, 1, 26)
            axis.hist(values, bins, weights=shares, histtype="step", color=one.color, linewidth=1.4)
        axis.set(xlabel=f"{name.removesuffix('s')} of a sample kept", ylabel="samples, %")
    return figure


def time_figure(shown: Sequence[ReportRun]) -> Figure:
    """Seconds an epoch by phase."""
    phases = list(dict.fromkeys(name for one in shown for row in one.run.metrics for name in row["seconds"]))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.4 * len(shown)))
    left = np.zeros(len(shown))
    for place, phase in enumerate(phases):
        by_run = [[row["seconds"].get(phase, 0) for row in one.run.metrics] for one in shown]
        seconds = np.array([np.mean(of_run) for of_run in by_run])
        # The first colours are for runs; phases take the last ones.
        color = style.COLORS[-1 - place % len(style.COLORS)]
        axis.barh(range(len(shown)), seconds, left=left, color=color, label=phase)
        left += seconds
    names = [f"run {place + 1}" for place in range(len(shown))] if len(shown) > 1 else ["epoch"]
    axis.set_yticks(range(len(shown)), names)
    axis.invert_yaxis()
    axis.set_xlabel("seconds, mean of the epochs")
    axis.legend(ncol=len(phases), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, handlelength=1)
    return figure


def samples_figure(one: ReportRun) -> Figure | None:
    """Samples kept, a class a row: at the left those nearest to the mean of their class in the teacher's
    features, at the right those farthest from it."""
    samples = one.samples
    if samples is None or not samples.kept.any():
        return None
    shown = range(0, len(one.classes), max(1, -(-len(one.classes) // SHEET_CLASSES)))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.2 + 0.45 * len(shown)))
    for place, label in enumerate(shown):
        members = ((samples.labels == label) & samples.kept).nonzero().squeeze(1)
        features = samples.features[members]
        order = members[(features - features.mean(0)).norm(dim=1).argsort()]
        nearest, farthest = order[:SHEET_SAMPLES], order[SHEET_SAMPLES:][-SHEET_SAMPLES:].flip(0)
        for left, chosen in ((0, nearest), (SHEET_SAMPLES + 0.2, farthest)):
            for column, pixels in enumerate(samples.images(chosen)):
                x, image = left + column, to_pil(pixels)
                image.thumbnail((64, 64))
                axis.imshow(image, extent=(x, x + 0.96, place + 0.48, place - 0.48), interpolation="none")
    axis.set(xlim=(0, 2 * SHEET_SAMPLES + 0.2), ylim=(len(shown) - 0.5, -0.5), xticks=[], frame_on=False)
    axis.set_yticks(range(len(shown)), [one.classes[label][:12] for label in shown])
    axis.tick_params(length=0)
    return figure
