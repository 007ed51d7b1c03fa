#!/usr/bin/env python
"""Does IHO remove what teaches most? How far a student that has seen none of a run's samples is from the
teacher on those that IHO removed, and on those that stayed.

    python show_result/removed.py run/cifar10_cpu/*-bsr-seed0 run/cifar10_cpu/*-fast_meta-seed0

A line for each class and fifth of the run: the samples made and removed, and the mean KD loss of both, on
images as they were stored.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli import parser as cli
from datafree.errors import UserError
from datafree.networks.names import NetworkName
from datafree.results.read import read_run

PARTS = 5  # of a run
COLUMNS = ("run", "judge", "part", "class", "made", "removed", "loss_kept", "loss_removed")


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        "How much there is to learn from the samples that IHO removed, and from those it kept."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run with IHO")
    parser.add_argument("judge", type=Path, metavar="JUDGE", help="a finished run whose student is asked")
    parser.add_argument("--teacher_ckpt", help="the teacher's checkpoint (default: as the run had it)")
    parser.add_argument("--output", type=Path, help="CSV file to add the lines to (default: print them)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser


def run() -> None:
    args = build_parser().parse_args()
    one, judge = read_run(args.run), read_run(args.judge)
    if args.run.resolve() == args.judge.resolve():
        raise UserError("a run's own student has seen the samples that stayed: name another run as judge")
    if str(one.pair.teacher) != str(judge.pair.teacher) or one.dataset != judge.dataset:
        raise UserError(f"{judge.path} has learned from another teacher: name a run with {one.pair.teacher}")
    if not one.setting("iho"):
        raise UserError(f"{one.path} has no IHO, which removes samples: name a run with it")
    new = args.output is None or not args.output.exists()
    before = "" if new else args.output.read_text(encoding="utf-8")
    if not new and not before.startswith(",".join(COLUMNS)):
        raise UserError(f"{args.output} is no file of this script: name another one")
    if f"\n{args.run.resolve().name}," in before:
        raise UserError(f"{args.output} has lines of {args.run} already: remove it or name another one")

    # Imported late, so that --help and wrong flags are answered at once.
    import torch

    from datafree import losses
    from datafree.data.augment import Normalize
    from datafree.data.image_set import to_float
    from datafree.networks.teacher import load_teacher, read_teacher
    from datafree.results.stored import read_samples, student_of
    from datafree.torch_utils.device import choose_device

    device = choose_device(args.device, None)
    samples, classes = read_samples(one), one.required("classes")
    name = NetworkName.parse(one.config["teacher"])
    content = read_teacher(one.dataset, name, args.teacher_ckpt or one.config["teacher_ckpt"])
    teacher, student = load_teacher(name, len(classes), *content, device), student_of(judge, device)
    normalize = Normalize(tuple(one.required("mean")), tuple(one.required("std")))
    found = []
    with torch.no_grad():
        for rows in torch.arange(len(samples.labels)).split(256):
            inputs = normalize(to_float(samples.images(rows).to(device)))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            logits = student(inputs), teacher(inputs)
            each = [losses.kldiv(s[None], t[None], one.required("T")) for s, t in zip(*logits, strict=True)]
            found.append(torch.stack(each).cpu())
    loss = torch.cat(found)
    part = torch.arange(len(loss)) * PARTS // len(loss)
    names = [run.path.resolve().name for run in (one, judge)]
    lines = []
    for number in range(PARTS):
        for label, title in enumerate(classes):
            here = (part == number) & (samples.labels == label)
            kept, gone = loss[here & samples.kept], loss[here & ~samples.kept]
            means = ["" if not len(some) else f"{some.mean():.4f}" for some in (kept, gone)]
            lines.append([*names, number, title, int(here.sum()), len(gone), *means])
    with open(args.output, "a", encoding="utf-8", newline="") if args.output else sys.stdout as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS] * new + lines)


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
