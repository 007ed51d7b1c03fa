"""The one seam for several processes: each synthesises its shard of a batch, and all prune the same samples.
(Gradients are averaged where they are made: in the synthesizers and by DistributedDataParallel.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datafree.iho import HomogeneityOperator, OutlierScores
from datafree.samples import Samples
from datafree.synthesis.base import OnStep, Synthesis, Synthesizer, ignore_step
from datafree.torch_utils.distributed import Processes


class ShardedSynthesizer:
    """A synthesizer whose batches are divided: each process generates a shard, and all get all samples and
    the mean losses. Everything else is that of the synthesizer itself.

    Args:
        synthesizer: of this process.
        processes: two or more.
    """

    def __init__(self, synthesizer: Synthesizer, processes: Processes):
        self._own, self._processes = synthesizer, processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`; `targets` and the result are those of all processes."""
        own = self._own.synthesize(self._processes.shard(targets), alpha, on_step)
        means = torch.tensor(list(own.losses.values()), device=targets.device)
        self._processes.all_reduce_mean([means])
        losses = dict(zip(own.losses, means.tolist(), strict=True))
        samples = Samples(*map(self._processes.all_gather, vars(own.samples).values()))
        return Synthesis(samples, own.images, losses, {name: [value] for name, value in losses.items()})


class SynchronizedPruner(HomogeneityOperator):
    """Prunes what the main process selects: a GPU may round another process's distances differently."""

    def __init__(self, processes: Processes, num_classes: int, batch_size: int, epochs: int):
        super().__init__(num_classes, batch_size, epochs)
        self.processes = processes

    def select(self, scores: OutlierScores, labels: Tensor) -> Tensor:
        selected = super().select(scores, labels)
        return self.processes.broadcast_object(selected.cpu()).to(selected.device)
