#!/usr/bin/env python
"""The figures of the ablation: a t-SNE panel a variant, and the samples of each class by variant.

    python show_result/ablation.py

Draws what `show_points_ablation.py` wrote: show_result/ablation_points.png and .pdf, and
show_result/ablation_counts.png and .pdf. The published CSV files, with tags such as `bsr-r34r18c10-dlw-blg`,
can be put there too. `ablation.m` draws the same in MATLAB or GNU Octave.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.results.read import COMPONENTS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent
ORDER = ("Basic", "BLG", "DLW", "IHO", "DLW+BLG", "DLW+IHO", "BLG+IHO", "BSR")  # the paper's variants
WORDS = {*COMPONENTS, "basic", "none", "bsr", "omz8"}  # in tags; the published ones say omz8 for BSR
LARGEST = 1e6  # of a coordinate, a class or a count
COLUMNS = 2  # panels beside each other at most: their text stays legible on a phone


class Variant(NamedTuple):
    """The samples that a run of one variant has left."""

    tag: str
    points: np.ndarray  # (N, 2) float64
    labels: np.ndarray  # (N,) int64: the class of each point
    counts: np.ndarray  # (C,) int64: samples of each class, also of those that are not among the points


def build_parser() -> cli.Parser:
    parser = cli.Parser("The figures of the ablation, from the CSV files of show_points_ablation.py.")
    parser.add_argument("--points", type=Path, default=FOLDER / "ablation_points", help="folder of CSV files")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the figures")
    return parser


def variant_of(on: Iterable[str]) -> str:
    """The paper's name for the components that are on, in the order of `COMPONENTS`."""
    names = [name.upper() for name in on]
    return "BSR" if len(names) == len(COMPONENTS) else "+".join(names) or "Basic"


def place_of(tag: str) -> tuple[str, int]:
    """What a tag says beside the variant, and the place of the variant in the paper's order, behind all where
    it names none."""
    words = re.split(r"[-+_]", tag.lower())
    on = [name for name in COMPONENTS if name in words]
    if on or "basic" in words or "none" in words:
        variant = variant_of(on)
    else:
        variant = "BSR" if "bsr" in words or "omz8" in words else ""
    rest = "-".join(word for word in words if word not in WORDS)
    return rest if variant else tag, ORDER.index(variant) if variant else len(ORDER)


def ordered(tags: Iterable[str]) -> list[str]:
    """Tags in the paper's order, grouped by what else they contain."""
    return sorted(tags, key=lambda tag: (*place_of(tag), tag))


def find_tags(folder: Path) -> list[str]:
    """The variants that have points there, in order.

    Raises:
        UserError: there is none.
    """
    tags = ordered(path.name.removesuffix("_points.csv") for path in folder.glob("*_points.csv"))
    if not tags:
        raise UserError(f"no *_points.csv in {folder}: write some with show_points_ablation.py")
    return tags


def read_csv(path: Path) -> np.ndarray:
    """(rows, columns) without the index column and the header.

    Raises:
        UserError: it is missing, or holds something else than numbers.
    """
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a file without rows
            rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, 1:]
        if not rows.size or not (np.abs(rows) < LARGEST).all():
            raise ValueError("no numbers that can be drawn")
        return rows
    except (OSError, ValueError, IndexError, UserWarning) as error:
        raise UserError(f"cannot read {path} ({error}): make it with show_points_ablation.py") from error


def read_variant(folder: Path, tag: str) -> Variant:
    """What `show_points_ablation.py` wrote for a tag. Without a file of counts they are those of the points.

    Raises:
        UserError: a file is missing or damaged, or they are not of one run.
    """
    import numpy as np

    points, targets = (read_csv(folder / f"{tag}_{kind}.csv") for kind in ("points", "targets"))
    labels = targets[:, 0].astype(int)
    file = folder / f"{tag}_counts.csv"
    if file.is_file() or not len(labels) or labels.min() < 0:
        of_class = read_csv(file)[:, 0].astype(int)
    else:
        of_class = np.bincount(labels)
    known = 0 <= labels.min() <= labels.max() < len(of_class)
    if points.shape[1] != 2 or len(points) != len(labels) or not known:
        raise UserError(f"the files of {tag} do not belong together: show_points_ablation.py makes them")
    return Variant(tag, points, labels, of_class)


def panels(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure with so many panels, each of a width and height in inches, and its axes (count,)."""
    import matplotlib.pyplot as plt

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=sharey)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes.flatten()[:count]


def _title_size(one: Variant) -> float | None:
    """That of a panel's title in points, smaller for a long tag; None for matplotlib's own."""
    return None if len(one.tag) < 14 else max(4.0, 120 / len(one.tag))


def points_figure(variants: list[Variant]) -> Figure:
    """The points of each variant, coloured by class."""
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D

    from datafree.results import style

    classes = max(len(one.counts) for one in variants)
    few = classes <= len(style.COLORS)
    colors = np.array([to_rgba(color) for color in style.COLORS[:classes]])
    colors = colors if few else plt.get_cmap("viridis")(np.linspace(0, 1, classes))
    figure, axes = panels(len(variants), 2.6, 2.7)
    for axis, one in zip(axes, variants, strict=True):
        size = np.clip(3000 / len(one.points), 0.2, 8)
        many = len(one.points) > 5000
        axis.scatter(*one.points.T, c=colors[one.labels], s=size, linewidths=0, rasterized=many)
        axis.set(xticks=[], yticks=[])
        drawn, stored = len(one.points), one.counts.sum()
        text = f"{drawn:,} of {stored:,}" if drawn < stored else f"{drawn:,} samples"
        axis.set_title(f"{one.tag}  ({text})", fontsize=_title_size(one))
        axis.set_aspect("equal", adjustable="datalim")
        for spine in axis.spines.values():
            spine.set(visible=True, color="#bbbbbb")
    if few:
        marks = [Line2D([], [], marker="o", linestyle="", color=color) for color in colors]
        figure.legend(
            marks,
            [str(label) for label in range(classes)],
            ncol=classes,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.01),
            handletextpad=0.1,
            columnspacing=1.2,
        )
    figure.tight_layout()
    return figure


def counts_figure(variants: list[Variant]) -> Figure:
    """The samples of each class in each variant, with their mean."""
    from datafree.results import style

    classes = max(len(one.counts) for one in variants)
    figure, axes = panels(len(variants), 2.6, 1.9, sharey=True)
    for place, (axis, one) in enumerate(zip(axes, variants, strict=True)):
        counts = one.counts
        variation = counts.std() / counts.mean() if counts.any() else float("nan")
        axis.bar(range(len(counts)), counts, color=style.COLORS[0], width=0.8)
        axis.axhline(counts.mean(), color="#555555", linewidth=0.8, linestyle="--")
        axis.set_title(f"{one.tag}  (variation {variation:.3f})", fontsize=_title_size(one))
        axis.set_xticks(range(classes) if classes <= 10 else [0, classes - 1])
        if place // COLUMNS == (len(variants) - 1) // COLUMNS:
            axis.set_xlabel("class")
        if place % COLUMNS == 0:
            axis.set_ylabel("samples")
    figure.tight_layout()
    return figure


def run() -> None:
    args = build_parser().parse_args()
    tags = find_tags(args.points)

    # Imported late, so that --help and wrong flags are answered at once.
    from datafree.results import style

    style.use()
    variants = [read_variant(args.points, tag) for tag in tags]
    files = style.save(points_figure(variants), args.output / "ablation_points")
    files += style.save(counts_figure(variants), args.output / "ablation_counts")
    for file in files:
        print(file)


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
