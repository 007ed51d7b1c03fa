"""Training on real images, of teachers and by KD: it continues exactly, and does what published flags say."""

import json
import math
import signal

import pytest
import torch
from conftest import run_here, run_script
from helpers import assert_refused, metrics, write_folder, write_teacher
from processes import epochs_done, start, stop_after

from datafree.runs.real_images import noise

NET = """
from torch import nn

class Net(nn.Sequential):  # dropout draws from torch's global state, which must be continued too
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(3, 8, 3, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
                         nn.Flatten(), nn.Linear(8 * 64, num_classes))
"""
TRAIN = [
    *"--dataset digits --model net.py:Net --device cpu --batch_size 32".split(),
    *"--lr 0.05 --lr_decay_milestones 9,14 --output t.pth".split(),
]
KD = [
    *"--dataset folder --data_root images --teacher wrn16_1 --teacher_ckpt teacher.pth".split(),
    *"--student resnet8 --device cpu --batch_size 8 --save_dir out".split(),
]


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    write_folder(tmp_path / "images", splits=("train", "test"), count=8)
    write_teacher(tmp_path / "teacher.pth", num_classes=3)
    return tmp_path


def weights(file):
    return torch.load(file, weights_only=True)["state_dict"]


def assert_equal_weights(file, other):
    states = weights(file), weights(other)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_teacher_killed_three_times_ends_bit_for_bit_as_one_that_was_not(cwd):
    whole, broken = cwd / "whole", cwd / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "net.py").write_text(NET)
    done = run_script("train_scratch.py", *TRAIN, "--epochs", 20, cwd=whole)
    assert done.returncode == 0, done.stderr
    rows = metrics(whole / "t.pth.training")
    assert [rows[epoch]["lr"] for epoch in (8, 9, 14)] == pytest.approx([0.05, 0.005, 0.0005])
    figures = json.loads((whole / "t.pth.training/summary.json").read_text())
    assert figures["last_top1"] == rows[-1]["test_top1"] > 80

    training = broken / "t.pth.training"
    for epoch in (2, 9, 16):
        flags = [*TRAIN, "--epochs", 20, *(["--resume"] if epoch > 2 else [])]
        stop_after(start("train_scratch.py", *flags, cwd=broken), training, epoch)
        assert not (broken / "t.pth").exists()
    scored = run_here("train_scratch.py", *TRAIN, "--evaluate_only", "--resume", cwd=broken)
    assert "of 360 right" in scored.stdout, scored.stderr
    other = run_here("train_scratch.py", *TRAIN, "--epochs", 20, "--wd", "0.1", "--resume", cwd=broken)
    assert_refused(other, "weight_decay was 0.0001 and is 0.1")
    done = run_script("train_scratch.py", *TRAIN, "--epochs", 20, "--resume", cwd=broken)
    assert done.returncode == 0, done.stderr
    assert_equal_weights(whole / "t.pth", broken / "t.pth")
    assert metrics(training) == rows
    assert json.loads((training / "summary.json").read_text())["last_top1"] == figures["last_top1"]
    assert not (training / "checkpoint.pth").exists()

    assert_refused(run_here("train_scratch.py", *TRAIN, "--resume", cwd=broken), "nothing to continue")
    assert_refused(run_here("train_scratch.py", *TRAIN, cwd=broken), "replace it with --overwrite")
    scored = run_here("train_scratch.py", *TRAIN, "--evaluate_only", cwd=broken)
    assert f"{figures['last_top1']:.2f} %" in scored.stdout
    assert not torch.load(broken / "t.pth", weights_only=True).keys() & {"distiller", "identity"}


def test_two_processes_train_one_network_and_continue_exactly(cwd):
    def train(*flags):
        return start("train_scratch.py", *TRAIN, "--epochs", 10, *flags, cwd=cwd, processes=2)

    training = cwd / "t.pth.training"
    whole = train("--output", "whole.pth")
    _, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    log = (cwd / "whole.pth.training/log.txt").read_text()
    assert "of 360 right" in log
    assert log.count("epoch 10/10") == 1
    assert json.loads((cwd / "whole.pth.training/training.json").read_text())["processes"] == 2
    _, errors = stop_after(train(), training, 3, signal.SIGTERM)
    assert "continue with the same command and --resume" in errors
    assert 'train_scratch.py", line' not in errors  # no process ends in a traceback of its own
    assert epochs_done(training) < 10
    resumed = train("--resume")
    _, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    assert_equal_weights(cwd / "whole.pth", cwd / "t.pth")


