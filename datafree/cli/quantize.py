"""The command `bsr-quantize` (`scripts/quantize.py`): a network in int8, calibrated without data."""

from __future__ import annotations

from datafree.cli import parser as cli
from datafree.methods import METHODS
from datafree.settings import QuantizeSettings, resolve_quantization


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        "Quantise a network to int8 without its data: images to calibrate with are made from the network "
        "alone. Data sets and folders only serve to judge."
    )
    parser.add_settings(QuantizeSettings)
    return parser


def run() -> None:
    given = build_parser().given()
    own, settings, warnings = resolve_quantization(given)
    for warning in warnings:
        print(f"warning: {warning}")
    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.deploy.quantization import quantize_network

    quantize_network(own, settings, "bn" not in given and "bn" in METHODS[own.method].takes)


def main() -> None:
    cli.run(run)
