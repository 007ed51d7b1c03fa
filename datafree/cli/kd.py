"""The command `bsr-kd` (`vanilla_kd.py`): knowledge distillation with real images."""

from __future__ import annotations

from dataclasses import replace

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
    if not settings.kd_weight and not settings.ce_weight:
        raise UserError("--kd_weight 0 --ce_weight 0 leaves nothing to learn: give one of them a weight")
    settings = replace(settings, save_dir=settings.save_dir or run_folder(settings))

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.runs.real_images import distill

    distill(settings)


def main() -> None:
    cli.run(run)
