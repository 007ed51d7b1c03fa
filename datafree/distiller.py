"""The training loop of data-free distillation: an epoch in the order of the paper's algorithm."""

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
from datafree.blg import BiasedLabelGenerator
from datafree.data.augment import Augment
from datafree.data.pixels import to_float
from datafree.dlw import DynamicLossWeight
from datafree.errors import UserError
from datafree.evaluation import Evaluation, HeldOut
from datafree.extras.mixing import mixed
from datafree.extras.teacher_cache import TeacherCache
from datafree.iho import HomogeneityOperator, OutlierScores
from datafree.networks.check import weights_and_statistics
from datafree.repository import SampleRepository
from datafree.samples import Samples
from datafree.settings import Settings
from datafree.student import Batch, StudentTrainer
from datafree.synthesis.base import OnStep, Synthesizer, ignore_step
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.random import RandomGenerators
from datafree.torch_utils.state import require_like

LAST_UNPRUNED = 5  # IHO rests in this many last epochs
Losses = dict[str, float]


class Distiller:
    """Teacher, student, synthesizer and repository, and what an epoch does with them.

    Args:
        teacher: frozen, in eval mode, on the device of `streams`.
        student: what is trained.
        synthesizer: makes the samples.
        repository: holds them; empty, or as a checkpoint left it.
        augment: maps stored images and a generator to what the networks see in KD.
        settings: see `Settings`.
        streams: sources of everything random; the synthesizer draws from `streams.synthesis`.
        evaluate: scores the student on test images; None where there are none.
        processes: among which the batches of synthesis and distillation are divided.
        held_out: keeps some of the samples from training, to measure the student's agreement with the
            teacher; needed where there are no test images.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        synthesizer: Synthesizer,
        repository: SampleRepository,
        augment: Augment,
        settings: Settings,
        streams: RandomGenerators,
        evaluate: Callable[[nn.Module], Evaluation] | None,
        processes: Processes = SINGLE_PROCESS,
        held_out: HeldOut | None = None,
    ):
        s = settings
        self.teacher, self.student, self.synthesizer = teacher, student, synthesizer
        self.repository, self.augment, self.settings = repository, augment, settings
        self.streams, self.processes = streams, processes
        self.evaluate, self.held_out = evaluate, held_out
        self.dlw = DynamicLossWeight(
            s.oh_min, s.oh_max, s.oh_step, s.oh_memory_size, s.warmup, s.epochs, s.dlw_mode
        )
        self.blg = BiasedLabelGenerator(repository.num_classes)
        self.iho = HomogeneityOperator(repository.num_classes, s.synthesis_samples)
        self.kd = StudentTrainer(teacher, student, s, streams.device, processes)
        self.reuse: TeacherCache | None = None
        if s.reuse_teacher is not None:
            batch_size, shape = s.batch_size // processes.world_size, repository.image_shape
            self.reuse = TeacherCache(
                self.kd.teach,
                augment,
                shape,
                repository.num_classes,
                batch_size,
                s.reuse_teacher,
                streams.device,
            )
        self.evaluation: Evaluation | None = None  # of the student, by `evaluate`
        self.agreement: Evaluation | None = None  # by `held_out`
        self._seconds: dict[str, float] = {}

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> dict[str, Any]:
        """Epoch `epoch`, counted from 0; returns its line of `metrics.jsonl`, in which losses and spread
        are those of the last round.

        Raises:
            UserError: a loss is no longer finite.
        """
        s = self.settings
        warming_up = epoch < s.warmup
        kd_loss, spread, made, added, removed, overflows = math.nan, None, 0, 0, 0, 0
        lr = self.kd.lr
        self._seconds = {}

        # 1. DLW sets alpha, the weight of the pseudo-supervised loss.
        alpha = self.dlw.update(epoch) if s.dlw else s.oh

        for number in range(s.rounds):
            # 2. Synthesis adds one batch to the repository, or replaces what is there only to be measured.
            with self._phase("synthesis"):
                targets = self._targets()
                new, loss_terms, hits = self._synthesize(epoch, targets, alpha, on_step)
                if not s.store_samples:
                    self.repository.remove(torch.arange(len(self.repository), device=targets.device))
                self.repository.add(new)
                made += len(targets)
                added += len(new)
                if s.max_samples is not None:
                    removed += self._evict(len(self.repository) - s.max_samples)
                self.processes.barrier()  # until the first has logged the samples
                self.dlw.observe(loss_terms["adv"], loss_terms["bn"])
            if warming_up:
                continue

            # 3. IHO prunes the repository.
            prune = s.iho and epoch < s.epochs - LAST_UNPRUNED
            with self._phase("iho"):
                if prune or number == s.rounds - 1:
                    spread = self.iho.measure(self.repository.table())
                if prune and spread:
                    pruned = self.iho.select(spread, self.repository.labels)
                    pruned = self.processes.broadcast_object(pruned.cpu()).to(pruned.device)
                    self.repository.remove(pruned)
                    removed += len(pruned)

            # 4. BLG sets the odds of the labels of the next synthesis.
            if s.blg:
                self.blg.update(self.repository.counts())

            # 5. KD trains the student on the repository.
            with self._phase("kd"):
                kd_loss, skipped = self.kd.train(self._batches(on_step), on_step)
                overflows += skipped
                made += 0 if s.store_samples else s.kd_steps * s.batch_size
                require_finite_weights(self.student, epoch, "distillation", "--lr")
                require_finite({"kd": kd_loss}, epoch, "distillation", "--lr")

        # 6. Evaluate; step the schedule.
        with self._phase("evaluation"):
            scores = self._evaluate(epoch)
        if not warming_up:
            self.kd.scheduler.step()

        return {
            "epoch": epoch,
            "lr": lr,
            "alpha": alpha,
            **{f"loss_{name}": value for name, value in loss_terms.items()},
            "loss_kd": _finite(kd_loss),
            "kd_overflows": overflows,
            **scores,
            "made": made,
            "hit_rate": hits if self.synthesizer.asks_for_classes else None,
            "repository": len(self.repository),
            "added": added,
            "removed": removed,
            **self._balance(spread),
            "seconds": dict(self._seconds),
        }

    def _targets(self) -> Tensor:
        """The labels to ask for in the next synthesis, int64."""
        return self.synthesizer.targets(
            self.settings.synthesis_batch_size, lambda count: self.blg.draw(count, self.streams.labels)
        )

    def _synthesize(
        self, epoch: int, targets: Tensor, alpha: float, on_step: OnStep
    ) -> tuple[Samples, Losses, float]:
        """One batch, to which each process contributes its part, less the samples held out; its loss terms,
        means over the processes; and the share of it that got the label asked for.

        Raises:
            UserError: a loss is no longer finite.
        """
        p = self.processes
        made = self.synthesizer.synthesize(p.shard(targets), alpha, on_step)
        samples, terms, steps = made.samples, made.losses, made.steps
        if p.world_size > 1:
            sums = torch.tensor(list(terms.values()), device=targets.device)
            p.all_reduce_mean([sums])
            terms = dict(zip(terms, sums.tolist(), strict=True))
            steps = {name: [value] for name, value in terms.items()}
            samples = Samples(*map(p.all_gather, vars(samples).values()))
        # The first step that went wrong tells why; the total, which comes first, is the terms' sum.
        if not all(map(math.isfinite, terms.values())):
            # A student may have gone astray before, and show it now.
            flag = "--lr_g" if self._answers(samples) else "--lr"
            for step in zip(*reversed(steps.values()), strict=True):
                require_finite(dict(zip(reversed(steps), step, strict=True)), epoch, "synthesis", flag)
        generator = getattr(self.synthesizer, "generator", None)
        require_finite_weights(generator, epoch, "synthesis", "--lr_g")
        hits = (samples.labels == targets).float().mean().item()
        return self.held_out.take(samples) if self.held_out else samples, terms, hits

    @torch.no_grad()
    def _answers(self, samples: Samples) -> bool:
        """Whether the student gives finite logits on samples."""
        logits = self.student.eval()(self.augment.normalize(to_float(samples.images)))
        return bool(logits.isfinite().all())

    def _evict(self, count: int) -> int:
        """Drop `count` samples, if that is above 0; returns how many."""
        if count <= 0:
            return 0
        self.repository.remove(torch.arange(count, device=self.repository.device))
        return count

    def _batches(self, on_step: OnStep = ignore_step) -> Iterator[Batch]:
        """`kd_steps` batches of stored samples, augmented, or of fresh ones; mixed, if asked for."""
        drawn, rng = self._draws(on_step), self.streams.distillation
        return ((mixed(batch[0], rng), None) for batch in drawn) if self.settings.mixup else drawn

    def _draws(self, on_step: OnStep) -> Iterator[Batch]:
        s, rng = self.settings, self.streams.distillation
        batch_size = s.batch_size // self.processes.world_size
        if self.reuse:
            yield from self.reuse.batches(self.repository, s.kd_steps, rng, on_step)
        elif s.store_samples:
            for images in self.repository.batches(batch_size, s.kd_steps, rng):
                yield self.augment(images, rng), None
        else:
            for _ in range(s.kd_steps):
                yield self.augment.normalize(self.synthesizer.sample(batch_size)), None

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Accuracy, or agreement with the teacher where there are no test images; and agreement beside it
        where samples are held out. Between evaluations the figures are those of the last one, as in the
        warm-up, which leaves the student as it was, but not the samples held out. Half precision is for all
        epochs but the last, whose student is kept in single precision."""
        s, last = self.settings, epoch + 1 == self.settings.epochs
        first = (self.evaluation if self.evaluate else self.agreement) is None
        due = (epoch + 1) % s.eval_every == 0 or last or first

        def told(evaluate: Callable[[nn.Module], Evaluation]) -> Evaluation:
            with nullcontext() if last else self.kd.autocast():
                return self.processes.broadcast_object(
                    evaluate(self.student) if self.processes.is_main else None
                )

        if self.evaluate and (first or (due and epoch >= s.warmup)):
            self.evaluation = told(self.evaluate)
        if self.held_out and (self.agreement is None or due):
            self.agreement = told(self.held_out.evaluate)
        e = self.evaluation if self.evaluate else self.agreement
        assert e is not None  # one of both is there
        return {
            "evaluated": due,
            "test_top1": e.top1,
            "test_top5": _finite(e.top5),
            "test_loss": _finite(e.loss),
            **({"test_recall": list(e.recall)} if self.evaluate and e.recall else {}),
            **({} if e.agreement is None else {"test_agreement": e.agreement}),
            **({"agreement": self.agreement.top1} if self.agreement else {}),
        }

    def _balance(self, spread: OutlierScores | None) -> dict[str, Any]:
        counts = self.repository.counts()
        return {
            "counts": counts.tolist(),
            "count_variation": _finite(count_variation(counts)),
            "count_entropy": _finite(count_entropy(counts)),
            "lof_relative_iqr": _finite(spread.relative_iqr) if spread else None,
            "lof_outside_share": _finite(spread.outside_share) if spread else None,
            "margin": self.repository.margins.mean().item(),
        }

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes, the device's work included, to those of a phase."""
        start = time.perf_counter()
        yield
        if self.streams.device.type == "cuda":
            torch.cuda.synchronize(self.streams.device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @torch.no_grad()
    def store(self, images: Tensor) -> None:
        """Put uint8 images (N, C, H, W) from elsewhere into the repository, with the teacher's labels."""
        seen = self.synthesizer.features
        inputs = self.augment.normalize(to_float(images.to(self.streams.device)))
        with seen.capture():
            logits = self.teacher(inputs)
        self.repository.add(Samples.seen(images, seen.value, logits))

    def skip_to(self, epoch: int) -> None:
        """Advance the schedules as if the epochs before `epoch` had been run (`--start_epoch`)."""
        self.synthesizer.calls = epoch * self.settings.rounds
        self.kd.skip_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            **self.kd.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "repository": self.repository.state_dict(),
            "dlw": self.dlw.state_dict(),
            "blg": self.blg.state_dict(),
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
            "held_out": self.held_out.state_dict() if self.held_out else None,
            "streams": self.processes.all_gather_object(self.streams.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the distiller that gave `state`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        for name, part in (("dlw", self.dlw), ("blg", self.blg)):
            require_like(state[name], part.state_dict(), name)
        own = state["streams"][self.processes.rank]
        require_like(own, self.streams.state_dict(), "streams")
        self.kd.load_state_dict(state)
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.iho = HomogeneityOperator(self.iho.num_classes, self.settings.synthesis_samples)
        self.dlw.load_state_dict(state["dlw"])
        self.blg.load_state_dict(state["blg"])
        if self.held_out and state["held_out"]:  # an earlier version held none out beside test images
            self.held_out.load_state_dict(state["held_out"])
        found = state["evaluation"], state.get("agreement")  # an earlier version had no agreement
        self.evaluation, self.agreement = (Evaluation.of(one) if one else None for one in found)
        self.streams.load_state_dict(own)
        if self.reuse:
            self.reuse.clear()
        # Last: this deletes the samples stored after the checkpoint, so that all else must have loaded.
        self.repository.load_state_dict(state["repository"])


def require_finite(terms: Mapping[str, float], epoch: int, phase: str, flag: str) -> None:
    """Raises:
    UserError: a loss term is not finite; the first that is not is named, and the flag to lower.
    """
    for term, value in terms.items():
        if not math.isfinite(value):
            raise UserError(
                f"in the {phase} of epoch {epoch + 1} the loss term {term} is {value}: try a lower {flag}"
            )


@torch.no_grad()
def require_finite_weights(network: nn.Module | None, epoch: int, phase: str, flag: str) -> None:
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
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
