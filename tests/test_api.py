"""`datafree.distill`: repeatable, without side effects, and exact about what it is given."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers import FEW, assert_same_weights, small, untimed
from torch import nn

import datafree
from datafree.errors import UserError


def test_runs_in_one_process_repeat_themselves_and_change_nothing_else(capsys):
    seen, results = [], []
    teacher = small(0)
    teacher_before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for _ in range(2):
        student, state = small(1), torch.get_rng_state()
        student, record = datafree.distill(teacher, student, **FEW, on_epoch=seen.append)
        assert torch.equal(torch.get_rng_state(), state)
        results.append((student, untimed(record)))
    assert results[0][1] == results[1][1]
    assert_same_weights(results[0][0], results[1][0])
    assert [row["epoch"] for row in seen] == [0, 1, 2] * 2
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, teacher_before[key]) for key, value in teacher.state_dict().items())
    assert capsys.readouterr() == ("", "")
    # Random numbers drawn in a callback change nothing, though these networks have dropout.
    student, _ = datafree.distill(teacher, small(1), **FEW, on_epoch=lambda row: torch.rand(3))
    assert_same_weights(student, results[0][0])


def test_a_users_evaluation_is_called_in_eval_mode_and_single_precision():
    modes = set()

    def evaluate(network):
        dtype = network(torch.rand(1, 3, FEW["img_size"], FEW["img_size"])).dtype
        modes.add((network.training, torch.is_grad_enabled(), dtype))
        return 12.5

    _, record = datafree.distill(small(0), small(1), **FEW, method="dafl", evaluate=evaluate, amp="bf16")
    assert {row["test_top1"] for row in record} == {12.5}
    assert modes == {(False, False, torch.float32)}


def test_distillation_runs_at_an_odd_size():
    _, record = datafree.distill(small(0), small(1), **{**FEW, "img_size": 13})
    assert record[-1]["repository"] == 42


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epoch": 3}, TypeError, "no setting epoch, did you mean epochs"),
        ({"save_dir": "x"}, TypeError, "no setting save_dir"),
        ({"method": "foo"}, UserError, "method: foo is not one of bsr"),
        ({"img_size": 7}, UserError, "from 8 to 2048"),
        ({"img_size": 8.5}, UserError, "whole number"),
        ({"mean": ()}, UserError, "give 1 or 3 finite numbers each"),
        ({"mean": None}, UserError, "give 1 or 3 finite numbers each"),
        ({"std": (0.5, 0.5, float("nan"))}, UserError, "give 1 or 3 finite numbers each"),
        ({"std": (1e-300,) * 3}, UserError, "std 1e-06 or more"),
        ({"evaluate": lambda _: None}, UserError, "evaluate returned None: return the accuracy in percent"),
    ],
)
def test_senseless_values_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        datafree.distill(small(0), small(1), **{**FEW, **given})


def test_classes_must_match():
    with pytest.raises(UserError, match="the student has 5 classes, the teacher 4"):
        datafree.distill(small(0), small(1, classes=5), **FEW)


def test_settings_without_effect_and_teachers_without_batchnorm_are_warned_of():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with (
        pytest.warns(UserWarning, match="--tv has no effect with --method bsr"),
        pytest.warns(UserWarning, match="no BatchNorm2d statistics"),
    ):
        datafree.distill(teacher, small(1), **FEW, tv=0.1)


class Viewing(nn.Module):
    """Relies on contiguous memory, as many networks do, and has no linear layer if it is a student."""

    def __init__(self, linear=True, channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(64, 4) if linear else nn.Conv1d(64, 4, 1)

    def forward(self, images):
        features = self.body(images).relu()
        features = features.view(features.size(0), -1)
        return (
            self.head(features)
            if isinstance(self.head, nn.Linear)
            else self.head(features[..., None])[..., 0]
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_that_need_contiguous_memory_or_have_no_linear_layer(channels):
    networks = Viewing(channels=channels), Viewing(linear=False, channels=channels)
    images = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    datafree.distill(*networks, **{**FEW, **images}, reset_bn=False, is_maml=True)
    assert not any(network._forward_pre_hooks for network in networks)


def test_the_example_runs_and_is_short(tmp_path):
    example = ROOT / "examples/distill.py"
    assert len(example.read_text().splitlines()) <= 30
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=200, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreement") == 6
    assert (tmp_path / "student.pth").is_file()


def test_importing_the_library_is_cheap():
    code = "import sys, datafree; assert 'torch' not in sys.modules; assert datafree.distill.__module__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
