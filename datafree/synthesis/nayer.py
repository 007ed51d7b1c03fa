"""NAYER (Tran et al., CVPR 2024): no latent codes and no meta learning. The generator's input is a fixed
embedding of the requested class; the variation comes from a layer of noise, drawn again for every batch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datafree.errors import UserError
from datafree.models.generator import LabelGenerator
from datafree.networks.penultimate import PenultimateFeatures
from datafree.samples import Samples, occurrences
from datafree.settings import Settings
from datafree.synthesis.base import (
    ADAM_BETAS,
    BestStep,
    OnStep,
    Synthesis,
    SynthesisInputs,
    Synthesizer,
    draw_as_torch,
    frozen,
    ignore_step,
)
from datafree.torch_utils.precision import at_least_single


class NayerSynthesizer(Synthesizer):
    """Each call generates `g_loops` batches (`gwp_loops` in the warm-up), one after the other. Each batch has
    its own noisy layers, and its own optimiser that trains them and the rest of the generator; its images are
    those of its step with the lowest loss. The whole generator is reinitialised every `g_life` calls, counted
    from the first one and from the end of the warm-up. The adversarial term is 0 in the warm-up.

    The student is in eval mode. In the published code it is in train mode from the second batch of a call on,
    by accident.

    Args:
        inputs: see `SynthesisInputs`.
        settings: `g_steps g_loops gwp_loops g_life lr_g adv bn bn_mmt label_embedding`, and `warmup`.
        generator: maps embeddings (B, D) to images (B, C, H, W) in [0, 1]; made where it is not given.

    Raises:
        UserError: there are no such embeddings.
    """

    parts = ("statistics",)

    def __init__(self, inputs: SynthesisInputs, settings: Settings, generator: LabelGenerator | None = None):
        super().__init__(inputs, settings.bn_mmt)
        self.settings = s = settings
        features = PenultimateFeatures(self.teacher) if self.features.named else self.features
        table = label_embedding(s.label_embedding, features.layer, self.num_classes)
        self.table = table.to(self.rng.device)
        self.items = s.synthesis_batch_size // inputs.processes.world_size
        self.loops, self.warmup_calls = (s.g_loops, s.gwp_loops), s.warmup * s.rounds
        channels, _, img_size = inputs.image_shape
        classes, dim = self.table.shape
        made = generator or LabelGenerator(dim, classes, self.items, img_size=img_size, channels=channels)
        self.least_layers = len(made.le1)
        self.generator = made.to(self.rng.device).to(memory_format=torch.channels_last)

    def targets(self, count: int, draw: Callable[[int], Tensor]) -> Tensor:
        """The labels of the next call: all classes in turn in every batch, followed by random ones; with BLG,
        its labels."""
        s, classes = self.settings, len(self.table)
        loops = self.loops[self.calls < self.warmup_calls]
        if s.blg:
            return draw(loops * count)
        in_turn, rest = torch.arange(count, device=self.table.device) % classes, count % classes
        batches = [in_turn.clone() for _ in range(loops)]
        for batch in batches if rest else ():
            batch[-rest:] = draw(rest)
        return torch.cat(batches)

    def synthesize(self, targets: Tensor, alpha: float, on_step: OnStep = ignore_step) -> Synthesis:
        """See `Synthesizer.synthesize`; `targets` are those of all batches. The loss terms are means over the
        batches."""
        in_warmup = self.calls < self.warmup_calls
        calls = self.calls if in_warmup else self.calls - self.warmup_calls
        if self.calls and calls % self.settings.g_life == 0:
            self.generator.resize(self.least_layers)  # so that earlier calls do not change the draws
            draw_as_torch(self.generator, self.rng)
            self.processes.broadcast(list(self._lasting().values()))
        self.calls += 1
        made = [self._batch(part, alpha, not in_warmup, on_step) for part in targets.split(self.items)]
        fields = zip(*(vars(one.samples).values() for one in made), strict=True)
        return Synthesis(
            Samples(*map(torch.cat, fields)),
            torch.cat([one.images for one in made]),
            {name: mean(one.losses[name] for one in made) for name in made[0].losses},
            {name: [value for one in made for value in one.steps[name]] for name in made[0].steps},
        )

    def _batch(self, targets: Tensor, alpha: float, adversarial: bool, on_step: OnStep) -> Synthesis:
        s, generator = self.settings, self.generator.train()
        layers = occurrences(targets)
        generator.resize(max(self.least_layers, int(layers.max()) + 1))
        self._draw_noise()
        lasting = [value for value in self._lasting().values() if value.requires_grad]
        optimizer = torch.optim.Adam(generator.parameters(), s.lr_g, betas=ADAM_BETAS)
        best = BestStep()
        with frozen(self.student):
            for _ in range(s.g_steps):
                with self.autocast():
                    images = at_least_single(generator(self.table[targets], layers))
                total, terms = self._inversion_loss(images, targets, alpha, adversarial)
                best.add(total, terms, images, self.features.value)
                optimizer.zero_grad()
                total.backward()
                self.processes.all_reduce_mean([value.grad for value in lasting if value.grad is not None])
                optimizer.step()
                on_step("synthesis", total.detach())
        self.statistics.update_averages(self.processes)
        return self._finished(best)

    @torch.no_grad()
    def _draw_noise(self) -> None:
        for layer in self.generator.le1:
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(generator=self.rng)
            layer.bias.zero_()

    def _lasting(self) -> dict[str, Tensor]:
        """Parameters and buffers of the generator, without the noisy layers."""
        values = {**dict(self.generator.named_parameters()), **dict(self.generator.named_buffers())}
        return {name: value for name, value in values.items() if not name.startswith("le1.")}

    def state_dict(self) -> dict[str, Any]:
        generator = {name: value.detach() for name, value in self._lasting().items()}
        return {**super().state_dict(), "generator": generator, "table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises:
        KeyError, ValueError: the state is from a run with another generator or other embeddings.
        """
        super().load_state_dict(state)
        if not torch.equal(state["table"].to(self.table), self.table):
            raise ValueError("the label embeddings differ")
        own = self._lasting()
        if state["generator"].keys() != own.keys():
            raise KeyError("the generator differs")
        with torch.no_grad():
            for name, value in state["generator"].items():
                own[name].copy_(value)


def label_embedding(given: str, classifier: nn.Module, num_classes: int) -> Tensor:
    """A vector for each class, float32 (C, D).

    Args:
        given: "onehot"; "classifier" for the rows of the teacher's last linear layer; or a .npy file.
        classifier: that layer.
        num_classes: C.

    Raises:
        UserError: there is no such table.
    """
    if given == "onehot":
        return torch.eye(num_classes)
    if given == "classifier":
        weight = getattr(classifier, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or len(weight) != num_classes:
            raise UserError(
                "--label_embedding classifier: the teacher's logits do not come from a linear layer: use "
                "onehot, or a file"
            )
        return weight.detach().clone().float()
    try:
        table = torch.from_numpy(np.load(given, allow_pickle=False).astype(np.float32))
    except Exception as error:  # files that are not .npy fail in many ways
        raise UserError(
            f"--label_embedding {given}: {error}; use onehot, classifier or a .npy file"
        ) from error
    if table.dim() != 2 or len(table) != num_classes or not table.numel() or not table.isfinite().all():
        raise UserError(
            f"--label_embedding {given}: it contains {tuple(table.shape)} numbers; needed is a row of finite "
            f"numbers for each of {num_classes} classes"
        )
    return table
