"""Model cards: what someone who uses an exported network must know, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor, nn

from datafree.deploy.export import Comparison, NormalizedNetwork, bytes_of, milliseconds
from datafree.errors import UserError
from datafree.methods import METHODS, synthesis_settings
from datafree.networks.build import build
from datafree.networks.names import NetworkName, parse_arguments, without_weights
from datafree.networks.student_file import SOURCE
from datafree.results.read import FinishedRun
from datafree.runs.environment import environment

if TYPE_CHECKING:
    from datafree.deploy.int8 import QuantizedNetwork  # imports packages that other formats do not need

BATCH = 32  # images in a timed forward pass
SETTINGS = ("epochs", "warmup", "kd_steps", "ep_steps", "batch_size", "lr", "T")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # names of classes and networks may be anything
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def model_card(
    run: FinishedRun,
    network: NormalizedNetwork,
    file: str,
    comparisons: Mapping[str, Comparison],
    teacher_source: NetworkName | None = None,
    best: bool = False,
    quantized: QuantizedNetwork | None = None,
) -> str:
    """The card of an exported student.

    Args:
        run: the run that trained the student.
        network: the student, to be measured.
        file: name of the exported file.
        comparisons: with PyTorch's student, by sort of image.
        teacher_source: `file.py:factory` of a teacher that a file defines. Without it such a teacher is not
            measured: the file that the run names is not run unasked.
        best: whether it is the student of the best epoch.
        quantized: the student in int8, if it is exported too.
    """
    config = run.config
    images = torch.rand(BATCH, len(config["mean"]), config["img_size"], config["img_size"])
    networks, problem = [("student", _name("student", run), *_measured(network.student, images))], None
    try:
        teacher = _teacher(run, teacher_source)
        networks.append(("teacher", _name("teacher", run), *_measured(teacher, images)))
    except Exception as error:  # it may be anyone's network, and the student is ready
        problem = error
    return TEMPLATES.get_template("model_card.md.j2").render(
        run=run,
        config=config,
        summary=run.summary,
        networks=networks,
        problem=problem,
        names=[_name(role, run) for role in ("student", "teacher")],
        data_free=config["method"] in METHODS,
        file=file,
        best=best,
        comparisons=comparisons,
        settings=[f"{name} {config[name]}" for name in _settings_that_matter(run)],
        environment=environment(torch.device("cpu")),
        source=SOURCE,
        student=run.pair.student,
        quantized=quantized,
    )


def int8_report(quantized: QuantizedNetwork) -> str:
    """The comparison of float and int8, and the layers that lose most."""
    return TEMPLATES.get_template("int8_report.md.j2").render(quantized=quantized)


def _name(role: str, run: FinishedRun) -> str:
    """The student or the teacher, with its arguments."""
    arguments = run.config.get(f"{role}_args")
    return run.config[role] + (f" ({arguments})" if arguments else "")


def _teacher(run: FinishedRun, source: NetworkName | None) -> nn.Module:
    """A network like the teacher, with other weights."""
    name = source or run.pair.teacher
    if source is None and name.kind == "several":
        raise UserError("there are several")
    if source is None and name.kind == "file":
        raise UserError(f"a file defines it: add --teacher {name}")
    arguments = without_weights(parse_arguments(run.config.get("teacher_args"), "--teacher_args"))
    teacher = build(name, "--teacher", len(run.config["classes"]), len(run.config["mean"]), arguments)
    return teacher.to(memory_format=torch.contiguous_format).eval()


def _measured(network: nn.Module, images: Tensor) -> tuple[int, float, float]:
    """The number of parameters, megabytes of weights, and milliseconds per image."""
    count = sum(parameter.numel() for parameter in network.parameters())
    return count, bytes_of(network) / 1e6, milliseconds(network, images) / len(images)


def _settings_that_matter(run: FinishedRun) -> list[str]:
    """Names of the settings that had an effect on the run."""
    method = METHODS.get(run.config["method"])
    takes = method.takes if method else ()
    names = (*SETTINGS, *(name for name in synthesis_settings() if name in takes))
    fixed = [name for name in names if name != "oh" or not run.config.get("dlw")]  # DLW sets this weight
    return [name for name in fixed if run.config.get(name) is not None]
