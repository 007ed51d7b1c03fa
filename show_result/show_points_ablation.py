#!/usr/bin/env python
"""Stored samples of runs as points in the plane: features of the student or the teacher, by t-SNE.

    python show_result/show_points_ablation.py [run/bsr run/basic ...]

Without runs: the finished ones in run/ablation, else in run, in the paper's order.
Writes `{tag}_points.csv`, `{tag}_targets.csv` (an index column and a header row) and `{tag}_counts.csv`
(samples of each class) to show_result/ablation_points, a tag for each run; `ablation.py` and `ablation.m`
draw them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.methods import METHODS
from datafree.results.read import COMPONENTS, find_runs, read_run
from datafree.settings import Count, Network, Whole
from show_result.ablation import ordered, variant_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from datafree.results.read import FinishedRun
    from datafree.results.stored import StoredSamples

FOLDER = Path(__file__).resolve().parent / "ablation_points"
BATCH = 256
ITERATIONS = 750  # of openTSNE: 250 of early exaggeration, 500 after it


def build_parser() -> cli.Parser:
    parser = cli.Parser("Stored samples of runs as points in the plane: penultimate features by t-SNE.")
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folder (default: the finished runs in run/ablation, else in run, by variant)",
    )
    parser.add_argument("--tags", nargs="+", help="names for the runs (default: those of their folders)")
    parser.add_argument(
        "--features",
        choices=("student", "teacher"),
        default="student",
        help="whose penultimate features: student, or teacher (as stored with the samples)",
    )
    parser.add_argument(
        "--student", type=cli.argument(Network), help="file.py:factory of a student that is defined in a file"
    )
    parser.add_argument(
        "--feature_layer",
        metavar="NAME",
        help="layer of the student whose input are the features (default: the linear layer that gives its "
        "logits)",
    )
    parser.add_argument(
        "--max_points",
        type=cli.argument(Count),
        default=100_000,
        help="points a run at most, drawn at random",
    )
    parser.add_argument("--seed", type=cli.argument(Whole), default=0, help="seed of everything random")
    parser.add_argument(
        "--engine",
        choices=("auto", "openTSNE", "scikit-learn"),
        default="auto",
        help="auto takes openTSNE, which is faster, where it is installed",
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the CSV files")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser


def network_features(
    network: nn.Module,
    run: FinishedRun,
    samples: StoredSamples,
    rows: Tensor,
    device: torch.device,
    on_batch: Callable[[int], object] = lambda count: None,
    layer: str | None = None,
) -> Tensor:
    """Penultimate features (len(rows), D) of samples, on the CPU; calls `on_batch` with the size of each
    finished batch. `layer` names the layer whose input is taken, by default the one that gives the logits."""
    import torch

    from datafree.data.augment import Normalize
    from datafree.data.image_set import to_float
    from datafree.networks.check import settle_layout
    from datafree.networks.penultimate import PenultimateFeatures

    normalize = Normalize(tuple(run.required("mean")), tuple(run.required("std")))
    parts: list[Tensor] = []
    with torch.no_grad():
        for indices in rows.split(BATCH):
            inputs = normalize(to_float(samples.images(indices).to(device)))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            if not parts:
                settle_layout(network, inputs[:1])
                seen = PenultimateFeatures(network, layer, inputs)
            with seen.capture():
                network(inputs)
            parts.append(seen.value.float().cpu())
            on_batch(len(indices))
    return torch.cat(parts)


def embed(
    features: np.ndarray,
    seed: int,
    engine: str = "auto",
    on_iteration: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton, 2008) of features (N, D) to points (N, 2), perplexity 30 or less for
    few points, from a PCA start. `on_iteration` is called with the number of iterations since
    its last call.

    Raises:
        UserError: there are too few points, or openTSNE was asked for and is not installed.
    """
    if len(features) < 5:
        raise UserError(f"{len(features)} samples are too few for t-SNE: use a run with more")
    seed %= 2**32  # NumPy's limit
    perplexity = min(30.0, (len(features) - 1) / 3)
    if engine != "scikit-learn":
        try:
            from openTSNE import TSNE

            def done(_iteration: int, _error: float, _embedding: np.ndarray) -> None:
                on_iteration(10)

            embedding = TSNE(
                perplexity=perplexity, n_jobs=-1, random_state=seed, callbacks=done, callbacks_every_iters=10
            ).fit(features)
            return embedding.view(type(features))
        except ImportError:
            if engine == "openTSNE":
                raise UserError("openTSNE is not installed: pip install openTSNE") from None
    from sklearn.manifold import TSNE

    embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=-1).fit_transform(features)
    on_iteration(ITERATIONS)
    return embedding


