"""Several processes on this machine's CPU, started by torchrun as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers import metrics, write_teacher

FLAGS = [
    *"--dataset digits --teacher wrn16_1 --student mobilenetv2 --epochs 5 --warmup 1".split(),
    *"--kd_steps 3 --ep_steps 3 --batch_size 16 --g_steps 2 --device cpu".split(),
]
# A rank of bsr_main.py, which leaves its student behind, or ends before the epoch STOP.
RANK = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from datafree.cli import bsr
from datafree.distiller import Distiller
run_epoch = Distiller.run_epoch
def run_epoch_unless_stopped(self, epoch, *args):
    if str(epoch) == os.environ.get("STOP"):
        raise SystemExit(9)
    alpha = run_epoch(self, epoch, *args)
    torch.save(self.student.network.state_dict(), "student-rank" + os.environ["RANK"] + ".pth")
    return alpha
Distiller.run_epoch = run_epoch_unless_stopped
bsr.main()
"""


def torchrun(cwd: Path, *flags: str, **environment: str):
    script = cwd / "rank.py"
    script.write_text(RANK.format(root=str(ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [*command, str(script), *FLAGS, *flags], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("parallel")
    write_teacher(cwd / "checkpoints/pretrained/digits_wrn16_1.pth")
    done = torchrun(cwd, "--save_dir", "out")
    assert done.returncode == 0, done.stderr
    return cwd, done


def test_both_processes_end_with_the_same_student(two_processes):
    cwd, _ = two_processes
    one, other = (torch.load(cwd / f"student-rank{rank}.pth") for rank in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    written = torch.load(cwd / "out/student.pth")["state_dict"]
    assert all(torch.equal(one[key], written[key]) for key in one)


def test_one_process_writes_the_run_folder_and_counts_all_samples(two_processes):
    cwd, done = two_processes
    rows = metrics(cwd / "out")
    assert [row["epoch"] for row in rows] == list(range(5))
    assert all(row["added"] == 16 for row in rows)
    assert sum(rows[-1]["counts"]) == rows[-1]["repository"]
    assert done.stdout.count("epoch 5/5") == 1
    assert json.loads((cwd / "out/config.json").read_text())["processes"] == 2
    assert (cwd / "out/images/epoch-0005.png").exists()


def test_a_resumed_run_of_two_processes_continues_as_if_it_had_not_stopped(two_processes):
    cwd, _ = two_processes
    stopped = torchrun(cwd, "--save_dir", "stopped", STOP="3")
    assert stopped.returncode != 0
    assert len(metrics(cwd / "stopped")) == 3
    # With little memory, and the teacher asked once for each view, which changes nothing.
    done = torchrun(
        cwd, "--save_dir", "stopped", "--resume", *"--repository_memory 100KB --reuse_teacher 1MB".split()
    )
    assert done.returncode == 0, done.stderr
    assert metrics(cwd / "stopped") == metrics(cwd / "out")


METHODS_RANK = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from datafree.methods import METHODS
from datafree.torch_utils.distributed import Processes
from helpers import SHORT, distiller, flags
processes = Processes.started_by_torchrun(torch.device("cpu"))
known = [torch.full((2, 2), 1.0 + processes.rank), torch.tensor([4.0 * processes.rank])]
processes.all_reduce_mean(known)
assert known[0].eq(1.5).all() and known[1].eq(2.0).all()
for method in METHODS:
    also = dict(cmi=("--cr", "0"), nayer=("--g_life", "1")).get(method)
    for more in ((), also) if also else ((),):
        made = distiller(flags("--method", method, *SHORT, *more), processes)
        rows = [made.run_epoch(epoch) for epoch in range(2)]
        repository = made.distiller.repository
        assert sum(rows[-1]["counts"]) == rows[-1]["repository"] == len(repository.labels), method
        states = processes.all_gather_object(dict(made.student.state_dict()))
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), method
        generators = processes.all_gather_object(made.distiller.synthesizer.state_dict().get("generator"))
        if method != "cmi" and generators[0]:
            for key, value in generators[0].items():
                assert "running" in key or torch.equal(value, generators[1][key]), (method, key)
processes.end()
print("all the same")
"""


def test_every_method_ends_with_the_same_student_in_both_processes(tmp_path):
    script = tmp_path / "methods.py"
    script.write_text(METHODS_RANK.format(root=str(ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script)], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all the same") == 2


def test_batches_that_cannot_be_divided_are_refused(two_processes):
    cwd, _ = two_processes
    done = torchrun(cwd, "--save_dir", "other", "--batch_size", "15")
    assert done.returncode != 0
    assert "--batch_size 15 cannot be divided among 2 processes" in done.stderr
    assert not (cwd / "other").exists()


def test_without_data_all_processes_hold_the_same_samples_out(tmp_path):
    grey = f"{ROOT}/examples/grey.py:Grey"  # with the weights it is made with, in every process
    done = torchrun(
        tmp_path,
        *"--save_dir none --dataset none --teacher".split(),
        grey,
        "--student",
        grey,
        *"--img_size 32 --epochs 3".split(),
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"student-rank{rank}.pth") for rank in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["added"] for row in metrics(tmp_path / "none")] == [14] * 3


SPARE = """
from datafree import models
from torch import nn


def spare(num_classes):
    network = models.create("wrn16_1", num_classes)
    network.never_called = nn.Linear(3, 3)
    return network
"""


def test_a_student_with_a_layer_that_is_never_called_and_one_sample_to_learn_from(two_processes):
    cwd, _ = two_processes
    (cwd / "spare.py").write_text(SPARE)
    more = ("--save_dir", "one", "--student", "spare.py:spare", "--max_samples", "1")
    done = torchrun(cwd, *more)
    assert done.returncode == 0, done.stderr
    assert {row["repository"] for row in metrics(cwd / "one")} == {1}
    states = [torch.load(cwd / f"student-rank{rank}.pth") for rank in range(2)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    # A sample that only the first process reads is found damaged by all.
    samples = cwd / "one/samples.bin"
    data = bytearray(samples.read_bytes())
    data[len(data) // 3] ^= 1  # in samples of both checkpoints
    samples.write_bytes(data)
    os.remove(cwd / "one/summary.json")
    done = torchrun(cwd, *more, "--resume")
    assert done.returncode != 0
    assert "samples.bin is damaged" in done.stderr
