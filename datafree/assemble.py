"""From settings and two networks to what trains one by the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from datafree.agreement import HeldOut
from datafree.augment import Augment
from datafree.distiller import Distiller, DistillSettings
from datafree.evaluate import Evaluation
from datafree.methods import METHODS
from datafree.parallel import ALONE, Processes
from datafree.penultimate import PenultimateFeatures
from datafree.precision import autocast
from datafree.record import SAMPLES
from datafree.repository import SampleRepository
from datafree.sample_log import SampleLog
from datafree.streams import RandomStreams
from datafree.synthesis.create import create_synthesizer


def make_distiller(
    args: argparse.Namespace,
    teacher: nn.Module,
    student: nn.Module,
    img_size: int,
    num_classes: int,
    augment: Augment,
    device: torch.device,
    evaluate: Callable[[nn.Module], Evaluation] | None = None,
    processes: Processes = ALONE,
    folder: Path | None = None,
) -> Distiller:
    """Everything that an epoch needs.

    Args:
        args: the flags of `datafree.settings`, resolved.
        teacher: frozen, in eval mode, on the device.
        student: what is trained, on the device.
        img_size: pixels a side.
        num_classes: of both networks.
        augment: how images are augmented and normalised.
        device: where the networks are.
        evaluate: scores the student; None holds synthetic samples out and scores agreement on them.
        processes: among which the batches are divided.
        folder: where the samples are logged, for `--resume` and `--repository_memory`; None for nowhere.
    """
    a, channels = args, augment.normalize.channels
    streams = RandomStreams(a.seed, device, processes.rank)
    part = a.amp if a.amp != "fp16" else "off"  # a synthesis has no scaler that saves small gradients
    images = torch.zeros(2, channels, img_size, img_size, device=device)
    features = PenultimateFeatures(teacher, a.feature_layer, images)
    synthesizer = create_synthesizer(
        a,
        teacher,
        student,
        img_size,
        augment,
        streams.synthesis,
        processes,
        autocast(part, device),
        features,
        channels,
    )
    shape = (channels, img_size, img_size)
    if a.store_samples:
        log = folder and SampleLog(folder / SAMPLES, shape, features.dim, processes.first)
        repository = SampleRepository(
            shape,
            features.dim,
            num_classes,
            device,
            log,
            a.repository_memory,
            processes.rank,
            processes.world_size,
        )
    else:  # of the newest batch alone, whole in every process
        repository = SampleRepository(shape, features.dim, num_classes, device)
    settings = DistillSettings(
        a.epochs,
        a.warmup,
        a.kd_steps,
        a.ep_steps,
        a.batch_size,
        a.synthesis_batch_size,
        a.lr,
        a.momentum,
        a.weight_decay,
        a.T,
        a.oh,
        a.dlw,
        a.blg,
        a.iho,
        a.dlw_mode,
        a.oh_min,
        a.oh_max,
        a.oh_step,
        a.oh_memory_size,
        a.amp,
        a.compile,
        a.store_samples,
        a.max_samples,
        METHODS[a.method].divergence,
    )
    held_out = HeldOut(shape, teacher, augment.normalize, device) if evaluate is None else None
    return Distiller(
        teacher,
        student,
        synthesizer,
        repository,
        augment,
        settings,
        streams,
        evaluate or held_out.evaluate,
        processes,
        held_out,
    )
