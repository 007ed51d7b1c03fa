"""`bsr_main.py`: distillation into a run folder, from opening the networks to the final figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.assemble import make_distiller
from datafree.data.image_folders import load_folder, load_labelled
from datafree.data.image_set import ImageSet, noise_like, to_float
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.distiller import Distiller
from datafree.evaluation import Evaluator, HeldOut
from datafree.extras.pruned import keep_zeros, zeros_of
from datafree.extras.several_teachers import prepare_teacher
from datafree.methods import METHODS
from datafree.networks.bn_statistics import check_bn_statistics
from datafree.networks.build import build, build_with_weights, source_of
from datafree.networks.check import NO_STATISTICS, NetworkSummary, check_network
from datafree.networks.names import parse_arguments
from datafree.networks.student_file import describe, require_storable
from datafree.networks.teacher import Teacher
from datafree.repository import SampleRepository
from datafree.runs.checkpoint import start_or_resume, state_of
from datafree.runs.contact_sheet import export_repository
from datafree.runs.environment import choose_processes, load_images
from datafree.runs.files import REPOSITORY, SAMPLES, STUDENT, SUMMARY
from datafree.runs.folder import RunFolder, require_tensorboard
from datafree.runs.loop import Progress, Row, run_in_folder
from datafree.runs.measure import MeasuredDistiller
from datafree.runs.sample_log import SampleLog
from datafree.samples import Samples
from datafree.settings import Settings
from datafree.torch_utils import checkpoint
from datafree.torch_utils.distributed import Processes
from datafree.torch_utils.precision import set_kernels

BALANCE = ("count_variation", "count_entropy", "lof_relative_iqr", "lof_outside_share", "margin")
SHEETS = 10  # contact sheets in a run
FEW, LEAST_STEPS = 64, 5  # images examined; steps of a synthesis after which they should fit the statistics


@dataclass(frozen=True)
class _Parts:
    """What the settings name."""

    settings: Settings
    device: torch.device
    processes: Processes
    folder: RunFolder
    teacher: Teacher
    student: nn.Module
    student_start: str | None  # digest of the weights given to the student
    student_source: str | None  # text of the file that builds the student, if any
    spec: ImageSpec
    evaluate: Evaluator | None  # None where there are no test images

    def describe(self) -> dict[str, Any]:
        """The student with everything needed to use it."""
        s = self.settings
        return describe(self.student, s.student, s.student_args, self.student_source, self.spec)


def distil(settings: Settings, warnings: Sequence[str] = ()) -> None:
    """Do what the settings of `bsr_main.py` ask for: distil, or evaluate the networks.

    Args:
        settings: resolved.
        warnings: about the settings, to be shown.

    Raises:
        UserError: the device, the teacher or the data are missing, the networks do not fit the data or each
            other, the run folder is taken, the run cannot be continued, a loss is no longer finite, or the
            disk is full.
        Stopped: by a signal; the text says how to continue.
    """
    s, device, processes = choose_processes(settings)
    path = Path(s.save_dir)
    with RunFolder(path, s.resume is not None, s.overwrite, is_main=processes.is_main) as folder:
        for warning in warnings:
            folder.warn(warning)
        if s.epochs and not s.evaluate_only:
            folder.check()
        if s.tensorboard:
            require_tensorboard()
        set_kernels(s.deterministic)
        if s.evaluate_only:
            evaluate_only(s, device, processes, folder)
            return
        teacher = prepare_teacher(s, device)
        for warning in teacher.warnings:
            folder.warn(warning)
        folder.log(f"teacher {s.teacher}: {teacher.found}")
        if not teacher.found.bn_layers and "bn" in METHODS[s.method].takes:
            folder.warn(NO_STATISTICS)
        file = Path(s.student_ckpt) if s.student_ckpt else None
        content = checkpoint.read(file) if file else None
        student, found = _open_student(s, teacher.data, file, content, device)
        source = source_of(s.student)
        processes.freeze_unused(student, found.unused)
        start = None
        if file:
            start = checkpoint.fingerprint(student)
            zeros, count = zeros_of(student)
            kept = ", and stay zero" if s.keep_zeros else ""
            share = f"{100 * zeros / max(1, count):.1f} % of its weights are zero{kept}"
            folder.log(f"student from {file}: {share}")
        folder.log(f"student {s.student}: {found}")
        if s.keep_zeros:
            keep_zeros(student)
        images, spec = _test_images(s, teacher.data, processes), teacher.data
        evaluate = None
        if images:
            evaluate = Evaluator(images, spec.normalize, device, teacher.network)
            spec = replace(spec, classes=tuple(images.classes))
        if evaluate and s.test_teacher:
            folder.log(f"teacher {s.teacher}: {evaluate(teacher.network)}")
        if s.epochs:
            parts = _Parts(s, device, processes, folder, teacher, student, start, source, spec, evaluate)
            _run(parts)
        elif not s.test_teacher:
            folder.log(f"nothing to do with --epochs 0 (--test_teacher evaluates {s.teacher})")


# The networks and images


def _open_student(
    s: Settings, spec: ImageSpec, file: Path | None, content: Any, device: torch.device
) -> tuple[nn.Module, NetworkSummary]:
    """The student, with the weights in the content of a checkpoint file, if any.

    Raises:
        UserError: it cannot be built, the weights are of another network, or it does not fit the data.
    """
    torch.manual_seed(s.seed)
    arguments = parse_arguments(s.student_args, "--student_args")
    expected = s.student, "--student", spec.num_classes, spec.channels, arguments
    if file:
        student = build_with_weights(state_of(content, file), file, *expected)
    else:
        student = build(*expected, s.pretrained)
    student = student.to(device)
    name = f"--student {s.student}"
    found = check_network(
        student, name, spec.channels, spec.img_size, device, trained=True, num_classes=spec.num_classes
    )
    require_storable(student, name)
    return student, found


def _test_images(s: Settings, spec: ImageSpec, processes: Processes) -> ImageSet | None:
    """None with `--dataset none` and no `--eval_folder`."""
    if s.eval_folder:
        images = load_labelled(Path(s.eval_folder), spec.img_size, spec.num_classes, s.workers)
    elif s.dataset != "none":
        images = load_images(s, processes, s.dataset, "test", spec.img_size)
    else:
        return None
    return images.for_channels(spec.channels)


def evaluate_only(s: Settings, device: torch.device, processes: Processes, folder: RunFolder) -> None:
    """Show the accuracy of the student in a checkpoint, and of the teacher if requested.

    Raises:
        UserError: the student's checkpoint is of another network, or the data are missing.
    """
    file = Path(s.resume) if s.resume else folder.path / STUDENT
    content = checkpoint.read(file)
    if s.dataset == "none":
        spec = prepare_teacher(s, device).data
    else:  # the teacher need not be there
        recorded = recorded_spec(content)
        spec = image_spec(s, "test", recorded)
        spec = spec.for_channels(s.channels or len(recorded.get("mean", "rgb")))
    student, _ = _open_student(s, spec, file, content, device)
    images = _test_images(s, spec, processes)
    assert images  # `resolve` has seen to that
    evaluate = Evaluator(images, spec.normalize, device)
    if s.test_teacher:
        folder.log(f"teacher {s.teacher}: {evaluate(prepare_teacher(s, device).network)}")
    folder.log(f"student {s.student}: {evaluate(student)}")


# The run


def _run(parts: _Parts) -> None:
    """Start or continue the run, and run its epochs to the final figures."""
    s, processes, folder, spec = parts.settings, parts.processes, parts.folder, parts.spec
    run = _build(parts)
    distiller, repository = run.distiller, run.distiller.repository
    first_images = None
    if s.resume is None:
        distiller.skip_to(s.start_epoch)
        if s.cmi_init and "cmi_init" in METHODS[s.method].takes:
            first_images = load_folder(Path(s.cmi_init), spec.img_size, s.workers)
        if parts.evaluate:  # also shows that the images can be read
            run.evaluation = parts.evaluate(parts.student)
            if s.student_ckpt:
                folder.log(f"student at the start: {run.evaluation}")
    weights = checkpoint.fingerprint(parts.teacher.network)
    same = {"student_start": parts.student_start, "teacher_weights": weights}
    judged_by = "test_top1" if parts.evaluate else "holdout_agreement"
    also = {"teacher_ckpt": parts.teacher.file, "judged_by": judged_by}
    progress, known = start_or_resume(
        run, folder, s, spec, parts.device, same, also, s.start_epoch, s.tensorboard
    )
    folder.log(f"{s.method}: {s.teacher} to {s.student} on {s.dataset}, {parts.device}; see {folder.path}")
    if first_images:
        for images, _ in first_images.for_channels(spec.channels).batches(s.batch_size):
            store_images(distiller, images)
    uses_statistics = bool(s.bn) and "bn" in METHODS[s.method].takes
    warning = check_bn_statistics(parts.teacher.network) if uses_statistics else None
    if warning:
        folder.warn(warning)

    def after(row: Row) -> None:
        epochs = row["epoch"] + 1
        if epochs == s.epochs or epochs % max(1, s.epochs // SHEETS) == 0:
            folder.save_samples(epochs, repository, spec.classes)
        if epochs == 1 and uses_statistics and not warning and s.g_steps >= LEAST_STEPS:
            _check_statistics(parts, repository)

    warmup = max(0, s.warmup - progress.epoch)
    run_in_folder(
        run,
        folder,
        progress,
        s.epochs,
        known,
        phase="kd",
        steps=warmup + (s.epochs - progress.epoch - warmup) * s.rounds * s.kd_steps,
        print_freq=s.print_freq,
        show=partial(_line, s.epochs),
        student=parts.describe,
        save_every=s.save_every,
        after=after,
    )
    distiller.student.leave()
    if processes.is_main:
        _finish(parts, progress)
        if s.export_repository:
            exported = export_repository(repository, spec.classes, folder.path / REPOSITORY)
            folder.log(f"repository: {exported}")


def _build(parts: _Parts) -> MeasuredDistiller:
    s, spec, processes, teacher = parts.settings, parts.spec, parts.processes, parts.teacher
    processes.require_divisible("--batch_size", s.batch_size)
    processes.require_divisible("--synthesis_batch_size", s.synthesis_batch_size)
    features = teacher.found.features
    assert features is not None  # `check_network` finds a teacher's
    shape = (spec.channels, spec.img_size, spec.img_size)
    distiller = make_distiller(
        s,
        teacher.network,
        parts.student,
        features=features,
        img_size=spec.img_size,
        num_classes=spec.num_classes,
        augment=spec.augment,
        device=parts.device,
        processes=processes,
        log=SampleLog(parts.folder.path / SAMPLES, shape, features.dim, processes.is_main),
        warn=parts.folder.warn,
    )
    held_out = None
    if s.dataset == "none":
        held_out = HeldOut(shape, teacher.network, spec.normalize, parts.device)
    return MeasuredDistiller(distiller, s, parts.evaluate, held_out)


@torch.no_grad()
def store_images(distiller: Distiller, images: Tensor) -> None:
    """Put uint8 images (N, C, H, W) into the repository, with the teacher's labels."""
    synthesizer = distiller.synthesizer
    inputs = synthesizer.augment.normalize(to_float(images.to(distiller.repository.device)))
    with synthesizer.features.capture():
        logits = synthesizer.teacher(inputs)
    distiller.repository.add(Samples.seen(images, synthesizer.features.value, logits))


