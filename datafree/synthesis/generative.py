"""Methods that train one generator against the student and keep no samples: DAFL, ZSKT, DFAD and DFQ."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.augment import Augment
from datafree.checkpoint import load_optimizer
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast, at_least_single
from datafree.synthesis.base import (
    ADAM_BETAS,
    GuidedSynthesizer,
    OnStep,
    Synthesis,
    Trace,
    frozen,
    ignore_step,
    weighted,
)


@dataclass(frozen=True)
class GenerativeSettings:
    """The flags of the same names."""

    steps: int  # --g_steps
    lr_g: float
    adv: float
    bn: float
    act: float
    balance: float
    divergence: str = "kl"  # what is widened between teacher and student, see `losses.divergence`
    use_targets: bool = False  # cross entropy against the labels asked for (BLG), not the teacher's own


class GenerativeSynthesizer(GuidedSynthesizer):
    """One generator, trained for a few steps a call on fresh latent codes; the student learns from fresh
    samples of it. The loss is

        bn * L_bn + oh * L_oh + adv * L_adv + act * L_act + balance * L_balance

    with L_oh the cross entropy of the teacher against its own argmax, L_act minus the mean absolute
    penultimate feature, and L_balance `sum_k p_k log p_k` of the mean prediction. The methods differ in the
    weights:

    - DAFL (Chen et al., ICCV 2019): oh, act and balance, the paper's one-hot, activation and information
      entropy losses.
    - ZSKT (Micaelli and Storkey, NeurIPS 2019): adv alone, L_adv = -KL(T || S). The paper also matches
      attention maps of teacher and student blocks, for which both must be of one kind; that is left out
      here, as in the field's comparisons.
    - DFAD (Fang et al., 2019): adv alone, L_adv minus the mean absolute difference of the logits, with
      which the student is taught as well.
    - DFQ (Choi et al., CVPR-W 2020): adv (KL), bn, oh and balance.

    The generator stays in train mode when the student learns from it, as in the papers' own programs;
    some later implementations put it in eval mode then. No image is augmented.

    Args:
        teacher, student, augment, rng, processes, autocast, features: see
            `GuidedSynthesizer`; of `augment` only the
            normalisation is used.
        generator: maps latent codes (B, nz) to images (B, 3, H, W) in [0, 1].
        settings: weights, learning rate, steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        augment: Augment,
        settings: GenerativeSettings,
        rng: torch.Generator,
        processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
        features: PenultimateFeatures | None = None,
    ):
        plain = augment.normalize
        super().__init__(
            teacher, student, lambda images, _rng: plain(images), rng, processes, autocast, features
        )
        self.generator, self.settings = generator, settings
        self.optimizer = torch.optim.Adam(generator.parameters(), settings.lr_g, betas=ADAM_BETAS)

    def synthesize(self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        self.calls += 1
        trace = Trace()
        with frozen(self.student):
            for _ in range(self.settings.steps):
                images = self._generate(len(targets))
                total, terms = self._loss(images, targets, oh_weight)
                trace.add(total, terms, images, self.features.value)
                self.optimizer.zero_grad()
                total.backward()
                self.processes.average([parameter.grad for parameter in self.generator.parameters()])
                self.optimizer.step()
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        return self._finished(trace)

    def _loss(self, images: Tensor, targets: Tensor, oh_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss; its terms, unweighted."""
        s = self.settings
        inputs = self.augment(images, self.rng)
        logits, loss_bn = self._ask_teacher(inputs)
        loss_adv = torch.zeros_like(loss_bn)
        if s.adv > 0:
            loss_adv = -losses.divergence(s.divergence, self._ask_student(inputs), logits)
        terms = {
            "oh": F.cross_entropy(logits, targets if s.use_targets else logits.argmax(1)),
            "bn": loss_bn,
            "adv": loss_adv,
            "act": losses.activation(self.features.value),
            "balance": losses.class_balance(logits),
        }
        weights = {"oh": oh_weight, "bn": s.bn, "adv": s.adv, "act": s.act, "balance": s.balance}
        return weighted(terms, weights), terms

    def _generate(self, count: int) -> Tensor:
        with self.autocast():
            return at_least_single(self.generator.train()(self._noise(count, self.generator.nz)))

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """See `Synthesizer.sample`."""
        return self._generate(count)

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.calls = int(state["calls"])
