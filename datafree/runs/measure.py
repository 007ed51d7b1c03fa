"""An epoch as a run needs it: measured, checked and evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from datafree.balance import count_entropy, count_variation
from datafree.data.image_set import to_float
from datafree.distiller import Distiller
from datafree.errors import UserError
from datafree.evaluation import Evaluation, HeldOut
from datafree.networks.check import weights_and_statistics
from datafree.settings import Settings
from datafree.synthesis.base import OnStep, Synthesis, ignore_step


class MeasuredDistiller:
    """Runs the epochs of a distiller, and returns the line of metrics of each. The parts of the distiller are
    timed and checked where it calls them: this replaces their methods.

    Args:
        distiller: see `assemble.make_distiller`.
        settings: of the run.
        evaluate: scores the student on test images; None where there are none.
        held_out: keeps some of the samples from training, to measure the student's agreement with the
            teacher on them; needed where there are no test images.
    """

    def __init__(
        self,
        distiller: Distiller,
        settings: Settings,
        evaluate: Callable[[nn.Module], Evaluation] | None = None,
        held_out: HeldOut | None = None,
    ):
        d = self.distiller = distiller
        self.settings, self.evaluate, self.held_out = settings, evaluate, held_out
        self.processes, self.student = d.processes, d.student.network
        self.evaluation: Evaluation | None = None  # on test images
        self.holdout: Evaluation | None = None  # on samples held out, against the teacher's classes
        self._epoch, self._seconds = 0, dict[str, float]()
        self._watch(d.synthesizer, "synthesize", "synthesis", self._after_synthesis)
        self._watch(d.repository, "add", "synthesis")
        self._watch(d.pruner, "prune", "iho")
        self._watch(d.student, "train", "kd", self._after_training)

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> dict[str, Any]:
        """Epoch `epoch`, counted from 0; returns its line of `metrics.jsonl`, in which losses and outlier
        factors are those of the last round.

        Raises:
            UserError: a loss or a weight is no longer finite.
        """
        d, s, repository = self.distiller, self.settings, self.distiller.repository
        self._epoch, self._seconds = epoch, {}
        self._generated, self._overflows, self._kd_loss, lr = 0, 0, math.nan, d.student.lr
        stored, removed = repository.stored, repository.removed
        alpha = d.run_epoch(epoch, on_step)
        scores = None
        if epoch >= s.warmup:
            with self._phase("iho"):
                scores = d.pruner.scores(repository)
        with self._phase("evaluation"):
            evaluated = self._evaluate(epoch)
        counts = repository.counts()
        return {
            "epoch": epoch,
            "lr": lr,
            "alpha": alpha,
            **{f"loss_{name}": value for name, value in self._losses.items()},
            "loss_kd": _finite(self._kd_loss),
            "kd_overflows": self._overflows,
            **evaluated,
            "made": self._generated,
            "hit_rate": self._hit_rate if d.synthesizer.asks_for_classes else None,
            "repository": len(repository),
            "added": repository.stored - stored,
            "removed": repository.removed - removed,
            "counts": counts.tolist(),
            "count_variation": _finite(count_variation(counts)),
            "count_entropy": _finite(count_entropy(counts)),
            "lof_relative_iqr": _finite(scores.relative_iqr) if scores else None,
            "lof_outside_share": _finite(scores.outside_share) if scores else None,
            "margin": repository.margins.mean().item(),
            "seconds": self._seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            **self.distiller.state_dict(),
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "holdout": asdict(self.holdout) if self.holdout else None,
            "held_out": self.held_out.state_dict() if self.held_out else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        evaluation, holdout = (
            Evaluation(**state[name]) if state[name] else None for name in ("evaluation", "holdout")
        )
        if self.held_out:
            self.held_out.load_state_dict(state["held_out"])
        self.distiller.load_state_dict(state)
        self.evaluation, self.holdout = evaluation, holdout

    # The parts

    def _watch(
        self,
        part: Any,
        method: str,
        phase: str,
        after: Callable[..., Any] = lambda result, *arguments: result,
    ) -> None:
        """Add the seconds of a part's method to a phase; `after` checks and returns its result."""
        function = getattr(part, method)

        def watched(*arguments: Any) -> Any:
            with self._phase(phase):
                return after(function(*arguments), *arguments)

        setattr(part, method, watched)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes, the device's work included, to those of a phase."""
        start, device = time.perf_counter(), self.distiller.repository.device
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def _after_synthesis(self, synthesis: Synthesis, targets: Tensor, *_: Any) -> Synthesis:
        """Check a synthesis, and hold some of its samples out."""
        samples, terms = synthesis.samples, synthesis.losses
        self._generated += len(targets)
        self._losses, self._hit_rate = terms, (samples.labels == targets).float().mean().item()
        if not all(map(math.isfinite, terms.values())):
            # Name the first step and term that failed; the total, which comes first, is the terms' sum. The
            # student may have diverged before, and show it now.
            flag = "--lr_g" if self._student_is_finite(synthesis) else "--lr"
            names = list(reversed(synthesis.steps))
            for step in zip(*(synthesis.steps[name] for name in names), strict=True):
                _require_finite(dict(zip(names, step, strict=True)), self._epoch, "synthesis", flag)
        generator = getattr(self.distiller.synthesizer, "generator", None)
        _require_finite_weights(generator, self._epoch, "synthesis", "--lr_g")
        if self.held_out:
            samples = self.held_out.take(samples)
        return Synthesis(samples, synthesis.images, terms, synthesis.steps)

    @torch.no_grad()
    def _student_is_finite(self, synthesis: Synthesis) -> bool:
        """Whether the student's logits for the samples are finite."""
        normalize = self.distiller.synthesizer.augment.normalize
        logits = self.student.eval()(normalize(to_float(synthesis.samples.images)))
        return bool(logits.isfinite().all())

    def _after_training(self, result: tuple[float, int], *_: Any) -> tuple[float, int]:
        """Check the student after the steps of a round."""
        s = self.settings
        self._kd_loss, skipped = result
        self._overflows += skipped
        self._generated += 0 if s.store_samples else s.kd_steps * s.batch_size
        _require_finite_weights(self.student, self._epoch, "distillation", "--lr")
        _require_finite({"kd": self._kd_loss}, self._epoch, "distillation", "--lr")
        return result

    # Evaluation

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Accuracy on test images and agreement on samples held out, where there are any. Between evaluations
        the figures are those of the latest one, as in the warm-up, which changes the samples held out but not
        the student. Half precision is for all epochs but the last, whose student is kept in single precision.
        """
        s, last = self.settings, epoch + 1 == self.settings.epochs
        first = (self.evaluation if self.evaluate else self.holdout) is None
        due = (epoch + 1) % s.eval_every == 0 or last or first

        def scored(evaluate: Callable[[nn.Module], Evaluation]) -> Evaluation:
            with nullcontext() if last else self.distiller.student.autocast():
                main = self.processes.is_main
                return self.processes.broadcast_object(evaluate(self.student) if main else None)

        if self.evaluate and (first or (due and epoch >= s.warmup)):
            self.evaluation = scored(self.evaluate)
        if self.held_out and (self.holdout is None or due):
            self.holdout = scored(self.held_out.evaluate)
        row: dict[str, Any] = {"evaluated": due}
        if self.evaluation:
            row |= self.evaluation.row()
        if self.holdout:
            row["holdout_agreement"] = self.holdout.top1
        return row


def _require_finite(terms: Mapping[str, float], epoch: int, phase: str, flag: str) -> None:
    """Raises:
    UserError: a loss term is not finite; the first one is named, and the flag to lower.
    """
    for term, value in terms.items():
        if not math.isfinite(value):
            raise UserError(
                f"in the {phase} of epoch {epoch + 1} the loss term {term} is {value}: try a lower {flag}"
            )


@torch.no_grad()
def _require_finite_weights(network: nn.Module | None, epoch: int, phase: str, flag: str) -> None:
    """A last step can ruin what the losses before it do not show.

    Raises:
        UserError: a weight, or a running statistic, is not finite.
    """
    if network is None:
        return
    values = weights_and_statistics(network).values()
    if not torch.stack([value.isfinite().all() for value in values]).all():
        raise UserError(
            f"in the {phase} of epoch {epoch + 1} the weights are no longer finite: try a lower {flag}"
        )


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
