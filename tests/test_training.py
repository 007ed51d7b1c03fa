"""Training on real images, of teachers and by KD: it continues exactly, and does what published flags say."""

import json
import math
import signal

import pytest
import torch
from conftest import run_here, succeed
from helpers import assert_refused, assert_same_files, metrics, write_folder, write_teacher
from processes import epochs_done, start, stop_after

from datafree.runs.real_images import noise

NET = """
from torch import nn

class Net(nn.Sequential):  # dropout draws from torch's global state, which must be continued too
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(3, 8, 3, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
                         nn.Flatten(), nn.Linear(8 * 64, num_classes))
"""
STEPS = "--lr_decay_milestones 9,14"
TRAIN = (
    "train_scratch.py --dataset digits --model net.py:Net --device cpu --batch_size 32 --lr 0.05 "
    f"{STEPS} --output t.pth"
)
KD = (
    "vanilla_kd.py --dataset folder --data_root images --teacher wrn16_1 --teacher_ckpt teacher.pth "
    "--student resnet8 --device cpu --batch_size 8 --save_dir out"
)


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    write_folder(tmp_path / "images", splits=("train", "test"), count=8)
    write_teacher(tmp_path / "teacher.pth", num_classes=3)
    return tmp_path


def test_a_teacher_killed_three_times_ends_bit_for_bit_like_one_that_was_not(cwd):
    whole, broken = cwd / "whole", cwd / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "net.py").write_text(NET)
    succeed(f"{TRAIN} --epochs 16", cwd=whole)
    rows = metrics(whole / "t.pth.training")
    assert [rows[epoch]["lr"] for epoch in (8, 9, 14)] == pytest.approx([0.05, 0.005, 0.0005])
    figures = json.loads((whole / "t.pth.training/summary.json").read_text())
    assert figures["last_top1"] == rows[-1]["test_top1"] > 80

    training = broken / "t.pth.training"
    for epoch in (2, 8, 12):
        resume = ["--resume"] if epoch > 2 else []
        stop_after(start(*TRAIN.split(), "--epochs", 16, *resume, cwd=broken), training, epoch)
        assert not (broken / "t.pth").exists()
    assert "of 360 right" in succeed(f"{TRAIN} --evaluate_only --resume", cwd=broken)
    other = run_here(f"{TRAIN} --epochs 16 --wd 0.1 --resume", cwd=broken)
    assert_refused(other, "weight_decay was 0.0001 and is 0.1")
    succeed(f"{TRAIN} --epochs 16 --resume", cwd=broken)
    assert_same_files(whole / "t.pth", broken / "t.pth")
    assert metrics(training) == rows
    assert json.loads((training / "summary.json").read_text())["last_top1"] == figures["last_top1"]
    assert not (training / "checkpoint.pth").exists()

    assert_refused(run_here(f"{TRAIN} --resume", cwd=broken), "nothing to continue")
    assert_refused(run_here(TRAIN, cwd=broken), "replace it with --overwrite")
    assert f"{figures['last_top1']:.2f} %" in succeed(f"{TRAIN} --evaluate_only", cwd=broken)
    assert not torch.load(broken / "t.pth", weights_only=True).keys() & {"distiller", "identity"}


def test_two_processes_train_one_network_and_continue_exactly(cwd):
    def train(*flags):
        return start(*TRAIN.split(), "--epochs", 6, *flags, cwd=cwd, processes=2)

    training = cwd / "t.pth.training"
    whole = train("--output", "whole.pth")
    _, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    log = (cwd / "whole.pth.training/log.txt").read_text()
    assert "of 360 right" in log
    assert log.count("epoch 6/6") == 1
    assert json.loads((cwd / "whole.pth.training/training.json").read_text())["processes"] == 2
    _, errors = stop_after(train(), training, 2, signal.SIGTERM)
    assert "continue with the same command and --resume" in errors
    assert 'train_scratch.py", line' not in errors  # no process ends in a traceback of its own
    assert epochs_done(training) < 6
    resumed = train("--resume")
    _, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    assert_same_files(cwd / "whole.pth", cwd / "t.pth")


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


