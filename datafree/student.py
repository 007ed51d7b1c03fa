"""KD: the student's optimiser, its schedule, and its steps against the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import starmap

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.methods import METHODS
from datafree.settings import Settings
from datafree.synthesis.base import OnStep, ignore_step
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.precision import at_least_single
from datafree.torch_utils.sgd import SGDTrainer

FINAL_LR = 2e-4  # where the cosine schedule ends
# Images (N, C, H, W) as the networks see them, and the teacher's logits where they are known.
Batch = tuple[Tensor, Tensor | None]


class StudentTrainer(SGDTrainer):
    """Trains the student by the teacher: SGD with a cosine schedule over the epochs after the warm-up.

    Args:
        teacher: frozen, in eval mode, on the device.
        student: what is trained, on the device.
        settings: `lr momentum weight_decay epochs warmup T amp compile`, and the method's divergence.
        device: where both are.
        processes: whose gradients are averaged.
    """

    NAME = "student"

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: Settings,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
    ):
        s = self.settings = settings
        schedule = partial(
            torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max(1, s.epochs - s.warmup), eta_min=FINAL_LR
        )
        super().__init__(student, s.lr, s.momentum, s.weight_decay, schedule, s.amp, device, processes)
        self.divergence = METHODS[s.method].divergence
        self.teacher: Callable[[Tensor], Tensor] = teacher
        if s.compile:
            self.forward, self.teacher = torch.compile(self.forward), torch.compile(teacher)

    def train(self, batches: Iterable[Batch], on_step: OnStep = ignore_step) -> tuple[float, int]:
        """A step for each batch. Returns as `descend_all`."""
        return self.descend_all(starmap(self.loss, batches), partial(on_step, "kd"))

    def step(self, inputs: Tensor) -> Tensor:
        """One step on a batch (N, C, H, W) as the networks see it; returns the loss, detached."""
        return self.descend(self.loss(inputs))

    @torch.no_grad()
    def teach(self, inputs: Tensor) -> Tensor:
        """The teacher's logits on a batch (N, C, H, W) as the networks see it."""
        with self.autocast():
            return at_least_single(self.teacher(inputs.contiguous(memory_format=torch.channels_last)))

    def loss(self, inputs: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        """The divergence of student and teacher on a batch (N, C, H, W) as the networks see it; the teacher
        is asked where its logits are not given."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        if teacher_logits is None:
            teacher_logits = self.teach(inputs)
        with self.autocast():
            student_logits = at_least_single(self.forward(inputs))
        return losses.divergence(self.divergence, student_logits, teacher_logits, self.settings.T)

    def skip_to(self, epoch: int) -> None:
        """Advance the schedule as if the epochs before `epoch` had been run."""
        for _ in range(self.settings.warmup, epoch):
            self.optimizer.step()
            self.scheduler.step()
