"""One command of `bsr_main.py`: the teacher, the student and the test images that the settings name, and
their scores."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from termcolor import colored

from datafree.data.image_folders import load_labelled
from datafree.data.image_set import ImageSet
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.data.load import load_split
from datafree.errors import UserError
from datafree.evaluation import Evaluator
from datafree.extras.pruned import keep_zeros, zeros_of
from datafree.extras.several_teachers import prepare_teacher
from datafree.methods import METHODS
from datafree.networks.build import arguments_of, build, source_of
from datafree.networks.check import NO_STATISTICS, check_network, settle_layout
from datafree.networks.names import parse_arguments
from datafree.networks.student_file import require_storable
from datafree.networks.teacher import Teacher, other_classes
from datafree.runs.files import STUDENT
from datafree.runs.folder import RunFolder, require_tensorboard
from datafree.runs.lock import RunLock, refuse_existing
from datafree.runs.resume import state_of
from datafree.settings import Settings
from datafree.torch_utils import checkpoint
from datafree.torch_utils.device import choose_device
from datafree.torch_utils.distributed import Processes
from datafree.torch_utils.precision import found_precision, set_kernels
from datafree.torch_utils.state import fingerprint


class Session:
    """The networks, the images and the console of a command. Everything that can be wrong with them is
    found when this is made; nothing is written.

    Raises:
        UserError: the device, the teacher or the data cannot be had, the networks do not fit the data or each
            other, or the run folder is taken.
    """

    def __init__(self, settings: Settings):
        self.device = choose_device(settings.device, settings.gpu)
        amp = found_precision(settings.amp, self.device)
        s = self.settings = replace(settings, amp=amp)
        self.folder = Path(s.save_dir)
        self.run: RunFolder | None = None
        self.said: list[str] = []  # before there was a run folder
        self.processes = Processes.started_by_torchrun(self.device)
        self.lock: RunLock | None = None
        writes = s.epochs and not s.evaluate_only and self.processes.is_main
        if writes and refuse_existing(self.folder, s.resume is not None, s.overwrite):
            self.lock = RunLock(self.folder)
        if s.tensorboard:
            require_tensorboard()
        set_kernels(s.deterministic)
        if s.evaluate_only and s.dataset != "none":  # for which the teacher need not be there
            self.facts = self._facts_of_student()
        else:
            self.facts = self.teacher.data
        torch.manual_seed(s.seed)
        arguments = parse_arguments(s.student_args, "--student_args")
        if s.evaluate_only or s.student_ckpt:
            state = self._student_state() if s.evaluate_only else self.start
            arguments = {**arguments_of(s.student, state), **arguments}
        student = build(
            s.student, "--student", self.facts.num_classes, self.facts.channels, arguments, s.pretrained
        )
        self.student = student.to(self.device)
        self.student_source = source_of(s.student)
        self.student_start: str | None = None  # a digest of the weights that it is given
        if s.student_ckpt and not s.evaluate_only:
            self._start_student()
        self._introduce()
        if s.keep_zeros:
            keep_zeros(self.student)

    @cached_property
    def teacher(self) -> Teacher:
        teacher = prepare_teacher(self.settings, self.device)
        for warning in teacher.warnings:
            self.warn(warning)
        return teacher

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The weights that the student starts from, where they are given."""
        file = Path(str(self.settings.student_ckpt))
        return checkpoint.state_dict_of(checkpoint.read(file), file)

    def _start_student(self) -> None:
        """Give the student its first weights.

        Raises:
            UserError: they are of another network.
        """
        file = Path(str(self.settings.student_ckpt))
        name = f"{self.settings.student} with {self.facts.num_classes} classes"
        checkpoint.load_network(self.student, self.start, file, name)
        self.student_start = fingerprint(self.student)
        zeros, count = zeros_of(self.student)
        kept = ", and stay so" if self.settings.keep_zeros else ""
        self.say(f"student from {file}: {100 * zeros / max(1, count):.1f} % of its weights are zero{kept}")

    def _introduce(self) -> None:
        """See that the student takes such images and knows the same classes, and say what both networks are.

        Raises:
            UserError: it does not.
        """
        s, facts = self.settings, self.facts
        if not s.evaluate_only:
            self.say(f"teacher {s.teacher}: {self.teacher.found}")
            if not self.teacher.found.bn_layers and "bn" in METHODS[s.method].takes:
                self.warn(NO_STATISTICS)
        found = check_network(
            self.student, f"--student {s.student}", facts.channels, facts.img_size, self.device, trained=True
        )
        if found.num_classes != facts.num_classes:
            raise UserError(other_classes("student", s.student, found.num_classes, facts.num_classes))
        require_storable(self.student, f"--student {s.student}")
        self.processes.freeze_unused(self.student, found.unused)
        if not s.evaluate_only:
            self.say(f"student {s.student}: {found}")

    # The console

    def say(self, text: str, color: str | None = None) -> None:
        if self.run:
            self.run.log(text, color)
        elif self.processes.is_main:
            self.said.append(text)
            print(colored(text, color) if color else text, flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", "yellow")

    # Scores

    @property
    def has_images(self) -> bool:
        """Whether there are real images to test on."""
        return self.settings.dataset != "none" or bool(self.settings.eval_folder)

    @cached_property
    def test_images(self) -> ImageSet:
        s = self.settings
        with self.processes.main_process_first():
            if s.eval_folder:
                images = load_labelled(
                    Path(s.eval_folder), self.facts.img_size, self.facts.num_classes, s.workers
                )
            else:
                images = load_split(
                    s.dataset, "test", s.data_root, self.facts.img_size, s.download, s.workers
                )
        return images.for_channels(self.facts.channels)

    @cached_property
    def score(self) -> Evaluator:
        """Scores networks on the test images; those of a run also by their agreement with the teacher."""
        teacher = None if self.settings.evaluate_only else self.teacher.network
        return Evaluator(self.test_images, self.facts.normalize, self.device, teacher)

    def test_teacher(self) -> None:
        """Report the teacher's accuracy."""
        if self.settings.evaluate_only:  # without which it has been examined
            images = torch.zeros(1, self.facts.channels, self.facts.img_size, self.facts.img_size)
            images = images.to(self.device, memory_format=torch.channels_last)
            settle_layout(self.teacher.network, images)
        self.say(f"teacher {self.settings.teacher}: {self.score(self.teacher.network)}")

    def _student_file(self) -> Path:
        return Path(self.settings.resume) if self.settings.resume else self.folder / STUDENT

    def _student_state(self) -> dict[str, torch.Tensor]:
        file = self._student_file()
        return state_of(checkpoint.read(file), file)

    def _facts_of_student(self) -> ImageSpec:
        """What a student's checkpoint tells of its images."""
        s = self.settings
        recorded = recorded_spec(checkpoint.read(self._student_file()))
        facts = image_spec(s, "test", recorded)
        return facts.for_channels(s.channels or len(recorded.get("mean", "rgb")))

    def evaluate_student(self) -> None:
        """Report the accuracy of the student in a checkpoint.

        Raises:
            UserError: it is of another network.
        """
        path, student = self._student_file(), self.settings.student
        name = f"{student} with {self.facts.num_classes} classes"
        checkpoint.load_network(self.student, self._student_state(), path, name)
        self.say(f"student {student}: {self.score(self.student)}")