def _check_statistics(parts: _Parts, repository: SampleRepository) -> None:
    """Warn if the teacher's BatchNorm statistics do not fit its weights, to judge by the first samples."""
    spec = parts.spec
    noise = noise_like(FEW, (spec.channels, spec.img_size, spec.img_size))
    stored = repository.images(torch.arange(min(FEW, len(repository))))
    seen = (spec.normalize(to_float(images.to(parts.device))) for images in (noise, stored))
    warning = check_bn_statistics(parts.teacher.network, *seen)
    if warning:
        parts.folder.warn(warning)


# What is shown


def _line(epochs: int, row: Row) -> tuple[str, str]:
    """An epoch's line on the console, and what is shown beside the bar."""
    score = f"test {row['test_top1']:.2f} %  " if "test_top1" in row else ""
    if "holdout_agreement" in row:
        score += f"agreement {row['holdout_agreement']:.2f} %  "
    text = (
        f"epoch {row['epoch'] + 1:{len(str(epochs))}}/{epochs}  alpha {row['alpha']:.2f}  "
        f"oh {row['loss_oh']:.3f}  bn {row['loss_bn']:.3f}  adv {row['loss_adv']:+.3f}  "
    )
    loss = ""
    if row["loss_kd"] is None:
        text += "warm-up  "
    else:
        loss = f"loss {row['loss_kd']:.3f}, "
        text += f"kd {row['loss_kd']:.3f}  {score if row['evaluated'] else ''}"
    hits = "" if row["hit_rate"] is None else f"hits {100 * row['hit_rate']:.0f} %  "
    text += f"{hits}samples {row['repository']:,}  {sum(row['seconds'].values()):.1f} s"
    return text, f"{loss}{score.rstrip()}"


