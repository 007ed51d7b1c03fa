"""Two threads in all and the project's folders on the path, for every test; how to run a script."""

import os
import subprocess
import sys
from pathlib import Path

# On a machine shared with others, threads that spin while they wait cost many times what they gain.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Of two pytest workers each takes one.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(THREADS)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def run_script(name: str, *args: object, cwd: Path, timeout: float = 300, **environment: str):
    """A script of the project as a user runs it; the finished process with its output as text."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
