"""How the figures look: colours that the colour-blind tell apart, and saving as PNG and vector PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

# Petroff (2021), "Accessible color sequences for data visualization".
COLORS = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split())


def use() -> None:
    """Draw without a display, in the style of `figures.mplstyle`."""
    mpl.use("Agg")
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Text to the right of lines' ends, none over another. For when the axis has its limits.

    Args:
        ends: x, y, text and colour of each, x and y in data coordinates.
    """
    if not ends:
        return
    low, high = axis.get_ylim()
    line = 1.25 * mpl.rcParams["font.size"] / 72 * axis.figure.dpi / axis.bbox.height
    ends = sorted(ends, key=lambda end: end[1])
    below = np.arange(len(ends)) * line * (high - low)
    places = isotonic_regression(np.array([end[1] for end in ends]) - below) + below
    for (x, _, text, color), place in zip(ends, places, strict=True):
        shown = axis.annotate(text, (x, place), (4, 0), textcoords="offset points", annotation_clip=False)
        shown.set(color=color, va="center")


def save(figure: Figure, path: Path) -> list[Path]:
    """`path` as .png and .pdf; closes the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    figure.savefig(files[0], bbox_inches="tight")
    # Without a date, for the same bytes every time.
    figure.savefig(files[1], bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    return files
