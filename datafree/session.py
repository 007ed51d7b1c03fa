"""One command's work: what the flags name is put together here, and the epochs are run."""

from __future__ import annotations

import argparse
import copy
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from termcolor import colored
from torch import Tensor, nn
from tqdm import tqdm

from datafree import checkpoint, data, networks, prepare
from datafree.assemble import make_distiller
from datafree.distiller import Distiller, DistillSettings
from datafree.errors import Damaged, Stopped, UserError
from datafree.evaluate import Evaluation, evaluate
from datafree.interrupts import Interrupts
from datafree.methods import METHODS
from datafree.parallel import Processes
from datafree.precision import set_kernels
from datafree.record import (
    ASIDE,
    CHECKPOINT,
    MARKS,
    SAMPLES,
    RunFolder,
    RunLock,
    environment,
    refuse_existing,
    require_tensorboard,
)

SHEETS = 10  # contact sheets written in the course of a run
# Flags that a resumed run may be given otherwise than the run it continues.
MAY_CHANGE = {
    "given",
    "save_dir",
    "log_tag",
    "resume",
    "overwrite",
    "evaluate_only",
    "export_repository",
    "print_freq",
    "device",
    "gpu",
    "workers",
    "data_root",
    "download",
    "teacher_ckpt",
    "test_teacher",
    "mean",
    "std",
    "img_size",
    "flip",
    "repository_memory",
    "compile",
    "fp16",
    "tensorboard",
    "save_every",
    "start_epoch",
}


