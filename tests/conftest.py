"""For every test: two threads in all, the project's folders on the path, fixtures; how to run a script."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

# On a machine shared with others, threads that spin while they wait cost many times what they gain.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Of two pytest workers each takes one.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(THREADS)
hypothesis.settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("plain")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def networks():
    """A frozen teacher and a student, see `helpers.classifier`."""
    from helpers import classifier

    return classifier(0).requires_grad_(False), classifier(1)


def run_script(name: str, *args: object, cwd: Path, timeout: float = 300, **environment: str):
    """A script of the project as a user runs it; the finished process with its output as text."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_here(name: str, *args: object, cwd: Path):
    """The same within this process, which takes no time to start: for what is refused before it begins."""
    argv, folder, status = sys.argv, os.getcwd(), 0
    stdout, stderr = io.StringIO(), io.StringIO()
    sys.argv = [name, *map(str, args)]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
        os.chdir(folder)
    return subprocess.CompletedProcess(sys.argv, status, stdout.getvalue(), stderr.getvalue())
