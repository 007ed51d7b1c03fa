"""SGD steps on losses, also in half precision and over several processes."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from datafree.torch_utils.distributed import Processes, batch_statistics
from datafree.torch_utils.precision import autocast


class SGDTrainer:
    """A network with its optimiser, its schedule and the scaler of its losses.

    Args:
        network: to train, on the device.
        lr, momentum, weight_decay: of SGD.
        schedule: creates the schedule of an optimiser.
        amp: see `--amp`.
        device: where the network is.
        processes: whose gradients are averaged.
    """

    NAME = "network"  # in the state

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        amp: str,
        device: torch.device,
        processes: Processes,
    ):
        self.network, self.device, self.processes = network, device, processes
        self.forward: Callable[[Tensor], Tensor] = processes.wrap(network)
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            fused=device.type == "cuda" or None,  # skips fp16's overflows without asking the GPU
        )
        self.scheduler = schedule(self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.autocast = autocast(amp, device)
        self._one = torch.ones((), device=device)
        self._overflows = torch.zeros((), device=device)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def descend_all(self, losses: Iterable[Tensor], on_step: Callable[[Tensor], Any]) -> tuple[float, int]:
        """A step for each loss, computed one by one; `on_step` gets it, detached. The network's BatchNorm
        statistics are averaged over the processes at the end.

        Returns:
            The mean loss, NaN where every step overflowed; how many steps fp16 skipped for an overflow.
        """
        self.network.train()
        total = torch.zeros(2, device=self.device)  # losses, and how many there are
        self._overflows = torch.zeros((), device=self.device)
        for computed in losses:
            loss = self.descend(computed)
            pair = torch.stack([loss, torch.ones_like(loss)])
            # Steps that overflow in half precision are skipped; they are no sign of divergence.
            total += torch.where(loss.isfinite(), pair, 0) if self.scaler.is_enabled() else pair
            on_step(loss)
        self.processes.all_reduce_mean([total, *batch_statistics(self.network)])
        losses_sum, count = total.tolist()
        return losses_sum / count if count else math.nan, int(self._overflows)

    def descend(self, loss: Tensor) -> Tensor:
        """One step on a loss; returns it, detached."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        before = self.scaler.scale(self._one)  # on the device: `get_scale` would wait for it
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():  # the scale falls after a step that overflowed and was skipped
            self._overflows += (self.scaler.scale(self._one) < before).float()
        return loss.detach()

    def leave(self) -> None:
        """Leave the process group: no messages from here on."""
        self.forward = self.network
        gc.collect()  # the wrapper keeps threads alive that must end before the program does
        self.processes.end()

    def state_dict(self) -> dict[str, Any]:
        return {
            self.NAME: self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        self.network.load_state_dict(state[self.NAME])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
