"""What must not lose a run: kills, signals, full disks, damaged files."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import soak
import torch
from conftest import ROOT, run_here, succeed
from helpers import DIGITS, assert_refused, assert_same_files, metrics, write_folder, write_teacher
from processes import start, stop_after

from datafree.torch_utils import checkpoint

COMMON = f"{DIGITS} --save_dir out"


@pytest.fixture
def cwd(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    return tmp_path


def bsr(cwd, *more):
    return run_here(COMMON, *more, cwd=cwd)


def flip_a_byte(file, place=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(data)


def test_a_run_killed_three_times_ends_as_one_that_was_not(cwd):
    soak.soak(cwd / "teacher.pth", cwd, epochs=12, kills=3, seed=1)


def test_signals_end_a_run_after_its_step_and_it_continues_exactly(cwd):
    for number, epochs, more in ((signal.SIGTERM, 3, []), (signal.SIGINT, 7, ["--resume"])):
        process = start(*COMMON.split(), "--epochs", 12, "--save_every", 50, *more, cwd=cwd)
        status, message = stop_after(process, cwd / "out", epochs, number)
        assert status == 128 + number
        assert len(message.strip().splitlines()) == 1
        assert f"stopped by {number.name}; continue with the same command and --resume" in message
        assert (cwd / "out/checkpoint.pth").is_file()  # though no epoch was due to be saved
        assert not (cwd / "out/summary.json").exists()
    succeed(f"{COMMON} --epochs 12 --resume", cwd=cwd)
    os.rename(cwd / "out", cwd / "continued")
    succeed(f"{COMMON} --epochs 12", cwd=cwd)
    assert metrics(cwd / "out") == metrics(cwd / "continued")
    assert_same_files(cwd / "out/student.pth", cwd / "continued/student.pth")


def test_a_damaged_or_senseless_checkpoint_is_reported_and_the_one_before_it_used(cwd):
    succeed(f"{COMMON} --epochs 4", cwd=cwd)
    whole, newest = metrics(cwd / "out"), cwd / "out/checkpoint.pth"
    good = newest.read_bytes()

    def flip():
        flip_a_byte(newest)

    def empty():
        content = checkpoint.read(newest)
        content["distiller"]["generators"] = []
        checkpoint.save(content, newest)

    for spoil, message in ((flip, "it is damaged"), (empty, "is not a checkpoint of such a run")):
        spoil()
        printed = succeed(f"{COMMON} --epochs 4 --resume", cwd=cwd)
        assert f"checkpoint.pth{'' if spoil is empty else ':'} {message}" in printed
        assert "continuing from the one before it, out/checkpoint.previous.pth" in printed
        assert metrics(cwd / "out") == whole
        succeed(f"{COMMON} --epochs 4 --resume", cwd=cwd)  # two good ones again
    newest.write_bytes(good)
    flip_a_byte(newest)
    (cwd / "out/checkpoint.previous.pth").write_bytes(b"")
    assert_refused(bsr(cwd, "--epochs", 4, "--resume"), "is damaged")


def test_damaged_samples_are_reported(cwd):
    succeed(f"{COMMON} --epochs 3", cwd=cwd)
    flip_a_byte(cwd / "out/samples.bin", 0.95)  # in samples of the newest checkpoint only
    printed = succeed(f"{COMMON} --epochs 3 --resume", cwd=cwd)
    assert "samples.bin is damaged" in printed
    assert "continuing from the one before it" in printed
    flip_a_byte(cwd / "out/samples.bin", 0.1)
    assert_refused(bsr(cwd, "--epochs", 3, "--resume"), "samples.bin is damaged")


def test_another_number_of_threads_is_warned_of_on_resuming(cwd):
    succeed(f"{COMMON} --epochs 2", cwd=cwd)
    state = checkpoint.read(cwd / "out/checkpoint.pth")
    state["rounding"]["threads"] += 3
    checkpoint.save(state, cwd / "out/checkpoint.pth")
    printed = succeed(f"{COMMON} --epochs 2 --resume", cwd=cwd)
    threads = torch.get_num_threads()
    assert f"was stopped with threads {threads + 3} and continues with {threads}: its numbers" in printed


def test_a_full_disk_costs_no_checkpoint(cwd):
    """No file of the process may grow beyond a limit, as on a disk that is full."""
    succeed(f"{COMMON} --epochs 6", cwd=cwd)
    whole = metrics(cwd / "out")
    os.rename(cwd / "out", cwd / "whole")
    size = (cwd / "whole/checkpoint.pth").stat().st_size

    def limited(limit):
        return subprocess.run(
            [sys.executable, *f"{ROOT}/{COMMON} --epochs 6".split()],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=200,
            preexec_fn=lambda: (
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            ),
        )

    added = 16 * (3 * 32 * 32 + 64 * 4 + 16)  # bytes of samples in an epoch
    assert size > 4 * added
    assert_refused(limited(size - 1), "cannot write out/checkpoint.pth")
    assert not list((cwd / "out").glob("*.tmp"))
    succeed(f"{COMMON} --epochs 6 --overwrite", cwd=cwd)
    assert metrics(cwd / "out") == whole
    assert_same_files(cwd / "out/student.pth", cwd / "whole/student.pth")


def test_a_loss_that_is_not_finite_stops_with_its_term_and_saves_what_was_before(cwd, monkeypatch):
    from datafree.synthesis.fast_meta import FastMetaSynthesizer

    original = FastMetaSynthesizer._inversion_loss

    def poisoned(self, *args):
        total, terms = original(self, *args)
        factor = float("nan") if self.calls == 4 else 1.0
        return total * factor, {**terms, "bn": terms["bn"] * factor}

    monkeypatch.setattr(FastMetaSynthesizer, "_inversion_loss", poisoned)
    done = bsr(cwd, "--epochs", 8, "--save_every", 100)
    assert_refused(done, "in the synthesis of epoch 4 the loss term bn is nan: try a lower --lr_g")
    assert checkpoint.read(cwd / "out/checkpoint.pth")["progress"]["epoch"] == 3
    monkeypatch.undo()
    succeed(f"{COMMON} --epochs 8 --resume", cwd=cwd)


def test_the_number_of_workers_changes_nothing(cwd):
    write_folder(cwd / "images", classes=tuple("0123456789"))
    for workers in (0, 3):
        more = f"--dataset folder --data_root images --mean half --epochs 2 -j {workers} --save_dir {workers}"
        succeed(f"{COMMON} {more}", cwd=cwd)
    assert metrics(cwd / "0") == metrics(cwd / "3")
    assert_same_files(cwd / "0/student.pth", cwd / "3/student.pth")
