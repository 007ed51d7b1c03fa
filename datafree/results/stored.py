"""Samples and students that runs left in their folders, for figures, reports and exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from datafree.errors import UserError
from datafree.networks.names import NetworkName
from datafree.networks.student_file import rebuild
from datafree.results.read import FinishedRun
from datafree.runs.files import CHECKPOINT, SAMPLES, STUDENT, STUDENT_BEST
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint


@dataclass(frozen=True)
class StoredSamples:
    """All samples ever stored, oldest first. Features, margins and confidences are the teacher's."""

    labels: Tensor  # (N,) int64
    kept: Tensor  # (N,) bool: whether the sample was in the repository at the end
    features: Tensor  # (N, D) float32
    margins: Tensor  # (N,) float32
    confidences: Tensor  # (N,) float32
    images: Callable[[Tensor], Tensor]  # indices to uint8 (n, C, H, W)


class NoSamples(UserError):
    """A run left no samples."""


def read_samples(run: FinishedRun) -> StoredSamples:
    """Read the checkpoint of a run, and the samples beside it.

    Raises:
        NoSamples: the run left no such files, or stores no samples.
        UserError: the files are damaged.
    """
    file = run.path / CHECKPOINT
    if not run.stores:
        method = run.config["method"]
        raise NoSamples(f"{run.path} has no samples: {method} keeps none without --store_samples")
    if not file.is_file() or not (run.path / SAMPLES).is_file():
        raise NoSamples(f"{run.path} has no samples: it needs {CHECKPOINT} and {SAMPLES}")
    size, channels = run.required("img_size"), len(run.required("mean"))
    try:
        state = checkpoint.read(file)["distiller"]["repository"]
        log = SampleLog(run.path / SAMPLES, (channels, size, size), state["feature_dim"], writable=False)
        log.truncate(state["stored"])  # checks that all samples are there
        records = np.memmap(log.path, log.record, "r", shape=(state["stored"],))
        labels, features, margins, confidences = (
            torch.from_numpy(records[name].copy()) for name in ("label", "features", "margin", "confidence")
        )
        known = (labels >= 0) & (labels < len(run.required("classes")))
        if not (known.all() and features.isfinite().all() and margins.isfinite().all()):
            raise ValueError(f"{SAMPLES} is damaged")
        kept = torch.zeros(len(labels), dtype=torch.bool)
        kept[state["serials"].cpu()] = True
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"cannot read the samples of {file} ({error!r})") from error
    return StoredSamples(labels, kept, features, margins, confidences, log.images)


def student_of(
    run: FinishedRun, device: torch.device, source: NetworkName | None = None, best: bool = False
) -> nn.Module:
    """Load the student of a run, in eval mode.

    Args:
        run: a finished run.
        device: where the student goes.
        source: see `networks.student_file.load_student`.
        best: take the student of the best epoch, which was chosen on the test data, not of the last one.

    Raises:
        UserError: there is none, or it cannot be rebuilt.
    """
    file = run.path / (STUDENT_BEST if best else STUDENT)
    content = checkpoint.read(file)
    if best and not (isinstance(content, dict) and content.get("best_epoch") == run.summary["best_epoch"]):
        raise UserError(
            f"{file} is not from the best epoch, since the run was continued with different rounding: leave "
            "out --best"
        )
    return rebuild(content, file, source).to(device)
