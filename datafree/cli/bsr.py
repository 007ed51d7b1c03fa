"""The command `bsr` (`bsr_main.py`): distil a student from a frozen teacher without its training data."""

from __future__ import annotations

from datafree.cli import parser as cli
from datafree.methods import published_settings
from datafree.settings import Settings, resolve


def build_parser() -> cli.Parser:
    lines = ["published settings, where they differ from the defaults above:"]
    lines += [f"  {name:9} {flags}" for name, flags in published_settings().items()]
    parser = cli.Parser(
        "Distil a student from a frozen teacher without its training data (BSR).", "\n".join(lines)
    )
    parser.add_settings(Settings)
    return parser


def run() -> None:
    settings, warnings = resolve(build_parser().given())
    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.runs.distil import distil

    distil(settings, warnings)


def main() -> None:
    cli.run(run)