def _finish(parts: _Parts, progress: Progress) -> None:
    """Write the student, and the final figures to `summary.json` and the console."""
    folder, row = parts.folder, progress.row
    summary: dict[str, Any] = {"best_epoch": progress.best_epoch}
    best = f"{progress.best:.2f} % (epoch {progress.best_epoch + 1})"
    balance = {name: row[name] for name in BALANCE}
    figures = ", ".join(f"{name} {value:.3f}" for name, value in balance.items() if value is not None)
    lines = {"balance": figures, "samples by class": str(folder.sheet(progress.epoch))}
    if "holdout_agreement" in row:
        summary["last_holdout_agreement"] = row["holdout_agreement"]
        note = "with the teacher on synthetic samples held out from training, which is not accuracy"
        lines = {"agreement, last epoch": f"{row['holdout_agreement']:.2f} % ({note})", **lines}
    if parts.evaluate:
        teacher = parts.evaluate(parts.teacher.network)
        summary["teacher_top1"] = teacher.top1
        summary["last_top1"] = row["test_top1"]
        summary["best_top1_chosen_on_test_data"] = progress.best
        summary["last_test_agreement"] = row["test_agreement"]
        last, chosen = "student, last epoch", "student, best (chosen on test data)"
        lines = {"teacher": str(teacher), last: f"{row['test_top1']:.2f} %", chosen: best, **lines}
    else:
        summary["best_holdout_agreement"] = progress.best
        lines["agreement, best"] = best
    summary |= {"epochs": parts.settings.epochs, "seconds": progress.seconds}
    summary |= {"repository": row["repository"], "alpha": row["alpha"], **balance}
    folder.save_student(parts.describe())
    folder.write_json(SUMMARY, summary)
    for name, text in lines.items():
        folder.log(f"{name:35}  {text}", "green" if "last" in name else None)
