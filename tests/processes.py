"""Scripts of the project as processes of their own, to be stopped from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(*words: object, cwd: Path | None = None, processes: int = 1) -> subprocess.Popen:
    """Start a script, a path below the project's folder, with flags."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    threads = "2" if processes == 1 else "1"
    env = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": threads, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:
        env["OMP_NUM_THREADS"] = "1"
    command = [*launcher, str(ROOT / str(words[0])), *map(str, words[1:])]
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def epochs_done(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def stop_after(process: subprocess.Popen, folder: Path, epochs: int, sign=signal.SIGKILL) -> tuple[int, str]:
    """Send a signal once so many epochs are done; returns the exit status and what went to stderr."""
    while process.poll() is None and epochs_done(folder) < epochs:
        time.sleep(0.002)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(sign)
    return process.wait(), process.stderr.read()
