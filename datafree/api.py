"""Distillation as a function: what `bsr_main.py` does, without files, for networks in memory."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from datafree.assemble import make_distiller
from datafree.data.augment import Augment, Normalize
from datafree.data.image_spec import LEAST_STD, MAX_SIZE, MIN_SIZE
from datafree.errors import UserError, did_you_mean
from datafree.evaluation import Evaluation, HeldOut
from datafree.methods import METHODS
from datafree.networks.check import NO_STATISTICS, check_network, require_usable
from datafree.runs.measure import MeasuredDistiller
from datafree.settings import FIELDS, LIBRARY, Settings, check, resolve
from datafree.synthesis.base import frozen
from datafree.torch_utils.precision import found_precision
from datafree.torch_utils.random import random_state_kept


def distill(
    teacher: nn.Module,
    student: nn.Module,
    *,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = True,
    evaluate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **given: Any,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Distil a student from a teacher without data (BSR by default, see `method`).

    Torch's random state is restored afterwards; random numbers drawn in callbacks do not change the run. Do
    not run two distillations in threads of one process: they share that state.

    Args:
        teacher: maps images (N, C, H, W), normalised, to logits (N, classes); not changed.
        student: likewise, with as many classes; trained in place, on its device, which must be the teacher's.
        img_size: H and W in pixels, 8 or more.
        mean, std: C numbers each (1 or 3) that normalise images in [0, 1] to the networks' input.
        flip: whether a mirrored image keeps its class.
        evaluate: returns the student's accuracy in percent; called in eval mode and single precision after
            every `eval_every` epochs (each, by default) and the last. By default the student is evaluated by
            its agreement with the teacher on held-out synthetic samples. Agreement is not accuracy.
        on_epoch: called after each epoch with its line of metrics.
        given: the other settings of `bsr_main.py` by name, such as `epochs=100, method="fast_meta", seed=1`;
            see docs/flags.md. None stands for the default.

    Returns:
        The student, in eval mode, and the metrics: a dictionary for each epoch, as in `metrics.jsonl`.

    Raises:
        TypeError: there is no such setting.
        UserError: a value makes no sense, the networks do not fit each other or the images, or a loss is no
            longer finite.
    """
    for name in given:
        if name not in LIBRARY:
            known = [*LIBRARY, "img_size", "mean", "std", "flip"]
            raise TypeError(f"distill() has no setting {name}{did_you_mean(name, known)}")
    settings, remarks = resolve(check(given))
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    mean, std = _check_images(img_size, mean, std)
    weights = next(student.parameters(), None)
    if weights is None:
        raise UserError("the student has no parameters to train")
    device = weights.device
    settings = replace(settings, amp=found_precision(settings.amp, device))
    for network, name in ((teacher, "teacher"), (student, "student")):
        require_usable(network, name)
    _require_apart(teacher, student)

    def score(network: nn.Module) -> Evaluation:
        assert evaluate is not None
        single = torch.autocast(device.type, enabled=False)  # where --amp evaluates in half precision
        with frozen(network), torch.no_grad(), random_state_kept(device), single:
            accuracy = evaluate(network)
        try:
            return Evaluation(float(accuracy), math.nan, math.nan, 0, 0)
        except (TypeError, ValueError):
            raise UserError(f"evaluate returned {accuracy!r}: return the accuracy in percent") from None

    with ExitStack() as stack:
        stack.enter_context(_usual_defaults())
        stack.enter_context(frozen(teacher))
        stack.enter_context(random_state_kept(device))
        torch.default_generator.manual_seed(settings.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(settings.seed)
        shape = (len(mean), img_size, img_size)
        of_teacher = check_network(teacher, "teacher", *shape[:2], device, settings.feature_layer)
        of_student = check_network(student, "student", *shape[:2], device, trained=True)
        for found in (of_teacher, of_student):
            if found.hook:
                stack.callback(found.hook.remove)
        if of_teacher.num_classes != of_student.num_classes:
            counts = of_student.num_classes, of_teacher.num_classes
            raise UserError("the student has {} classes, the teacher {}".format(*counts))
        if not of_teacher.bn_layers and "bn" in METHODS[settings.method].takes:
            warnings.warn(NO_STATISTICS, stacklevel=2)
        assert of_teacher.features is not None  # every teacher has them
        augment = Augment(Normalize(mean, std), flip)
        distiller = make_distiller(
            settings,
            teacher,
            student,
            features=of_teacher.features,
            img_size=img_size,
            num_classes=of_teacher.num_classes,
            augment=augment,
            device=device,
            warn=lambda text: warnings.warn(text, stacklevel=4),
        )
        held_out = None if evaluate else HeldOut(shape, teacher, augment.normalize, device)
        run = MeasuredDistiller(distiller, settings, score if evaluate else None, held_out)
        metrics = []
        for epoch in range(settings.epochs):
            metrics.append(run.run_epoch(epoch))
            if on_epoch:
                with random_state_kept(device):
                    on_epoch(metrics[-1])
    return student.eval(), metrics


def _signature() -> inspect.Signature:
    """The signature of `distill` with every setting in place of `**given`."""
    own, types = inspect.signature(distill), get_type_hints(Settings)
    keyword = inspect.Parameter.KEYWORD_ONLY
    settings = [
        inspect.Parameter(one.name, keyword, default=one.default, annotation=types[one.name])
        for one in FIELDS
        if one.name in LIBRARY
    ]
    return own.replace(parameters=[*list(own.parameters.values())[:-1], *settings])


distill.__signature__ = _signature()  # type: ignore[attr-defined]


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Gradients, float32 and the CPU, whatever the caller's defaults are."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"  # where it is not needed, the context costs time
    with torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _require_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raises:
    UserError: training the student would change the teacher.
    """

    def parts(network: nn.Module) -> set[int]:
        values = (*network.parameters(), *network.buffers())
        memory = {value.untyped_storage().data_ptr() for value in values if not is_lazy(value)} - {0}
        return memory | {id(layer) for layer in network.modules()}

    if parts(teacher) & parts(student):
        raise UserError("teacher and student share layers: give one of them a copy (copy.deepcopy)")


def _check_images(
    img_size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as numbers.

    Raises:
        UserError: they are not 1 or 3 finite numbers, or the size is out of range.
    """
    numbers = f"mean {mean!r} and std {std!r}: give 1 or 3 finite numbers each, std {LEAST_STD} or more"
    try:
        mean, std = ([float(x) for x in values] for values in (mean, std))
    except (TypeError, ValueError):
        raise UserError(numbers) from None
    if not len(mean) == len(std) in (1, 3) or not all(map(math.isfinite, mean + std)) or min(std) < LEAST_STD:
        raise UserError(numbers)
    if not isinstance(img_size, int) or not MIN_SIZE <= img_size <= MAX_SIZE:
        raise UserError(f"img_size {img_size}: it must be a whole number from {MIN_SIZE} to {MAX_SIZE}")
    return tuple(mean), tuple(std)
