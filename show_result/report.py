#!/usr/bin/env python
"""One page that shows what happened in a run, or in several side by side.

    python show_result/report.py run/bsr [run/other ...] [--output report.html]

The page holds everything in itself: it asks nothing of any server, and can be sent by mail or printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datafree.errors import UserError
from datafree.flags import Parser, run
from datafree.runs import read_run


def build_parser() -> Parser:
    parser = Parser("One self-contained HTML page on a run, or on several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page to write")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    runs = [read_run(path, finished=False) for path in args.runs]
    if len({path.resolve() for path in args.runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    if args.output.is_dir():
        raise UserError(f"{args.output} is a folder: name a file with --output")

    # Only now, so that --help and mistakes in flags answer at once.
    from show_result.page import render

    text = render(runs)
    temporary = args.output.with_name(args.output.name + ".tmp")
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(args.output)
    except OSError as error:
        raise UserError(f"cannot write {args.output} ({error}): name another --output") from error
    print(f"{args.output}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main, "report.py")
