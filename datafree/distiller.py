"""The training loop of data-free distillation: an epoch in the order of the paper's algorithm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.agreement import HeldOut
from datafree.augment import Augment
from datafree.balance import count_entropy, count_variation
from datafree.blg import BiasedLabelGenerator
from datafree.checkpoint import load_optimizer, require_like
from datafree.dlw import DynamicLossWeight
from datafree.errors import UserError
from datafree.evaluate import Evaluation
from datafree.iho import HomogeneityOperator
from datafree.parallel import ALONE, Processes, batch_statistics
from datafree.precision import at_least_single, autocast
from datafree.repository import SampleRepository, to_float, to_uint8
from datafree.streams import RandomStreams
from datafree.synthesis.base import OnStep, Synthesis, Synthesizer, ignore_step

LAST_UNPRUNED = 5  # IHO rests in this many last epochs
FINAL_LR = 2e-4  # where the cosine schedule ends


@dataclass(frozen=True)
class DistillSettings:
    """The flags of the same names."""

    epochs: int
    warmup: int
    kd_steps: int
    ep_steps: int
    batch_size: int
    synthesis_batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    temperature: float
    oh: float  # alpha where DLW is off
    dlw: bool
    blg: bool
    iho: bool
    dlw_mode: str
    oh_min: float
    oh_max: float
    oh_step: float
    oh_memory_size: int
    amp: str = "off"  # a key of `precision.AMP`
    compile: bool = False
    store: bool = True  # else the student learns from fresh samples of the generator
    max_samples: int | None = None  # in the repository; the oldest go first
    divergence: str = "kl"  # what teaches the student, see `losses.divergence`

    @property
    def rounds(self) -> int:
        """Rounds of synthesis, pruning and distillation in an epoch."""
        return self.ep_steps // self.kd_steps


class Distiller:
    """Teacher, student, synthesizer and repository, and what an epoch does with them.

    Args:
        teacher: frozen, in eval mode, on the device of `streams`.
        student: what is trained.
        synthesizer: makes the samples.
        repository: holds them; empty, or as a checkpoint left it.
        augment: maps images in [0, 1] and a generator to what the networks see.
        settings: see `DistillSettings`.
        streams: sources of everything random; the synthesizer draws from `streams.synthesis`.
        evaluate: scores the student on test images.
        processes: among which the batches of synthesis and distillation are divided.
        held_out: keeps some of the samples from training, to judge the student by.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        synthesizer: Synthesizer,
        repository: SampleRepository,
        augment: Augment,
        settings: DistillSettings,
        streams: RandomStreams,
        evaluate: Callable[[nn.Module], Evaluation],
        processes: Processes = ALONE,
        held_out: HeldOut | None = None,
    ):
        s = settings
        self.held_out = held_out
        self.teacher, self.student, self.synthesizer = teacher, student, synthesizer
        self.repository, self.augment, self.settings = repository, augment, settings
        self.streams, self.evaluate, self.processes = streams, evaluate, processes
        self.dlw = DynamicLossWeight(
            s.oh_min, s.oh_max, s.oh_step, s.oh_memory_size, s.warmup, s.epochs, s.dlw_mode
        )
        self.blg = BiasedLabelGenerator(repository.num_classes)
        self.iho = HomogeneityOperator(repository.num_classes, s.synthesis_batch_size)
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            fused=streams.device.type == "cuda" or None,  # skips fp16's overflows without asking the GPU
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, max(1, s.epochs - s.warmup), eta_min=FINAL_LR
        )
        self.scaler = torch.amp.GradScaler(streams.device.type, enabled=s.amp == "fp16")
        self._autocast = autocast(s.amp, streams.device)
        self._forward = [processes.wrap(student), teacher]  # what a step of KD runs
        if s.compile:
            self._forward = [torch.compile(network) for network in self._forward]
        self.evaluation: Evaluation | None = None
        self._seconds: dict[str, float] = {}
        self._overflows = torch.zeros((), device=streams.device)

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> dict:
        """Epoch `epoch`, counted from 0; returns its line of `metrics.jsonl`, in which losses and spread
        are those of the last round.

        Raises:
            UserError: a loss is no longer finite.
        """
        s = self.settings
        warming_up = epoch < s.warmup
        kd_loss, spread, added, removed, overflows = math.nan, None, 0, 0, 0
        lr = self.optimizer.param_groups[0]["lr"]
        self._seconds = {}

        # 1. DLW sets the weight of the pseudo-supervised loss.
        alpha = self.dlw.update(epoch) if s.dlw else s.oh

        for number in range(s.rounds):
            # 2. Synthesis adds one batch to the repository, or replaces what is there only to be measured.
            with self._phase("synthesis"):
                targets = self.blg.draw(s.synthesis_batch_size, self.streams.labels)
                new = self._synthesize(targets, alpha, on_step)
                # The first step that went wrong tells why; the total, which comes first, is the terms' sum.
                for step in zip(*reversed(new.steps.values()), strict=True):
                    terms = dict(zip(reversed(new.steps), step, strict=True))
                    self._require_finite(terms, epoch, "synthesis", "--lr_g")
                self._require_finite_weights(
                    getattr(self.synthesizer, "generator", None), epoch, "synthesis", "--lr_g"
                )
                if self.held_out:
                    new = self.held_out.take(new)
                if not s.store:
                    self._remove_oldest(len(self.repository))
                self.repository.add(new.images, new.labels, new.features, new.margins)
                if s.max_samples is not None:
                    removed += self._remove_oldest(len(self.repository) - s.max_samples)
                self.processes.wait()  # until the first has logged the samples
                self.dlw.record(new.losses["adv"], new.losses["bn"])
                added += len(new.labels)
            if warming_up:
                continue

            # 3. IHO prunes the repository.
            prune = s.iho and epoch < s.epochs - LAST_UNPRUNED
            with self._phase("iho"):
                if prune or number == s.rounds - 1:
                    spread = self.iho.measure(self.repository.table())
                if prune:
                    pruned = self.iho.select(spread, self.repository.labels)
                    pruned = self.processes.first_says(pruned.cpu()).to(pruned.device)
                    self.repository.remove(pruned)
                    removed += len(pruned)

            # 4. BLG sets the odds of the labels of the next synthesis.
            if s.blg:
                self.blg.update(self.repository.counts())

            # 5. KD trains the student on the repository.
            with self._phase("kd"):
                kd_loss, skipped = self._distill(on_step)
                self._require_finite_weights(self.student, epoch, "distillation", "--lr")
                overflows += skipped
                self._require_finite({"kd": kd_loss}, epoch, "distillation", "--lr")

        # 6. Evaluate; step the schedule.
        with self._phase("evaluation"):
            # The warm-up leaves the student as it was, but not the samples held out.
            if self.evaluation is None or not warming_up or self.held_out:
                self.evaluation = self.processes.first_says(
                    self.evaluate(self.student) if self.processes.first else None
                )
        if not warming_up:
            self.scheduler.step()

        counts = self.repository.counts()
        return {
            "epoch": epoch,
            "lr": lr,
            "alpha": alpha,
            **{f"loss_{name}": value for name, value in new.losses.items()},
            "loss_kd": _finite(kd_loss),
            "kd_overflows": overflows,
            "test_top1": self.evaluation.top1,
            "test_top5": _finite(self.evaluation.top5),
            "test_loss": _finite(self.evaluation.loss),
            "repository": len(self.repository),
            "added": added,
            "removed": removed,
            "counts": counts.tolist(),
            "count_variation": _finite(count_variation(counts)),
            "count_entropy": _finite(count_entropy(counts)),
            "lof_relative_iqr": _finite(spread.relative_iqr) if spread else None,
            "lof_outside_share": _finite(spread.outside_share) if spread else None,
            "margin": self.repository.margins.mean().item(),
            "seconds": dict(self._seconds),
        }

    def _synthesize(self, targets: Tensor, alpha: float, on_step: OnStep) -> Synthesis:
        """One batch, to which each process contributes its part; losses are means over the processes."""
        p = self.processes
        new = self.synthesizer.synthesize(p.share(targets), alpha, on_step)
        if p.world_size == 1:
            return new
        terms = torch.tensor(list(new.losses.values()), device=targets.device)
        p.average([terms])
        means = dict(zip(new.losses, terms.tolist(), strict=True))
        return Synthesis(
            p.gather(to_uint8(new.images)),
            p.gather(new.labels),
            p.gather(new.features),
            p.gather(new.margins),
            means,
            {name: [value] for name, value in means.items()},
        )

    def _remove_oldest(self, count: int) -> int:
        """Drop `count` samples, if that is above 0; returns how many."""
        self.repository.remove(torch.arange(max(0, count), device=self.repository.device))
        return max(0, count)

    def _distill(self, on_step: OnStep) -> tuple[float, int]:
        """`kd_steps` steps of knowledge distillation; returns the mean loss, and how many steps fp16
        skipped because they overflowed."""
        s, rng = self.settings, self.streams.distillation
        self.student.train()
        total = torch.zeros(2, device=rng.device)  # losses, and how many there are
        self._overflows = torch.zeros((), device=rng.device)
        batch_size = s.batch_size // self.processes.world_size
        for inputs in self._inputs(batch_size):
            loss = self.kd_step(inputs)
            pair = torch.stack([loss, torch.ones_like(loss)])
            # Steps that overflow in half precision are skipped; they are no sign of divergence.
            total += torch.where(loss.isfinite(), pair, 0) if s.amp == "fp16" else pair
            on_step("kd", loss)
        self.processes.average([total, *batch_statistics(self.student)])
        losses_sum, count = total.tolist()
        return losses_sum / count if count else math.nan, int(self._overflows)

    def _inputs(self, batch_size: int) -> Iterator[Tensor]:
        """`kd_steps` batches as the networks see them: of stored samples, augmented, or of fresh ones."""
        s, rng = self.settings, self.streams.distillation
        if s.store:
            for images in self.repository.batches(batch_size, s.kd_steps, rng):
                yield self.augment(images, rng)
        else:
            for _ in range(s.kd_steps):
                yield self.augment.normalize(self.synthesizer.sample(batch_size))

    def kd_step(self, inputs: Tensor) -> Tensor:
        """One step on a batch (N, 3, H, W) as the networks see it; returns the loss, detached."""
        s = self.settings
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        student, teacher = self._forward
        with self._autocast():
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            student_logits = student(inputs)
        pair = at_least_single(student_logits), at_least_single(teacher_logits)
        loss = losses.divergence(s.divergence, *pair, s.temperature)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        scale = getattr(self.scaler, "_scale", None)  # asking for it publicly would wait for the device
        before = None if scale is None else scale.clone()
        self.scaler.update()
        if before is not None:  # it falls after a step that overflowed and was skipped
            self._overflows += (self.scaler._scale < before).float().squeeze()
        return loss.detach()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes, the device's work included, to those of a phase."""
        start = time.perf_counter()
        yield
        if self.streams.device.type == "cuda":
            torch.cuda.synchronize(self.streams.device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @staticmethod
    def _require_finite(terms: dict[str, float], epoch: int, phase: str, flag: str) -> None:
        for term, value in terms.items():
            if not math.isfinite(value):
                raise UserError(
                    f"in the {phase} of epoch {epoch + 1} the loss term {term} is {value}: try a lower {flag}"
                )

    @torch.no_grad()
    def store(self, images: Tensor) -> None:
        """Put uint8 images (N, 3, H, W) from elsewhere into the repository, with the teacher's labels."""
        seen = self.synthesizer.features
        inputs = self.augment.normalize(to_float(images.to(self.streams.device)))
        with seen.capture():
            top = self.teacher(inputs).softmax(1).topk(2)
        margins = top.values[:, 0] - top.values[:, 1]
        self.repository.add(images, top.indices[:, 0], seen.value, margins)

    @staticmethod
    def _require_finite_weights(network: nn.Module | None, epoch: int, phase: str, flag: str) -> None:
        """A last step can ruin what the losses before it do not show."""
        if network and not torch.stack([p.isfinite().all() for p in network.parameters()]).all():
            raise UserError(
                f"in the {phase} of epoch {epoch + 1} the weights are no longer finite: try a lower {flag}"
            )

    def skip_to(self, epoch: int) -> None:
        """Advance the schedules as if the epochs before `epoch` had been run (`--start_epoch`)."""
        self.synthesizer.calls = epoch * self.settings.rounds
        for _ in range(self.settings.warmup, epoch):
            self.optimizer.step()
            self.scheduler.step()

    def state_dict(self) -> dict:
        """All that the next epoch depends on."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "repository": self.repository.state_dict(),
            "dlw": self.dlw.state_dict(),
            "blg": self.blg.state_dict(),
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "held_out": self.held_out.state_dict() if self.held_out else None,
            "streams": self.processes.collect(self.streams.state_dict()),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take the place of the distiller that gave `state`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is none's of these settings.
        """
        for name, part in (
            ("scheduler", self.scheduler),
            ("scaler", self.scaler),
            ("dlw", self.dlw),
            ("blg", self.blg),
        ):
            require_like(state[name], part.state_dict(), name)
        own = state["streams"][self.processes.rank]
        require_like(own, self.streams.state_dict(), "streams")
        for name in ("T_max", "eta_min", "base_lrs"):
            if state["scheduler"][name] != self.scheduler.state_dict()[name]:
                raise ValueError(f"{name} of the schedule is another")
        self.student.load_state_dict(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.iho = HomogeneityOperator(self.iho.num_classes, self.settings.synthesis_batch_size)
        self.dlw.load_state_dict(state["dlw"])
        self.blg.load_state_dict(state["blg"])
        if self.held_out:
            self.held_out.load_state_dict(state["held_out"])
        evaluation = state["evaluation"]
        if evaluation is not None:
            require_like(evaluation, asdict(Evaluation(0.0, 0.0, 0.0, 0, 0)), "evaluation")
        self.evaluation = Evaluation(**evaluation) if evaluation else None
        self.streams.load_state_dict(own)
        # Last: it forgets what was stored since, for which there must be no doubt about the rest.
        self.repository.load_state_dict(state["repository"])


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
