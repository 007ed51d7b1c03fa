"""The command `bsr-train` (`train_scratch.py`): train a classifier on real images."""

from __future__ import annotations

from pathlib import Path

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.settings import TrainSettings, require_batches


def build_parser() -> cli.Parser:
    parser = cli.Parser("Train a classifier on real data: a teacher, or a student to compare with.")
    parser.add_settings(TrainSettings)
    return parser


def run() -> None:
    settings = TrainSettings(**build_parser().given())
    require_batches(settings.batch_size)
    default = f"checkpoints/pretrained/{settings.dataset}_{settings.model.stem}.pth"
    output = Path(settings.output or default)
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} is there already: replace it with --overwrite, or name another --output")

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.runs.real_images import train

    train(settings, output)


def main() -> None:
    cli.run(run)
