"""The parts of a distillation, chosen by the settings and put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import nn

from datafree.blg import BiasedLabelGenerator, UniformLabels
from datafree.data.augment import Augment
from datafree.distiller import Distiller
from datafree.dlw import DynamicLossWeight, FixedWeight
from datafree.extras.mixing import mixed_batches
from datafree.extras.teacher_cache import TeacherCache
from datafree.iho import HomogeneityOperator, NoPruning
from datafree.networks.penultimate import PenultimateFeatures
from datafree.parallel import ShardedSynthesizer, SynchronizedPruner
from datafree.repository import FreshSamples, Log, SampleRepository
from datafree.samples import Batch
from datafree.settings import Settings
from datafree.student import StudentTrainer, fresh_batches, stored_batches
from datafree.synthesis.base import OnStep, SynthesisInputs, Synthesizer
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
    processes: Processes = SINGLE_PROCESS,
    log: Log | None = None,
    warn: Callable[[str], object] = lambda text: None,
) -> Distiller:
    """A distiller for the settings.

    Args:
        settings: resolved.
        teacher: frozen, in eval mode, on the device.
        student: trained, on the device.
        features: of the teacher.
        img_size: pixels a side.
        num_classes: of both networks.
        augment: how images are augmented and normalised in synthesis; KD uses its `for_training`.
        device: of the networks.
        processes: among which batches are divided.
        log: where samples are written as well, and images read from that `repository_memory` has no room for.
        warn: called with a line about what is not as expected.
    """
    s, image_shape = settings, (augment.normalize.channels, img_size, img_size)
    generators = RandomGenerators(s.seed, device, processes.rank)
    amp = s.amp if s.amp != "fp16" else "off"  # synthesis has no scaler that saves small gradients
    synthesizer: Synthesizer = create_synthesizer(
        SynthesisInputs(
            teacher,
            student,
            augment,
            image_shape,
            generators.synthesis,
            processes,
            autocast(amp, device),
            features,
            num_classes,
        ),
        s,
    )
    if processes.world_size > 1:
        synthesizer = cast(Synthesizer, ShardedSynthesizer(synthesizer, processes))
    of_repository = (image_shape, features.dim, num_classes, device, s.max_samples)
    if s.store_samples:
        repository = SampleRepository(*of_repository, log, s.repository_memory, processes)
    else:
        repository = FreshSamples(*of_repository)

    trainer = StudentTrainer(teacher, student, s, device, processes)
    size, steps, generator = s.batch_size // processes.world_size, s.kd_steps, generators.distillation
    augment = augment.for_training()
    batches: Callable[[OnStep], Iterator[Batch]]
    if not s.store_samples:
        batches = partial(fresh_batches, synthesizer, augment.normalize, size, steps)
    elif s.reuse_teacher is None:
        batches = partial(stored_batches, repository, augment, size, steps, generator)
    else:
        cache = TeacherCache(
            repository, trainer.teach, augment, num_classes, size, steps, s.reuse_teacher, generator
        )
        if cache.inexact:
            warn(cache.inexact)
        batches = cache.batches
    if s.mixup:
        batches = partial(mixed_batches, batches, generator)

    of_pruner = (num_classes, s.synthesis_samples, s.epochs)
    if not s.iho:
        pruner = NoPruning(num_classes)
    elif processes.world_size == 1:
        pruner = HomogeneityOperator(*of_pruner)
    else:
        pruner = SynchronizedPruner(processes, *of_pruner)
    of_dlw = (s.oh_min, s.oh_max, s.oh_step, s.oh_memory_size, s.warmup, s.epochs, s.dlw_mode)
    return Distiller(
        loss_weight=DynamicLossWeight(*of_dlw) if s.dlw else FixedWeight(s.oh),
        labels=(BiasedLabelGenerator if s.blg else UniformLabels)(num_classes, generators.labels),
        synthesizer=synthesizer,
        repository=repository,
        pruner=pruner,
        batches=batches,
        student=trainer,
        batch_size=s.synthesis_batch_size,
        rounds=s.rounds,
        warmup=s.warmup,
        generators=generators,
        processes=processes,
    )
