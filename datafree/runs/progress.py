"""How far a run has come, and how the console shows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from datafree.settings import Settings
from datafree.torch_utils.state import require_like

FIGURES = ("epoch",)  # of every line of metrics
BALANCE = ("count_variation", "count_entropy", "lof_relative_iqr", "lof_outside_share", "margin")


@dataclass
class Progress:
    """How far a run has come. Epochs count from 0; `epoch` is the next one."""

    epoch: int
    seconds: float = 0.0
    best_epoch: int = -1
    best_top1: float = -1.0
    row: dict[str, Any] = field(default_factory=dict)  # metrics of the last epoch
    first: int = 0  # the epoch that the run began with
    best_is_trained: bool = False  # of an epoch after the warm-up, which leaves the student as it was

    @classmethod
    def of(cls, saved: dict[str, Any], epochs: int, figures: Sequence[str]) -> Progress:
        """From what a checkpoint has; `figures` are what its metrics must have.

        Raises:
            KeyError, TypeError, ValueError: it makes no sense.
        """
        progress = cls(**saved)
        require_like(asdict(replace(progress, row={})), asdict(cls(0)), "progress")
        if not 0 <= progress.first < progress.epoch <= epochs or type(progress.epoch) is not int:
            raise ValueError("progress is beyond the epochs")
        for name in figures:
            if not isinstance(progress.row[name], (int, float, type(None))):
                raise TypeError(f"{name} is no number")
        return progress

    def add(self, row: dict[str, Any], seconds: float) -> bool:
        """Take note of a finished epoch; returns whether it is the best so far."""
        trained = row.get("loss_kd", 0.0) is not None
        top1 = row["test_top1"] if "test_top1" in row else row["holdout_agreement"]
        better = top1 > self.best_top1 or not self.best_is_trained
        best = better and row.get("evaluated", True) if trained else self.best_epoch < 0
        if best:
            self.best_epoch, self.best_top1, self.best_is_trained = row["epoch"], top1, trained
        self.epoch, self.seconds, self.row = row["epoch"] + 1, seconds, row
        return best


def balance_text(row: dict[str, Any]) -> str:
    """The balance measures of a line of metrics, in words."""

    def show(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.3f}"

    return (
        f"class counts: variation {show('count_variation')}, entropy {show('count_entropy')}; "
        f"LOF: IQR/median {show('lof_relative_iqr')}, outside the whiskers {show('lof_outside_share')}; "
        f"margin {show('margin')}"
    )


class ProgressBar(ABC):
    """A bar over the steps of a run, and a line an epoch. The bar is quiet when not on a terminal.

    Args:
        total: steps of the bar.
        say: shows a line.
        print_freq: steps between two lines on the loss; 0 for none.
        quiet: show nothing.
    """

    PHASE = "train"  # whose steps are counted

    def __init__(self, total: int, say: Callable[[str], None], print_freq: int, quiet: bool = False):
        self.say, self.print_freq, self.steps = say, print_freq, 0
        self.bar = tqdm(
            total=total, unit="step", disable=True if quiet else None, dynamic_ncols=True, smoothing=0.05
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, phase: str, loss: Tensor) -> None:
        if phase != self.PHASE:
            return
        self.bar.update()
        self.steps += 1
        if self.print_freq and self.steps % self.print_freq == 0:
            self.say(f"  step {self.steps}: loss {loss.item():.4f}")

    @abstractmethod
    def epoch(self, row: dict[str, Any]) -> None:
        """Show the line of metrics of an epoch."""


class DistillationBar(ProgressBar):
    """Of a run without data.

    Args:
        settings: of the run.
        epoch: the first to be run.
        say: shows a line.
        judged: what the student is judged by, "test" or "agreement".
        quiet: show nothing.
    """

    PHASE = "kd"

    def __init__(
        self, settings: Settings, epoch: int, say: Callable[[str], None], judged: str, quiet: bool = False
    ):
        s = self.settings = settings
        self.judged = judged
        warmup_epochs = max(0, s.warmup - epoch)  # a step of the bar each
        total = warmup_epochs + (s.epochs - epoch - warmup_epochs) * s.rounds * s.kd_steps
        super().__init__(total, say, s.print_freq, quiet)

    def epoch(self, row: dict[str, Any]) -> None:
        epochs = self.settings.epochs
        text = (
            f"epoch {row['epoch'] + 1:{len(str(epochs))}}/{epochs}  alpha {row['alpha']:.2f}  "
            f"oh {row['loss_oh']:.3f}  bn {row['loss_bn']:.3f}  adv {row['loss_adv']:+.3f}  "
        )
        score = f"test {row['test_top1']:.2f} %  " if self.judged == "test" else ""
        if "holdout_agreement" in row:
            score += f"agreement {row['holdout_agreement']:.2f} %  "
        if row["loss_kd"] is None:
            self.bar.update()
            text += "warm-up  "
        else:
            text += f"kd {row['loss_kd']:.3f}  {score if row['evaluated'] else ''}"
        hits = "" if row["hit_rate"] is None else f"hits {100 * row['hit_rate']:.0f} %  "
        text += f"{hits}samples {row['repository']:,}  {sum(row['seconds'].values()):.1f} s"
        loss = "" if row["loss_kd"] is None else f"loss {row['loss_kd']:.3f}, "
        self.bar.set_postfix_str(f"{loss}{score.rstrip()}")
        self.say(text)


class TrainingBar(ProgressBar):
    """Of a training on real images.

    Args:
        epochs: of the training.
        total, say, print_freq, quiet: see `ProgressBar`.
    """

    def __init__(
        self, epochs: int, total: int, say: Callable[[str], None], print_freq: int, quiet: bool = False
    ):
        self.epochs = epochs
        super().__init__(total, say, print_freq, quiet)

    def epoch(self, row: dict[str, Any]) -> None:
        score = f"test {row['test_top1']:.2f} %"
        self.bar.set_postfix_str(score)
        self.say(f"epoch {row['epoch'] + 1}/{self.epochs}  loss {row['loss']:.4f}  {score}")
