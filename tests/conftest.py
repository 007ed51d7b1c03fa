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


def run_script(command: str, *words: object, cwd: Path, timeout: float = 300, **environment: str):
    """Run a script of the project as a user does; returns the finished process with its output as text.

    Args:
        command: the script and flags, split at blanks; `words` follow.
    """
    script, *first = command.split()
    command_line = [sys.executable, str(ROOT / script), *first, *map(str, words)]
    env = {**os.environ, **environment}
    return subprocess.run(command_line, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_here(command: str, *words: object, cwd: Path):
    """Like `run_script`, but in this process, which takes no time to start."""
    argv, folder, status = sys.argv, os.getcwd(), 0
    stdout, stderr = io.StringIO(), io.StringIO()
    sys.argv = [*command.split(), *map(str, words)]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
        os.chdir(folder)
    return subprocess.CompletedProcess(sys.argv, status, stdout.getvalue(), stderr.getvalue())


def succeed(command: str, *words: object, cwd: Path) -> str:
    """What a script prints, which must succeed, run in this process."""
    done = run_here(command, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout
