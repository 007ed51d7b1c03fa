"""The command `bsr-export` (`scripts/export.py`): the student of a run as a file for other programs."""

from __future__ import annotations

from pathlib import Path

from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.settings import Count, Network

FORMATS = {"onnx": "student.onnx", "torch_export": "student.pt2", "safetensors": "student.safetensors"}
INT8, CALIBRATION = "student_int8.onnx", 512


def build_parser() -> cli.Parser:
    parser = cli.Parser("Export the student of a finished run as one file, with a model card.")
    add, count, network = parser.add_argument, cli.argument(Count), cli.argument(Network)
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    add("--opset", type=count, help="of ONNX, 18 or more (default: PyTorch's)")
    add("--int8", action="store_true", help="also write student_int8.onnx, calibrated on stored samples")
    add("--calibration", type=count, help=f"number of samples that --int8 uses (default: {CALIBRATION})")
    add("--data_root", help="folder with the test data for --int8 (default: the run's)")
    add("--output", type=Path, help="folder to write to (default: RUN/export)")
    add("--student", type=network, help="file.py:factory of a student that a file defines")
    add("--teacher", type=network, help="file.py:factory of such a teacher, to measure it too")
    add("--best", action="store_true", help="the student of the best epoch, which is chosen on the test data")
    return parser


def run() -> None:
    args = build_parser().parse_args()
    if args.format != "onnx" and (args.int8 or args.opset):
        raise UserError(f"--int8 and --opset need --format onnx, not {args.format}: leave one of them out")
    if not args.int8 and (args.calibration or args.data_root):
        raise UserError("--calibration and --data_root have no effect without --int8: add it")

    # Imported only now, so that --help and mistakes in flags are answered at once.
    import torch

    from datafree.deploy import export
    from datafree.deploy.model_card import int8_report, model_card
    from datafree.results.read import is_export, read_run
    from datafree.results.stored import student_of
    from datafree.runs.files import CONFIG, EXPORT, EXPORT_BEST

    finished = read_run(args.run)
    student = student_of(finished, torch.device("cpu"), args.student, args.best)
    network = export.NormalizedNetwork(student, finished.config["mean"], finished.config["std"]).eval()
    folder = args.output or args.run / (EXPORT_BEST if args.best else EXPORT)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CONFIG).is_file() and args.format == "safetensors" and not is_export(folder / CONFIG):
        raise UserError(f"{folder} is a run, whose {CONFIG} would be lost: choose another --output")
    images = export.comparison_images(finished)
    if len(images) == 1:
        print("the run has no samples: the student is compared on random images alone")
    config, name = finished.config, FORMATS[args.format]
    metadata = {"arch": config["student"], "arch_args": config.get("student_args")}
    metadata |= {key: config[key] for key in ("mean", "std", "classes", "img_size")}
    content = export.export(network, images["random"][:2], args.format, metadata, args.opset)
    exported = export.load(content, args.format, network)
    comparisons = {kind: export.compare(network, exported, batch) for kind, batch in images.items()}
    for kind, (difference, agreement) in comparisons.items():
        print(
            f"{len(images[kind])} {kind} images: the same class for {agreement:.1f} %, "
            f"logits within {difference:.1e} of the largest"
        )
    files, quantized = {name: content}, None
    if args.format == "safetensors":
        files |= export.files_to_load(finished, args.best)
    if args.int8:
        from datafree.deploy.quantization import quantize_student

        count = args.calibration or CALIBRATION
        quantized = quantize_student(finished, network, content, count, args.data_root)
        files[INT8] = quantized.file
        print(int8_report(quantized))
    elif args.format == "onnx":
        (folder / INT8).unlink(missing_ok=True)  # of an earlier student
    card = model_card(finished, network, name, comparisons, args.teacher, args.best, quantized)
    files[f"model_card_{args.format}.md"] = card.encode(errors="backslashreplace")
    export.write_files(folder, files)
    print(", ".join(f"{folder / file} ({len(data) / 1e6:.2f} MB)" for file, data in files.items()))


def main() -> None:
    cli.run(run)