def test_kd_with_real_images_continues_exactly_after_a_signal_though_the_teacher_has_moved(cwd):
    flags = f"{KD} --epochs 8 --ce_weight 0.5"
    succeed(f"{flags} --save_dir whole", cwd=cwd)
    status, message = stop_after(start(*flags.split(), cwd=cwd), cwd / "out", 2, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert "continue with the same command and --resume" in message
    (cwd / "teacher.pth").rename(cwd / "moved.pth")
    moved = "--teacher_ckpt moved.pth --resume"
    succeed(f"{flags} {moved}", cwd=cwd)
    assert_same_files(cwd / "whole/student.pth", cwd / "out/student.pth")
    rows = metrics(cwd / "out")
    assert rows == metrics(cwd / "whole")
    summary = json.loads((cwd / "out/summary.json").read_text())
    assert summary["last_top1"] == rows[-1]["test_top1"]
    assert_refused(run_here(f"{KD} --epochs 8 {moved}", cwd=cwd), "ce_weight was 0.5 and is 0.0")


def test_the_loss_of_kd_with_images_and_labels_of_several_origins(cwd):
    write_folder(cwd / "other", splits=("any",), count=10)
    short = f"{KD} --epochs 1"
    losses = {}
    for name, more in {
        "soft": "",
        "half": "--alpha 0.5",
        "cool": "--T 1",
        "both": "--ce_weight 2",
        "hard": "--kd_weight 0 --ce_weight 2",
        "folder": "--transfer_set other",
        "own": "--transfer_set folder --ce_weight 2",
    }.items():
        printed = succeed(f"{short} {more} --lr 1e-9 --save_dir {name}", cwd=cwd)
        losses[name] = metrics(cwd / name)[0]["loss"]
        assert ("30 images" in printed) == (name == "folder")
    assert losses["half"] == pytest.approx(losses["soft"] / 2, rel=1e-4)
    assert losses["cool"] != pytest.approx(losses["soft"], rel=1e-2)
    assert losses["both"] == pytest.approx(losses["soft"] + losses["hard"], rel=1e-4) == losses["own"]
    assert json.loads((cwd / "folder/config.json").read_text())["method"] == "vanilla_kd_transfer"
    assert "vanilla_kd_transfer" in succeed("scripts/table.py folder", cwd=cwd)
    for more, message in [
        ("--transfer_set nois", "did you mean noise?"),
        ("--transfer_set cifr10", "neither a folder nor a dataset, did you mean cifar10?"),
        ("--transfer_set other --ce_weight 1", "--ce_weight needs labels"),
        ("--kd_weight 0", "leaves nothing to learn"),
        ("--lr_decay_milestones 1,x", "is not a list of epochs"),
    ]:
        assert_refused(run_here(f"{short} {more} --save_dir new", cwd=cwd), message)
    assert not (cwd / "new").exists()


def test_half_precision_and_the_cosine_schedule(cwd):
    train = f"{TRAIN.replace(STEPS, '')} --print_freq 40 --epochs 3 --overwrite"
    for more, amp in (("--amp bf16", "bf16"), ("--fp16", "fp16")):
        assert "step 40: loss" in succeed(f"{train} {more}", cwd=cwd)
        rows = metrics(cwd / "t.pth.training")
        assert rows[-1]["test_top1"] > 50
        halves = [0.025 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3)]
        assert [row["lr"] for row in rows] == pytest.approx(halves)
        assert json.loads((cwd / "t.pth.training/training.json").read_text())["amp"] == amp


def test_a_training_that_ends_before_an_epoch_is_not_called_finished(cwd):
    succeed(f"{TRAIN} --epochs 1", cwd=cwd)
    before = (cwd / "t.pth").read_bytes()
    diverges = f"{TRAIN} --epochs 2 --lr 1e18"
    assert_refused(run_here(f"{diverges} --overwrite", cwd=cwd), "try a lower --lr")
    assert_refused(run_here(f"{diverges} --resume", cwd=cwd), "no epoch was finished")
    assert (cwd / "t.pth").read_bytes() == before
    succeed(f"{TRAIN} --epochs 0 --overwrite", cwd=cwd)
    assert (cwd / "t.pth.training/metrics.jsonl").read_text() == ""  # the earlier training's lines are gone
