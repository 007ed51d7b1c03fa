"""Knowledge distillation with real images: the yardsticks of data-free distillation.

    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18
    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18 --images FOLDER

The first uses the training images, as data-free methods cannot: their upper yardstick. The second uses any
images below a folder: another domain's, which is the lower one, or the samples that a run has exported
(`bsr_main.py --export_repository`).
"""

from __future__ import annotations

import models
from datafree.datasets import SPECS
from datafree.errors import UserError
from datafree.flags import (
    Parser,
    add_data_flags,
    add_device_flags,
    add_sgd_flags,
    one_of,
    positive_float,
    positive_int,
    run,
)


def build_parser() -> Parser:
    parser = Parser("Knowledge distillation with real images: the yardsticks of data-free distillation.")
    group = parser.add_argument_group("networks and data")
    arch = one_of("network", models.NAMES)
    group.add_argument("--teacher", type=arch, default="resnet34", help=f"one of {', '.join(models.NAMES)}")
    group.add_argument(
        "--teacher_ckpt", help="its checkpoint (default: checkpoints/pretrained/{dataset}_{teacher}.pth)"
    )
    group.add_argument("--student", type=arch, default="resnet18", help="what is trained; as for --teacher")
    group.add_argument(
        "--images",
        metavar="DIR",
        help="folder of images, without labels, to use (default: the training split)",
    )
    add_data_flags(group, tuple(SPECS), "cifar10")
    group = parser.add_argument_group("distillation")
    group.add_argument("--epochs", type=positive_int, default=200, help="passes over the images")
    group.add_argument("--batch_size", type=positive_int, default=256, help="images a step")
    add_sgd_flags(group)
    group.add_argument("--T", type=positive_float, default=20.0, help="temperature of distillation")
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--save_dir",
        help="the run folder (default: run/{method}-{dataset}-{teacher}-{student}-seed{seed}{-log_tag})",
    )
    group.add_argument("--log_tag", default="", help="a word of yours in the run folder's name")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --save_dir")
    add_device_flags(group)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.batch_size < 2:
        raise UserError("--batch_size 1 gives BatchNorm nothing to take statistics of: use 2 or more")
    args.method = "vanilla_kd_images" if args.images else "vanilla_kd"
    if args.save_dir is None:
        tag = f"-{args.log_tag}" if args.log_tag else ""
        name = f"{args.method}-{args.dataset}-{args.teacher}-{args.student}-seed{args.seed}{tag}"
        args.save_dir = f"run/{name}"

    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.scratch import distill

    distill(args)


if __name__ == "__main__":
    run(main, "vanilla_kd.py")
