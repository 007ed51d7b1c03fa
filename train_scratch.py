"""Train a classifier on real data: a teacher for bsr_main.py, or a student as a yardstick.

    python train_scratch.py --model resnet34 --dataset cifar10 --batch-size 64 --lr 0.1

Writes checkpoints/pretrained/{dataset}_{model}.pth, where bsr_main.py looks for its teacher, and a JSON file
beside it with the accuracy.
"""

from __future__ import annotations

import re
from pathlib import Path

import models
from datafree.datasets import SPECS
from datafree.errors import UserError
from datafree.flags import (
    Parser,
    add_data_flags,
    add_device_flags,
    add_sgd_flags,
    network_name,
    non_negative_int,
    positive_int,
    run,
)


def build_parser() -> Parser:
    parser = Parser("Train a classifier on real data: a teacher, or a student as a yardstick.")
    group = parser.add_argument_group("network and data")
    group.add_argument(
        "--model",
        type=network_name(models.NAMES),
        default="wrn40_2",
        help=f"timm:NAME, torchvision:NAME, path/to/file.py:factory, or one of {', '.join(models.NAMES)}",
    )
    group.add_argument("--model_args", metavar="KEY=VALUE,...", help="its arguments, if not this project's")
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="start from torchvision's ImageNet weights (*_imagenet only)",
    )
    add_data_flags(group, tuple(SPECS), "cifar10")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=non_negative_int,
        default=200,
        help="passes over the training images; 0 writes the network as initialised",
    )
    group.add_argument("--batch_size", type=positive_int, default=128, help="images a step")
    add_sgd_flags(group)
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--output", help="the checkpoint to write (default: checkpoints/pretrained/{dataset}_{model}.pth)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    add_device_flags(group)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.batch_size < 2:
        raise UserError("--batch_size 1 gives BatchNorm nothing to take statistics of: use 2 or more")
    name = re.sub(r"[^\w.]+", "_", args.model)
    output = Path(args.output or f"checkpoints/pretrained/{args.dataset}_{name}.pth")
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} is there already: replace it with --overwrite, or name another --output")

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.scratch import train

    train(args, output)


if __name__ == "__main__":
    run(main, "train_scratch.py")
