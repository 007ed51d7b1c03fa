"""KD: the student's optimiser, its schedule, and its steps against the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.methods import METHODS
from datafree.settings import Settings
from datafree.synthesis.base import OnStep, ignore_step
from datafree.torch_utils.precision import at_least_single, autocast
from datafree.torch_utils.processes import ALONE, Processes, batch_statistics
from datafree.torch_utils.state import load_optimizer, require_like

FINAL_LR = 2e-4  # where the cosine schedule ends


class StudentTrainer:
    """Trains the student by the teacher: SGD with a cosine schedule over the epochs after the warm-up.

    Args:
        teacher: frozen, in eval mode, on the device.
        student: what is trained, on the device.
        settings: `lr momentum weight_decay epochs warmup T amp compile`, and the method's divergence.
        device: where both are.
        processes: whose gradients are averaged.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: Settings,
        device: torch.device,
        processes: Processes = ALONE,
    ):
        s = settings
        self.student, self.settings, self.device, self.processes = student, s, device, processes
        self.divergence = METHODS[s.method].divergence
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            fused=device.type == "cuda" or None,  # skips fp16's overflows without asking the GPU
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, max(1, s.epochs - s.warmup), eta_min=FINAL_LR
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=s.amp == "fp16")
        self._autocast = autocast(s.amp, device)
        forward: list[Callable[[Tensor], Tensor]] = [processes.wrap(student), teacher]
        self._forward = [torch.compile(network) for network in forward] if s.compile else forward
        self._one = torch.ones((), device=device)
        self._overflows = torch.zeros((), device=device)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def train(self, batches: Iterable[Tensor], on_step: OnStep = ignore_step) -> tuple[float, int]:
        """A step for each batch (N, C, H, W), as the networks see it. The student's BatchNorm statistics are
        averaged over the processes at the end.

        Returns:
            The mean loss, NaN where every step overflowed; how many steps fp16 skipped for an overflow.
        """
        self.student.train()
        total = torch.zeros(2, device=self.device)  # losses, and how many there are
        self._overflows = torch.zeros((), device=self.device)
        for inputs in batches:
            loss = self.step(inputs)
            pair = torch.stack([loss, torch.ones_like(loss)])
            # Steps that overflow in half precision are skipped; they are no sign of divergence.
            total += torch.where(loss.isfinite(), pair, 0) if self.scaler.is_enabled() else pair
            on_step("kd", loss)
        self.processes.average([total, *batch_statistics(self.student)])
        losses_sum, count = total.tolist()
        return losses_sum / count if count else math.nan, int(self._overflows)

    def step(self, inputs: Tensor) -> Tensor:
        """One step on a batch (N, C, H, W) as the networks see it; returns the loss, detached."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        student, teacher = self._forward
        with self._autocast():
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            student_logits = student(inputs)
        pair = at_least_single(student_logits), at_least_single(teacher_logits)
        loss = losses.divergence(self.divergence, *pair, self.settings.T)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        before = self.scaler.scale(self._one)  # on the device: `get_scale` would wait for it
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():  # the scale falls after a step that overflowed and was skipped
            self._overflows += (self.scaler.scale(self._one) < before).float()
        return loss.detach()

    def skip_to(self, epoch: int) -> None:
        """Advance the schedule as if the epochs before `epoch` had been run."""
        for _ in range(self.settings.warmup, epoch):
            self.optimizer.step()
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the trainer that gave `state`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        for name, part in (("scheduler", self.scheduler), ("scaler", self.scaler)):
            require_like(state[name], part.state_dict(), name)
        for name in ("T_max", "eta_min", "base_lrs"):
            if state["scheduler"][name] != self.scheduler.state_dict()[name]:
                raise ValueError(f"{name} of the schedule is another")
        self.student.load_state_dict(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