class Session:
    """Teacher, student and test images for the flags of `bsr_main.py`.

    Everything that can be wrong with the flags is found here or in `distill` before anything is written.

    Raises:
        UserError: the device, the teacher or the data cannot be had, or the run folder is taken.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.save_dir)
        self.run: RunFolder | None = None
        self.said: list[str] = []  # before there was a run folder
        self.teacher_evaluation: Evaluation | None = None
        self.device = prepare.choose_device(args.device, args.gpu)
        self.processes = Processes.started_by_torchrun(self.device)
        self.lock: RunLock | None = None
        writes = args.epochs and not args.evaluate_only and self.processes.first
        if writes and refuse_existing(self.folder, args.resume is not None, args.overwrite):
            self.lock = RunLock(self.folder)
        if args.tensorboard:
            require_tensorboard()
        set_kernels(args.deterministic)
        self.teacher_file: Path | None = None
        if args.evaluate_only and args.dataset != "none":  # for which the teacher need not be there
            recorded = prepare.recorded_facts(checkpoint.read(self._student_file()))
            facts = prepare.data_facts(
                args.dataset, args.data_root, "test", args.mean, args.std, args.img_size, args.flip, recorded
            )
            self.facts = facts.for_channels(args.channels or len(recorded.get("mean", "rgb")))
        else:
            self.teacher, self.facts = self._load_teacher()
        torch.manual_seed(args.seed)
        arguments = networks.parse_arguments(args.student_args, "--student_args")
        student = networks.build(
            args.student, "--student", self.facts.num_classes, self.facts.channels, arguments, args.pretrained
        )
        self.student = student.to(self.device)
        self.student_source = networks.source_of(args.student)
        self._introduce()

    def _student_file(self) -> Path:
        return Path(self.args.resume) if self.args.resume else self.folder / "student.pth"

    @cached_property
    def teacher(self) -> nn.Module:
        return self._load_teacher()[0]

    def _load_teacher(self) -> tuple[nn.Module, prepare.DataFacts]:
        """The teacher, and what is known of the data without an image of them."""
        a = self.args
        file, content = prepare.read_teacher(a.dataset, a.teacher, a.teacher_ckpt)
        self.teacher_file, recorded = file, prepare.recorded_facts(content)
        if file is None:
            self.say(f"warning: no --teacher_ckpt: {a.teacher} keeps the weights it is made with", "yellow")
        arguments = networks.parse_arguments(a.teacher_args, "--teacher_args")
        if a.dataset != "none":
            facts = prepare.data_facts(
                a.dataset, a.data_root, "test", a.mean, a.std, a.img_size, a.flip, recorded
            )
            teacher = prepare.load_teacher(
                a.teacher, facts.num_classes, file, content, self.device, a.channels, arguments
            )
            channels, _ = networks.probe_input(teacher, a.channels, facts.img_size, self.device)
            return teacher, facts.for_channels(channels)
        teacher = prepare.load_teacher(a.teacher, None, file, content, self.device, a.channels, arguments)
        facts, warnings = prepare.facts_without_data(
            a.mean, a.std, a.img_size, a.flip, teacher, self.device, a.channels, recorded, a.feature_layer
        )
        for warning in warnings:
            self.say(f"warning: {warning}", "yellow")
        return teacher, facts

    def _introduce(self) -> None:
        """See that both networks take such images and know the same classes, and say what they are.

        Raises:
            UserError: one does not.
        """
        a, facts = self.args, self.facts
        both = [("student", self.student, a.student, None)]
        if not a.evaluate_only:
            both.insert(0, ("teacher", self.teacher, a.teacher, a.feature_layer))
        for name, network, arch, layer in both:
            with torch.random.fork_rng(devices=[]):
                found = networks.examine(
                    network,
                    f"--{name} {arch}",
                    facts.channels,
                    facts.img_size,
                    self.device,
                    layer,
                    name == "student",
                )
            if found.num_classes != facts.num_classes:
                raise UserError(
                    f"--{name} {arch} gives {found.num_classes} classes, not {facts.num_classes}: give it "
                    "as many"
                )
            if not a.evaluate_only:
                self.say(f"{name} {arch}: {found}")
            if name == "teacher" and not found.bn_layers and "bn" in METHODS[a.method].takes:
                self.say(f"warning: {networks.NO_STATISTICS}", "yellow")

    @cached_property
    def test_images(self) -> data.ImageSet:
        a = self.args
        if not self.processes.first:
            self.processes.wait()  # until the first has downloaded what is to be
        if a.dataset == "none":
            images = data.load_labelled(
                Path(a.eval_folder), self.facts.img_size, self.facts.num_classes, a.workers
            )
        else:
            images = data.load(a.dataset, "test", a.data_root, self.facts.img_size, a.download, a.workers)
        if self.processes.first:
            self.processes.wait()
        return images.for_channels(self.facts.channels)

    @property
    def has_images(self) -> bool:
        """Whether there are real images to test on."""
        return self.args.dataset != "none" or self.args.eval_folder is not None

    def say(self, text: str, color: str | None = None) -> None:
        if self.run:
            self.run.log(text, color)
        elif self.processes.first:
            self.said.append(text)
            print(colored(text, color) if color else text, flush=True)

    def score(self, network: nn.Module) -> Evaluation:
        return evaluate(network, self.test_images, self.facts.normalize, self.device)

    def test_teacher(self) -> None:
        """Report the teacher's accuracy."""
        if self.args.evaluate_only:  # without which it has been examined
            images = torch.zeros(1, self.facts.channels, self.facts.img_size, self.facts.img_size)
            images = images.to(self.device, memory_format=torch.channels_last)
            networks.settle_layout(self.teacher, images)
        self.teacher_evaluation = self.score(self.teacher)
        self.say(f"teacher {self.args.teacher}: {self.teacher_evaluation}")

    def evaluate_student(self) -> None:
        """Report the accuracy of the student in a checkpoint.

        Raises:
            UserError: it is of another network.
        """
        path = self._student_file()
        content = checkpoint.read(path)
        if isinstance(content, dict) and isinstance(content.get("distiller"), dict):
            content = {"state_dict": content["distiller"].get("student")}
        name = f"{self.args.student} with {self.facts.num_classes} classes"
        checkpoint.load_network(self.student, checkpoint.state_dict_of(content, path), path, name)
        self.say(f"student {self.args.student}: {self.score(self.student)}")

    def _build_distiller(self) -> Distiller:
        a, size = self.args, self.facts.img_size
        for flag, value in (("batch_size", a.batch_size), ("synthesis_batch_size", a.synthesis_batch_size)):
            if value % self.processes.world_size or value < 2 * self.processes.world_size:
                raise UserError(
                    f"--{flag} {value} cannot be divided among {self.processes.world_size} processes: "
                    "choose a multiple, 2 images or more for each"
                )
        return make_distiller(
            a,
            self.teacher,
            self.student,
            size,
            self.facts.num_classes,
            self.facts.augment,
            self.device,
            self.score if self.has_images else None,
            self.processes,
            self.folder,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for one run to continue another."""
        flags = {name: value for name, value in vars(self.args).items() if name not in MAY_CHANGE}
        return {
            **flags,
            **self.facts.record(),
            "teacher_weights": prepare.fingerprint(self.teacher),
            "processes": self.processes.world_size,
            "device_type": self.device.type,
        }

    def _resume(self, distiller: Distiller) -> Progress:
        """Load the state to continue from; how far it had come.

        Raises:
            UserError: there is none, it is of a run with other settings, or of another folder's run.
        """
        own = self.folder / CHECKPOINT
        if self.args.resume:
            path = Path(self.args.resume)
            if own.exists() and path.resolve().parent != self.folder.resolve():
                raise UserError(f"{self.folder} holds another run than {path}: choose another --save_dir")
            progress = self._load(distiller, path)
            if path.resolve() == checkpoint.previous(own).resolve() and self.processes.first and own.exists():
                own.replace(self.folder / ASIDE)  # it is of samples that are no more
            return progress
        candidates = [path for path in (own, checkpoint.previous(own)) if path.exists()]
        if not candidates:
            raise UserError(f"no checkpoint in {self.folder}: no epoch was finished; start with --overwrite")
        try:
            return self._load(distiller, candidates[0])
        except Damaged as error:
            if len(candidates) == 1:
                raise
            progress = self._load(distiller, candidates[1])
            self.say(f"warning: {error}; continuing from the one before it, {candidates[1]}", "yellow")
            if self.processes.first:
                own.replace(self.folder / ASIDE)  # so that it never takes the place of the good one
            return progress

    def _load(self, distiller: Distiller, path: Path) -> Progress:
        """Take the state in a checkpoint.

        Raises:
            Damaged: the file, or the samples beside it, are not what was written.
            UserError: it is of a run with other settings, or no checkpoint of a run.
        """
        content = checkpoint.read(path)
        try:
            before = {**content["identity"]}
            if not {"teacher_weights", "epochs", "method"} <= before.keys():
                raise KeyError("identity")
            changed = [name for name, value in self.identity.items() if before.get(name, value) != value]
            if changed:
                old, new = before[changed[0]], self.identity[changed[0]]
                raise UserError(
                    f"{path} is of a run with other settings: {changed[0]} was {old} and is {new}"
                    + (f" (also {', '.join(changed[1:])})" if changed[1:] else "")
                )
            progress = Progress.of(content["progress"], self.args.epochs)
            with self._samples_beside(path):
                distiller.load_state_dict(content["distiller"])
            return progress
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            RuntimeError,
            ArithmeticError,
        ) as error:
            raise UserError(f"{path} is no checkpoint of such a run: name its checkpoint.pth") from error

    @contextmanager
    def _samples_beside(self, path: Path) -> Iterator[None]:
        """Bring the samples beside another folder's checkpoint to this one; they go if the block fails."""
        source, target = path.parent / SAMPLES, self.folder / SAMPLES
        bring = self.processes.first and source.exists() and source.resolve() != target.resolve()
        try:
            if bring:
                self.lock = self.lock or RunLock(self.folder)
                shutil.copyfile(source, target)
            self.processes.wait()
            yield
        except BaseException:
            if bring:
                target.unlink(missing_ok=True)
            raise

    def distill(self) -> None:
        """Run the epochs, recording each; ends with the final figures."""
        a = self.args
        distiller = self._build_distiller()
        if not self.processes.first:  # all have built the same, and draw differently (dropout) from here on
            torch.manual_seed(a.seed + self.processes.rank)
        if self.has_images:
            self.facts = replace(self.facts, classes=tuple(self.test_images.classes))
        first_samples = None
        if a.cmi_init and a.method == "cmi" and a.resume is None:
            first_samples = data.load_folder(Path(a.cmi_init), self.facts.img_size, a.workers)
            first_samples = first_samples.for_channels(self.facts.channels)
        if a.resume is not None:
            progress = self._resume(distiller)
        else:
            progress = Progress(a.start_epoch, first=a.start_epoch)
            distiller.skip_to(a.start_epoch)
            if self.has_images:  # also shows that they can be read
                distiller.evaluation = self.score(self.student)
        if self.processes.first:
            self._open_run(progress)
        self.processes.wait()  # until there is a folder to log samples in
        for images, _ in first_samples.batches(a.batch_size) if first_samples else ():
            distiller.store(images)
        if not self.processes.first:
            with Interrupts():  # which the first acts on
                for epoch in range(progress.epoch, a.epochs):
                    distiller.run_epoch(epoch)
                    distiller.state_dict()  # to which every process contributes
                    if self.processes.first_says(None):
                        return
            self.processes.end()
            return
        run = self.run
        judged = "test" if self.has_images else "agreement"
        with ProgressBar(distiller.settings, progress.epoch, a.print_freq, self.say, judged) as bar:
            self._run_epochs(distiller, run, progress, bar)
        self.processes.end()
        run.save_student(self.facts.describe(a.student, self.student, a.student_args, self.student_source))
        self._finish(run, progress)
        if a.export_repository:
            run.log(f"repository: {run.export_repository(distiller.repository, self.facts.classes)}")

    def _run_epochs(self, distiller: Distiller, run: RunFolder, progress: Progress, bar: ProgressBar) -> None:
        """All epochs from `progress` on. If they are stopped, the state after the last whole epoch is saved.

        Raises:
            Stopped: by a signal.
            UserError: a loss is no longer finite, or the disk takes no more.
        """
        a, alone = self.args, self.processes.world_size == 1
        before, start = progress.seconds, time.perf_counter()
        unsaved: dict[str, Any] | None = None
        with Interrupts() as interrupts:

            def on_step(phase: str, loss: Tensor) -> None:
                bar.step(phase, loss)
                if alone:  # several processes stop together, after an epoch
                    interrupts.check()

            try:
                while progress.epoch < a.epochs:
                    row = distiller.run_epoch(progress.epoch, on_step)
                    run.append_metrics(row)
                    bar.epoch(row)
                    progress.add(row, before + time.perf_counter() - start)
                    if progress.epoch == a.epochs or progress.epoch % max(1, a.epochs // SHEETS) == 0:
                        run.save_samples(progress.epoch, distiller.repository, self.facts.classes)
                    state = {
                        "progress": asdict(progress),
                        "identity": self.identity,
                        "facts": self.facts.record(),
                        "distiller": distiller.state_dict(),
                    }
                    if progress.epoch % a.save_every == 0 or progress.epoch == a.epochs:
                        run.save_checkpoint(state)
                        unsaved = None
                    else:
                        unsaved = copy.deepcopy(state)
                    stop = interrupts.received is not None and progress.epoch < a.epochs
                    if self.processes.first_says(stop):
                        interrupts.check()
            except Exception as error:
                if unsaved:
                    with suppress(UserError):  # what went wrong first is what is told
                        run.save_checkpoint(unsaved)
                if not isinstance(error, Stopped):
                    raise
                raise Stopped(f"{error}; {self._how_to_continue()}", error.status) from error

    def _how_to_continue(self) -> str:
        own = self.folder / CHECKPOINT
        if not own.exists() and not checkpoint.previous(own).exists():
            return "no epoch was finished here: start again, with --overwrite if without --resume"
        words = [word for word in sys.argv if word != "--overwrite" and not word.startswith("--resume")]
        if self.args.resume and self.args.resume in words:
            words.remove(self.args.resume)
        count = self.processes.world_size
        start = ["python"] if count == 1 else ["torchrun", "--nproc_per_node", str(count)]
        return f"continue with: {shlex.join([*start, *words, '--resume'])}"

    def _open_run(self, progress: Progress) -> None:
        """Make the run folder, or go on in it."""
        a = self.args
        if self.lock is None:  # whatever another command has made here since must not be mixed with this
            self.lock = RunLock(self.folder)
            found = [name for name in MARKS if (self.folder / name).exists()]
            if found and not a.overwrite:
                raise UserError(f"another command has begun a run in {self.folder}: use another --save_dir")
        events_from = progress.epoch if a.tensorboard else None
        run = self.run = RunFolder(self.folder, a.overwrite, events_from, self.lock)
        run.log_earlier(self.said)
        flags = {name: value for name, value in vars(a).items() if name != "given"}
        judged = {"judged_by": "accuracy" if self.has_images else "agreement"}
        facts = {**self.facts.record(), **environment(self.device), "processes": self.processes.world_size}
        file = self.teacher_file and str(self.teacher_file)
        run.write_json("config.json", {**flags, "teacher_ckpt": file, **judged, **facts})
        run.truncate_metrics(progress.first, progress.epoch)
        run.log(f"{a.method}: {a.teacher} to {a.student} on {a.dataset}, {self.device}; see {run.path}")

    def _finish(self, run: RunFolder, progress: Progress) -> None:
        """The final figures, to `summary.json` and the console."""
        teacher, row = self.teacher_evaluation, progress.row
        run.write_json(
            "summary.json",
            {
                "teacher_top1": teacher.top1 if teacher else None,
                "last_top1": row["test_top1"],
                "best_top1_chosen_on_test_data": progress.best_top1,
                "best_epoch": progress.best_epoch,
                "epochs": self.args.epochs,
                "seconds": progress.seconds,
                **{name: row[name] for name in ("repository", "alpha", *BALANCE)},
            },
        )
        best = f"{progress.best_top1:.2f} % (epoch {progress.best_epoch + 1})"
        if teacher:
            run.log(f"teacher                              {teacher}")
        if not self.has_images:
            run.log(
                "There are no real images: what follows is agreement with the teacher on synthetic "
                "samples held out from training, which is not accuracy.",
                "yellow",
            )
        what = "student" if self.has_images else "agreement"
        run.log(f"{what + ', last epoch':36} {row['test_top1']:.2f} %", "green")
        if self.has_images:
            run.log(f"student, best (chosen on test data)  {best}")
        run.log(f"balance                              {balance_text(row)}")
        run.log(f"samples by class                     {run.path}/images/epoch-{progress.epoch:04d}.png")


@dataclass
class Progress:
    """How far a run has come. Epochs count from 0; `epoch` is the next one."""

    epoch: int
    seconds: float = 0.0
    best_epoch: int = -1
    best_top1: float = -1.0
    row: dict[str, Any] = field(default_factory=dict)  # metrics of the last epoch
    first: int = 0  # the epoch that the run began with

    @classmethod
    def of(cls, saved: dict[str, Any], epochs: int) -> Progress:
        """From what a checkpoint has.

        Raises:
            KeyError, TypeError, ValueError: it makes no sense.
        """
        progress = cls(**saved)
        checkpoint.require_like(asdict(replace(progress, row={})), asdict(cls(0)), "progress")
        if not 0 <= progress.first < progress.epoch <= epochs or type(progress.epoch) is not int:
            raise ValueError("progress is beyond the epochs")
        for name in ("epoch", "test_top1", "repository", "alpha", *BALANCE):
            if not isinstance(progress.row[name], (int, float, type(None))):
                raise TypeError(f"{name} is no number")
        return progress

    def add(self, row: dict[str, Any], seconds: float) -> None:
        """Take note of a finished epoch."""
        if row["test_top1"] > self.best_top1:
            self.best_epoch, self.best_top1 = row["epoch"], row["test_top1"]
        self.epoch, self.seconds, self.row = row["epoch"] + 1, seconds, row


BALANCE = ("count_variation", "count_entropy", "lof_relative_iqr", "lof_outside_share", "margin")


def balance_text(row: dict[str, Any]) -> str:
    """The balance measures of a line of metrics, in words."""

    def show(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.3f}"

    return (
        f"class counts: variation {show('count_variation')}, entropy {show('count_entropy')}; "
        f"LOF: IQR/median {show('lof_relative_iqr')}, outside the whiskers {show('lof_outside_share')}; "
        f"margin {show('margin')}"
    )


class ProgressBar:
    """A bar over the steps of a run, and a line an epoch. The bar is quiet when not on a terminal."""

    def __init__(self, settings: DistillSettings, epoch: int, print_freq: int, say: Any, judged: str):
        s = settings
        warmup_epochs = max(0, s.warmup - epoch)  # a step of the bar each
        total = warmup_epochs + (s.epochs - epoch - warmup_epochs) * s.rounds * s.kd_steps
        self.settings, self.print_freq, self.say, self.judged = s, print_freq, say, judged
        self.kd_steps = 0
        self.bar = tqdm(total=total, unit="step", disable=None, dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, phase: str, loss: Tensor) -> None:
        if phase != "kd":
            return
        self.bar.update()
        self.kd_steps += 1
        if self.print_freq and self.kd_steps % self.print_freq == 0:
            self.say(f"  step {self.kd_steps}: KD loss {loss.item():.4f}")

    def epoch(self, row: dict[str, Any]) -> None:
        epochs = self.settings.epochs
        text = (
            f"epoch {row['epoch'] + 1:{len(str(epochs))}}/{epochs}  alpha {row['alpha']:.2f}  "
            f"oh {row['loss_oh']:.3f}  bn {row['loss_bn']:.3f}  adv {row['loss_adv']:+.3f}  "
        )
        if row["loss_kd"] is None:
            self.bar.update()
            text += "warm-up  "
        else:
            text += f"kd {row['loss_kd']:.3f}  {self.judged} {row['test_top1']:.2f} %  "
        text += f"samples {row['repository']:,}  {sum(row['seconds'].values()):.1f} s"
        loss = "" if row["loss_kd"] is None else f"loss {row['loss_kd']:.3f}, "
        self.bar.set_postfix_str(f"{loss}{self.judged} {row['test_top1']:.2f} %")
        self.say(text)
