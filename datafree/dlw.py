"""DLW: the dynamic pseudo-supervised loss weight, which widens the margins between classes."""

from __future__ import annotations

MODES = ("dynamic", "con_min", "con_max", "line", "curve")


class DynamicLossWeight:
    """The weight alpha of the pseudo-supervised loss (`oh`), epoch by epoch (BSR, section on DLW).

    `dynamic` starts at `oh_min`. Call `observe` with the adversarial and the BatchNorm loss after each
    synthesis: unweighted, of the step with the lowest total. When both are strictly below the other values in
    a window of the last `oh_memory_size`, `update` adds `oh_step` in the next epoch: once the generator has
    mastered its task, classes may be separated more sharply. The other modes are the paper's ablations.
    (In the warm-up the adversarial loss is 0, and such zeros count like any other value.)

    Args:
        oh_min: alpha in the warm-up, and where it starts after it.
        oh_max: where `con_max`, `line` and `curve` end; not a bound on `dynamic`.
        oh_step: amount added to alpha when it is raised.
        oh_memory_size: length of the window of losses, the newest included, >= 2.
        warmup: number of epochs in which alpha stays at `oh_min`.
        epochs: number of all epochs; `line` and `curve` reach `oh_max` in the last one.
        dlw_mode: one of `MODES`.

    Raises:
        ValueError: `oh_memory_size` below 2 (there would be nothing to compare with), or an unknown
            mode.
    """

    def __init__(
        self,
        oh_min: float,
        oh_max: float,
        oh_step: float,
        oh_memory_size: int,
        warmup: int,
        epochs: int,
        dlw_mode: str = "dynamic",
    ):
        if oh_memory_size < 2:
            raise ValueError(f"oh_memory_size must be at least 2, not {oh_memory_size}")
        if dlw_mode not in MODES:
            raise ValueError(f"dlw_mode must be one of {', '.join(MODES)}, not {dlw_mode}")
        self.oh_min, self.oh_max, self.oh_step = oh_min, oh_max, oh_step
        self.oh_memory_size, self.warmup, self.epochs = oh_memory_size, warmup, epochs
        self.dlw_mode = dlw_mode
        self.alpha = oh_min
        self.adversarial_losses: list[float] = []
        self.bn_losses: list[float] = []

    def observe(self, adversarial_loss: float, bn_loss: float) -> None:
        """Remember the loss terms of the latest synthesis."""
        self.adversarial_losses = [*self.adversarial_losses, adversarial_loss][-self.oh_memory_size :]
        self.bn_losses = [*self.bn_losses, bn_loss][-self.oh_memory_size :]

    def update(self, epoch: int) -> float:
        """Alpha for `epoch` (from 0); call it once an epoch, before the epoch's synthesis."""
        if epoch < self.warmup:
            self.alpha = self.oh_min
        elif self.dlw_mode == "dynamic":
            if _new_minimum(self.adversarial_losses) and _new_minimum(self.bn_losses):
                self.alpha += self.oh_step
        elif self.dlw_mode == "con_min":
            self.alpha = self.oh_min
        elif self.dlw_mode == "con_max":
            self.alpha = self.oh_max
        else:
            progress = (epoch - self.warmup) / max(1, self.epochs - 1 - self.warmup)
            if self.dlw_mode == "line":
                self.alpha = self.oh_min + progress * (self.oh_max - self.oh_min)
            else:
                self.alpha = self.oh_min * (self.oh_max / self.oh_min) ** progress
        return self.alpha

    def state_dict(self) -> dict:
        return {
            "alpha": self.alpha,
            "adversarial_losses": self.adversarial_losses,
            "bn_losses": self.bn_losses,
        }

    def load_state_dict(self, state: dict) -> None:
        self.alpha = state["alpha"]
        self.adversarial_losses = list(state["adversarial_losses"])
        self.bn_losses = list(state["bn_losses"])


class FixedWeight:
    """Takes the place of DLW where it is off: alpha is always `weight`."""

    def __init__(self, weight: float):
        self.alpha = weight

    def observe(self, adversarial_loss: float, bn_loss: float) -> None:
        """Nothing depends on the losses."""

    def update(self, epoch: int) -> float:
        """Alpha."""
        return self.alpha

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def _new_minimum(window: list[float]) -> bool:
    """Whether the last value is strictly below all before it, of which there must be some."""
    return len(window) > 1 and window[-1] < min(window[:-1])
