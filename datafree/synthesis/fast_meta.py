"""Fast-Meta (Fang et al., AAAI 2022): a generator whose starting point is meta-learned from call to
call, so that a few steps make a batch. BSR synthesises with it."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.bn_statistics import BNStatistics
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast, at_least_single
from datafree.synthesis.base import AugmentFunction, OnStep, Synthesis, Synthesizer, frozen, ignore_step

RESET_CALL = 120  # calls after the warm-up at which the generator's first layers are drawn anew
REPTILE_SCALE = 67
ADAM_BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class FastMetaSettings:
    """The flags of the same names."""

    steps: int  # --g_steps
    lr_g: float
    lr_z: float
    bn: float
    adv: float
    warmup: int  # the adversarial term is on from this call on, counted from 1
    bn_momentum: float = 0.0  # --bn_mmt
    reset_l0: bool = False
    reset_bn: bool = False
    maml: bool = True  # FOMAML, or else Reptile


class FastMetaSynthesizer(Synthesizer):
    """Each call optimises a clone of the generator together with fresh latent codes, keeps the images
    of the best step, and moves the generator itself by the clone's gradients (FOMAML) or towards the
    clone (Reptile).

    Args:
        teacher: frozen, in eval mode.
        student: what the adversarial term compares with; its mode and gradients are left as they were.
        generator: maps latent codes (B, nz) to images (B, 3, H, W) in [0, 1].
        augment: maps images and `rng` to what the networks see; differentiable.
        settings: weights, learning rates, steps.
        rng: source of everything random, on the device of the networks.
        processes: among which batches are divided; the meta gradients are averaged.
        autocast: makes the context in which the networks run forwards.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, generator: nn.Module, augment: AugmentFunction,
        settings: FastMetaSettings, rng: torch.Generator, processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
    ):
        self.teacher, self.student = teacher, student
        self.generator, self.augment = generator, augment
        self.settings, self.rng = settings, rng
        self.processes, self.autocast = processes, autocast
        self.statistics = BNStatistics(teacher, settings.bn_momentum)
        self.features = PenultimateFeatures(teacher)
        self.meta_optimizer = torch.optim.Adam(
            generator.parameters(), lr=settings.lr_g * settings.steps, betas=ADAM_BETAS
        )

    def synthesize(
        self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step,
        z: Tensor | None = None,
    ) -> Synthesis:
        """See `Synthesizer.synthesize`; `z` (B, nz) replaces the latent codes drawn from `rng`."""
        s = self.settings
        self.calls += 1
        if self.calls == RESET_CALL + s.warmup:
            self._reset_generator()
        if z is None:
            z = torch.randn(len(targets), self.generator.nz, generator=self.rng, device=self.rng.device)
        z = z.clone().requires_grad_()
        clone = copy.deepcopy(self.generator).train()
        optimizer = torch.optim.Adam(
            [{"params": list(clone.parameters())}, {"params": [z], "lr": s.lr_z}],
            lr=s.lr_g, betas=ADAM_BETAS,
        )
        self.meta_optimizer.zero_grad()
        best: list[Tensor] = []  # total loss, images, features
        history = []
        with frozen(self.student):
            for _ in range(s.steps):
                with self.autocast():
                    images = at_least_single(clone(z))
                total, terms, features = self._loss(images, targets, oh_weight)
                history.append(torch.stack([total, *terms]).detach())
                best = _keep_best(best, [total.detach(), images.detach(), features])
                optimizer.zero_grad()
                total.backward()
                if s.maml:
                    _add_gradients(self.generator, clone)
                optimizer.step()
                on_step("synthesis", total.detach())
        if not s.maml:
            _reptile_gradients(self.generator, clone)
        self.processes.average([parameter.grad for parameter in self.generator.parameters()])
        self.meta_optimizer.step()
        self.statistics.update_averages(self.processes)

        _, images, features = best
        labels, margins = self._relabel(images)
        rows = torch.stack(history).tolist()
        steps = {name: [row[i] for row in rows] for i, name in enumerate(("total", "oh", "bn", "adv"))}
        lowest = min(range(s.steps), key=steps["total"].__getitem__)
        kept = {name: values[lowest] for name, values in steps.items()}
        return Synthesis(images, labels, features, margins, kept, steps)

    def _loss(
        self, images: Tensor, targets: Tensor, oh_weight: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        """Total loss; its terms oh, bn and adv, unweighted; the teacher's penultimate features."""
        s = self.settings
        augmented = self.augment(images, self.rng)
        with self.autocast(), self.statistics.capture(), self.features.capture():
            teacher_logits = self.teacher(augmented)
        teacher_logits = at_least_single(teacher_logits)
        loss_oh = F.cross_entropy(teacher_logits, targets)
        loss_bn = self.statistics.distance().to(loss_oh)
        loss_adv = torch.zeros_like(loss_oh)
        if s.adv > 0 and self.calls >= s.warmup:
            with self.autocast():
                student_logits = self.student(augmented)
            loss_adv = losses.adversarial(at_least_single(student_logits), teacher_logits)
        total = s.bn * loss_bn + oh_weight * loss_oh + s.adv * loss_adv
        return total, (loss_oh, loss_bn, loss_adv), self.features.value

    @torch.no_grad()
    def _relabel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The labels that the teacher gives the finished images, and by what margin."""
        with self.autocast():
            logits = self.teacher(self.augment(images, self.rng))
        top = at_least_single(logits).softmax(1).topk(2)
        return top.indices[:, 0], top.values[:, 0] - top.values[:, 1]

    @torch.no_grad()
    def _reset_generator(self) -> None:
        if self.settings.reset_l0:
            for layer in (self.generator.l1[0], self.generator.conv_blocks[0]):
                layer.weight.normal_(0, 0.02, generator=self.rng)
                layer.bias.zero_()
        if self.settings.reset_bn:
            for layer in self.generator.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.weight.normal_(1, 0.02, generator=self.rng)
                    layer.bias.zero_()
        self.processes.follow_first(list(self.generator.parameters()))

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "statistics": self.statistics.state_dict(),
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.statistics.load_state_dict(state["statistics"])
        self.calls = state["calls"]


def _keep_best(best: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """The one of two with the lower loss (the first entry), chosen without asking the device for it."""
    if not best:
        return new
    better = new[0] < best[0]
    return [torch.where(better, b, a) for a, b in zip(best, new, strict=True)]


def _add_gradients(target: nn.Module, source: nn.Module) -> None:
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        if mine.grad is None:
            mine.grad = theirs.grad.clone()
        else:
            mine.grad += theirs.grad


@torch.no_grad()
def _reptile_gradients(target: nn.Module, source: nn.Module) -> None:
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.grad = REPTILE_SCALE * (mine - theirs)
