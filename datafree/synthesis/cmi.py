"""CMI, contrastive model inversion (Fang et al., IJCAI 2021): samples that also differ from each other and
from earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.data.augment import Augment
from datafree.methods import METHODS
from datafree.models.generator import Generator
from datafree.models.resnet import is_resnet34
from datafree.settings import Settings
from datafree.synthesis.base import (
    BestStep,
    OnStep,
    Synthesis,
    SynthesisInputs,
    Synthesizer,
    draw_weights,
    frozen,
    generator_optimizer,
    gradients,
    ignore_step,
    weighted,
)
from datafree.torch_utils.precision import at_least_single

BANK_SIZE = 40_960  # samples whose views are kept
NEGATIVES = 4_096  # drawn from them at each step
HEAD_DIM = 256
LOCAL_SCALE = (0.25, 1.0)  # share of the area that a local view shows


class CMISynthesizer(Synthesizer):
    """Each call reinitialises the generator and optimises it together with latent codes. The loss is

        bn * L_bn + oh * L_oh + adv * L_adv + cr * L_cr

    The first three are computed on a global view of each image (crop, flip). L_cr contrasts the local view (a
    random resized crop, flip) of each image with the global views of all images, of which its own is the
    right one. Earlier images take part, both as anchors and as candidates, see `losses.contrastive`. A view
    is described by the spatial means of the inputs of all the teacher's BatchNorm layers (for resnet34: of
    its `layer1` to `layer4`, as published), projected to unit length by a two-layer head that is trained too.

    A bank keeps both views of the images of each call: up to 40,960 rows, of which each step draws 4,096 at
    random. This is what the published code computes; the paper's equation has gradients through both views,
    the code stops those through the global ones. Here the bank is in half precision. Every checkpoint
    contains it: up to 440 MB for wrn40_2; `--save_every` makes checkpoints fewer.

    Args:
        inputs: see `SynthesisInputs`; its `augment` creates the global views.
        settings: `g_steps lr_g lr_z adv bn cr cr_T`.
        generator: maps latent codes (B, nz) to images (B, C, H, W) in [0, 1]; created if not given.
    """

    parts = ("head", "head_optimizer")

    def __init__(self, inputs: SynthesisInputs, settings: Settings, generator: Generator | None = None):
        super().__init__(inputs)
        self.generator = generator or inputs.make_generator(METHODS[settings.method])
        self.settings = settings
        teacher, augment, processes, device = self.teacher, self.augment, self.processes, self.rng.device
        self.local_augment = Augment(augment.normalize, augment.flip, LOCAL_SCALE)
        self.description = ViewDescription(teacher)
        with torch.no_grad(), self.description.capture():
            teacher(
                augment.normalize(self.generator.eval()(torch.zeros(1, self.generator.nz, device=device)))
            )
        dim = self.description.value().shape[1]
        self.head = nn.Sequential(
            nn.Linear(dim, HEAD_DIM), nn.ReLU(inplace=True), nn.Linear(HEAD_DIM, HEAD_DIM)
        ).to(device)
        processes.broadcast(list(self.head.parameters()))
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), settings.lr_g)
        # Global and local view of an image a row, oldest first.
        self.bank = torch.empty((0, 2 * dim), dtype=torch.float16, device=device)

    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`."""
        s = self.settings
        self.calls += 1
        draw_weights(self.generator.train(), self.rng)
        z = self._noise(len(targets), self.generator.nz).requires_grad_()
        optimizer = generator_optimizer(self.generator, z, s.lr_g, s.lr_z)
        best = BestStep()
        with frozen(self.student):
            for _ in range(s.g_steps):
                with self.autocast():
                    images = at_least_single(self.generator(z))
                total, terms, views = self._loss(images, targets, alpha)
                best.add(total, terms, images, self.features.value, views)
                optimizer.zero_grad()
                self.head_optimizer.zero_grad()
                total.backward()
                optimizer.step()
                if s.cr:
                    self.processes.all_reduce_mean(gradients(self.head))
                    self.head_optimizer.step()
                on_step("synthesis", total.detach())
        self.statistics.update_averages()
        views = self.processes.all_gather(best.kept.pop())
        self.bank = torch.cat([self.bank, views.to(self.bank.dtype)])[-BANK_SIZE:]
        return self._finished(best)

    def _loss(
        self, images: Tensor, targets: Tensor, alpha: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The total loss; its terms, unweighted; both views of each image, for the bank."""
        s = self.settings
        # The local view first: `self.features` then has the features of the global one.
        with self.autocast(), self.description.capture():
            self.teacher(self.local_augment(images, self.rng))
        local_views = self.description.value()
        inputs = self.augment(images, self.rng)
        with self.description.capture():
            logits, loss_bn = self._teacher_outputs(inputs)
        global_views = self.description.value()
        loss_adv = torch.zeros_like(loss_bn)
        if s.adv > 0:
            loss_adv = losses.adversarial(self._student_logits(inputs), logits)
        terms = {
            "oh": F.cross_entropy(logits, targets),
            "bn": loss_bn,
            "adv": loss_adv,
            "cr": self._contrast(global_views, local_views),
        }
        weights = {"oh": alpha, "bn": s.bn, "adv": s.adv, "cr": s.cr}
        return weighted(terms, weights), terms, torch.cat([global_views, local_views], 1)

    def _contrast(self, global_views: Tensor, local_views: Tensor) -> Tensor:
        """The contrastive loss of the views (N, D) of new images against views drawn from the bank."""
        count = min(NEGATIVES, len(self.bank))
        drawn = torch.randperm(len(self.bank), generator=self.rng, device=self.rng.device)[:count]
        cached = self.bank[drawn].to(local_views)
        return contrast(self.head, global_views, local_views, cached, self.settings.cr_T)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "bank": self.bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.bank = state["bank"].to(self.bank)


def contrast(
    head: nn.Module, global_views: Tensor, local_views: Tensor, cached: Tensor, temperature: float
) -> Tensor:
    """CMI's contrastive loss of images from their views, see `losses.contrastive`.

    Args:
        head: projects views (N, D).
        global_views, local_views: (N, D), of the new images.
        cached: (M, 2 D), global and local views of earlier images; M may be 0.
        temperature: above 0.
    """
    cached_global, cached_local = cached.chunk(2, 1)
    anchors = F.normalize(head(torch.cat([local_views, cached_local])), dim=1)
    with torch.no_grad():
        candidates = F.normalize(head(torch.cat([global_views, cached_global])), dim=1)
    return losses.contrastive(anchors, candidates, len(local_views), temperature)


class ViewDescription:
    """A description of an image by a network: spatial means of the inputs of its BatchNorm layers, for
    resnet34 of `layer1` to `layer4`; for a network without BatchNorm layers, its penultimate features."""

    def __init__(self, network: nn.Module):
        self._layers: list[nn.Module] = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        if is_resnet34(network):
            self._layers = [network.get_submodule(f"layer{number}") for number in range(1, 5)]
        if not self._layers:
            linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
            self._layers = list(linear[-1:])
        self._means: dict[int, Tensor] = {}

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Describe the forward pass of the network inside the block."""

        def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                seen = at_least_single(inputs[0])
                self._means[index] = seen.flatten(2).mean(2) if seen.dim() > 2 else seen

            return keep

        handles = [layer.register_forward_pre_hook(hook(index)) for index, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def value(self) -> Tensor:
        """(N, D), of the last forward pass captured."""
        return torch.cat([self._means[index] for index in range(len(self._layers))], 1)
