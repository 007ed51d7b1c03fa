"""From settings and two networks to what trains one by the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from datafree.data.augment import Augment
from datafree.distiller import Distiller
from datafree.evaluation import Evaluation, HeldOut
from datafree.networks.penultimate import PenultimateFeatures
from datafree.repository import Log, SampleRepository
from datafree.settings import Settings
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.create import create_synthesizer
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes
from datafree.torch_utils.precision import autocast
from datafree.torch_utils.random import RandomGenerators


def make_distiller(
    settings: Settings,
    teacher: nn.Module,
    student: nn.Module,
    *,
    features: PenultimateFeatures,
    img_size: int,
    num_classes: int,
    augment: Augment,
    device: torch.device,
    evaluate: Callable[[nn.Module], Evaluation] | None = None,
    hold_out: bool = False,
    processes: Processes = SINGLE_PROCESS,
    log: Log | None = None,
) -> Distiller:
    """Everything that an epoch needs.

    Args:
        settings: resolved.
        teacher: frozen, in eval mode, on the device.
        student: what is trained, on the device.
        features: of the teacher.
        img_size: pixels a side.
        num_classes: of both networks.
        augment: how images are augmented and normalised in synthesis; KD takes its `for_training`.
        device: where the networks are.
        evaluate: scores the student.
        hold_out: keep some samples from training, and score agreement on them.
        processes: among which the batches are divided.
        log: where samples are written as well; the images that `repository_memory` has no room for are read
            from it.
    """
    s, image_shape = settings, (augment.normalize.channels, img_size, img_size)
    streams = RandomGenerators(s.seed, device, processes.rank)
    amp = s.amp if s.amp != "fp16" else "off"  # a synthesis has no scaler that saves small gradients
    context = SynthesisInputs(
        teacher,
        student,
        augment,
        image_shape,
        streams.synthesis,
        processes,
        autocast(amp, device),
        features,
        num_classes,
    )
    synthesizer = create_synthesizer(context, s)
    if s.store_samples:
        repository = SampleRepository(
            image_shape,
            features.dim,
            num_classes,
            device,
            log=log,
            resident_bytes=s.repository_memory,
            rank=processes.rank,
            world_size=processes.world_size,
        )
    else:  # of the newest batch alone, whole in every process
        repository = SampleRepository(image_shape, features.dim, num_classes, device)
    held_out = HeldOut(image_shape, teacher, augment.normalize, device) if hold_out else None
    return Distiller(
        teacher,
        student,
        synthesizer,
        repository,
        augment.for_training(),
        settings=s,
        streams=streams,
        evaluate=evaluate,
        processes=processes,
        held_out=held_out,
    )
