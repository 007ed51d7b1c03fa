"""Several teachers: the mean of their logits, the BatchNorm terms of all."""

import json
import re

import pytest
import torch
from conftest import run_here, succeed
from helpers import assert_refused, metrics, write_teacher

from datafree import models
from datafree.extras.several_teachers import MeanOfTeachers
from datafree.networks.bn_statistics import BNStatistics

TINY = "--dataset digits --epochs 4 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 2"
BOTH = "--teacher wrn16_1 resnet20 --teacher_ckpt a.pth b.pth --student wrn16_1 --save_dir out"
BSR = f"bsr_main.py {TINY}"


@pytest.fixture(scope="module")
def cwd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    write_teacher(folder / "a.pth")
    write_teacher(folder / "b.pth", "resnet20", seed=1)
    return folder


def test_logits_are_the_mean_and_statistics_those_of_all(rng):
    parts = [models.create(name, 10).eval() for name in ("wrn16_1", "resnet20")]
    together, images = MeanOfTeachers(parts).eval(), torch.rand(4, 3, 32, 32, generator=rng)
    terms = []
    for network in (*parts, together):
        statistics = BNStatistics(network)
        with statistics.capture():
            network(images)
        terms.append(statistics.distance())
    torch.testing.assert_close(terms[2], terms[0] + terms[1])
    torch.testing.assert_close(together(images), (parts[0](images) + parts[1](images)) / 2)


def test_a_run_with_two_teachers_is_continued_tabled_and_exported(cwd):
    command = f"{BSR} {BOTH} --test_teacher"
    printed = succeed(command, cwd=cwd)
    assert "teacher wrn16_1 + resnet20: 0.4" in printed  # millions of parameters
    config = json.loads((cwd / "out/config.json").read_text())
    assert (config["teacher"], config["teacher_ckpt"]) == ("wrn16_1 + resnet20", "a.pth + b.pth")
    # Put back before its last epoch, it is continued to the same end.
    whole, student = metrics(cwd / "out"), torch.load(cwd / "out/student.pth", weights_only=True)
    (cwd / "out/checkpoint.previous.pth").replace(cwd / "out/checkpoint.pth")
    (cwd / "out/summary.json").unlink()
    continued = succeed(f"{command} --resume", cwd=cwd)
    assert metrics(cwd / "out") == whole
    again = torch.load(cwd / "out/student.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[key]) for key, value in student["state_dict"].items())
    quoted = re.compile(r"teacher wrn16_1 \+ resnet20: [\d.]+ % ")
    assert quoted.findall(printed) == quoted.findall(continued) != []
    refused = run_here(f"{command} --teacher wrn16_1 --teacher_ckpt a.pth --resume", cwd=cwd)
    assert_refused(refused, "teacher was wrn16_1 + resnet20 and is wrn16_1")
    assert "wrn16_1 + resnet20" in succeed("scripts/table.py out", cwd=cwd)
    succeed("scripts/export.py out --format safetensors", cwd=cwd)
    card = (cwd / "out/export/model_card_safetensors.md").read_text()
    assert "distilled from wrn16_1 + resnet20" in card
    assert "The teacher was not measured: there are several." in card


def test_teachers_that_do_not_fit_each_other_are_refused(cwd):
    write_teacher(cwd / "c.pth", "resnet20", mean=[0.1] * 3, std=[0.2] * 3)
    write_teacher(cwd / "d.pth", mean=[0.3] * 3, std=[0.2] * 3)
    write_teacher(cwd / "e.pth", num_classes=7)
    none = "--dataset none --img_size 32"
    for more, message in (
        ("--teacher wrn16_1 resnet20 --teacher_ckpt a.pth", "1 values for 2 teachers"),
        ("--teacher wrn16_1 resnet21 --teacher_ckpt a.pth b.pth", "unknown network resnet21"),
        ("--student wrn16_1 resnet20", "resnet20"),
        ("--teacher resnet20 wrn16_1 --teacher_ckpt c.pth d.pth", "the teachers differ in mean"),
        (f"--teacher resnet20 wrn16_1 --teacher_ckpt b.pth e.pth {none}", "differ in classes (10, 7)"),
    ):
        assert_refused(run_here(f"{BSR} {more} --save_dir no", cwd=cwd), message)
    assert not (cwd / "no").exists()
