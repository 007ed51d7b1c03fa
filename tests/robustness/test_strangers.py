"""Files, folders and surroundings that are not ours: nothing is fetched, filled, replaced or believed."""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_here, run_script, succeed
from helpers import DIGITS, assert_refused, metrics, write_teacher

from datafree.errors import UserError
from datafree.results.read import read_run
from datafree.results.stored import read_samples
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which a run `out` was made."""
    cwd = tmp_path_factory.mktemp("strangers")
    write_teacher(cwd / "teacher.pth")
    succeed(f"{DIGITS} --save_dir out", cwd=cwd)
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
    for command in ("scripts/export.py out --format safetensors", "show_result/report.py out"):
        succeed(command, cwd=cwd)
    succeed("scripts/table.py out", cwd=cwd)


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lr 1e9 --warmup 0", "try a lower --lr\n"), ("--std 1e-300", "--std 1e-300 has a value below 1e-06")],
)
def test_messages_blame_what_is_to_blame(flags, message, cwd):
    assert_refused(run_here(f"{DIGITS} --save_dir new {flags}", cwd=cwd), message)


def test_what_other_programs_leave_in_the_environment_starts_no_processes(cwd, monkeypatch):
    for name, value in {"RANK": "one", "WORLD_SIZE": "4", "LOCAL_RANK": "x", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    succeed(f"{DIGITS} --save_dir new", cwd=cwd)
    assert metrics(cwd / "new") == metrics(cwd / "out")


def test_names_and_terminals_that_know_no_unicode_stop_nothing(cwd):
    odd = os.fsdecode(b"caf\xe9-\xff")
    for command in (f"{DIGITS} --save_dir", "scripts/table.py"):
        done = run_script(command, odd, cwd=cwd, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
    succeed("show_result/report.py", odd, cwd=cwd)
    succeed("scripts/export.py --format safetensors", odd, cwd=cwd)


def test_closed_streams_stop_nothing_and_no_file_takes_their_place(cwd):
    line = f"{sys.executable} {ROOT}/{DIGITS} --save_dir new <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=300).returncode == 0
    assert metrics(cwd / "new") == metrics(cwd / "out")
    line = f"{sys.executable} {ROOT}/scripts/table.py nowhere >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=60).returncode == 2
