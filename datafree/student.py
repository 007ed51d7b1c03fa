"""Knowledge distillation: the student's optimiser, its schedule, and its steps against the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.data.augment import Augment, Normalize
from datafree.methods import METHODS
from datafree.repository import SampleRepository
from datafree.samples import Batch
from datafree.settings import Settings
from datafree.synthesis.base import OnStep, Synthesizer, ignore_step
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.precision import at_least_single
from datafree.torch_utils.sgd import SGDTrainer

FINAL_LR = 2e-4  # where the cosine schedule ends


class StudentTrainer(SGDTrainer):
    """Trains the student to match the teacher: SGD with a cosine schedule over the epochs after the warm-up.

    Args:
        teacher: frozen, in eval mode, on the device.
        student: trained, on the device.
        settings: `lr momentum weight_decay epochs warmup T amp compile`, and the method's divergence.
        device: of both networks.
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
        self._trained = False  # in this epoch

    def train(self, batches: Iterable[Batch], on_step: OnStep = ignore_step) -> tuple[float, int]:
        """One step for each batch; returns what `descend_all` returns."""
        self._trained = True
        return self.descend_all(map(self.loss, batches), partial(on_step, "kd"))

    def end_epoch(self) -> None:
        """Advance the schedule, if the student was trained in this epoch."""
        if self._trained:
            self.scheduler.step()
        self._trained = False

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits for images (N, C, H, W) as the networks see them."""
        with self.autocast():
            return at_least_single(self.teacher(images.contiguous(memory_format=torch.channels_last)))

    def loss(self, batch: Batch) -> Tensor:
        """The divergence of student and teacher on a batch, a scalar."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        teacher_logits = self.teach(images) if batch.teacher_logits is None else batch.teacher_logits
        with self.autocast():
            student_logits = at_least_single(self.forward(images))
        return losses.divergence(self.divergence, student_logits, teacher_logits, self.settings.T)

    def skip(self, epochs: int) -> None:
        """Advance the schedule as if so many epochs had been trained."""
        for _ in range(epochs):
            self.optimizer.step()
            self.scheduler.step()


def stored_batches(
    repository: SampleRepository,
    augment: Augment,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    _on_step: OnStep = ignore_step,
) -> Iterator[Batch]:
    """`steps` batches of stored samples, augmented."""
    for images in repository.batches(batch_size, steps, generator):
        yield Batch(augment(images, generator))


def fresh_batches(
    synthesizer: Synthesizer,
    normalize: Normalize,
    batch_size: int,
    steps: int,
    _on_step: OnStep = ignore_step,
) -> Iterator[Batch]:
    """`steps` batches that the generator generates for this purpose alone."""
    for _ in range(steps):
        yield Batch(normalize(synthesizer.sample(batch_size)))
