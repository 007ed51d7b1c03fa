"""Fast-Meta (Fang et al., AAAI 2022): a generator whose starting point is meta-learned from call to
call, so that a few steps make a batch. BSR synthesises with it. Its `fast` form has no meta step."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.checkpoint import load_optimizer
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast, at_least_single
from datafree.synthesis.base import (
    ADAM_BETAS,
    AugmentFunction,
    GuidedSynthesizer,
    OnStep,
    Synthesis,
    Trace,
    frozen,
    ignore_step,
)

RESET_CALL = 120  # calls after the warm-up at which the generator's first layers are drawn anew
REPTILE_SCALE = 67


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
    meta: bool = True  # False: `fast`, in which the generator itself is optimised


class FastMetaSynthesizer(GuidedSynthesizer):
    """Each call optimises a clone of the generator together with fresh latent codes, keeps the images
    of the best step, and moves the generator itself by the clone's gradients (FOMAML) or towards the
    clone (Reptile). Without `meta` there is no clone: what the steps of a call do to the generator stays.

    Args:
        teacher, student, augment, rng, processes, autocast, features: see `GuidedSynthesizer`.
        generator: maps latent codes (B, nz) to images (B, 3, H, W) in [0, 1].
        settings: weights, learning rates, steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        augment: AugmentFunction,
        settings: FastMetaSettings,
        rng: torch.Generator,
        processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
        features: PenultimateFeatures | None = None,
    ):
        super().__init__(teacher, student, augment, rng, processes, autocast, features, settings.bn_momentum)
        self.generator, self.settings = generator, settings
        self.meta_optimizer = torch.optim.Adam(
            generator.parameters(), lr=settings.lr_g * settings.steps, betas=ADAM_BETAS
        )

    def synthesize(
        self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step, z: Tensor | None = None
    ) -> Synthesis:
        """See `Synthesizer.synthesize`; `z` (B, nz) replaces the latent codes drawn from `rng`."""
        s = self.settings
        self.calls += 1
        if self.calls == RESET_CALL + s.warmup:
            self._reset_generator()
        if z is None:
            z = self._noise(len(targets), self.generator.nz)
        z = z.clone().requires_grad_()
        working = copy.deepcopy(self.generator) if s.meta else self.generator
        working.train()
        optimizer = torch.optim.Adam(
            [{"params": list(working.parameters())}, {"params": [z], "lr": s.lr_z}],
            lr=s.lr_g,
            betas=ADAM_BETAS,
        )
        self.meta_optimizer.zero_grad()
        trace = Trace()
        with frozen(self.student):
            for _ in range(s.steps):
                with self.autocast():
                    images = at_least_single(working(z))
                total, terms = self._loss(images, targets, oh_weight)
                trace.add(total, terms, images, self.features.value)
                optimizer.zero_grad()
                total.backward()
                if not s.meta:
                    self.processes.average([parameter.grad for parameter in working.parameters()])
                elif s.maml:
                    _add_gradients(self.generator, working)
                optimizer.step()
                on_step("synthesis", total.detach())
        if s.meta:
            if not s.maml:
                _reptile_gradients(self.generator, working)
            self.processes.average([parameter.grad for parameter in self.generator.parameters()])
            self.meta_optimizer.step()
        self.statistics.update_averages(self.processes)
        return self._finished(trace)

    def _loss(self, images: Tensor, targets: Tensor, oh_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss; its terms oh, bn and adv, unweighted."""
        s = self.settings
        augmented = self.augment(images, self.rng)
        teacher_logits, loss_bn = self._ask_teacher(augmented)
        loss_oh = F.cross_entropy(teacher_logits, targets)
        loss_adv = torch.zeros_like(loss_oh)
        if s.adv > 0 and self.calls >= s.warmup:
            loss_adv = losses.adversarial(self._ask_student(augmented), teacher_logits)
        total = s.bn * loss_bn + oh_weight * loss_oh + s.adv * loss_adv
        return total, {"oh": loss_oh, "bn": loss_bn, "adv": loss_adv}

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
        load_optimizer(self.meta_optimizer, state["meta_optimizer"])
        self.statistics.load_state_dict(state["statistics"])
        self.calls = int(state["calls"])


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
