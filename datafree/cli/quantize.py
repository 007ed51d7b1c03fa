"""The command `bsr-quantize` (`scripts/quantize.py`): a network in int8, calibrated without data."""

from __future__ import annotations

from datafree.cli import parser as cli
from datafree.methods import METHODS
from datafree.settings import QuantizeSettings, resolve_quantization


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        "Quantise a network to int8 without its data: calibration images are synthesised from the network "
        "alone. Data sets and folders serve only to test."
    )
    parser.add_settings(QuantizeSettings)
    return parser


def run() -> None:
    given = build_parser().given()
    own, settings, warnings = resolve_quantization(given)
    for warning in warnings:
        print(f"warning: {warning}")
    # Imported only now, so that --help and mistakes in flags are answered at once.
    from datafree.deploy.quantization import quantize_network

    quantize_network(own, settings, "bn" not in given and "bn" in METHODS[own.method].takes)


def main() -> None:
    cli.run(run)
