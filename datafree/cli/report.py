"""The command `bsr-report` (`show_result/report.py`): one page on a run, or on several side by side."""

from __future__ import annotations

from pathlib import Path

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.results.read import read_run


def build_parser() -> cli.Parser:
    parser = cli.Parser("One self-contained HTML page on a run, or on several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page to write")
    return parser


def run() -> None:
    args = build_parser().parse_args()
    runs = [read_run(path, finished=False) for path in args.runs]
    if len({path.resolve() for path in args.runs}) < len(runs):
        raise UserError("a run is named twice: name each once")

    # Imported late, so that --help and wrong flags are answered at once.
    from datafree.results.report import render

    text = render(runs)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"cannot write {args.output} ({error}): name another --output") from error
    print(f"{args.output}: {len(text) / 1e6:.1f} MB")


def main() -> None:
    cli.run(run)
