"""Names of the files in a run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

CONFIG = "config.json"  # every setting as resolved, versions, git commit, device
TRAINING = "training.json"  # settings of a training by `train_scratch.py`, instead of CONFIG
METRICS = "metrics.jsonl"  # a line an epoch
SUMMARY = "summary.json"  # final figures
LOG = "log.txt"  # what the console showed
STUDENT = "student.pth"  # the student, with everything needed to rebuild and use it
STUDENT_BEST = "student_best.pth"  # the student of the best epoch, which is chosen on the test data
CHECKPOINT = "checkpoint.pth"  # what `--resume` needs, beside the samples
PREVIOUS = "checkpoint.previous.pth"  # the checkpoint before it
SAMPLES = "samples.bin"  # every sample ever stored, see `sample_log.SampleLog`
IMAGES = "images"  # contact sheets of samples by class
REPOSITORY = "repository"  # with `--export_repository`: every sample as PNG
TENSORBOARD = "tensorboard"  # with `--tensorboard`: events
LOCK = ".lock"  # locked by the command that writes to the folder
EXPORTED = {"format": "datafree.student"}  # in the `config.json` of an exported student, and of no run
EXPORT, EXPORT_BEST = "export", "export_best"  # the student as `export.py` writes it

FOLDERS = (IMAGES, REPOSITORY, TENSORBOARD, EXPORT, EXPORT_BEST)
# Settings come last: `--overwrite` deletes in this order, and knows a run by them.
FILES = (
    *(CHECKPOINT, PREVIOUS, SAMPLES, METRICS, LOG, STUDENT, STUDENT_BEST, SUMMARY),
    *FOLDERS,
    *(CONFIG, TRAINING),
)


def unshare(file: Path) -> None:
    """Replace a hard link by a copy, so that a copy of the folder by links does not change with it."""
    if file.exists() and file.stat().st_nlink > 1:
        copy = file.with_name(file.name + ".tmp")
        shutil.copyfile(file, copy)
        copy.replace(file)