def test_kd_with_real_images_continues_exactly_after_a_signal(cwd):
    done = run_script(
        "vanilla_kd.py", *KD, "--epochs", 12, "--ce_weight", 0.5, "--save_dir", "whole", cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    flags = [*KD, "--epochs", 12, "--ce_weight", 0.5]
    process = start("vanilla_kd.py", *flags, cwd=cwd)
    status, said = stop_after(process, cwd / "out", 2, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert "continue with the same command" in said
    assert "--resume" in said
    done = run_script("vanilla_kd.py", *flags, "--resume", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert_equal_weights(cwd / "whole/student.pth", cwd / "out/student.pth")
    assert metrics(cwd / "out") == metrics(cwd / "whole")
    assert_refused(
        run_here("vanilla_kd.py", *KD, "--epochs", 12, "--resume", cwd=cwd), "ce_weight was 0.5 and is 0.0"
    )


def test_kd_with_other_images_and_with_labels(cwd):
    """Two weights, soft and hard targets; the images may be those of another dataset or of a folder."""
    write_folder(cwd / "other", splits=("any",), count=10)
    short = [*KD, "--epochs", 1]
    losses = {}
    for name, more in {
        "soft": [],
        "half": ["--alpha", 0.5],
        "both": ["--ce_weight", 2],
        "hard": ["--kd_weight", 0, "--ce_weight", 2],
        "folder": ["--transfer_set", "other"],
        "noise": ["--transfer_set", "noise", "--batch_size", 25000, "--img_size", 8],
        "own": ["--transfer_set", "folder", "--ce_weight", 2],
    }.items():
        done = run_here("vanilla_kd.py", *short, *more, "--lr", 1e-9, "--save_dir", name, cwd=cwd)
        assert done.returncode == 0, done.stderr
        losses[name] = metrics(cwd / name)[0]["loss"]
        assert ("30 images" in done.stdout) == (name == "folder")
        assert ("50,000 images" in done.stdout) == (name == "noise")
    assert losses["half"] == pytest.approx(losses["soft"] / 2, rel=1e-4)
    assert losses["both"] == pytest.approx(losses["soft"] + losses["hard"], rel=1e-4) == losses["own"]
    assert json.loads((cwd / "folder/config.json").read_text())["method"] == "vanilla_kd_transfer"
    for more, message in [
        (["--transfer_set", "nois"], "did you mean noise?"),
        (["--transfer_set", ""], "neither a folder nor a dataset"),
        (["--transfer_set", "cifr10"], "neither a folder nor a dataset, did you mean cifar10?"),
        (["--transfer_set", "other", "--ce_weight", 1], "--ce_weight needs labels"),
        (["--kd_weight", 0], "leaves nothing to learn"),
        (["--lr_decay_milestones", "1,x"], "is not a list of epochs"),
        (["--resume", "--overwrite"], "contradict each other"),
    ]:
        assert_refused(run_here("vanilla_kd.py", *short, *more, "--save_dir", "new", cwd=cwd), message)
    assert not (cwd / "new").exists()


def test_images_of_noise_are_the_same_whenever_they_are_read():
    images = noise(16)
    first, other, again = images.read(torch.tensor([3, 49_999, 3]))
    assert len(images) == 50_000
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.9
    assert (first.dtype, tuple(first.shape)) == (torch.uint8, (3, 16, 16))
    many = images.read(torch.arange(100)).float()
    assert many.mean().item() == pytest.approx(127.5, abs=1)
    assert many.std().item() == pytest.approx(256 / 12**0.5, abs=1)


def test_half_precision_trains_too(cwd):
    for more in (["--amp", "bf16"], ["--fp16"]):
        flags = [*TRAIN, *more, "--epochs", 3, "--print_freq", 40, "--overwrite"]
        done = run_here("train_scratch.py", *flags, cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert "step 40: loss" in done.stdout
        rows = metrics(cwd / "t.pth.training")
        assert rows[-1]["test_top1"] > 50
        assert json.loads((cwd / "t.pth.training/training.json").read_text())["amp"] == more[-1].removeprefix(
            "--"
        )
    assert_refused(run_here("train_scratch.py", *TRAIN, "--amp", "bf16", "--fp16", cwd=cwd), "contradict")


def test_a_training_that_ends_before_an_epoch_is_not_called_finished(cwd):
    assert run_here("train_scratch.py", *TRAIN, "--epochs", 1, cwd=cwd).returncode == 0
    before = (cwd / "t.pth").read_bytes()
    diverges = [*TRAIN, "--epochs", 2, "--lr", "1e18"]
    assert_refused(run_here("train_scratch.py", *diverges, "--overwrite", cwd=cwd), "try a lower --lr")
    assert_refused(run_here("train_scratch.py", *diverges, "--resume", cwd=cwd), "no epoch was finished")
    assert (cwd / "t.pth").read_bytes() == before
    done = run_here("train_scratch.py", *TRAIN, "--epochs", 0, "--overwrite", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (cwd / "t.pth.training/metrics.jsonl").read_text() == ""  # those of another training are gone


def test_the_teacher_of_a_run_with_real_images_may_move(cwd):
    assert run_here("vanilla_kd.py", *KD, "--epochs", 1, cwd=cwd).returncode == 0
    (cwd / "teacher.pth").rename(cwd / "moved.pth")
    moved = [*KD, "--epochs", 1, "--teacher_ckpt", cwd / "moved.pth", "--resume"]
    assert run_here("vanilla_kd.py", *moved, cwd=cwd).returncode == 0


def test_the_learning_rate_of_an_epoch_is_written_and_falls_by_its_schedule(cwd):
    train = "--dataset digits --model resnet8 --device cpu --batch_size 256 --lr 0.1 --epochs 4".split()
    halves = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    steps = ["--lr_decay_milestones", "1,3"]
    for more, rates in (([], halves), (steps, [0.1, 0.01, 0.01, 0.001])):
        done = run_here("train_scratch.py", *train, *more, "--output", "a.pth", "--overwrite", cwd=cwd)
        assert done.returncode == 0, done.stderr
        rows = metrics(cwd / "a.pth.training")
        assert [row["lr"] for row in rows] == pytest.approx(rates)


def test_the_temperature_of_kd_with_real_images_is_the_one_given(cwd):
    students = []
    for number, temperature in enumerate(("1", "20", "20")):
        more = ("--epochs", "1", "--T", temperature, "--save_dir", f"kd{number}")
        done = run_here("vanilla_kd.py", *KD, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr
        students.append(torch.load(cwd / f"kd{number}/student.pth", weights_only=True)["state_dict"])
        summary = json.loads((cwd / f"kd{number}/summary.json").read_text())
        assert summary["last_top1"] == metrics(cwd / f"kd{number}")[-1]["test_top1"]
    key = "fc.weight" if "fc.weight" in students[0] else list(students[0])[-2]
    assert torch.equal(students[1][key], students[2][key])
    assert not torch.equal(students[0][key], students[1][key])
