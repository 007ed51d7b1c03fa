"""Training on real images as a run that can be continued: its epochs, and the folder in which it says how far
it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from datafree.data.augment import OnlyFlip
from datafree.data.image_set import ImageSet
from datafree.data.image_spec import ImageSpec
from datafree.data.load import load_split
from datafree.data.pixels import to_float
from datafree.errors import UserError
from datafree.evaluation import Evaluation, Evaluator
from datafree.runs.environment import environment
from datafree.runs.folder import RunFolder
from datafree.runs.lock import RunLock, refuse_existing
from datafree.runs.loop import EpochWriter, run_epochs
from datafree.runs.progress import Progress, TrainingBar
from datafree.runs.resume import Resume
from datafree.settings import KDSettings, RealSettings, TrainSettings, as_dict, identity
from datafree.synthesis.base import OnStep, ignore_step
from datafree.torch_utils.device import choose_device
from datafree.torch_utils.distributed import Processes
from datafree.torch_utils.precision import found_precision
from datafree.torch_utils.random import global_state, set_global_state
from datafree.torch_utils.sgd import SGDTrainer
from datafree.torch_utils.state import require_like

Forward = Callable[[Tensor], Tensor]  # inputs to logits
Criterion = Callable[[Forward, Tensor, Tensor], Tensor]  # of the trained network, inputs and labels to a loss
DECAY = 0.1  # of the learning rate at a milestone


class Trainer(SGDTrainer):
    """Trains a network on real images, augmented.

    Args:
        network: on the device.
        criterion: the loss of a batch as the networks see it; called under autocast.
        images: what to train on.
        facts: how to augment.
        score: measures the network on test images, in the first process.
        settings: of the training.
        device: where the network is.
        processes: among which the batches are divided.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion,
        images: ImageSet,
        facts: ImageSpec,
        score: Callable[[nn.Module], Evaluation],
        settings: TrainSettings | KDSettings,
        device: torch.device,
        processes: Processes,
    ):
        s = settings
        schedules = torch.optim.lr_scheduler
        if s.lr_decay_milestones:
            milestones = [int(epoch) for epoch in s.lr_decay_milestones.split(",")]
            schedule: Any = partial(schedules.MultiStepLR, milestones=milestones, gamma=DECAY)
        else:
            schedule = partial(schedules.CosineAnnealingLR, T_max=max(1, s.epochs))
        super().__init__(network, s.lr, s.momentum, s.weight_decay, schedule, s.amp, device, processes)
        self.criterion, self.images, self.score = criterion, images, score
        # The first process draws the order of the images for all.
        self.rng = torch.Generator(device).manual_seed(s.seed + processes.rank)
        # Images that are read as random crops are only flipped.
        self.augment = (
            OnlyFlip(facts.normalize, facts.flip) if images.read_crops else facts.augment.for_training()
        )
        # Full batches only: a small last one would ruin the BatchNorm statistics.
        self.batch_size = min(s.batch_size, len(images) - len(images) % processes.world_size)
        self.steps = len(images) // self.batch_size

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> dict[str, Any]:
        """Epoch `epoch`, counted from 0; returns its line of `metrics.jsonl`.

        Raises:
            UserError: the loss is no longer finite.
        """
        start, lr, processes = time.perf_counter(), self.lr, self.processes
        loss, overflows = self.descend_all(self._losses(), partial(on_step, "train"))
        self.scheduler.step()
        if not loss < float("inf"):
            raise UserError(f"the loss is {loss} in epoch {epoch + 1}: try a lower --lr")
        scores = processes.broadcast_object(self.score(self.network) if processes.is_main else None)
        return {
            "epoch": epoch,
            "lr": lr,
            "loss": loss,
            "overflows": overflows,
            "test_top1": scores.top1,
            "test_top5": scores.top5,
            "test_loss": scores.loss,
            "test_recall": list(scores.recall),
            **({} if scores.agreement is None else {"test_agreement": scores.agreement}),
            "seconds": {"epoch": time.perf_counter() - start},
        }

    def _losses(self) -> Iterator[Tensor]:
        p, device = self.processes, self.device
        order = None
        if p.is_main:
            order = torch.randperm(len(self.images), generator=self.rng, device=device).cpu()
        own = p.shard(p.broadcast_object(order)[: self.steps * self.batch_size])
        for batch, labels in self.images.batches(self.batch_size // p.world_size, own, self.rng):
            inputs = self.augment(to_float(batch.to(device, non_blocking=True)), self.rng)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                loss = self.criterion(self.forward, inputs, labels.to(device, non_blocking=True))
            yield loss

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {**super().state_dict(), "streams": self.processes.all_gather_object(self._streams())}

    def _streams(self) -> dict[str, Tensor]:
        """The states of what this process draws from."""
        return {"images": self.rng.get_state(), **global_state(self.device)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the trainer that gave `state`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        own = state["streams"][self.processes.rank]
        require_like(own, self._streams(), "streams")
        super().load_state_dict(state)
        self.rng.set_state(own["images"])
        set_global_state(own, self.device)


@dataclass
class TrainingRun(Generic[RealSettings]):
    """The folder of a training, and the processes that take part in it.

    Args:
        settings: of the training; here with the precision found.
        folder: where it says how far it has come; None where nothing is trained.
        flag: names the folder, for error messages.

    Raises:
        UserError: the device cannot be had, or the folder is taken.
    """

    settings: RealSettings
    folder: Path | None
    flag: str
    device: torch.device = field(init=False)
    processes: Processes = field(init=False)
    run: RunFolder | None = field(init=False, default=None)  # of the first process, once it is under way
    lock: RunLock | None = field(init=False, default=None)
    said: list[str] = field(init=False, default_factory=list)  # before there was a run folder

    def __post_init__(self) -> None:
        s = self.settings
        self.device = choose_device(s.device, s.gpu)
        self.settings = s = replace(s, amp=found_precision(s.amp, self.device))
        self.processes = Processes.started_by_torchrun(self.device)
        if self.folder is None:
            return
        self.processes.require_divisible("--batch_size", s.batch_size)
        if self.processes.is_main and refuse_existing(
            self.folder, s.resume is not None, s.overwrite, self.flag
        ):
            self.lock = RunLock(self.folder, self.flag)

    def load_split(self, dataset: str, split: str, img_size: int) -> ImageSet:
        """The images of a split."""
        s = self.settings
        with self.processes.main_process_first():
            return load_split(dataset, split, s.data_root, img_size, s.download, s.workers)

    def judge(self, images: ImageSet, facts: ImageSpec, teacher: nn.Module | None = None) -> Evaluator:
        """What scores networks on images, and by their agreement with a teacher."""
        return Evaluator(images, facts.normalize, self.device, teacher)

    def train(
        self,
        trainer: Trainer,
        facts: ImageSpec,
        config: str,
        more: dict[str, Any],
        student: Callable[[], dict[str, Any]] | None = None,
    ) -> Progress:
        """Run the epochs, writing each down; returns how far the first process has come.

        Args:
            trainer: runs them.
            facts: of the data.
            config: the file for settings, facts and environment.
            more: what must be the same, beside the settings, for one training to continue another; and where
                the teacher's weights are, which may have moved.
            student: describes the student, for a file of the best epoch's.

        Raises:
            UserError: the training cannot be continued, its folder is taken, a loss is no longer finite, or
                the disk takes no more.
            Stopped: by a signal; the text says how to continue.
        """
        s, processes, device = self.settings, self.processes, self.device
        assert self.folder is not None
        own = {
            **identity(s),
            **facts.as_dict(),
            **more,
            "images": len(trainer.images),
            "processes": processes.world_size,
            "device_type": device.type,
        }
        own.pop("teacher_ckpt", None)
        if not processes.is_main:  # all have built the same, and draw differently (dropout) from here on
            torch.manual_seed(s.seed + processes.rank)
        progress, warnings = Progress(0), []
        if s.resume is not None:
            resume = Resume(self.folder, own, s.epochs, processes, self.lock, flag=self.flag)
            progress = resume.load(trainer, s.resume)
            self.lock, warnings = resume.lock, resume.warnings
        if processes.is_main:
            self.lock = self.lock or RunLock.of_new_run(self.folder, s.overwrite, self.flag)
            self.run = RunFolder(self.folder, s.overwrite, lock=self.lock)
            self.run.log_earlier(self.said)
            written = {**as_dict(s), **more, **facts.as_dict(), **environment(device)}
            self.run.write_json(config, {**written, "processes": processes.world_size})
            self.run.truncate_metrics(0, progress.epoch)
        for warning in warnings:
            self.say(f"warning: {warning}", "yellow")
        steps = (s.epochs - progress.epoch) * trainer.steps
        with TrainingBar(s.epochs, steps, self.say, s.print_freq, quiet=not processes.is_main) as bar:
            writer = None
            if self.run:
                known = {"identity": own, "facts": facts.as_dict()}
                writer = EpochWriter(self.run, bar, progress, s.epochs, known, student=student)
            run_epochs(trainer, progress.epoch, s.epochs, writer, s.resume)
        trainer.leave()
        return progress

    def say(self, text: str, color: str | None = None) -> None:
        if self.run:
            self.run.log(text, color)
        elif self.processes.is_main:
            self.said.append(text)
            print(text, flush=True)
