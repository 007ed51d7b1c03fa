#!/usr/bin/env python
"""The figures of the ablation: a t-SNE panel a variant, and the samples of each class by variant.

    python show_result/ablation.py

Draws what `show_points_ablation.py` wrote: show_result/ablation_points.png and .pdf, and
show_result/ablation_counts.png and .pdf. `ablation.m` draws the same in MATLAB or GNU Octave.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datafree.errors import UserError
from datafree.flags import Parser, run

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).resolve().parent
ORDER = ("Basic", "BLG", "DLW", "IHO", "DLW+BLG", "DLW+IHO", "BLG+IHO", "BSR")  # the paper's variants


def build_parser() -> Parser:
    parser = Parser("The figures of the ablation, from the CSV files of show_points_ablation.py.")
    parser.add_argument("--points", type=Path, default=FOLDER / "ablation_points", help="folder of CSV files")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the figures")
    return parser


def find_tags(folder: Path) -> list[str]:
    """The variants that have points there: those of the paper in its order, then the others by name.

    Raises:
        UserError: there is none.
    """
    tags = sorted(path.name.removesuffix("_points.csv") for path in folder.glob("*_points.csv"))
    if not tags:
        raise UserError(f"no *_points.csv in {folder}: write some with show_points_ablation.py")
    return [tag for tag in ORDER if tag in tags] + [tag for tag in tags if tag not in ORDER]


def read_csv(path: Path) -> np.ndarray:
    """(rows, columns) without the index column and the header.

    Raises:
        UserError: it is missing, or holds something else than numbers.
    """
    import numpy as np

    try:
        return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, 1:]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"cannot read {path} ({error}): make it with show_points_ablation.py") from error


def main() -> None:
    args = build_parser().parse_args()
    tags = find_tags(args.points)

    # Only now, so that --help and mistakes in flags answer at once.
    import matplotlib.pyplot as plt
    import numpy as np

    from show_result import style

    style.use()
    points, targets, counts = (
        [read_csv(args.points / f"{tag}_{kind}.csv") for tag in tags]
        for kind in ("points", "targets", "counts")
    )
    counts = [column[:, 0].astype(int) for column in counts]
    for tag, xy, labels, of_class in zip(tags, points, targets, counts, strict=True):
        known = 0 <= labels.min() <= labels.max() < len(of_class)
        if xy.shape[1] != 2 or len(xy) != len(labels) or not known:
            raise UserError(f"the files of {tag} do not belong together: show_points_ablation.py makes them")
    classes = max(map(len, counts))
    colors = style.class_colors(classes)

    columns = min(4, len(tags))
    rows = -(-len(tags) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(tags) :]:
        axis.set_axis_off()
    for axis, tag, xy, labels in zip(axes.flat, tags, points, targets, strict=False):
        size = np.clip(3000 / len(xy), 0.2, 8)
        of_label = colors[labels[:, 0].astype(int)]
        axis.scatter(*xy.T, c=of_label, s=size, linewidths=0, rasterized=len(xy) > 5000)
        axis.set(title=f"{tag}  ({len(xy):,} samples)", xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        for spine in axis.spines.values():
            spine.set(visible=True, color="#bbbbbb")
    if classes <= len(style.COLORS):
        marks = [plt.Line2D([], [], marker="o", linestyle="", color=color) for color in colors]
        names = [str(label) for label in range(classes)]
        figure.legend(
            marks,
            names,
            ncol=classes,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.01),
            handletextpad=0.1,
            columnspacing=1.2,
        )
    figure.tight_layout()
    files = style.save(figure, args.output / "ablation_points")

    size = (2.6 * columns, 1.9 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for axis in axes.flat[len(tags) :]:
        axis.set_axis_off()
    for place, (axis, tag, of_class) in enumerate(zip(axes.flat, tags, counts, strict=False)):
        variation = of_class.std() / of_class.mean() if of_class.any() else float("nan")
        axis.bar(range(len(of_class)), of_class, color=style.COLORS[0], width=0.8)
        axis.axhline(of_class.mean(), color="#555555", linewidth=0.8, linestyle="--")
        axis.set(title=f"{tag}  (variation {variation:.2f})")
        axis.set_xticks(range(classes) if classes <= 10 else [0, classes - 1])
        if place // columns == (len(tags) - 1) // columns:
            axis.set_xlabel("class")
        if place % columns == 0:
            axis.set_ylabel("samples")
    figure.tight_layout()
    files += style.save(figure, args.output / "ablation_counts")
    for file in files:
        print(file)


if __name__ == "__main__":
    run(main, "ablation.py")
