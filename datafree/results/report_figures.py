"""The figures of a report, by matplotlib. Each function returns a figure, or None if the runs lack what it
shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datafree.iho import NoPruning
from datafree.neighbours import SlotTable
from datafree.results import style
from datafree.results.report_runs import ReportRun

MANY = 20  # classes: where there are more, quartiles are bands and classes have no names
WIDTH = 6.4  # inches
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


def _line(axis: Axes, one: ReportRun, values: np.ndarray) -> None:
    """A line by epoch, with dots if there are few epochs."""
    there = np.isfinite(values)
    marker = "o" if there.sum() < 3 else None
    axis.plot(one.epochs[there], values[there], color=one.color, marker=marker, markersize=4, linewidth=1.4)


def _name_classes(axis: Axes, one: ReportRun) -> None:
    """Put the names of the classes along the bottom."""
    names = [name[:14] for name in one.classes]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")


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
    axis.set(xlabel="epoch", ylabel=f"{metric_of(shown)}, %  (dotted: teacher)")
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
    names = [
        name for name in (*LOSSES, *sorted(found - LOSSES.keys())) if any(one.has(name) for one in shown)
    ]
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, 2.0 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for one in shown:
            _line(axis, one, one.column(name))
        axis.set(title=LOSSES.get(name, name.removeprefix("loss_")), xlabel="epoch")
    return figure


def counts_figure(one: ReportRun) -> Figure | None:
    """A heat map of the samples of each class over epochs."""
    if not all("counts" in row for row in one.run.metrics) or not one.run.stores:
        return None
    counts = np.array([row["counts"] for row in one.run.metrics], float).T
    classes = len(counts)
    # Each epoch against its own mean, so that the first ones are as readable as the last.
    mean = np.maximum(counts.mean(0), 1e-9)
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6 if classes <= MANY else 4.2))
    extent = (one.epochs[0] - 0.5, one.epochs[-1] + 0.5, classes - 0.5, -0.5)
    image = axis.imshow(
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
    bar = figure.colorbar(image, ax=axis, pad=0.02, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["0", "1", "2 or more"])
    return figure


def outlier_factors(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """Local outlier factors (N,) of samples within their classes, as IHO measures them; NaN in classes that
    are too small.

    Args:
        features: (N, D), floating point.
        labels: (N,) int64.
        classes: number of classes.
    """
    numbers = torch.arange(len(labels))
    table = SlotTable(features, labels, numbers, numbers)
    return NoPruning(classes).measure(table).factors.numpy()


def quartiles_by_class(factors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Lower whisker, quartiles and upper whisker (5, classes); NaN for classes too small to score."""
    found = np.full((5, classes), np.nan)
    for label in range(classes):
        values = factors[(labels == label) & np.isfinite(factors)]
        if len(values):
            q1, q2, q3 = np.percentile(values, [25, 50, 75])
            found[:, label] = q1 - 1.5 * (q3 - q1), q1, q2, q3, q3 + 1.5 * (q3 - q1)
    return found


def factors_figure(one: ReportRun) -> Figure | None:
    """Outlier factors by class of all samples ever stored, and of those kept."""
    samples = one.samples
    if samples is None:
        return None
    classes = len(one.classes)
    parts = [("all samples stored", torch.ones_like(samples.kept)), ("samples kept", samples.kept)]
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 4.6), sharex=True, sharey=True)
    top = 1.0
    for axis, (text, chosen) in zip(axes, parts, strict=True):
        labels = samples.labels[chosen].numpy()
        factors = outlier_factors(samples.features[chosen], samples.labels[chosen], classes)
        box = quartiles_by_class(factors, labels, classes)
        low, high = box[0], box[4]
        outside = np.isfinite(factors) & ((factors < low[labels]) | (factors > high[labels]))
        _draw_boxes(axis, box, labels[outside], factors[outside])
        share = outside.sum() / max(1, np.isfinite(factors).sum())
        axis.set_title(f"{text}: {len(labels):,}; {100 * share:.1f} % outside the whiskers (red)")
        axis.set_ylabel("LOF")
        if np.isfinite(box).any():
            top = max(top, float(np.nanmax(np.append(high, np.nanpercentile(factors, 99.5)))))
    axes[0].set_ylim(max(0, float(np.nanmin(low)) - 0.1) if np.isfinite(low).any() else 0, top * 1.05)
    if classes <= MANY:
        _name_classes(axes[1], one)
    axes[1].set_xlabel("class")
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
    axis.vlines(places, low, q1, color=blue, linewidth=0.8)
    axis.vlines(places, q3, high, color=blue, linewidth=0.8)


def recall_figure(one: ReportRun) -> Figure | None:
    """The student's recall of each class in the last epoch, above the samples of each class."""
    row = one.run.metrics[-1]
    recall = np.array([np.nan if value is None else value for value in row.get("test_recall", [])], float)
    if not len(recall):
        return None
    counts = row["counts"] if "counts" in row and one.run.stores else None
    figure, axes = plt.subplots(
        2 if counts else 1, 1, figsize=(WIDTH, 3.6 if counts else 2.2), sharex=True, squeeze=False
    )
    places, width = range(len(recall)), 0.8 if len(recall) <= MANY else 1.0
    top, bottom = axes[0, 0], axes[-1, 0]
    top.bar(places, recall, width, color=one.color)
    top.set(ylabel="recall, %", ylim=(0, 102))
    if np.isfinite(recall).any():
        lowest = one.classes[int(np.nanargmin(recall))]
        top.set_title(f"{np.nanmin(recall):.1f} % ({lowest}) to {np.nanmax(recall):.1f} %")
    if counts:
        bottom.bar(places, counts, width, color="#b0b0b0")
        bottom.set_ylabel("samples")
    if len(recall) <= MANY:
        _name_classes(bottom, one)
    bottom.set_xlabel("class")
    return figure


def confidence_figure(shown: Sequence[ReportRun]) -> Figure | None:
    """The mean margin by epoch, and the distributions of margins and confidences of the samples kept."""
    if not any(one.has("margin") for one in shown):
        return None
    left = [(one, one.samples) for one in shown if one.samples]
    figure, axes = plt.subplots(1, 3 if left else 1, figsize=(WIDTH, 2.5), squeeze=False)
    for one in shown:
        _line(axes[0, 0], one, one.column("margin"))
    axes[0, 0].set(xlabel="epoch", ylabel="mean margin", ylim=(0, 1.02))
    for axis, name in zip(axes[0, 1:], ("margins", "confidences"), strict=False):
        for one, samples in left:
            values = getattr(samples, name)[samples.kept].numpy()
            look: dict[str, Any] = {"histtype": "step", "color": one.color, "linewidth": 1.4}
            shares = np.full(len(values), 100 / max(1, len(values)))
            axis.hist(values, bins=np.linspace(0, 1, 26), weights=shares, **look)
        axis.set(xlabel=f"{name.removesuffix('s')} of a sample kept", ylabel="samples, %")
    return figure


def time_figure(shown: Sequence[ReportRun]) -> Figure:
    """Seconds an epoch by phase."""
    phases = list(dict.fromkeys(name for one in shown for row in one.run.metrics for name in row["seconds"]))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.4 * len(shown)))
    left = np.zeros(len(shown))
    for place, phase in enumerate(phases):
        seconds = np.array(
            [np.mean([row["seconds"].get(phase, 0) for row in one.run.metrics]) for one in shown]
        )
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
