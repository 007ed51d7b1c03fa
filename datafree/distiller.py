"""The algorithm of data-free distillation with a balanced sample repository (BSR), epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datafree.blg import UniformLabels
from datafree.dlw import DynamicLossWeight, FixedWeight
from datafree.iho import NoPruning
from datafree.repository import SampleRepository
from datafree.samples import Batch
from datafree.student import StudentTrainer
from datafree.synthesis.base import OnStep, Synthesizer, ignore_step
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.random import RandomGenerators


@dataclass
class Distiller:
    """The parts of a distillation, and the epoch in which they work together. A part is switched off by
    another in its place: see `assemble.make_distiller`.

    Args:
        loss_weight: alpha, the weight of the pseudo-supervised loss.
        labels: which classes to request.
        synthesizer: generates a batch of samples.
        repository: keeps them; empty, or as a checkpoint left it.
        pruner: removes samples from it.
        batches: yields the student's batches of one round.
        student: learns from them.
        batch_size: samples of one synthesis (nayer: of each of its batches).
        rounds: rounds of synthesis, pruning and distillation in an epoch.
        warmup: number of first epochs, which only fill the repository.
        generators: random number generators of all parts.
        processes: among which batches are divided.
    """

    loss_weight: DynamicLossWeight | FixedWeight
    labels: UniformLabels
    synthesizer: Synthesizer
    repository: SampleRepository
    pruner: NoPruning
    batches: Callable[[OnStep], Iterator[Batch]]
    student: StudentTrainer
    batch_size: int
    rounds: int
    warmup: int
    generators: RandomGenerators
    processes: Processes = SINGLE_PROCESS

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> float:
        """Epoch `epoch`, counted from 0; returns alpha. `on_step` is called after every step of synthesis
        and distillation."""
        alpha = self.loss_weight.update(epoch)  # 1. DLW: the weight of the class loss
        for _ in range(self.rounds):
            labels = self.synthesizer.targets(self.batch_size, self.labels.draw)  # 2. BLG: which classes
            synthesis = self.synthesizer.synthesize(labels, alpha, on_step)  # 3. a batch of samples
            self.repository.add(synthesis.samples)
            self.loss_weight.observe(synthesis.losses["adv"], synthesis.losses["bn"])
            if epoch < self.warmup:
                continue
            self.pruner.prune(self.repository, epoch)  # 4. IHO: outliers and crowded samples go
            self.labels.update(self.repository.counts())
            self.student.train(self.batches(on_step), on_step)  # 5. knowledge distillation
        self.student.end_epoch()
        return alpha

    def skip_to(self, epoch: int) -> None:
        """Advance the schedules as if the epochs before `epoch` had been run (`--start_epoch`)."""
        self.synthesizer.skip(epoch * self.rounds)
        self.student.skip(epoch - self.warmup)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            **self.student.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "repository": self.repository.state_dict(),
            "loss_weight": self.loss_weight.state_dict(),
            "labels": self.labels.state_dict(),
            "generators": self.processes.all_gather_object(self.generators.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        self.student.load_state_dict(state)
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.loss_weight.load_state_dict(state["loss_weight"])
        self.labels.load_state_dict(state["labels"])
        self.generators.load_state_dict(state["generators"][self.processes.rank])
        self.pruner.reset()
        # Last: this deletes samples stored after the checkpoint, so everything else must have loaded.
        self.repository.load_state_dict(state["repository"])
