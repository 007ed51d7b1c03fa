"""The flags of `bsr_main.py`: what each means, what they are where they are not given, and what cannot be
meant. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re

import models
from datafree.datasets import SPECS
from datafree.dlw import MODES as DLW_MODES
from datafree.errors import UserError
from datafree.flags import (
    Parser,
    add_data_flags,
    add_device_flags,
    fraction,
    memory_size,
    network_name,
    non_negative_float,
    non_negative_int,
    one_of,
    positive_float,
    positive_int,
)
from datafree.methods import METHODS, SYNTHESIS_FLAGS, WEIGHTS, published_settings


def build_parser() -> Parser:
    parser = Parser(
        "Distil a student from a frozen teacher without its training data (BSR).", published_settings()
    )

    group = parser.add_argument_group("networks")
    arch = network_name(models.NAMES)
    group.add_argument(
        "--teacher",
        type=arch,
        default="resnet34",
        help=f"timm:NAME, torchvision:NAME, path/to/file.py:factory, or one of {', '.join(models.NAMES)}",
    )
    group.add_argument(
        "--teacher_ckpt",
        help="its checkpoint; a state dict, bare or under `state_dict` "
        "(default: checkpoints/pretrained/{dataset}_{teacher}.pth)",
    )
    group.add_argument("--student", type=arch, default="resnet18", help="what is trained; as for --teacher")
    group.add_argument(
        "--teacher_args",
        metavar="KEY=VALUE,...",
        help="keyword arguments for a teacher that is not this project's",
    )
    group.add_argument("--student_args", metavar="KEY=VALUE,...", help="likewise for the student")
    group.add_argument(
        "--feature_layer",
        metavar="NAME",
        help="layer of the teacher whose input are its penultimate features "
        "(default: the linear layer that gives its logits)",
    )
    group.add_argument(
        "--channels", type=int, choices=(1, 3), help="of the images (default: those that the teacher takes)"
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="start the student from torchvision's ImageNet weights (*_imagenet only)",
    )
    group.add_argument(
        "--test_teacher", action="store_true", help="report the teacher's accuracy before starting"
    )

    group = parser.add_argument_group("data (test images only; training images are never opened)")
    add_data_flags(group, (*SPECS, "none"), "cifar10")
    group.add_argument(
        "--eval_folder",
        metavar="DIR",
        help="with --dataset none: labelled images to test the student on, a folder a class",
    )

    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        type=one_of("method", tuple(METHODS)),
        default="bsr",
        help=f"one of {', '.join(METHODS)}, each with its published settings (see the end); "
        "bsr is fast_meta with DLW, BLG and IHO, which all methods can have",
    )
    group.add_argument(
        "--dlw",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="dynamic pseudo-supervised loss weight",
    )
    group.add_argument(
        "--blg", action=argparse.BooleanOptionalAction, default=None, help="biased label generator"
    )
    group.add_argument(
        "--iho", action=argparse.BooleanOptionalAction, default=None, help="intra-class homogeneity operator"
    )
    group.add_argument(
        "--store_samples",
        action="store_true",
        help="teach the student from stored samples, which DLW, BLG and IHO need, where a "
        "method would from fresh ones (dafl, zskt, dfad, dfq)",
    )
    group.add_argument(
        "--max_samples",
        type=positive_int,
        help="samples kept at most, the oldest go first (default: no limit)",
    )
    group.add_argument(
        "--dlw_mode",
        type=one_of("DLW mode", DLW_MODES),
        default="dynamic",
        help=f"how DLW sets the weight: {', '.join(DLW_MODES)}",
    )
    group.add_argument(
        "--oh_min", type=positive_float, default=0.5, help="the weight in the warm-up, from which DLW starts"
    )
    group.add_argument("--oh_max", type=positive_float, default=1.0, help="where con_max, line and curve end")
    group.add_argument("--oh_step", type=non_negative_float, default=0.1, help="what the weight grows by")
    group.add_argument(
        "--oh_memory_size",
        type=positive_int,
        default=8,
        help="losses among which the newest must be the lowest for the weight to grow",
    )

    group = parser.add_argument_group("synthesis")
    group.add_argument(
        "--synthesis_batch_size", type=positive_int, help="images a synthesis makes (default: --batch_size)"
    )
    group.add_argument("--g_steps", type=positive_int, default=10, help="generator steps a synthesis")
    group.add_argument("--lr_g", type=positive_float, default=2e-3, help="learning rate of the generator")
    group.add_argument("--lr_z", type=positive_float, default=0.01, help="learning rate of latent codes")
    group.add_argument("--adv", type=non_negative_float, default=1.33, help="weight of the adversarial loss")
    group.add_argument(
        "--bn",
        type=non_negative_float,
        default=10.0,
        help="weight of the distance to the teacher's BatchNorm statistics",
    )
    group.add_argument(
        "--oh",
        type=non_negative_float,
        default=0.5,
        help="weight of the pseudo-supervised loss where DLW is off",
    )
    group.add_argument("--bn_mmt", type=fraction, default=0.9, help="momentum of the batch's statistics")
    group.add_argument(
        "--is_maml", type=int, choices=(0, 1), default=1, help="meta gradient: 1 FOMAML, 0 Reptile"
    )
    group.add_argument(
        "--reset_l0",
        type=int,
        choices=(0, 1),
        default=1,
        help="draw the generator's first layers anew 120 calls after the warm-up",
    )
    group.add_argument(
        "--reset_bn", type=int, choices=(0, 1), default=0, help="draw all its BatchNorm layers anew then"
    )

    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--epochs", type=non_negative_int, default=420, help="epochs, the warm-up included; 0 distils nothing"
    )
    group.add_argument(
        "--warmup", type=non_negative_int, default=20, help="first epochs, which only fill the repository"
    )
    group.add_argument("--kd_steps", type=positive_int, default=400, help="student steps after a synthesis")
    group.add_argument(
        "--ep_steps",
        type=positive_int,
        default=400,
        help="student steps an epoch; ep_steps // kd_steps syntheses are made",
    )
    group.add_argument("--batch_size", type=positive_int, default=256, help="images a student step")
    group.add_argument("--lr", type=positive_float, default=0.2, help="learning rate of the student (SGD)")
    group.add_argument("--momentum", type=fraction, default=0.9, help="momentum of SGD")
    group.add_argument(
        "--wd",
        "--weight_decay",
        dest="weight_decay",
        type=non_negative_float,
        default=1e-4,
        help="its weight decay",
    )
    group.add_argument("--T", type=positive_float, default=20.0, help="temperature of distillation")
    group.add_argument(
        "--amp",
        type=one_of("precision", ("off", "bf16", "fp16")),
        default="off",
        help="half precision: bf16 in all networks, fp16 (with scaled losses) in the student's steps",
    )
    group.add_argument("--fp16", action="store_true", help="the same as --amp fp16")
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the student's steps; rounds otherwise, starts slowly",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="on CUDA: the same bits every time (images of up to 32 pixels), without TF32; "
        "a CPU always gives them",
    )
    group.add_argument("--seed", type=non_negative_int, default=0, help="seed of everything random")

    group = parser.add_argument_group("the run")
    group.add_argument(
        "--save_dir",
        help="the run folder (default: run/{method}-{dataset}-{teacher}-{student}-seed{seed}{-log_tag})",
    )
    group.add_argument("--log_tag", default="", help="a word of yours in the run folder's name")
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="continue the run of --save_dir, or from this checkpoint",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run in --save_dir")
    group.add_argument(
        "--save_every",
        type=positive_int,
        default=1,
        help="epochs from checkpoint to checkpoint; one that is stopped saves its last whole "
        "epoch all the same",
    )
    group.add_argument(
        "--start_epoch", type=non_negative_int, default=0, help="first epoch to run, without a checkpoint"
    )
    group.add_argument(
        "--evaluate_only", action="store_true", help="score the student of --resume or --save_dir and stop"
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="write metrics and sample sheets as TensorBoard events too"
    )
    group.add_argument(
        "--export_repository",
        action="store_true",
        help="write the samples as PNGs in class folders at the end",
    )
    group.add_argument(
        "-p",
        "--print_freq",
        type=non_negative_int,
        default=0,
        help="also report the loss every so many student steps; 0: once an epoch",
    )
    add_device_flags(group)
    group.add_argument(
        "--repository_memory",
        type=memory_size,
        metavar="SIZE",
        help="of images that each process keeps in memory, such as 4GB; the rest is read from "
        "the run folder, with the same results (default: all are kept)",
    )

    group = parser.add_argument_group("synthesis, methods other than bsr, fast_meta and fast")
    group.add_argument(
        "--act", type=non_negative_float, default=0.0, help="weight of the activation loss (dafl)"
    )
    group.add_argument(
        "--balance", type=non_negative_float, default=0.0, help="weight of the class balance loss (dafl, dfq)"
    )
    group.add_argument(
        "--cr", type=non_negative_float, default=0.8, help="weight of the contrastive loss (cmi)"
    )
    group.add_argument("--cr_T", type=positive_float, default=0.2, help="its temperature")
    group.add_argument("--cmi_init", metavar="DIR", help="folder of images that cmi starts its samples with")
    group.add_argument(
        "--tv", type=non_negative_float, default=2.5e-5, help="weight of total variation (deepinv)"
    )
    group.add_argument("--l2", type=non_negative_float, default=3e-8, help="weight of the L2 norm (deepinv)")
    return parser


def resolve(args: argparse.Namespace) -> list[str]:
    """Fill in what depends on other flags; returns warnings.

    Raises:
        UserError: numbers that cannot be meant.
    """
    method = METHODS[args.method]
    for name, value in method.settings(args.given, args.g_steps).items():
        setattr(args, name, value)
    args.store_samples = args.store_samples or method.stores
    for component in ("dlw", "blg", "iho"):
        if getattr(args, component) is None:
            setattr(args, component, args.method == "bsr")
        if getattr(args, component) and not args.store_samples:
            raise UserError(f"--{component} needs samples that are kept: add --store_samples")
    if args.eval_folder and args.dataset != "none":
        raise UserError("--eval_folder is for --dataset none: leave one of them out")
    if args.dataset == "none" and not args.eval_folder and (args.evaluate_only or args.test_teacher):
        raise UserError("--dataset none has no images to score on: add --eval_folder")
    if args.export_repository and not args.store_samples:
        raise UserError("--export_repository needs samples that are kept: add --store_samples")
    if not args.dlw and not any(getattr(args, name) for name in WEIGHTS if name in method.takes):
        names = ", ".join(f"--{name}" for name in WEIGHTS if name in method.takes)
        raise UserError(f"{args.method} has nothing to optimise: give one of {names} a weight")
    if args.fp16 and args.amp == "bf16":
        raise UserError("--fp16 and --amp bf16 contradict each other: choose one")
    args.amp = "fp16" if args.fp16 else args.amp
    args.synthesis_batch_size = args.synthesis_batch_size or args.batch_size
    if args.epochs and args.warmup > args.epochs:
        raise UserError(f"--warmup {args.warmup} is beyond --epochs {args.epochs}: lower it")
    if args.oh_memory_size < 2:
        raise UserError("--oh_memory_size 1 leaves nothing to compare the newest loss with: use 2 or more")
    if args.kd_steps > args.ep_steps:
        raise UserError(f"--kd_steps {args.kd_steps} is more than --ep_steps {args.ep_steps}: lower it")
    if args.batch_size < 2 or args.synthesis_batch_size < 2:
        raise UserError("a batch needs 2 images or more: BatchNorm has no statistics of one")
    if args.start_epoch and args.start_epoch >= args.epochs:
        raise UserError(f"--start_epoch {args.start_epoch} leaves none of {args.epochs} epochs to run")
    if args.resume is not None and args.overwrite:
        raise UserError("--resume and --overwrite contradict each other: choose one")
    if args.save_dir is None:
        tag = f"-{args.log_tag}" if args.log_tag else ""
        networks = "-".join(re.sub(r"[^\w.]+", "_", name) for name in (args.teacher, args.student))
        name = f"{args.method}-{args.dataset}-{networks}-seed{args.seed}{tag}"
        args.save_dir = f"run/{name}"
    return ignored_flags(args)


def ignored_flags(args: argparse.Namespace) -> list[str]:
    """Warnings about flags that were given and have no effect."""
    given = args.given
    warnings = []
    takes = METHODS[args.method].takes
    ignored = [f"--{name}" for name in SYNTHESIS_FLAGS if name in given and name not in takes]
    if ignored:
        those = " ".join(f"--{name}" for name in takes)
        warnings.append(f"{args.method} ignores {', '.join(ignored)}; of such flags it takes {those}")
    if "repository_memory" in given and not args.store_samples:
        warnings.append(f"--repository_memory has no effect: {args.method} keeps no samples")
    if "store_samples" in given and METHODS[args.method].stores:
        warnings.append(f"--store_samples has no effect: {args.method} always stores its samples")
    if args.dlw and "oh" in given:
        warnings.append("--oh has no effect while DLW sets the weight: use --oh_min or --no-dlw")
    dlw_names = ("dlw_mode", "oh_min", "oh_max", "oh_step", "oh_memory_size")
    dlw_flags = [f"--{name}" for name in dlw_names if name in given]
    if not args.dlw and dlw_flags:
        warnings.append(f"{', '.join(dlw_flags)} has no effect without DLW")
    if args.dlw and args.dlw_mode == "dynamic" and args.adv == 0:
        warnings.append("with --adv 0 there is no adversarial loss whose minima could raise DLW's weight")
    if args.device and args.gpu is not None:
        warnings.append("--gpu has no effect beside --device")
    return warnings
