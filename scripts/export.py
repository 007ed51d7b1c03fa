#!/usr/bin/env python
"""Ship the student of a finished run as ONNX, torch.export or safetensors, with its normalisation inside and
a model card.

    python scripts/export.py run/bsr --format onnx

What is written takes images (N, C, H, W) in [0, 1] and gives logits. It is compared with PyTorch's student on
random and on synthesised images before the command ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datafree.errors import UserError
from datafree.flags import Parser, one_of
from datafree.flags import run as run_script

if TYPE_CHECKING:
    from torch import nn

    from datafree import shipping
    from datafree.runs import Run

FORMATS = ("onnx", "torch_export", "safetensors")
IMAGES = 256  # of each kind, on which the exported student is compared


def build_parser() -> Parser:
    parser = Parser("Ship the student of a finished run as one file, with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--format", type=one_of("format", FORMATS), default="onnx", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument("--output", type=Path, help="folder to write to (default: RUN/export)")
    parser.add_argument("--student", help="file.py:factory of a student that is defined in a file")
    parser.add_argument("--teacher", help="file.py:factory of such a teacher, to measure it too")
    return parser


def main() -> None:
    args = build_parser().parse_args()

    # Only now, so that --help and mistakes in flags answer at once.
    import torch

    from datafree import shipping
    from datafree.run_samples import NoSamples, load_student, read_samples
    from datafree.runs import read_run

    run = read_run(args.run)
    config, cpu = run.config, torch.device("cpu")
    missing = [name for name in ("img_size", "mean", "std", "classes") if not config.get(name)]
    if missing:
        raise UserError(f"{args.run}/config.json has no {missing[0]}: only finished runs can be exported")
    size, mean, std = config["img_size"], tuple(config["mean"]), tuple(config["std"])

    def ship(student: nn.Module) -> shipping.Shipped:
        return shipping.Shipped(student.to(memory_format=torch.contiguous_format), mean, std).eval()

    shipped = ship(load_student(run, cpu, args.student))
    folder = args.output or args.run / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}): name another --output") from error
    file = folder / shipping.FORMATS[args.format]
    images = {"random": torch.rand(IMAGES, len(mean), size, size, generator=torch.Generator().manual_seed(0))}
    try:
        samples = read_samples(run)
        rows = samples.kept.nonzero().squeeze(1)[-IMAGES:]
        images["synthesised"] = samples.images(rows).float() / 255
    except NoSamples:
        print("the run has left no samples: the student is compared on random images alone")
    metadata = {
        "arch": config["student"],
        "arch_args": config.get("student_args"),
        "mean": mean,
        "std": std,
        "classes": config["classes"],
        "img_size": size,
    }
    temporary = file.with_name("." + file.name)
    try:
        shipping.export(shipped, images["random"][:2], temporary, args.format, metadata)
        exported = shipping.load(temporary, args.format, lambda: ship(load_student(run, cpu, args.student)))
        compared = {name: shipping.compare(shipped, exported, batch) for name, batch in images.items()}
        card = folder / f"model_card_{args.format}.md"
        written = model_card(run, shipped, file.name, compared, args.teacher)
        temporary.replace(file)
        card.write_text(written, encoding="utf-8")
    finally:
        temporary.unlink(missing_ok=True)
    for name, (difference, same) in compared.items():
        print(
            f"{len(images[name])} {name} images: the same class for {100 * same:.1f} %, "
            f"logits within {difference:.1e} of the largest"
        )
    print(f"{file} ({file.stat().st_size / 1e6:.2f} MB), {card}")


def model_card(
    run: Run,
    shipped: shipping.Shipped,
    file: str,
    compared: dict[str, tuple[float, float]],
    teacher_source: str | None,
) -> str:
    """What someone must know who uses the student, as Markdown."""
    import torch

    from datafree import networks, shipping
    from datafree.flags import of_file
    from datafree.methods import METHODS, SYNTHESIS_FLAGS
    from datafree.record import environment

    c, summary, method = run.config, run.summary, METHODS.get(run.config["method"])
    size, channels = c["img_size"], len(c["mean"])
    batch = torch.rand(32, channels, size, size)
    names = {
        of: c[of] + (f" ({c[f'{of}_args']})" if c.get(f"{of}_args") else "") for of in ("teacher", "student")
    }

    def measured(name: str, network: nn.Module) -> str:
        count = sum(parameter.numel() for parameter in network.parameters())
        weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
        took = shipping.milliseconds(network, batch) / len(batch)
        return f"| {name} | {names[name]} | {count:,} | {weights / 1e6:.2f} | {took:.2f} |"

    table = [
        "| | network | parameters | MB of weights | ms an image, batches of 32 |",
        "| --- | --- | --- | --- | --- |",
        measured("student", shipped.student),
    ]
    arch, unmeasured = teacher_source or c["teacher"], ""
    try:
        if teacher_source is None and of_file(arch):
            raise UserError(f"it is of a file, which is named with --teacher {arch}")
        arguments = networks.parse_arguments(c.get("teacher_args"), "--teacher_args")
        teacher = networks.build(
            arch, "--teacher", len(c["classes"]), channels, networks.without_weights(arguments)
        )
        teacher = teacher.to(memory_format=torch.contiguous_format).eval()
        table.append(measured("teacher", teacher))
    except Exception as error:  # it may be anyone's, and the student is ready
        unmeasured = f"The teacher was not measured: {error}."
    here = environment(torch.device("cpu"))
    if not run.accurate:
        judged = (
            "- Agreement with the teacher on synthetic samples held out from training: "
            f"{summary['last_top1']:.2f} %. There were no real images: this is not accuracy, and the student "
            "should be tested on real ones before use."
        )
    else:
        tested = f"the labelled images in {c['eval_folder']}" if c["dataset"] == "none" else c["dataset"]
        judged = f"- Test accuracy on {tested}, last epoch: {summary['last_top1']:.2f} %"
        if summary.get("teacher_top1") is not None:
            judged += f" (teacher: {summary['teacher_top1']:.2f} %)"
    takes = method.takes if method else ()
    flags = ("epochs", "warmup", "kd_steps", "ep_steps", "batch_size", "lr", "T", *SYNTHESIS_FLAGS)
    settings = [
        f"{flag} {c[flag]}"
        for flag in flags
        if c.get(flag) is not None
        and (flag not in SYNTHESIS_FLAGS or flag in takes)
        and not (flag == "oh" and c.get("dlw"))
    ]
    checks = "; ".join(
        f"{name} images: same class for {100 * same:.1f} %, logits within {difference:.1e}"
        for name, (difference, same) in compared.items()
    )
    shape = f"(N, {channels}, {size}, {size})"
    title = f"{names['student']}, distilled from {names['teacher']}" + (" without data" if method else "")
    return "\n".join(
        [
            f"# {title}",
            "",
            f"- File: `{file}`. Input: images {shape} in [0, 1], which it normalises itself.",
            f"- Output: logits (N, {len(c['classes'])}), classes in this order: "
            f"{', '.join(c['classes'][:20])}{', ...' if len(c['classes']) > 20 else ''}.",
            judged,
            f"- Method: {run.variant.removesuffix(', agreement')}, seed {run.seed}, "
            f"git commit {c.get('git_commit')}.",
            f"- Settings: {', '.join(settings)}.",
            f"- Compared with PyTorch on {checks}.",
            "",
            f"Measured on {here['device_name'] or 'a CPU'}, {here['threads']} threads, "
            f"torch {here['torch']}:",
            "",
            *table,
            *(["", unmeasured] if unmeasured else []),
            "",
        ]
    )


if __name__ == "__main__":
    run_script(main, "export.py")
