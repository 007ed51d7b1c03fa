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

from datafree.errors import UserError
from datafree.torch_utils.distributed import Processes

STEPS = "--epochs 5 --warmup 1 --kd_steps 3 --ep_steps 3 --batch_size 16 --g_steps 2 --device cpu"
DIGITS = f"--dataset digits --teacher wrn16_1 --student mobilenetv2 {STEPS}"
# A rank of bsr_main.py, which leaves its student behind.
RANK = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from datafree.cli import bsr
from datafree.distiller import Distiller
run_epoch = Distiller.run_epoch
def run_epoch_and_save(self, epoch, *args):
    alpha = run_epoch(self, epoch, *args)
    torch.save(self.student.network.state_dict(), "student-rank" + os.environ["RANK"] + ".pth")
    return alpha
Distiller.run_epoch = run_epoch_and_save
bsr.main()
"""


def torchrun(cwd: Path, flags: str = "", program: str = RANK):
    script = cwd / "rank.py"
    script.write_text(program.format(root=str(ROOT)))
    words = f"-m torch.distributed.run --standalone --nproc_per_node 2 {script} {flags}"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words.split()], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def assert_equal_students(cwd):
    one, other = (torch.load(cwd / f"student-rank{rank}.pth") for rank in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    return one


def test_two_processes_train_one_student_and_continue_exactly(tmp_path):
    write_teacher(tmp_path / "checkpoints/pretrained/digits_wrn16_1.pth")
    out = tmp_path / "out"
    done = torchrun(tmp_path, f"{DIGITS} --save_dir out")
    assert done.returncode == 0, done.stderr
    written = torch.load(out / "student.pth")["state_dict"]
    assert all(torch.equal(value, written[key]) for key, value in assert_equal_students(tmp_path).items())
    rows = metrics(out)
    assert [row["epoch"] for row in rows] == list(range(5))
    assert all(row["added"] == 16 for row in rows)
    assert sum(rows[-1]["counts"]) == rows[-1]["repository"]
    assert done.stdout.count("epoch 5/5") == 1
    assert json.loads((out / "config.json").read_text())["processes"] == 2
    assert (out / "images/epoch-0005.png").exists()
    # Put back before the last epoch; little memory and a teacher cache change nothing.
    (out / "checkpoint.previous.pth").replace(out / "checkpoint.pth")
    (out / "summary.json").unlink()
    more = "--resume --repository_memory 100KB --reuse_teacher 1MB"
    done = torchrun(tmp_path, f"{DIGITS} --save_dir out {more}")
    assert done.returncode == 0, done.stderr
    assert metrics(out) == rows
    again = torch.load(out / "student.pth")["state_dict"]
    assert all(torch.equal(value, again[key]) for key, value in written.items())


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
    done = torchrun(tmp_path, program=METHODS_RANK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all the same") == 2


def test_batches_that_cannot_be_divided_are_refused():
    for size in (15, 2):
        with pytest.raises(UserError, match=f"--batch_size {size} cannot be divided among 2 processes"):
            Processes(0, 2).require_divisible("--batch_size", size)


SPARE = """
from datafree import models
from torch import nn


def spare(num_classes):
    network = models.create("wrn16_1", num_classes)
    network.never_called = nn.Linear(3, 3)
    return network
"""


def test_held_out_samples_a_layer_that_is_never_called_and_one_sample_to_learn_from(tmp_path):
    (tmp_path / "spare.py").write_text(SPARE)
    write_teacher(tmp_path / "teacher.pth")
    networks = f"{DIGITS} --dataset none --img_size 32 --teacher_ckpt teacher.pth --student spare.py:spare"
    command = f"{networks} --max_samples 1 --save_dir one"
    done = torchrun(tmp_path, command)
    assert done.returncode == 0, done.stderr
    assert_equal_students(tmp_path)
    rows = metrics(tmp_path / "one")
    assert {(row["repository"], row["added"]) for row in rows} == {(1, 14)}
    # All processes notice a damaged sample that only the first one reads.
    samples = tmp_path / "one/samples.bin"
    data = bytearray(samples.read_bytes())
    data[len(data) // 3] ^= 1  # in samples of both checkpoints
    samples.write_bytes(data)
    os.remove(tmp_path / "one/summary.json")
    done = torchrun(tmp_path, f"{command} --resume")
    assert done.returncode != 0
    assert "samples.bin is damaged" in done.stderr
