"""Methods that train one generator against the student and keep no samples: DAFL, ZSKT, DFAD and DFQ."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.data.augment import OnlyNormalize
from datafree.methods import METHODS
from datafree.models.generator import Generator
from datafree.settings import Settings
from datafree.synthesis.base import (
    ADAM_BETAS,
    BestStep,
    OnStep,
    Synthesis,
    SynthesisInputs,
    Synthesizer,
    frozen,
    gradients,
    ignore_step,
    weighted,
)
from datafree.torch_utils.precision import at_least_single


class GenerativeSynthesizer(Synthesizer):
    """One generator, trained for a few steps in each call on fresh latent codes; the student learns from
    fresh samples. The loss is

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
        inputs: see `SynthesisInputs`; of its `augment` only the normalisation is used.
        settings: `g_steps lr_g adv bn act balance ema_generator`. With `blg`, L_oh is against the requested
            labels.
        generator: maps latent codes (B, nz) to images (B, C, H, W) in [0, 1]; created if not given.
    """

    def __init__(self, inputs: SynthesisInputs, settings: Settings, generator: Generator | None = None):
        super().__init__(replace(inputs, augment=OnlyNormalize(inputs.augment.normalize)))
        method = METHODS[settings.method]
        self.generator = generator or inputs.make_generator(method)
        self.settings, self.divergence = settings, method.divergence
        self.asks_for_classes = settings.blg  # else images only need some class
        self.optimizer = torch.optim.Adam(self.generator.parameters(), settings.lr_g, betas=ADAM_BETAS)
        self.follower = copy.deepcopy(self.generator) if settings.ema_generator else None
        self.parts = ("generator", "optimizer", *(["follower"] if self.follower else []))

    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        self.calls += 1
        best = BestStep()
        with frozen(self.student):
            for _ in range(self.settings.g_steps):
                images = self._generate(len(targets))
                total, terms = self._loss(images, targets, alpha)
                best.add(total, terms, images, self.features.value)
                self.optimizer.zero_grad()
                total.backward()
                self.processes.all_reduce_mean(gradients(self.generator))
                self.optimizer.step()
                self._follow()
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        return self._finished(best)

    def _loss(self, images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss; its terms, unweighted."""
        s = self.settings
        inputs = self.augment(images, self.rng)
        logits, loss_bn = self._teacher_outputs(inputs)
        loss_adv = torch.zeros_like(loss_bn)
        if s.adv > 0:
            loss_adv = -losses.divergence(self.divergence, self._student_logits(inputs), logits)
        terms = {
            "oh": F.cross_entropy(logits, targets if s.blg else logits.argmax(1)),
            "bn": loss_bn,
            "adv": loss_adv,
            "act": losses.activation(self.features.value),
            "balance": losses.class_balance(logits),
        }
        weights = {"oh": alpha, "bn": s.bn, "adv": s.adv, "act": s.act, "balance": s.balance}
        return weighted(terms, weights), terms

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the second generator a step towards the first one."""
        if self.follower:
            for mine, its in zip(self.follower.parameters(), self.generator.parameters(), strict=True):
                mine.lerp_(its, 1 - self.settings.ema_generator)

    def _generate(self, count: int, generator: Generator | None = None) -> Tensor:
        generator = generator or self.generator
        with self.autocast():
            return at_least_single(generator.train()(self._noise(count, generator.nz)))

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """See `Synthesizer.sample`. With `ema_generator`, half of the images come from a second generator,
        whose weights follow the first one's, so that the student also sees earlier kinds of samples (after
        MAD, Do et al., NeurIPS 2022)."""
        if not self.follower:
            return self._generate(count)
        half = count // 2
        return torch.cat([self._generate(count - half), self._generate(half, self.follower)])
