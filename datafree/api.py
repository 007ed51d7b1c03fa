"""Distillation as a function: what `bsr_main.py` does, without files, for networks that are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from datafree import networks, settings
from datafree.assemble import make_distiller
from datafree.augment import Augment, Normalize
from datafree.errors import UserError, did_you_mean
from datafree.evaluate import Evaluation
from datafree.synthesis.base import frozen

NOT_HERE = {  # flags of files, of networks by name, and of the command line
    "teacher", "student", "teacher_args", "student_args", "teacher_ckpt", "pretrained", "test_teacher",
    "dataset", "data_root", "download", "mean", "std", "img_size", "flip", "channels", "eval_folder",
    "save_dir", "log_tag", "resume", "overwrite", "save_every", "tensorboard", "start_epoch",
    "evaluate_only", "export_repository", "print_freq", "gpu", "device", "workers", "repository_memory",
    "cmi_init", "fp16", "deterministic",
}  # fmt: skip


def distill(
    teacher: nn.Module, student: nn.Module, *, image_size: int, mean: Sequence[float], std: Sequence[float],
    flip: bool = True, evaluate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None, **given: Any,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Distil a student from a teacher without data (BSR, unless `method` says otherwise).

    Args:
        teacher: maps images (N, C, H, W), normalised, to logits (N, classes); left as it was.
        student: likewise, with as many classes; trained in place, on the device it is on, which must be the
            teacher's too.
        image_size: H and W, a multiple of 4.
        mean, std: C numbers each, with which the networks' input is normalised; images are in [0, 1].
        flip: whether a mirrored image is still of its class.
        evaluate: scores the student after each epoch, in percent. By default it is judged by its agreement
            with the teacher on synthetic samples that are held out from training, which is not accuracy.
        on_epoch: called after each epoch with its line of the record.
        given: the flags of `bsr_main.py` by name, such as `epochs=100, method="fast_meta", seed=1`.

    Returns:
        The student, and the record: a dictionary an epoch, as the lines of `metrics.jsonl`.

    Raises:
        TypeError: a setting that there is none of.
        UserError: settings that cannot be meant, networks that do not fit each other or the images, or
            a loss that is no longer finite.
    """
    args = settings.build_parser().parse_args([])
    known = sorted(set(vars(args)) - NOT_HERE - {"given"})
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"distill() has no setting {name}{did_you_mean(name, known)}")
        setattr(args, name, value)
    args.given = set(given)
    settings.resolve(args)
    if len(mean) != len(std) or min(std) <= 0:
        raise UserError(f"mean {mean} and std {std}: give one number a channel, those of std above 0")
    if image_size % 4 or image_size < 8:
        raise UserError(f"image_size {image_size}: it must be a multiple of 4, 8 or more")
    device = next(student.parameters()).device
    augment = Augment(Normalize(tuple(mean), tuple(std)), flip)

    def score(network: nn.Module) -> Evaluation:
        return Evaluation(float(evaluate(network)), float("nan"), float("nan"), 0, 0)

    # What draws from torch's global state here does not move it for anyone else.
    with frozen(teacher), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        found = [
            networks.examine(network, name, len(mean), image_size, device, layer)
            for network, name, layer in ((teacher, "teacher", args.feature_layer), (student, "student", None))
        ]
        if found[0].num_classes != found[1].num_classes:
            raise UserError(
                f"the student gives {found[1].num_classes} classes, and the teacher {found[0].num_classes}"
            )
        distiller = make_distiller(
            args, teacher, student, image_size, found[0].num_classes, augment, device,
            score if evaluate else None,
        )
        record = []
        for epoch in range(args.epochs):
            record.append(distiller.run_epoch(epoch))
            if on_epoch:
                on_epoch(record[-1])
    student.eval()
    return student, record
