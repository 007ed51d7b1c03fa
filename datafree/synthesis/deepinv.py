"""DeepInversion, and its adaptive form with a student (ADI; Yin et al., CVPR 2020): pixels themselves are
optimised."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.augment import Augment
from datafree.bn_statistics import BNStatistics
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import Autocast
from datafree.synthesis.base import GuidedSynthesizer, OnStep, Synthesis, Trace, frozen, ignore_step, weighted

ADAM_BETAS = (0.5, 0.99)
STUDENT_SHARE = 0.001  # of the student's distance to its own statistics, which is to stay large
JS_TEMPERATURE = 3.0
JITTER = 1 / 8  # of the image's side: the farthest that a batch is shifted


@dataclass(frozen=True)
class DeepInversionSettings:
    """The flags of the same names."""

    steps: int  # --g_steps
    lr_g: float
    bn: float
    adv: float
    tv: float
    l2: float


class DeepInversionSynthesizer(GuidedSynthesizer):
    """Each call optimises a batch of pixels, from noise, in the teacher's normalised units. The loss, seen
    on the batch shifted and mirrored at random as a whole, is

        bn * (L_bn - 0.001 * L_bn of the student) + oh * L_oh - adv * JS(S, T; 3) + tv * TV + l2 * L2

    with total variation and Euclidean norm of the batch as image priors. Pixels are clipped to the range of
    images after every step. The term with the student's statistics is the reference's, not the paper's;
    the priors' weights are the paper's for CIFAR-10 (section 4.1), where the paper takes other norms.

    Args:
        teacher, student, augment, rng, processes, autocast, features: see
            `GuidedSynthesizer`; `augment` makes
            the view by which finished images are labelled.
        image_shape: (C, H, W).
        settings: weights, learning rate, steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        image_shape: tuple[int, int, int],
        augment: Augment,
        settings: DeepInversionSettings,
        rng: torch.Generator,
        processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
        features: PenultimateFeatures | None = None,
    ):
        super().__init__(teacher, student, augment, rng, processes, autocast, features)
        self.image_shape, self.settings, self.flip = image_shape, settings, augment.flip
        self.normalize = augment.normalize
        self.student_statistics = BNStatistics(student)
        black, white = torch.zeros(1, image_shape[0], 1, 1), torch.ones(1, image_shape[0], 1, 1)
        self.low, self.high = (self.normalize(image.to(rng.device)) for image in (black, white))

    def synthesize(self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        s = self.settings
        self.calls += 1
        pixels = self._noise(len(targets), *self.image_shape).requires_grad_()
        optimizer = torch.optim.Adam([pixels], s.lr_g, betas=ADAM_BETAS)
        trace = Trace()
        with frozen(self.student):
            for _ in range(s.steps):
                total, terms = self._loss(self._jitter(pixels), targets, oh_weight)
                trace.add(total, terms, self._to_images(pixels.detach()), self.features.value)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                with torch.no_grad():
                    pixels.clamp_(self.low, self.high)
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        self.student_statistics.update_averages()
        return self._finished(trace)

    def _loss(self, inputs: Tensor, targets: Tensor, oh_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of normalised images; its terms, unweighted."""
        s = self.settings
        logits, loss_bn = self._ask_teacher(inputs)
        with self.student_statistics.capture():
            student_logits = self._ask_student(inputs)
        terms = {
            "oh": F.cross_entropy(logits, targets),
            "bn": loss_bn - STUDENT_SHARE * self.student_statistics.distance().to(loss_bn),
            "adv": -losses.jsdiv(student_logits, logits, JS_TEMPERATURE),
            "tv": losses.total_variation(inputs),
            "l2": losses.l2_norm(inputs),
        }
        weights = {"oh": oh_weight, "bn": s.bn, "adv": s.adv, "tv": s.tv, "l2": s.l2}
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

    def state_dict(self) -> dict:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict) -> None:
        self.calls = int(state["calls"])
