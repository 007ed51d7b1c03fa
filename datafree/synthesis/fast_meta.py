"""Fast-Meta (Fang et al., AAAI 2022): a generator whose starting point is meta-learned from call to call, so
that a few steps suffice for a batch. BSR synthesises with it. Its `fast` form has no meta step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

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
    generator_optimizer,
    gradients,
    ignore_step,
)
from datafree.torch_utils.precision import at_least_single

RESET_CALL = 120  # the generator's first layers are reinitialised so many calls after the warm-up
REPTILE_SCALE = 67


class FastMetaSynthesizer(Synthesizer):
    """Each call optimises a clone of the generator together with fresh latent codes, keeps the images
    of the best step, and moves the generator itself by the clone's gradients (FOMAML) or towards the
    clone (Reptile). The adversarial term is 0 in the first `warmup` - 1 calls.

    Args:
        inputs: see `SynthesisInputs`.
        settings: `g_steps lr_g lr_z adv bn bn_mmt reset_l0 reset_bn is_maml`, and `warmup`.
        generator: maps latent codes (B, nz) to images (B, C, H, W) in [0, 1]; created if not given.
    """

    parts = ("generator", "meta_optimizer", "statistics")
    clones = True  # whether a call optimises a clone or the generator itself

    def __init__(self, inputs: SynthesisInputs, settings: Settings, generator: Generator | None = None):
        super().__init__(inputs, settings.bn_mmt)
        self.generator = generator or inputs.make_generator(METHODS[settings.method])
        self.settings = settings
        self.meta_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=settings.lr_g * settings.g_steps, betas=ADAM_BETAS
        )

    def synthesize(
        self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step, z: Tensor | None = None
    ) -> Synthesis:
        """See `Synthesizer.synthesize`; `z` (B, nz) replaces the latent codes drawn from `rng`."""
        s = self.settings
        self.calls += 1
        if self.clones and self.calls == RESET_CALL + s.warmup:
            self._reset_generator()
        if z is None:
            z = self._noise(len(targets), self.generator.nz)
        z = z.clone().requires_grad_()
        working = copy.deepcopy(self.generator) if self.clones else self.generator
        working.train()
        optimizer = generator_optimizer(working, z, s.lr_g, s.lr_z)
        self.meta_optimizer.zero_grad()
        best = BestStep()
        with frozen(self.student):
            for _ in range(s.g_steps):
                with self.autocast():
                    images = at_least_single(working(z))
                total, terms = self._inversion_loss(images, targets, alpha, self.calls >= s.warmup)
                best.add(total, terms, images, self.features.value)
                optimizer.zero_grad()
                total.backward()
                if not self.clones:
                    self.processes.all_reduce_mean(gradients(working))
                elif s.is_maml:
                    _add_gradients(self.generator, working)
                optimizer.step()
                on_step("synthesis", total.detach())
        if self.clones:
            if not s.is_maml:
                _reptile_gradients(self.generator, working)
            self.processes.all_reduce_mean(gradients(self.generator))
            self.meta_optimizer.step()
        self.statistics.update_averages(self.processes)
        return self._finished(best)

    @torch.no_grad()
    def _reset_generator(self) -> None:
        if self.settings.reset_l0:
            for layer in (self.generator.l1[0], self.generator.conv_blocks[0]):
                for name, value in layer.named_parameters():
                    value.zero_() if name == "bias" else value.normal_(0, 0.02, generator=self.rng)
        if self.settings.reset_bn:
            for layer in self.generator.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.weight.normal_(1, 0.02, generator=self.rng)
                    layer.bias.zero_()
        self.processes.broadcast(list(self.generator.parameters()))


class FastSynthesizer(FastMetaSynthesizer):
    """Has no clone and no meta step: the steps of a call change the generator itself. No layer is ever
    reinitialised: the published code (Fast-Datafree) stores the flag and does not use it."""

    clones = False


def _add_gradients(target: nn.Module, source: nn.Module) -> None:
    for mine, gradient in zip(target.parameters(), gradients(source), strict=True):
        mine.grad = gradient.clone() if mine.grad is None else mine.grad.add_(gradient)


@torch.no_grad()
def _reptile_gradients(target: nn.Module, source: nn.Module) -> None:
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.grad = REPTILE_SCALE * (mine - theirs)
