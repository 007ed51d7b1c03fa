"""The command `bsr-train` (`train_scratch.py`): train a classifier on real images."""

from __future__ import annotations

from pathlib import Path

from datafree.cli import parser as cli
from datafree.settings import TrainSettings, resolve_training


def build_parser() -> cli.Parser:
    parser = cli.Parser("Train a classifier on real data: a teacher, or a student to compare with.")
    parser.add_settings(TrainSettings)
    return parser


def run() -> None:
    settings = resolve_training(TrainSettings(**build_parser().given()))
    default = f"checkpoints/pretrained/{settings.dataset}_{settings.model.stem}.pth"
    output = Path(settings.output or default)

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.runs import real_images

    if settings.evaluate_only:
        real_images.evaluate_only(settings, output)
    else:
        real_images.train(settings, output)


def main() -> None:
    cli.run(run)
