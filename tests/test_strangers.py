"""Files, folders and surroundings that are not ours: nothing is fetched, filled, replaced or believed."""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_here, run_script
from helpers import TINY, assert_refused, metrics, write_teacher

from datafree.errors import UserError
from datafree.results.read import read_run
from datafree.results.stored import read_samples
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint

VIT = "timm:vit_tiny_patch16_224"
DIGITS = "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which a run `out` was made."""
    cwd = tmp_path_factory.mktemp("strangers")
    write_teacher(cwd / "teacher.pth")
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def cwd(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(("field", "value"), [("label", 10), ("label", -1), ("features", np.nan)])
def test_samples_that_cannot_be_are_found_out(field, value, cwd):
    state = checkpoint.read(cwd / "out/checkpoint.pth")["distiller"]["repository"]
    log = SampleLog(cwd / "out/samples.bin", (3, 32, 32), state["feature_dim"])
    records = np.memmap(log.path, log.record, "r+")
    records[field][3] = value
    records.flush()
    with pytest.raises(UserError, match=r"samples\.bin is damaged"):
        read_samples(read_run(cwd / "out"))


def test_no_connection_is_opened_by_what_reads_a_run(cwd, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for script, *more in (
        ("scripts/export.py", "out", "--format", "safetensors"),
        ("show_result/report.py", "out"),
        ("scripts/table.py", "out"),
    ):
        done = run_here(script, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr


# Folders


# What is told, and believed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1e9", "--warmup", "0"], "try a lower --lr\n"),
        (["--std", "1e-300"], "--std 1e-300 has a value that is not 1e-06 or more"),
    ],
)
def test_messages_blame_what_is_to_blame(flags, message, cwd):
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "new", *flags, cwd=cwd)
    assert_refused(done, message)


# Surroundings


def test_what_other_programs_leave_in_the_environment_starts_no_processes(cwd, monkeypatch):
    for name, value in {"RANK": "one", "WORLD_SIZE": "4", "LOCAL_RANK": "x", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "new", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert metrics(cwd / "new") == metrics(cwd / "out")


def test_names_and_terminals_that_know_no_unicode_stop_nothing(cwd):
    odd = os.fsdecode(b"caf\xe9-\xff")
    more = [*DIGITS, *TINY, "--save_dir", odd]
    done = run_script("bsr_main.py", *more, cwd=cwd, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    done = run_script("scripts/table.py", odd, cwd=cwd, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    for script, *more in (("show_result/report.py",), ("scripts/export.py", "--format", "safetensors")):
        done = run_here(script, odd, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr


def test_closed_streams_stop_nothing_and_no_file_takes_their_place(cwd):
    words = [sys.executable, str(ROOT / "bsr_main.py"), *DIGITS, *TINY, "--save_dir", "new"]
    line = " ".join(words) + " <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=300).returncode == 0
    assert metrics(cwd / "new") == metrics(cwd / "out")
    line = " ".join([sys.executable, str(ROOT / "scripts/table.py"), "nowhere", ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=60).returncode == 2


def test_matplotlib_is_asked_for_no_window_whatever_the_environment_says(cwd):
    done = run_script("show_result/report.py", "out", "--output", "r.html", cwd=cwd, MPLBACKEND="nonsense")
    assert done.returncode == 0, done.stderr
