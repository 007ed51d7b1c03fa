"""The command `bsr-export` (`scripts/export.py`): the student of a run as one file that other programs
run."""

from __future__ import annotations

from pathlib import Path

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.kinds import choice
from datafree.settings import NETWORK

FORMATS = {"onnx": "student.onnx", "torch_export": "student.pt2", "safetensors": "student.safetensors"}


def build_parser() -> cli.Parser:
    parser = cli.Parser("Ship the student of a finished run as one file, with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--format",
        type=cli.argument(choice("format", tuple(FORMATS))),
        default="onnx",
        help=f"one of {', '.join(FORMATS)}",
    )
    parser.add_argument("--output", type=Path, help="folder to write to (default: RUN/export)")
    network = cli.argument(NETWORK)
    parser.add_argument(
        "--student", type=network, help="file.py:factory of a student that is defined in a file"
    )
    parser.add_argument(
        "--teacher", type=network, help="file.py:factory of such a teacher, to measure it too"
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="the student of the best epoch, which is chosen on the test data, and not the last one",
    )
    return parser


def run() -> None:
    args = build_parser().parse_args()

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.results.model_card import model_card
    from datafree.runs.export import compare, export, images_to_compare_on, load, shipped_student
    from datafree.runs.files import EXPORT, EXPORT_BEST
    from datafree.runs.read import read_run
    from datafree.runs.stored import as_student_tells

    finished = as_student_tells(read_run(args.run), args.best)
    shipped = shipped_student(finished, args.student, args.best)
    folder = args.output or args.run / (EXPORT_BEST if args.best else EXPORT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}): name another --output") from error
    file = folder / FORMATS[args.format]
    images = images_to_compare_on(finished)
    if len(images) == 1:
        print("the run has left no samples: the student is compared on random images alone")
    config = finished.config
    metadata = {
        "arch": config["student"],
        "arch_args": config.get("student_args"),
        **{name: config[name] for name in ("mean", "std", "classes", "img_size")},
    }
    temporary = file.with_name("." + file.name)
    try:
        export(shipped, images["random"][:2], temporary, args.format, metadata)
        exported = load(temporary, args.format, lambda: shipped_student(finished, args.student, args.best))
        compared = {name: compare(shipped, exported, batch) for name, batch in images.items()}
        card = folder / f"model_card_{args.format}.md"
        text = model_card(finished, shipped, file.name, compared, args.teacher, args.best)
        temporary.replace(file)
        card.write_text(text, encoding="utf-8", errors="backslashreplace")
    finally:
        temporary.unlink(missing_ok=True)
    for name, (difference, same) in compared.items():
        print(
            f"{len(images[name])} {name} images: the same class for {100 * same:.1f} %, "
            f"logits within {difference:.1e} of the largest"
        )
    print(f"{file} ({file.stat().st_size / 1e6:.2f} MB), {card}")


def main() -> None:
    cli.run(run)
