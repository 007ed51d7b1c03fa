"""What a run folder holds, by name."""

from __future__ import annotations

CONFIG = "config.json"  # every setting as resolved, versions, git commit, device
TRAINING = "training.json"  # instead of it, of a training of `train_scratch.py`
METRICS = "metrics.jsonl"  # a line an epoch
SUMMARY = "summary.json"  # final figures
LOG = "log.txt"  # what the console said
STUDENT = "student.pth"  # the student, with what it takes to rebuild and use it
STUDENT_BEST = "student_best.pth"  # the student of the best epoch, which is chosen on the test data
CHECKPOINT = "checkpoint.pth"  # what `--resume` needs, beside the samples
PREVIOUS = "checkpoint.previous.pth"  # the checkpoint before it
ASIDE = "checkpoint.aside.pth"  # a newest checkpoint that could not be continued from
SAMPLES = "samples.bin"  # every sample ever stored, see `sample_log.SampleLog`
IMAGES = "images"  # contact sheets of samples by class
REPOSITORY = "repository"  # with `--export_repository`: every sample as PNG
TENSORBOARD = "tensorboard"  # with `--tensorboard`: events
LOCK = ".lock"  # held by the command that writes; tells that the folder is a run's
EXPORTED = {"format": "datafree.student"}  # in the `config.json` of an exported student, and of no run
EXPORT, EXPORT_BEST = "export", "export_best"  # what `export.py` makes of the student

MARKS = (CONFIG, TRAINING, METRICS, CHECKPOINT)  # of a run that has begun
FOLDERS = (IMAGES, REPOSITORY, TENSORBOARD, EXPORT, EXPORT_BEST)
FILES = (*MARKS, PREVIOUS, ASIDE, SAMPLES, LOG, STUDENT, STUDENT_BEST, SUMMARY, *FOLDERS)
