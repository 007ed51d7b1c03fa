"""CMI, contrastive model inversion (Fang et al., IJCAI 2021): samples that also differ from each other
and from those made before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    draw_weights,
    frozen,
    ignore_step,
    weighted,
)

BANK_SIZE = 40_960  # samples whose views are remembered
NEGATIVES = 4_096  # of them at a step
HEAD_DIM = 256
LOCAL_SCALE = (0.25, 1.0)  # share of the area that a local view shows


@dataclass(frozen=True)
class CMISettings:
    """The flags of the same names."""

    steps: int  # --g_steps
    lr_g: float
    lr_z: float
    bn: float
    adv: float
    cr: float
    temperature: float  # --cr_T


class CMISynthesizer(GuidedSynthesizer):
    """Each call draws the generator anew and optimises it together with latent codes. The loss is

        bn * L_bn + oh * L_oh + adv * L_adv + cr * L_cr

    The first three are seen on a global view of each image (crop, flip). L_cr is InfoNCE between the
    local view (a random resized crop, flip) of each image and its global view, against the global views of
    the others and of samples made before. A view is described by the spatial means of the inputs of all
    the teacher's BatchNorm layers (of a network with `layer1` to `layer4`, such as resnet34, the outputs of
    these), projected by a two-layer head that learns along and has unit length.

    Published code differs from the paper in where it stops gradients; here both views pass them on, as in
    the paper's equation of the contrastive loss. The bank keeps its rows in half precision and is a part of
    every checkpoint: up to 40,960 rows, 220 MB for wrn40_2; `--save_every` makes these fewer.

    Args:
        teacher, student, augment, rng, processes, autocast, features: see
            `GuidedSynthesizer`; `augment` makes
            the global views.
        generator: maps latent codes (B, nz) to images (B, 3, H, W) in [0, 1].
        settings: weights, learning rates, steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        augment: Augment,
        settings: CMISettings,
        rng: torch.Generator,
        processes: Processes = ALONE,
        autocast: Autocast = nullcontext,
        features: PenultimateFeatures | None = None,
    ):
        super().__init__(teacher, student, augment, rng, processes, autocast, features)
        self.generator, self.settings = generator, settings
        self.local_augment = Augment(augment.normalize, augment.flip, LOCAL_SCALE)
        self.description = ViewDescription(teacher)
        device = rng.device
        with torch.no_grad(), self.description.capture():
            teacher(augment.normalize(generator.eval()(torch.zeros(1, generator.nz, device=device))))
        dim = self.description.value().shape[1]
        self.head = nn.Sequential(
            nn.Linear(dim, HEAD_DIM), nn.ReLU(inplace=True), nn.Linear(HEAD_DIM, HEAD_DIM)
        ).to(device)
        processes.follow_first(list(self.head.parameters()))
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), settings.lr_g)
        self.bank = torch.empty((0, dim), dtype=torch.float16, device=device)  # global views, oldest first

    def synthesize(self, targets: Tensor, oh_weight: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        s = self.settings
        self.calls += 1
        draw_weights(self.generator.train(), self.rng)
        z = self._noise(len(targets), self.generator.nz).requires_grad_()
        optimizer = torch.optim.Adam(
            [{"params": list(self.generator.parameters())}, {"params": [z], "lr": s.lr_z}],
            lr=s.lr_g,
            betas=ADAM_BETAS,
        )
        trace = Trace()
        with frozen(self.student):
            for _ in range(s.steps):
                with self.autocast():
                    images = at_least_single(self.generator(z))
                total, terms, views = self._loss(images, targets, oh_weight)
                trace.add(total, terms, images, self.features.value, views)
                optimizer.zero_grad()
                self.head_optimizer.zero_grad()
                total.backward()
                optimizer.step()
                if s.cr:
                    self.processes.average([parameter.grad for parameter in self.head.parameters()])
                    self.head_optimizer.step()
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        views = self.processes.gather(trace.best.pop())
        self.bank = torch.cat([self.bank, views.to(self.bank.dtype)])[-BANK_SIZE:]
        return self._finished(trace)

    def _loss(
        self, images: Tensor, targets: Tensor, oh_weight: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Total loss; its terms, unweighted; the descriptions of the global views."""
        s = self.settings
        # The local view first: what is left in `self.features` is then of the global one.
        with self.autocast(), self.description.capture():
            self.teacher(self.local_augment(images, self.rng))
        local_views = self.description.value()
        inputs = self.augment(images, self.rng)
        with self.description.capture():
            logits, loss_bn = self._ask_teacher(inputs)
        global_views = self.description.value()
        loss_adv = torch.zeros_like(loss_bn)
        if s.adv > 0:
            loss_adv = losses.adversarial(self._ask_student(inputs), logits)
        terms = {
            "oh": F.cross_entropy(logits, targets),
            "bn": loss_bn,
            "adv": loss_adv,
            "cr": self._contrast(local_views, global_views),
        }
        weights = {"oh": oh_weight, "bn": s.bn, "adv": s.adv, "cr": s.cr}
        return weighted(terms, weights), terms, global_views

    def _contrast(self, local_views: Tensor, global_views: Tensor) -> Tensor:
        """InfoNCE of projected views (N, D), with negatives drawn from the bank."""
        count = min(NEGATIVES, len(self.bank))
        drawn = torch.randperm(len(self.bank), generator=self.rng, device=self.rng.device)[:count]
        views = torch.cat([local_views, global_views, self.bank[drawn].to(local_views)])
        projected = F.normalize(self.head(views), dim=1)
        anchors, candidates = projected.split([len(local_views), len(global_views) + count])
        return losses.info_nce(anchors, candidates, self.settings.temperature)

    def state_dict(self) -> dict:
        return {
            "head": self.head.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict(),
            "bank": self.bank,
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        load_optimizer(self.head_optimizer, state["head_optimizer"])
        if state["bank"].shape[1:] != self.bank.shape[1:]:
            raise ValueError("the bank is of another network")
        self.bank = state["bank"].to(self.bank)
        self.calls = int(state["calls"])


class ViewDescription:
    """What a network sees in an image: spatial means of what goes into its BatchNorm layers or, of a network
    with `layer1` to `layer4`, of what these put out; of one with neither, its penultimate features."""

    def __init__(self, network: nn.Module):
        blocks = [getattr(network, f"layer{number}", None) for number in range(1, 5)]
        self._outputs = all(blocks)
        self._layers = blocks
        if not self._outputs:
            self._layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        if not self._layers:
            self._layers = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
        self._means: dict[int, Tensor] = {}

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Describe the forward pass of the network inside the block."""

        def hook(index: int):
            def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen = at_least_single(output if self._outputs else inputs[0])
                self._means[index] = seen.flatten(2).mean(2) if seen.dim() > 2 else seen

            return keep

        handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def value(self) -> Tensor:
        """(N, D), of the last forward pass captured."""
        return torch.cat([self._means[index] for index in range(len(self._layers))], 1)
