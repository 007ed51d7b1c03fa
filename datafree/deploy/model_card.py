"""The model card of an exported student: what someone must know who uses it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template

import torch
from torch import nn

from datafree.deploy.export import Comparison, Shipped, milliseconds
from datafree.errors import UserError
from datafree.methods import METHODS, synthesis_settings
from datafree.networks.build import build
from datafree.networks.names import NetworkName, parse_arguments, without_weights
from datafree.results.read import FinishedRun
from datafree.runs.environment import environment

BATCH = 32  # images, whose forward pass is timed
CLASSES = 20  # that the card names
SETTINGS = ("epochs", "warmup", "kd_steps", "ep_steps", "batch_size", "lr", "T")


def model_card(
    run: FinishedRun,
    shipped: Shipped,
    file: str,
    compared: Mapping[str, Comparison],
    teacher_source: NetworkName | None = None,
    best: bool = False,
) -> str:
    """The card as Markdown.

    Args:
        run: what has trained the student.
        shipped: the student, whose size and speed are measured.
        file: name of the exported file.
        compared: how that differs from PyTorch's student, by what the images were.
        teacher_source: `file.py:factory` of a teacher that is made by a file. Without it that teacher is not
            measured, since the one that the run names is not run unasked.
        best: whether it is the student of the best epoch.
    """
    config, here = run.config, environment(torch.device("cpu"))
    classes, size, channels = config["classes"], config["img_size"], len(config["mean"])
    images = torch.rand(BATCH, channels, size, size)
    networks, unmeasured = [_measured("student", run, shipped.student, images)], ""
    try:
        networks.append(_measured("teacher", run, _teacher(run, teacher_source), images))
    except Exception as error:  # it may be anyone's, and the student is ready
        unmeasured = f"The teacher was not measured: {error}."
    of_method = config["method"] in METHODS
    template = Template((files("datafree.deploy") / "model_card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        title=f"{_named('student', run)}, distilled from {_named('teacher', run)}"
        + (" without data" if of_method else ""),
        file=file,
        channels=channels,
        size=size,
        count=len(classes),
        classes=", ".join(classes[:CLASSES]) + (", ..." if len(classes) > CLASSES else ""),
        judged=_judged_best(run) if best else _judged(run),
        method=run.variant.removesuffix(", agreement"),
        seed=run.seed,
        commit=config.get("git_commit"),
        settings=", ".join(f"{name} {config[name]}" for name in _settings_that_matter(run)),
        compared="; ".join(
            f"{name} images: same class for {100 * same:.1f} %, logits within {difference:.1e}"
            for name, (difference, same) in compared.items()
        ),
        device=here["device_name"] or "a CPU",
        threads=here["threads"],
        torch=here["torch"],
        networks="\n".join(networks),
        unmeasured=unmeasured,
    )
    return card.rstrip() + "\n"


def _named(role: str, run: FinishedRun) -> str:
    """The student or the teacher, with the arguments that it was made with."""
    arguments = run.config.get(f"{role}_args")
    return run.config[role] + (f" ({arguments})" if arguments else "")


def _teacher(run: FinishedRun, source: NetworkName | None) -> nn.Module:
    """A network like the teacher, with other weights."""
    name = source or run.pair.teacher
    if source is None and name.kind == "several":
        raise UserError("there are several")
    if source is None and name.kind == "file":
        raise UserError(f"it is of a file, which is named with --teacher {name}")
    arguments = without_weights(parse_arguments(run.config.get("teacher_args"), "--teacher_args"))
    teacher = build(name, "--teacher", len(run.config["classes"]), len(run.config["mean"]), arguments)
    return teacher.to(memory_format=torch.contiguous_format).eval()


def _measured(role: str, run: FinishedRun, network: nn.Module, images: torch.Tensor) -> str:
    """A line of the table of networks."""
    count = sum(parameter.numel() for parameter in network.parameters())
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    took = milliseconds(network, images) / len(images)
    return f"| {role} | {_named(role, run)} | {count:,} | {weights / 1e6:.2f} | {took:.2f} |"


def _judged(run: FinishedRun) -> str:
    """How good the student is, a list item each for accuracy and for agreement."""
    config, summary = run.config, run.summary
    agreement = "- Agreement with the teacher on synthetic samples held out from training"
    if not run.accurate:
        return (
            f"{agreement}: {summary['last_holdout_agreement']:.2f} %. There were no real images: this is not "
            "accuracy, and the student should be tested on real ones before use."
        )
    none = config["dataset"] == "none"
    tested = f"the labelled images in {config.get('eval_folder')}" if none else config["dataset"]
    text = f"- Test accuracy on {tested}, last epoch: {summary['last_top1']:.2f} %"
    if summary.get("teacher_top1") is not None:
        text += f" (teacher: {summary['teacher_top1']:.2f} %)"
    if summary.get("last_holdout_agreement") is not None:
        text += f"\n{agreement}, last epoch: {summary['last_holdout_agreement']:.2f} %. This is not accuracy."
    return text


def _judged_best(run: FinishedRun) -> str:
    """How good the student of the best epoch is."""
    epoch, figure = run.summary["best_epoch"] + 1, run.figures["best"]
    if not run.accurate:
        return (
            f"- Agreement with the teacher on synthetic samples held out from training: {figure:.2f} % in "
            f"epoch {epoch}, which was chosen by it. There were no real images: this is not accuracy."
        )
    return (
        f"- Test accuracy: {figure:.2f} % in epoch {epoch}, which was chosen on these test data: on other "
        f"images expect less. The last epoch's student has {run.summary['last_top1']:.2f} %."
    )


def _settings_that_matter(run: FinishedRun) -> list[str]:
    """Names of the settings of the run that had an effect on it."""
    method = METHODS.get(run.config["method"])
    of_synthesis = synthesis_settings()
    takes = method.takes if method else ()
    return [
        name
        for name in (*SETTINGS, *of_synthesis)
        if run.config.get(name) is not None
        and (name not in of_synthesis or name in takes)
        and not (name == "oh" and run.config.get("dlw"))  # DLW sets this weight
    ]
