"""Distillation as a function: what `bsr_main.py` does, without files, for networks that are at hand."""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from datafree.assemble import make_distiller
from datafree.data.augment import Augment, Normalize
from datafree.data.image_spec import LEAST_STD, MAX_SIZE
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
    """Distil a student from a teacher without data (BSR, unless `method` says otherwise).

    Torch's random state is as before afterwards; what callbacks draw does not change the run. Runs may follow
    each other, or run in processes of their own, but not in threads of one process: they share that state.

    Args:
        teacher: maps images (N, C, H, W), normalised, to logits (N, classes); left as it was.
        student: likewise, with as many classes; trained in place, on the device it is on, which must be the
            teacher's too.
        img_size: H and W in pixels, 8 or more.
        mean, std: C numbers each (1 or 3), with which the networks' input is normalised; images are in
            [0, 1].
        flip: whether a mirrored image is still of its class.
        evaluate: scores the student, in eval mode and in single precision, after every `eval_every` epochs
            (each, by default) and the last, in percent. By default it is judged by its agreement with the
            teacher on synthetic samples that are held out from training, which is not accuracy.
        on_epoch: called after each epoch with its line of metrics.
        given: the other settings of `bsr_main.py` by name, such as `epochs=100, method="fast_meta", seed=1`;
            see docs/flags.md. None stands for the default.

    Returns:
        The student, and the metrics: a dictionary an epoch, as the lines of `metrics.jsonl`.

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
        usual = torch.autocast(device.type, enabled=False)  # whatever --amp scores with
        with frozen(network), torch.no_grad(), random_state_kept(device), usual:
            score = evaluate(network)
        try:
            return Evaluation(float(score), math.nan, math.nan, 0, 0)
        except (TypeError, ValueError):
            raise UserError(f"evaluate returned {score!r}: return the accuracy in percent") from None

    with ExitStack() as stack:
        stack.enter_context(_usual_defaults())
        augment = Augment(Normalize(mean, std), flip)
        stack.enter_context(frozen(teacher))
        stack.enter_context(random_state_kept(device))
        torch.default_generator.manual_seed(settings.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(settings.seed)
        taught = check_network(teacher, "teacher", len(mean), img_size, device, settings.feature_layer)
        learning = check_network(student, "student", len(mean), img_size, device, trained=True)
        for found in (taught, learning):
            if found.hook:
                stack.callback(found.hook.remove)
        if taught.num_classes != learning.num_classes:
            raise UserError(
                f"the student gives {learning.num_classes} classes, and the teacher {taught.num_classes}"
            )
        if not taught.bn_layers and "bn" in METHODS[settings.method].takes:
            warnings.warn(NO_STATISTICS, stacklevel=2)
        assert taught.features is not None  # a teacher's are looked for
        distiller = make_distiller(
            settings,
            teacher,
            student,
            features=taught.features,
            img_size=img_size,
            num_classes=taught.num_classes,
            augment=augment,
            device=device,
            warn=lambda text: warnings.warn(text, stacklevel=4),
        )
        held_out = None
        if evaluate is None:
            held_out = HeldOut((len(mean), img_size, img_size), teacher, augment.normalize, device)
        run = MeasuredDistiller(distiller, settings, score if evaluate else None, held_out)
        metrics = []
        for epoch in range(settings.epochs):
            metrics.append(run.run_epoch(epoch))
            if on_epoch:
                with random_state_kept(device):
                    on_epoch(metrics[-1])
    student.eval()
    return student, metrics


def _signature() -> inspect.Signature:
    """That of `distill`, with every setting in place of `**given`."""
    own = [one for one in inspect.signature(distill).parameters.values() if one.name != "given"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    types = get_type_hints(Settings)
    own += [
        inspect.Parameter(one.name, keyword, default=one.default, annotation=types[one.name])
        for one in FIELDS
        if one.name in LIBRARY
    ]
    return inspect.signature(distill).replace(parameters=own)


distill.__signature__ = _signature()  # type: ignore[attr-defined]


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Gradients, float32 and the CPU, whatever else the caller has made the default."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # enables gradients, too
        if torch.get_default_device().type != "cpu":  # every call would ask, and take longer
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _require_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raises:
    UserError: what trains the student would change the teacher.
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
        UserError: there are no such images.
    """
    try:
        if isinstance(mean, str) or isinstance(std, str):
            raise TypeError
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        raise UserError(f"mean {mean!r} and std {std!r}: give one number a channel, as (0.5,)") from None
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise UserError(f"mean {mean} and std {std}: give one number a channel, 1 or 3 each")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) < LEAST_STD:
        raise UserError(f"mean {mean} and std {std}: give finite numbers, those of std {LEAST_STD} or more")
    try:
        fits = 8 <= operator.index(img_size) <= MAX_SIZE
    except TypeError:
        fits = False
    if not fits:
        raise UserError(f"img_size {img_size}: it must be a whole number from 8 to {MAX_SIZE}")
    return mean, std
