"""What a run is computed with: device, processes, versions, hardware."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from datafree.data.image_set import ImageSet
from datafree.data.load import load_split
from datafree.settings import KDSettings, Settings, TrainSettings
from datafree.torch_utils.device import choose_device
from datafree.torch_utils.distributed import Processes
from datafree.torch_utils.precision import found_precision

AnySettings = TypeVar("AnySettings", Settings, TrainSettings, KDSettings)


def choose_processes(settings: AnySettings) -> tuple[AnySettings, torch.device, Processes]:
    """The settings with the precision that the device has, the device, and the processes that take part.

    Raises:
        UserError: there is no such device, or the processes cannot connect.
    """
    device = choose_device(settings.device, settings.gpu)
    settings = replace(settings, amp=found_precision(settings.amp, device))
    return settings, device, Processes.started_by_torchrun(device)


def load_images(
    settings: AnySettings, processes: Processes, dataset: str, split: str, img_size: int
) -> ImageSet:
    """The images of a split; the first process downloads them."""
    s = settings
    with processes.main_process_first():
        return load_split(dataset, split, s.data_root, img_size, s.download, s.workers)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, git commit and hardware, for `config.json`."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        **rounding(),
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "git_commit": git_commit(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else platform.processor(),
    }


def rounding() -> dict[str, Any]:
    """What decides how numbers are rounded, beside the settings."""
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def git_commit() -> str | None:
    """The commit of this project's checkout; None for an installed package."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
