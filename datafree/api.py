"""Distillation as a function: what `bsr_main.py` does, without files, for networks that are at hand."""

from __future__ import annotations

import argparse
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NoReturn

import torch
from torch import nn

from datafree import networks, settings
from datafree.assemble import make_distiller
from datafree.augment import Augment, Normalize
from datafree.errors import UserError, did_you_mean
from datafree.evaluate import Evaluation
from datafree.methods import METHODS
from datafree.synthesis.base import frozen

NOT_HERE = {  # flags of files, of networks by name, and of the command line
    "teacher",
    "student",
    "teacher_args",
    "student_args",
    "teacher_ckpt",
    "pretrained",
    "test_teacher",
    "dataset",
    "data_root",
    "download",
    "mean",
    "std",
    "img_size",
    "flip",
    "channels",
    "eval_folder",
    "save_dir",
    "log_tag",
    "resume",
    "overwrite",
    "save_every",
    "tensorboard",
    "start_epoch",
    "evaluate_only",
    "export_repository",
    "print_freq",
    "gpu",
    "device",
    "workers",
    "repository_memory",
    "cmi_init",
    "fp16",
    "deterministic",
}


def distill(
    teacher: nn.Module,
    student: nn.Module,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = True,
    evaluate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **given: Any,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Distil a student from a teacher without data (BSR, unless `method` says otherwise).

    Torch's random state is as before afterwards; what callbacks draw does not change the run. Runs may follow
    each other, or run in processes of their own, but not in threads of one process: they share that state.

    Args:
        teacher: maps images (N, C, H, W), normalised, to logits (N, classes); left as it was.
        student: likewise, with as many classes; trained in place, on the device it is on, which must be the
            teacher's too.
        image_size: H and W, a multiple of 4.
        mean, std: C numbers each (1 or 3), with which the networks' input is normalised; images are in
            [0, 1].
        flip: whether a mirrored image is still of its class.
        evaluate: scores the student, in eval mode, after each epoch, in percent. By default it is judged by
            its agreement with the teacher on synthetic samples that are held out from training, which is not
            accuracy.
        on_epoch: called after each epoch with its line of the record.
        given: the flags of `bsr_main.py` by name, such as `epochs=100, method="fast_meta", seed=1`.

    Returns:
        The student, and the record: a dictionary an epoch, as the lines of `metrics.jsonl`.

    Raises:
        TypeError: a setting that there is none of.
        UserError: settings that cannot be meant, networks that do not fit each other or the images, or
            a loss that is no longer finite.
    """
    args = _settings(given)
    _check_images(image_size, mean, std)
    weights = next(student.parameters(), None)
    if weights is None:
        raise UserError("the student has no parameters to train")
    device = weights.device
    augment = Augment(Normalize(tuple(mean), tuple(std)), flip)

    def score(network: nn.Module) -> Evaluation:
        with frozen(network), torch.no_grad(), _aside(device):
            return Evaluation(float(evaluate(network)), float("nan"), float("nan"), 0, 0)

    with ExitStack() as stack:
        stack.enter_context(frozen(teacher))
        stack.enter_context(_aside(device))
        torch.default_generator.manual_seed(args.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(args.seed)
        found = []
        for network, name in ((teacher, "teacher"), (student, "student")):
            layer, trained = (None, True) if network is student else (args.feature_layer, False)
            found.append(networks.examine(network, name, len(mean), image_size, device, layer, trained))
            if found[-1].hook:
                stack.callback(found[-1].hook.remove)
        if found[0].num_classes != found[1].num_classes:
            raise UserError(
                f"the student gives {found[1].num_classes} classes, and the teacher {found[0].num_classes}"
            )
        if not found[0].bn_layers and "bn" in METHODS[args.method].takes:
            warnings.warn(networks.NO_STATISTICS, stacklevel=2)
        distiller = make_distiller(
            args,
            teacher,
            student,
            image_size,
            found[0].num_classes,
            augment,
            device,
            score if evaluate else None,
        )
        record = []
        for epoch in range(args.epochs):
            record.append(distiller.run_epoch(epoch))
            if on_epoch:
                with _aside(device):
                    on_epoch(record[-1])
    student.eval()
    return student, record


def _settings(given: Mapping[str, Any]) -> argparse.Namespace:
    """The flags of `bsr_main.py`, parsed as from its command line.

    Raises:
        TypeError: a setting that there is none of.
        UserError: a value that cannot be meant.
    """
    parser = settings.build_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser.error = refuse
    known = sorted(set(vars(parser.parse_args([]))) - NOT_HERE - {"given"})
    switches = {action.dest for action in parser._actions if action.nargs == 0}
    words = []
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"distill() has no setting {name}{did_you_mean(name, known)}")
        if value is None or (value is False and parser.get_default(name) is False):
            continue
        if isinstance(value, bool) and name in switches:
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name}={int(value) if isinstance(value, bool) else value}")
    args = parser.parse_args(words)
    for warning in settings.resolve(args):
        warnings.warn(warning, stacklevel=3)
    return args


def _check_images(image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises:
    UserError: there are no such images.
    """
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise UserError(f"mean {mean} and std {std}: give one number a channel, 1 or 3 each")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UserError(f"mean {mean} and std {std}: give finite numbers, those of std above 0")
    try:
        fits = operator.index(image_size) >= 8 and image_size % 4 == 0
    except TypeError:
        fits = False
    if not fits:
        raise UserError(f"image_size {image_size}: it must be a multiple of 4, 8 or more")


def _aside(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is drawn inside the block does not move torch's global random state."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
