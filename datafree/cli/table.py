"""The command `bsr-table` (`scripts/table.py`): tables of finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.results.effects import effects
from datafree.results.published import Published
from datafree.results.read import find_runs
from datafree.results.tables import RENDER, as_csv, collect, compare, make_tables


def build_parser() -> cli.Parser:
    parser = cli.Parser("Tables of finished runs, with seeds, spread and the published figures.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of runs")
    parser.add_argument("--format", choices=(*RENDER, "csv"), default="text", help="format of the tables")
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    shared = "print the mean difference of two rows over the seeds they share"
    parser.add_argument("--compare", nargs=2, metavar=("ROW", "OTHER"), help=shared)
    against = "add a column with each row's mean difference from this one, paired by seed"
    parser.add_argument("--against", metavar="ROW", help=against)
    adds = "print what each of DLW, BLG and IHO adds instead; needs runs of all eight variants"
    parser.add_argument("--effects", action="store_true", help=adds)
    columns = 'only these columns, such as "seeds,last,stored" (default: all)'
    parser.add_argument("--columns", default="", metavar="NAME,...", help=columns)
    parser.add_argument("--sort", action="store_true", help="highest accuracy of the last epoch first")
    scratch = "where train_scratch.py left the accuracy of students from scratch"
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/pretrained"), help=scratch)
    return parser


def render(args: argparse.Namespace) -> str:
    """The text that the flags ask for.

    Raises:
        UserError: there are no such runs, rows or columns.
    """
    others = args.compare or args.against or args.columns
    if args.format == "csv" and (others or args.effects):
        raise UserError("CSV has every column: leave out --compare, --against, --columns and --effects")
    if args.effects and (others or args.sort):
        raise UserError(
            "--effects prints a different table: leave out --compare, --against, --columns and --sort"
        )
    runs, unfinished = find_runs(args.runs)
    for path in unfinished:
        print(f"not finished, left out: {path}", file=sys.stderr)
    if not runs:
        raise UserError("no run is finished yet")
    rows, published = collect(runs), Published()
    if args.effects:
        return "\n".join(map(RENDER[args.format], effects(rows)))
    if args.sort:
        rows.sort(key=lambda row: (row.dataset, str(row.pair), -mean(row.values("last"))))
    if args.format == "csv":
        return as_csv(rows, published)
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else []
    tables = make_tables(rows, published, args.checkpoints, args.against, columns)
    text = "\n".join(map(RENDER[args.format], tables))
    return text + "\n" + compare(rows, *args.compare) if args.compare else text


def run() -> None:
    args = build_parser().parse_args()
    text = render(args)
    if args.output:
        args.output.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        print(text, end="")


def main() -> None:
    cli.run(run)
