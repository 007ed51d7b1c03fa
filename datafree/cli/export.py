"""The command `bsr-export` (`scripts/export.py`): the student of a run as one file that other programs
run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.settings import Count, Network

FORMATS = {"onnx": "student.onnx", "torch_export": "student.pt2", "safetensors": "student.safetensors"}
INT8 = "student_int8.onnx"
LEAST_OPSET, CALIBRATION = 18, 512


def build_parser() -> cli.Parser:
    parser = cli.Parser("Ship the student of a finished run as one file, with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="format of the file")
    count = cli.argument(Count)
    parser.add_argument("--opset", type=count, help="of ONNX, 18 or more (default: PyTorch's choice)")
    parser.add_argument(
        "--int8", action="store_true", help="also write student_int8.onnx, calibrated on stored samples"
    )
    parser.add_argument(
        "--calibration", type=count, help="number of samples that --int8 calibrates on (default: 512)"
    )
    parser.add_argument(
        "--data_root", help="folder with the test data that judge --int8 (default: the run's)"
    )
    parser.add_argument("--output", type=Path, help="folder to write to (default: RUN/export)")
    network = cli.argument(Network)
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
    if args.format != "onnx" and (args.int8 or args.opset):
        raise UserError(f"--int8 and --opset are of --format onnx, not {args.format}: leave one of them out")
    if not args.int8 and (args.calibration or args.data_root):
        raise UserError("--calibration and --data_root have no effect without --int8: add it")
    if args.opset and args.opset < LEAST_OPSET:
        raise UserError(f"--opset {args.opset}: PyTorch writes {LEAST_OPSET} and later: give one of these")

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.deploy.export import (
        compare,
        export,
        images_to_compare_on,
        load,
        loadable,
        require_folder,
        shipped_student,
        write_files,
    )
    from datafree.deploy.model_card import model_card
    from datafree.deploy.quantization import quantize_student
    from datafree.results.read import is_export, read_run
    from datafree.runs.files import CONFIG, EXPORT, EXPORT_BEST

    finished = read_run(args.run)
    shipped = shipped_student(finished, args.student, args.best)
    folder = args.output or args.run / (EXPORT_BEST if args.best else EXPORT)
    require_folder(folder)
    if (folder / CONFIG).is_file() and args.format == "safetensors" and not is_export(folder / CONFIG):
        raise UserError(f"{folder} holds a run, whose {CONFIG} would be lost: name another --output")
    images = images_to_compare_on(finished)
    if len(images) == 1:
        print("the run has left no samples: the student is compared on random images alone")
    config, name = finished.config, FORMATS[args.format]
    metadata = {
        "arch": config["student"],
        "arch_args": config.get("student_args"),
        **{name: config[name] for name in ("mean", "std", "classes", "img_size")},
    }
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, name)
        export(shipped, images["random"][:2], file, args.format, metadata, args.opset)
        exported = load(file, args.format, lambda: shipped_student(finished, args.student, args.best))
        model = file.read_bytes()
    compared = {name: compare(shipped, exported, batch) for name, batch in images.items()}
    for kind, (difference, same) in compared.items():
        print(
            f"{len(images[kind])} {kind} images: the same class for {100 * same:.1f} %, "
            f"logits within {difference:.1e} of the largest"
        )
    card = model_card(finished, shipped, name, compared, args.teacher, args.best)
    beside: dict[str, bytes] = {}
    if args.format == "safetensors":
        beside, told = loadable(finished, args.best)
        card += told
    if args.int8:
        beside[INT8], report = quantize_student(
            finished, shipped, model, args.calibration or CALIBRATION, args.data_root
        )
        print(report)
        card += f"\n## In int8: `{INT8}`\n\n{report}\n"
    named = f"model_card_{args.format}.md"
    if args.format == "onnx" and not args.int8:
        (folder / INT8).unlink(missing_ok=True)  # of another student than the one beside it
    write_files(folder, {name: model, **beside, named: card.encode(errors="backslashreplace")})
    size = f"{folder / name} ({len(model) / 1e6:.2f} MB)"
    print(", ".join([size, *(str(folder / other) for other in (*beside, named))]))


def main() -> None:
    cli.run(run)
