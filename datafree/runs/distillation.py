"""Distillation into a run folder: start or resume, run the epochs, end with the final figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from datafree.assemble import make_distiller
from datafree.data.image_folders import load_folder
from datafree.data.pixels import noise_like, to_float
from datafree.distiller import Distiller
from datafree.evaluation import HeldOut
from datafree.methods import METHODS
from datafree.networks.bn_statistics import check_bn_statistics
from datafree.networks.student_file import describe
from datafree.runs.contact_sheet import export_repository
from datafree.runs.environment import environment
from datafree.runs.files import CONFIG, REPOSITORY, SAMPLES, SUMMARY
from datafree.runs.folder import RunFolder
from datafree.runs.lock import RunLock
from datafree.runs.loop import EpochWriter, run_epochs
from datafree.runs.measure import MeasuredDistiller
from datafree.runs.progress import BALANCE, FIGURES, DistillationBar, Progress, balance_text
from datafree.runs.resume import Resume
from datafree.runs.sample_log import SampleLog
from datafree.runs.session import Session
from datafree.samples import Samples
from datafree.settings import as_dict, identity
from datafree.torch_utils.state import fingerprint

FEW, LEAST_STEPS = 64, 5  # images looked at; steps of a synthesis after which they should fit


class Distillation:
    """A run of a session.

    Args:
        session: its networks and images.
    """

    def __init__(self, session: Session):
        self.session, self.settings, self.processes = session, session.settings, session.processes
        self.folder, self.facts = session.folder, session.facts
        if session.has_images:
            self.facts = replace(self.facts, classes=tuple(session.test_images.classes))

    def run(self) -> None:
        """Run the epochs, writing each down; ends with the final figures.

        Raises:
            UserError: the run cannot be continued, its folder is taken, a loss is no longer finite, or the
                disk takes no more.
            Stopped: by a signal; the text says how to continue.
        """
        s, processes, session = self.settings, self.processes, self.session
        distiller = self.build_distiller()
        if not processes.is_main:  # all have built the same, and draw differently (dropout) from here on
            torch.manual_seed(s.seed + processes.rank)
        first_samples = self._first_samples()
        progress = self.start_or_resume(distiller)
        if processes.is_main:
            session.run = self._open_run(progress)
        processes.barrier()  # until there is a folder to log samples in
        for images in first_samples:
            store_images(distiller.distiller, images)
        judged = "test" if session.has_images else "agreement"
        with DistillationBar(s, progress.epoch, session.say, judged, quiet=not processes.is_main) as bar:
            writer = None
            if session.run:
                facts = {"identity": self.identity, "facts": self.facts.as_dict()}
                sheet = partial(
                    session.run.save_samples,
                    repository=distiller.distiller.repository,
                    classes=self.facts.classes,
                )
                writer = EpochWriter(
                    session.run, bar, progress, s.epochs, facts, s.save_every, sheet, self._described
                )
            run_epochs(
                distiller, progress.epoch, s.epochs, writer, s.resume, self._statistics_check(distiller)
            )
        distiller.distiller.student.leave()
        if session.run:
            self._finish(session.run, progress)
            if s.export_repository:
                folder = export_repository(
                    distiller.distiller.repository, self.facts.classes, self.folder / REPOSITORY
                )
                session.say(f"repository: {folder}")

    def build_distiller(self) -> MeasuredDistiller:
        s, facts = self.settings, self.facts
        self.processes.require_divisible("--batch_size", s.batch_size)
        self.processes.require_divisible("--synthesis_batch_size", s.synthesis_batch_size)
        features = self.session.teacher.found.features
        assert features is not None  # a teacher's are looked for
        shape = (facts.channels, facts.img_size, facts.img_size)
        distiller = make_distiller(
            s,
            self.session.teacher.network,
            self.session.student,
            features=features,
            img_size=facts.img_size,
            num_classes=facts.num_classes,
            augment=facts.augment,
            device=self.session.device,
            processes=self.processes,
            log=SampleLog(self.folder / SAMPLES, shape, features.dim, self.processes.is_main),
            warn=self.session.warn,
        )
        held_out = None
        if s.dataset == "none":
            held_out = HeldOut(shape, self.session.teacher.network, facts.normalize, self.session.device)
        evaluate = self.session.score if self.session.has_images else None
        return MeasuredDistiller(distiller, s, evaluate, held_out)

    def _statistics_check(self, distiller: MeasuredDistiller) -> Callable[[int], None]:
        """Warns of a teacher whose BatchNorm statistics cannot be those of its weights: at once where they
        were never touched; else what is returned does, after the first epoch, when there are images."""
        s, session = self.settings, self.session
        network = session.teacher.network
        by_statistics = s.bn and "bn" in METHODS[s.method].takes
        known = check_bn_statistics(network) if by_statistics else None
        if known:
            session.warn(known)

        def check(epoch: int) -> None:
            if epoch or known or not by_statistics or s.g_steps < LEAST_STEPS:
                return
            repository = distiller.distiller.repository
            rows = torch.arange(min(FEW, len(repository)))
            noise = noise_like(FEW, (self.facts.channels, self.facts.img_size, self.facts.img_size))
            seen = (
                self.facts.normalize(to_float(images.to(session.device)))
                for images in (noise, repository.images(rows))
            )
            found = check_bn_statistics(network, *seen)
            if found:
                session.warn(found)

        return check

    def _first_samples(self) -> Iterable[torch.Tensor]:
        """Batches of the images with which `cmi_init` fills the repository at first."""
        s = self.settings
        if not (s.cmi_init and "cmi_init" in METHODS[s.method].takes and s.resume is None):
            return ()
        images = load_folder(Path(s.cmi_init), self.facts.img_size, s.workers)
        return (batch for batch, _ in images.for_channels(self.facts.channels).batches(s.batch_size))

    @property
    def judged(self) -> str:
        return "test_top1" if self.session.has_images else "holdout_agreement"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for one run to continue another: settings, the data as found, the teacher's
        weights, those that the student started from, the number of processes and the kind of device."""
        return {
            **identity(self.settings),
            "student_start": self.session.student_start,
            **self.facts.as_dict(),
            "teacher_weights": fingerprint(self.session.teacher.network),
            "processes": self.processes.world_size,
            "device_type": self.session.device.type,
        }

    def start_or_resume(self, distiller: MeasuredDistiller) -> Progress:
        s = self.settings
        if s.resume is None:
            distiller.distiller.skip_to(s.start_epoch)
            if self.session.has_images:  # also shows that they can be read
                distiller.evaluation = self.session.score(self.session.student)
                if s.student_ckpt:
                    self.session.say(f"student at the start: {distiller.evaluation}")
            return Progress(s.start_epoch, first=s.start_epoch)
        resume = Resume(
            self.folder,
            self.identity,
            s.epochs,
            self.processes,
            self.session.lock,
            (*FIGURES, "repository", "alpha", *BALANCE),
        )
        progress = resume.load(distiller, s.resume)
        self.session.lock = resume.lock
        for warning in resume.warnings:
            self.session.warn(warning)
        return progress

    def _open_run(self, progress: Progress) -> RunFolder:
        """Make the run folder, or go on in it."""
        s, session = self.settings, self.session
        session.lock = session.lock or RunLock.of_new_run(self.folder, s.overwrite)
        events_from = progress.epoch if s.tensorboard else None
        run = RunFolder(self.folder, s.overwrite, events_from, session.lock)
        run.log_earlier(session.said)
        config = {
            **as_dict(s),
            "teacher_ckpt": session.teacher.file,
            "judged_by": self.judged,
            **self.facts.as_dict(),
            **environment(session.device),
            "processes": self.processes.world_size,
        }
        run.write_json(CONFIG, config)
        run.truncate_metrics(progress.first, progress.epoch)
        run.log(f"{s.method}: {s.teacher} to {s.student} on {s.dataset}, {session.device}; see {run.path}")
        return run

    def _described(self) -> dict[str, Any]:
        """The student with what it takes to use it."""
        s, session = self.settings, self.session
        return describe(session.student, s.student, s.student_args, session.student_source, self.facts)

    def _finish(self, run: RunFolder, progress: Progress) -> None:
        """The student, and the final figures to `summary.json` and the console."""
        s, session, row = self.settings, self.session, progress.row
        teacher = session.score(session.teacher.network) if session.has_images else None
        run.save_student(self._described())
        agreements = ("holdout_agreement", "test_agreement")
        run.write_json(
            SUMMARY,
            {
                **(
                    {
                        "teacher_top1": teacher.top1,
                        "last_top1": row["test_top1"],
                        "best_top1_chosen_on_test_data": progress.best_top1,
                    }
                    if teacher
                    else {"best_holdout_agreement": progress.best_top1}
                ),
                "best_epoch": progress.best_epoch,
                **{f"last_{name}": row[name] for name in agreements if name in row},
                "epochs": s.epochs,
                "seconds": progress.seconds,
                **{name: row[name] for name in ("repository", "alpha", *BALANCE)},
            },
        )
        note = "agreement with the teacher on synthetic samples held out from training, which is not accuracy"
        if teacher:
            run.log(f"teacher                              {teacher}")
        if self.session.has_images:
            run.log(f"student, last epoch                  {row['test_top1']:.2f} %", "green")
            best = f"{progress.best_top1:.2f} % (epoch {progress.best_epoch + 1})"
            run.log(f"student, best (chosen on test data)  {best}")
            if "holdout_agreement" in row:
                run.log(f"agreement, last epoch                {row['holdout_agreement']:.2f} % ({note})")
        else:
            run.log(f"There are no real images: what follows is {note}.", "yellow")
            run.log(f"agreement, last epoch                {row['holdout_agreement']:.2f} %", "green")
        run.log(f"balance                              {balance_text(row)}")
        run.log(f"samples by class                     {run.sheet(progress.epoch)}")


@torch.no_grad()
def store_images(distiller: Distiller, images: torch.Tensor) -> None:
    """Put uint8 images (N, C, H, W) from elsewhere into the repository, with the teacher's labels."""
    synthesizer = distiller.synthesizer
    inputs = synthesizer.augment.normalize(to_float(images.to(distiller.repository.device)))
    with synthesizer.features.capture():
        logits = synthesizer.teacher(inputs)
    distiller.repository.add(Samples.seen(images, synthesizer.features.value, logits))
