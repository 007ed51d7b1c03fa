"""DLW: the dynamic pseudo-supervised loss weight, which widens the margins between classes."""

from __future__ import annotations

MODES = ("dynamic", "con_min", "con_max", "line", "curve")


class DynamicLossWeight:
    """The weight alpha of the pseudo-supervised loss (`oh`), epoch by epoch (BSR, section on DLW).

    `dynamic` starts at `minimum` and adds `step` in an epoch when the last synthesis brought both
    the adversarial and the BatchNorm loss strictly below all the values before it in a window of
    `memory_size`: once the generator has mastered what it is asked for, classes may be told apart
    more sharply. The other modes are the paper's ablations.

    Args:
        minimum: alpha in the warm-up, and where it starts after it (`--oh_min`).
        maximum: where `con_max`, `line` and `curve` end (`--oh_max`); not a bound on `dynamic`.
        step: what alpha grows by at a time (`--oh_step`).
        memory_size: length of the window of losses, the newest included (`--oh_memory_size`), >= 2.
        warmup: epochs in which alpha stays at `minimum`.
        epochs: all epochs; `line` and `curve` reach `maximum` in the last one.
        mode: one of `MODES`.

    Raises:
        ValueError: `memory_size` below 2 (there would be nothing to compare with), or an unknown
            mode.
    """

    def __init__(
        self,
        minimum: float,
        maximum: float,
        step: float,
        memory_size: int,
        warmup: int,
        epochs: int,
        mode: str = "dynamic",
    ):
        if memory_size < 2:
            raise ValueError(f"memory_size must be at least 2, not {memory_size}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode}")
        self.minimum, self.maximum, self.step = minimum, maximum, step
        self.memory_size, self.warmup, self.epochs, self.mode = memory_size, warmup, epochs, mode
        self.alpha = minimum
        self.adversarial_losses: list[float] = []
        self.bn_losses: list[float] = []

    def record(self, adversarial_loss: float, bn_loss: float) -> None:
        """Remember the loss terms of the synthesis just done."""
        self.adversarial_losses = [*self.adversarial_losses, adversarial_loss][-self.memory_size :]
        self.bn_losses = [*self.bn_losses, bn_loss][-self.memory_size :]

    def update(self, epoch: int) -> float:
        """Alpha for `epoch` (from 0); call it once an epoch, before the epoch's synthesis."""
        if epoch < self.warmup:
            self.alpha = self.minimum
        elif self.mode == "dynamic":
            if _new_minimum(self.adversarial_losses) and _new_minimum(self.bn_losses):
                self.alpha += self.step
        elif self.mode == "con_min":
            self.alpha = self.minimum
        elif self.mode == "con_max":
            self.alpha = self.maximum
        else:
            progress = (epoch - self.warmup) / max(1, self.epochs - 1 - self.warmup)
            if self.mode == "line":
                self.alpha = self.minimum + progress * (self.maximum - self.minimum)
            else:
                self.alpha = self.minimum * (self.maximum / self.minimum) ** progress
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


def _new_minimum(window: list[float]) -> bool:
    """Whether the last value is strictly below all before it, of which there must be some."""
    return len(window) > 1 and window[-1] < min(window[:-1])
