"""The run folder: everything that a run leaves behind.

`config.json` (every flag resolved, versions, git commit, device), `metrics.jsonl` (a line an epoch),
`log.txt`, `checkpoint.pth` (to resume) and the one before it, `samples.bin` (every sample made),
`student.pth` (to use), `summary.json` (final figures), `images/` (contact sheets of samples by class), and
`repository/` and `tensorboard/` when asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from einops import rearrange
from PIL import Image, ImageDraw
from termcolor import colored
from torch import Tensor
from tqdm import tqdm

from datafree import checkpoint
from datafree.errors import UserError
from datafree.repository import SampleRepository

try:
    import fcntl
except ImportError:  # not a Unix: nothing keeps two commands from writing to one folder
    fcntl = None

LOCK = ".lock"
CHECKPOINT = "checkpoint.pth"
ASIDE = "checkpoint.aside.pth"  # a newest checkpoint that could not be continued from
MARKS = ("config.json", "metrics.jsonl", CHECKPOINT)  # any of them makes a folder a run
SAMPLES = "samples.bin"  # every sample made, see SampleLog
FILES = (
    *MARKS,
    "checkpoint.previous.pth",
    ASIDE,
    SAMPLES,
    "log.txt",
    "student.pth",
    "summary.json",
    "images",
    "repository",
    "tensorboard",
)
SHEET_CLASSES = 20  # rows of a contact sheet at most
SHEET_SAMPLES = 16  # images in a row at most


def refuse_existing(folder: Path, resume: bool | None, overwrite: bool) -> bool:
    """See that a run may be written to `folder`; touches nothing. `resume` is None where there is no such
    flag. Returns whether there is a run already.

    Raises:
        UserError: it holds a run and neither `resume` nor `overwrite` is asked for, it holds files of
            someone else where a run's would go, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --save_dir")
    found = [name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    links = [name for name in (*found, LOCK) if (folder / name).is_symlink()]
    if links:
        raise UserError(f"{folder / links[0]} is a link, which a run never makes: choose another --save_dir")
    # The lock is there before any other file, and after the others when a run is being replaced.
    is_run = any(name in MARKS for name in found) or (folder / LOCK).exists()
    if found and not is_run:
        raise UserError(f"{folder} holds {found[0]}, which is not a run's: choose another --save_dir")
    if is_run and not resume and not overwrite:
        raise UserError(
            f"{folder} already holds a run ({found[0]}): "
            + ("" if resume is None else "continue it with --resume, ")
            + "replace it with --overwrite, or choose another --save_dir"
        )
    return is_run


def require_tensorboard() -> None:
    """See that TensorBoard's events can be written.

    Raises:
        UserError: the package is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs a package that is not installed: pip install tensorboard")


class RunLock:
    """Held by the one command that writes to a run folder; the system takes it back when the process ends,
    however it does.

    Raises:
        UserError: another command holds it, or nothing can be written there.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o644)
            self._file = os.fdopen(handle, "w")  # held as long as this lives
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error}): choose another --save_dir") from error
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another command writes to {folder}: wait, or use another --save_dir") from error
        except OSError:  # a file system that knows no locks
            pass