def finished_runs(root: Path) -> dict[str, Path]:
    """The finished runs that keep samples in `run/ablation`, else in `run`, by tags in the paper's order: the
    variant's name, or the folder's where several runs are of one variant.

    Raises:
        UserError: there is none.
    """
    for folder in (root / "run/ablation", root / "run"):
        runs = find_runs([folder])[0] if any(folder.glob("**/config.json")) else []
        runs = [run for run in runs if run.stores and run.config["method"] in METHODS]
        if runs:
            variants = [variant_of(name for name in COMPONENTS if run.config.get(name)) for run in runs]
            unique = len(set(variants)) == len(runs)
            found = {
                variant if unique else run.path.resolve().name: run.path
                for variant, run in zip(variants, runs, strict=True)
            }
            return {tag: found[tag] for tag in ordered(found)}
    raise UserError(
        f"no finished runs in {root / 'run/ablation'} or {root / 'run'}: make them with scripts/ablation.sh, "
        "or name run folders"
    )


def run() -> None:
    args = build_parser().parse_args()
    found = {} if args.runs else finished_runs(FOLDER.parents[1])
    args.runs = args.runs or list(found.values())
    tags = args.tags or list(found) or [path.resolve().name for path in args.runs]
    if len(tags) != len(args.runs) or len(set(tags)) < len(tags):
        raise UserError(f"{len(args.runs)} runs need as many different --tags, not {' '.join(tags)}")
    if args.features == "teacher" and args.feature_layer:
        raise UserError(
            "--feature_layer is for --features student: the teacher's were stored during the run, from "
            "the layer chosen then"
        )

    # Imported late, so that --help and wrong flags are answered at once.
    import numpy as np
    import torch
    from tqdm import tqdm

    from datafree.results.stored import read_samples, student_of
    from datafree.torch_utils.device import choose_device

    device = choose_device(args.device, None)
    found = [(tag, one, read_samples(one)) for tag, one in zip(tags, map(read_run, args.runs), strict=True)]
    if args.features == "student":
        students = [student_of(one, device, args.student) for _, one, _ in found]
    args.output.mkdir(parents=True, exist_ok=True)
    for place, (tag, one, samples) in enumerate(found):
        rows = samples.kept.nonzero().squeeze(1)
        counts = torch.bincount(samples.labels[rows], minlength=len(one.required("classes")))
        if len(rows) > args.max_points:
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
            rows = rows[drawn[: args.max_points].sort().values]
        with tqdm(total=len(rows) + ITERATIONS, desc=tag, disable=None, dynamic_ncols=True) as bar:
            if args.features == "student":
                features = network_features(
                    students[place], one, samples, rows, device, bar.update, args.feature_layer
                )
            else:
                features = samples.features[rows]
                bar.update(len(rows))
            points = embed(features.numpy().astype(np.float32), args.seed, args.engine, bar.update)
        write_csv(args.output / f"{tag}_points.csv", "0,1", points, "%.3f")
        write_csv(args.output / f"{tag}_targets.csv", "0", samples.labels[rows].numpy()[:, None], "%d")
        write_csv(args.output / f"{tag}_counts.csv", "0", counts.numpy()[:, None], "%d")
        print(f"{tag}: {len(rows):,} points in {args.output}")


def write_csv(path: Path, header: str, values: np.ndarray, number: str) -> None:
    """Rows with their index before them and a header above, whole or not at all."""
    lines = [f",{header}"]
    lines += [f"{index}," + ",".join(number % value for value in row) for index, row in enumerate(values)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
