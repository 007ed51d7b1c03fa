"""DeepInversion, and its adaptive form with a student (ADI; Yin et al., CVPR 2020): pixels themselves are
optimised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.networks.bn_statistics import BNStatistics
from datafree.settings import Settings
from datafree.synthesis.base import (
    BestStep,
    OnStep,
    Synthesis,
    SynthesisInputs,
    Synthesizer,
    frozen,
    ignore_step,
    weighted,
)

ADAM_BETAS = (0.5, 0.99)
STUDENT_SHARE = 0.001  # weight of the student's distance to its own statistics, which should stay large
JS_TEMPERATURE = 3.0
JITTER = 1 / 8  # of the image's side: the farthest that a batch is shifted


class DeepInversionSynthesizer(Synthesizer):
    """Each call optimises a batch of pixels, from noise, in the teacher's normalised units. The loss is
    computed on the batch shifted and mirrored at random as a whole:

        bn * (L_bn - 0.001 * L_bn of the student) + oh * L_oh - adv * JS(S, T; 3) + tv * TV + l2 * L2

    with total variation and Euclidean norm of the batch as image priors. Pixels are clipped to the range of
    images after every step. The term with the student's statistics is the reference's, not the paper's;
    the priors' weights are the paper's for CIFAR-10 (section 4.1), where the paper takes other norms.

    Args:
        inputs: see `SynthesisInputs`; its `augment` creates the view on which finished images are labelled.
        settings: `g_steps lr_g adv bn tv l2`.
    """

    def __init__(self, inputs: SynthesisInputs, settings: Settings):
        super().__init__(inputs)
        augment, image_shape = inputs.augment, inputs.image_shape
        self.image_shape, self.settings, self.flip = image_shape, settings, augment.flip
        self.normalize = augment.normalize
        self.student_statistics = BNStatistics(self.student)
        black, white = torch.zeros(1, image_shape[0], 1, 1), torch.ones(1, image_shape[0], 1, 1)
        self.low, self.high = (self.normalize(image.to(self.rng.device)) for image in (black, white))

    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        s = self.settings
        self.calls += 1
        pixels = self._noise(len(targets), *self.image_shape).requires_grad_()
        optimizer = torch.optim.Adam([pixels], s.lr_g, betas=ADAM_BETAS)
        best = BestStep()
        with frozen(self.student):
            for _ in range(s.g_steps):
                total, terms = self._loss(self._jitter(pixels), targets, alpha)
                best.add(total, terms, self._to_images(pixels.detach()), self.features.value)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                with torch.no_grad():
                    pixels.clamp_(self.low, self.high)
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        self.student_statistics.update_averages()
        return self._finished(best)

    def _loss(self, inputs: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss of normalised images; its terms, unweighted."""
        s = self.settings
        logits, loss_bn = self._teacher_outputs(inputs)
        with self.student_statistics.capture():
            student_logits = self._student_logits(inputs)
        terms = {
            "oh": F.cross_entropy(logits, targets),
            "bn": loss_bn - STUDENT_SHARE * self.student_statistics.distance().to(loss_bn),
            "adv": -losses.jsdiv(student_logits, logits, JS_TEMPERATURE),
            "tv": losses.total_variation(inputs),
            "l2": losses.l2_norm(inputs),
        }
        weights = {"oh": alpha, "bn": s.bn, "adv": s.adv, "tv": s.tv, "l2": s.l2}
        return weighted(terms, weights), terms

    def _jitter(self, pixels: Tensor) -> Tensor:
        """The batch, shifted around by up to an eighth of its side, and mirrored or not."""
        _, height, width = self.image_shape
        device = self.rng.device
        reach = int(height * JITTER)
        shift = torch.randint(-reach, reach + 1, (2,), generator=self.rng, device=device)
        rows = (torch.arange(height, device=device) - shift[0]) % height
        columns = (torch.arange(width, device=device) - shift[1]) % width
        if self.flip:
            mirror = torch.rand((), generator=self.rng, device=device) < 0.5
            columns = torch.where(mirror, columns.flip(0), columns)
        return pixels.index_select(2, rows).index_select(3, columns)

    def _to_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels as images in [0, 1]."""
        return ((pixels - self.low) / (self.high - self.low)).clamp(0, 1)