class RunFolder:
    """Writes a run's files.

    Args:
        path: the folder; made with its parents.
        lock: of the folder, if it is held already.
        overwrite: remove the files of an earlier run (only those named in `FILES`).
        events_from: write metrics and contact sheets as TensorBoard events too, from this epoch on.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(
        self, path: Path, overwrite: bool = False, events_from: int | None = None, lock: RunLock | None = None
    ):
        self.path = path
        try:
            self._lock = lock or RunLock(path)
            for name in FILES if overwrite else ():
                target = path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            self._log = open(path / "log.txt", "a", encoding="utf-8")  # noqa: SIM115 (lives as long)
        except OSError as error:
            raise UserError(f"cannot write to {path} ({error}): choose another --save_dir") from error
        self._events = None
        if events_from is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(path / "tensorboard"), purge_step=events_from)

    def log(self, text: str, color: str | None = None) -> None:
        """A line on the console and in `log.txt`."""
        tqdm.write(colored(text, color) if color else text, file=sys.stdout)
        sys.stdout.flush()
        self._log.write(text + "\n")
        self._log.flush()

    def log_earlier(self, lines: Sequence[str]) -> None:
        """Lines that the console has shown before there was a folder."""
        self._log.writelines(line + "\n" for line in lines)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)

    def append_metrics(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._events:
            seconds = {f"seconds/{name}": value for name, value in row["seconds"].items()}
            for name, value in {**row, **seconds}.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._events.add_scalar(name.replace("loss_", "loss/"), value, row["epoch"])
            self._events.flush()

    def truncate_metrics(self, first: int, epoch: int) -> None:
        """Keep the lines of the epochs from `first` to the one before `epoch`; the rest is written anew."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept: dict[int, str] = {}
        for line in text.splitlines():
            try:  # a line may be cut short by a crash, in an epoch that has no checkpoint
                number = json.loads(line)["epoch"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(number, int) and first <= number < epoch:
                kept[number] = line
        missing = [number + 1 for number in range(first, epoch) if number not in kept]
        if missing:
            self.log(f"warning: {path} has no line of epoch {', '.join(map(str, missing))}", "yellow")
        self._write("metrics.jsonl", "".join(kept[number] + "\n" for number in sorted(kept)))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        checkpoint.save(state, self.path / CHECKPOINT, keep_previous=True)

    def save_student(self, content: dict[str, Any]) -> None:
        checkpoint.save(content, self.path / "student.pth")

    def save_samples(self, epoch: int, repository: SampleRepository, classes: Sequence[str]) -> None:
        """A contact sheet of the newest samples of each class after `epoch` epochs, in `images/`."""
        path = self.path / "images" / f"epoch-{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        sheet = contact_sheet(repository, classes)
        sheet.save(path)
        if self._events:
            self._events.add_image("samples", np.array(sheet), epoch - 1, dataformats="HWC")
            self._events.flush()

    def export_repository(self, repository: SampleRepository, classes: Sequence[str]) -> Path:
        """Every sample as `repository/{class}/{number}.png`, numbered in the order stored."""
        folder = self.path / "repository"
        shutil.rmtree(folder, ignore_errors=True)
        labels = repository.labels
        for label, name in enumerate(classes):
            (folder / safe_name(name)).mkdir(parents=True, exist_ok=True)
            of_class = (labels == label).nonzero().squeeze(1)
            for indices in of_class.split(1024):
                images = repository.images(indices).cpu()
                for index, image in zip(indices.tolist(), images, strict=True):
                    to_pil(image).save(folder / safe_name(name) / f"{index:06d}.png")
        return folder


def safe_name(name: str) -> str:
    """A class name as a folder name."""
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in name).strip(". ") or "_"


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (3, H, W), or (1, H, W) for grey, on the CPU as a PIL image in RGB."""
    image = image.expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(rearrange(image, "c h w -> h w c").numpy()))


def contact_sheet(repository: SampleRepository, classes: Sequence[str]) -> Image.Image:
    """The newest samples of each class, a class a row with its name at the left."""
    rows = min(len(classes), SHEET_CLASSES)
    _, height, width = repository.images(torch.arange(0, device=repository.device)).shape[1:]
    zoom = max(1, 64 // height)
    cell_h, cell_w, gap, margin = height * zoom, width * zoom, 2, 96
    sheet = Image.new("RGB", (margin + SHEET_SAMPLES * (cell_w + gap), rows * (cell_h + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    labels = repository.labels
    for row in range(rows):
        top = gap + row * (cell_h + gap)
        draw.text((6, top + cell_h // 2 - 6), classes[row][:14], fill="black")
        newest = (labels == row).nonzero().squeeze(1).flip(0)[:SHEET_SAMPLES]
        for column, image in enumerate(repository.images(newest).cpu()):
            cell = to_pil(image).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(cell, (margin + column * (cell_w + gap), top))
    return sheet


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, git commit and hardware, for `config.json`."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "git_commit": commit,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else platform.processor(),
        "threads": torch.get_num_threads(),
    }
