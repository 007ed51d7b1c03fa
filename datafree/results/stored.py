"""The samples that a run has left in its folder, for figures and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datafree.data.augment import Normalize
from datafree.data.image_folders import load_folder
from datafree.data.image_spec import recorded_spec
from datafree.data.pixels import to_float
from datafree.errors import UserError
from datafree.networks.check import settle_layout
from datafree.networks.names import NetworkName
from datafree.networks.penultimate import PenultimateFeatures
from datafree.networks.student_file import rebuild
from datafree.results.read import Run
from datafree.runs.contact_sheet import folder_names
from datafree.runs.files import CHECKPOINT, REPOSITORY, SAMPLES, STUDENT, STUDENT_BEST
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint
from datafree.torch_utils.state import list_of

BATCH = 256


@dataclass(frozen=True)
class StoredSamples:
    """Samples ever stored, oldest first. Features, margins and confidences are the teacher's, or None for
    samples that were read from exported images."""

    labels: Tensor  # (N,) int64
    kept: Tensor  # (N,) bool: whether the sample was in the repository at the end
    features: Tensor | None  # (N, D) float32
    margins: Tensor | None  # (N,) float32
    confidences: Tensor | None  # (N,) float32
    images: Callable[[Tensor], Tensor]  # indices to uint8 (n, 3, H, W)


class NoSamples(UserError):
    """A run has left no samples to be read."""


def read_samples(run: Run) -> StoredSamples:
    """From the checkpoint and the samples beside it, else from the exported repository.

    Raises:
        NoSamples: the run has left neither, or never kept samples.
        UserError: the files are damaged.
    """
    path = run.path
    if not run.stores:
        raise NoSamples(f"{path} has no samples: {run.config['method']} keeps none without --store_samples")
    if (path / CHECKPOINT).is_file() and (path / SAMPLES).is_file():
        return _from_checkpoint(run, checkpoint.read(path / CHECKPOINT))
    if (path / REPOSITORY).is_dir():
        return _from_folder(run)
    raise NoSamples(f"{path} has no samples: neither {CHECKPOINT} with {SAMPLES} nor repository/ is in it")


def _from_checkpoint(run: Run, content: Any) -> StoredSamples:
    try:
        state = content["distiller"]["repository"]
        stored, serials = int(state["stored"]), state["serials"].cpu()
        size, channels = int(run.told("img_size")), len(run.told("mean"))
        shape, dim = (channels, size, size), int(state["feature_dim"])
        log = SampleLog(run.path / SAMPLES, shape, dim, writable=False)
        log.truncate(stored)  # sees that they are all there
        records = np.memmap(log.path, log.record, "r", shape=(stored,))
        labels, features, margins, confidences = (
            torch.from_numpy(records[name].copy()) for name in ("label", "features", "margin", "confidence")
        )
        known = bool(((labels >= 0) & (labels < len(run.told("classes")))).all())
        if not known or not features.isfinite().all() or not margins.isfinite().all():
            raise ValueError(f"{SAMPLES} is not as it was written")
        kept = torch.zeros(stored, dtype=torch.bool)
        kept[serials] = True
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, OverflowError) as error:
        raise UserError(f"{run.path}/checkpoint.pth holds no samples that can be read ({error!r})") from error
    return StoredSamples(labels, kept, features, margins, confidences, log.images)


def _from_folder(run: Run) -> StoredSamples:
    classes = run.told("classes")
    labels, sets = [], []
    for label, name in enumerate(folder_names(classes)):
        folder = run.path / REPOSITORY / name
        if folder.is_dir() and any(folder.iterdir()):
            sets.append(load_folder(folder, int(run.told("img_size"))))
            labels += [label] * len(sets[-1])
    if not labels:
        raise UserError(f"{run.path}/repository has no images in it: export it anew")
    starts = np.cumsum([0, *(len(images) for images in sets)])

    def images(rows: Tensor) -> Tensor:
        places = np.searchsorted(starts, rows.numpy(), side="right") - 1
        return torch.cat(
            [
                sets[place].read(rows[index : index + 1] - int(starts[place]))
                for index, place in enumerate(places)
            ]
        )

    return StoredSamples(
        torch.tensor(labels), torch.ones(len(labels), dtype=torch.bool), None, None, None, images
    )


def as_student_tells(run: Run, best: bool = False) -> Run:
    """The run with the network, the classes and the normalisation that its student's checkpoint tells,
    whatever its `config.json` says by now.

    Args:
        best: see `student_of`.

    Raises:
        UserError: the checkpoint cannot be read, or does not tell.
    """
    file, content = _student_checkpoint(run, best)
    told = {key: list_of(value) for key, value in recorded_spec(content).items()}
    try:
        classes = content["classes"]
        if not classes or not all(isinstance(name, str) for name in classes):
            raise TypeError("classes")
        NetworkName.parse(content["arch"])
        own = {"student": content["arch"], "student_args": content.get("arch_args"), "classes": list(classes)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} does not tell how its network is used ({error!r})") from error
    if not {"mean", "std", "img_size"} <= told.keys():
        raise UserError(f"{file} does not tell its network's images: only finished runs can be exported")
    return replace(run, config={**run.config, **told, **own})


def student_of(
    run: Run, device: torch.device, source: NetworkName | None = None, best: bool = False
) -> nn.Module:
    """The student that a run has trained, in eval mode.

    Args:
        run: a finished run.
        device: where the student goes.
        source: see `networks.portable.load_student`.
        best: the one of the best epoch, which is chosen on the test data, and not the last one.

    Raises:
        UserError: there is none, or it cannot be rebuilt.
    """
    file, content = _student_checkpoint(run, best)
    return rebuild(content, file, source).to(device)


def _student_checkpoint(run: Run, best: bool) -> tuple[Path, Any]:
    """The file of a student, and what is in it; see `student_of`."""
    file = run.path / (STUDENT_BEST if best else STUDENT)
    if best and not file.is_file():
        raise UserError(
            f"{run.path} has no {STUDENT_BEST}: the run is of an earlier version; leave out --best"
        )
    content = checkpoint.read(file)
    if best:
        kept = content.get("best_epoch") if isinstance(content, dict) else None
        if kept != run.summary.get("best_epoch"):
            raise UserError(
                f"{file} is not of the best epoch, as the run was continued with other roundings: leave out "
                "--best"
            )
    return file, content


@torch.no_grad()
def network_features(
    network: nn.Module,
    run: Run,
    samples: StoredSamples,
    rows: Tensor,
    device: torch.device,
    on_batch: Callable[[int], Any] = lambda count: None,
    layer: str | None = None,
) -> Tensor:
    """Penultimate features (len(rows), D) of samples, on the CPU; `on_batch` is told how many are done.
    `layer` names the layer whose input they are, where it is not found by itself."""
    normalize = Normalize(tuple(run.told("mean")), tuple(run.told("std")))
    parts: list[Tensor] = []
    for indices in rows.split(BATCH):
        inputs = normalize(to_float(samples.images(indices).to(device)))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        if not parts:
            settle_layout(network, inputs[:1])
            seen = PenultimateFeatures(network, layer, inputs)
        with seen.capture():
            network(inputs)
        parts.append(seen.value.float().cpu())
        on_batch(len(indices))
    return torch.cat(parts)
