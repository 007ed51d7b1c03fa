"""The command `bsr-kd` (`vanilla_kd.py`): knowledge distillation with real images."""

from __future__ import annotations

import dataclasses

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.settings import KDSettings, resolve_training, run_folder


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        "Knowledge distillation with real images: what data-free distillation is compared with."
    )
    parser.add_settings(KDSettings)
    return parser


def run() -> None:
    settings = resolve_training(KDSettings(**build_parser().given()))
    if not settings.alpha and not settings.beta:
        raise UserError("--alpha 0 --beta 0 leaves nothing to learn: give one of them a weight")
    if settings.save_dir is None:
        folder = run_folder(settings.method, vars(settings))
        settings = dataclasses.replace(settings, save_dir=folder)

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.runs.real_images import distill

    distill(settings)


def main() -> None:
    cli.run(run)
