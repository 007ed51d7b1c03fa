"""Networks from this project, timm, torchvision and users' files: built, checked, loaded and exported."""

import argparse
import json
import re
import socket
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_here, succeed
from helpers import CPU, assert_refused, flags, metrics, named, small, write_folder
from torch import nn

import datafree
from datafree import models
from datafree.data.image_spec import ImageSpec
from datafree.errors import UserError
from datafree.networks.build import build, input_channels
from datafree.networks.penultimate import PenultimateFeatures
from datafree.networks.student_file import describe
from datafree.networks.teacher import load_teacher, own_settings, prepare_teacher
from datafree.results.read import read_run
from datafree.results.stored import student_of
from datafree.torch_utils import checkpoint

TINY = (
    "--dataset none --epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 2 --device cpu "
    "--save_dir out"
)
BSR = f"bsr_main.py {TINY}"
GREY = "--teacher net.py:Grey --student net.py:Grey --img_size 32"
NET = (
    (ROOT / "examples/grey.py").read_text()
    + """
import torch

def leaves():
    raise SystemExit("bye")

def no_module():
    return "network"

def maps():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(30, 5))

class Twice(Grey):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits

def flat(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, num_classes))

def shuffled():
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(144, 5))

def no_linear(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, num_classes, 32), nn.Flatten())
"""
)
TEACHERS = {  # teacher, its arguments, student, image size
    "a timm CNN": ("timm:resnet10t", "num_classes=7", "timm:lcnet_050", 64),
    "a torchvision CNN": ("torchvision:mobilenet_v3_small", "num_classes=5", "wrn16_1", 32),
    "a user's file": ("net.py:Grey", "width=8", "net.py:Grey", 32),
    "a ViT": ("timm:vit_tiny_patch16_224", "num_classes=6,img_size=32,patch_size=8", "resnet20", 32),
}


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("kind", TEACHERS)
def test_any_teacher_is_distilled_and_its_student_exported(kind, cwd):
    teacher, arguments, student, size = TEACHERS[kind]
    given = f"--teacher {teacher} --teacher_args {arguments} --student {student} --img_size {size}"
    printed = succeed(f"{BSR} {given} --lr 0.01", cwd=cwd)
    assert "which is not accuracy" in printed
    assert "agreement, last epoch" in printed
    assert ("no BatchNorm2d statistics" in printed) == (kind == "a ViT")
    config = json.loads((cwd / "out/config.json").read_text())
    assert config["judged_by"] == "holdout_agreement"
    source = ["--student", student] if ".py:" in student else []
    succeed("scripts/export.py out", *source, cwd=cwd)
    loaded = student_of(read_run(cwd / "out"), CPU, named(f"{cwd}/{student}") if source else None)
    images = torch.rand(256, len(config["mean"]), size, size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = loaded((images - mean) / std)
    session = onnxruntime.InferenceSession(str(cwd / "out/export/student.onnx"))
    logits = session.run(None, {"image": images.numpy()})[0]
    assert logits.argmax(1).tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    card = (cwd / "out/export/model_card_onnx.md").read_text()
    assert "This is not accuracy" in card
    assert f"| student | {student} |" in card


def test_the_file_of_a_students_network_runs_only_where_it_is_named(cwd):
    succeed(f"{BSR} {GREY}", cwd=cwd)
    (cwd / "net.py").write_text("open('ran', 'w')\n" + NET)
    succeed("show_result/report.py out", cwd=cwd)
    assert "<b>This is not accuracy.</b>" in (cwd / "report.html").read_text()
    assert "bsr, agreement" in succeed("scripts/table.py out", cwd=cwd)
    for script in ("scripts/export.py", "show_result/show_points_ablation.py"):
        assert_refused(run_here(script, "out", cwd=cwd), "add --student net.py:Grey")
    assert not (cwd / "ran").exists()


def test_the_second_example_of_the_readme(cwd):
    """One grey channel, no data; the student is scored on the real test digits afterwards."""
    grey = f"{ROOT}/examples/grey.py:Grey"
    train = "--epochs 12 --batch_size 64 --lr 0.1 --wd 5e-4 --output grey.pth --device cpu"
    succeed(f"train_scratch.py --dataset digits --model {grey} {train}", cwd=cwd)
    student = f"--student {grey} --student_args width=12 --save_dir out --device cpu"
    steps = "--epochs 18 --warmup 4 --kd_steps 40 --ep_steps 40 --batch_size 64 --g_steps 5"
    succeed(f"bsr_main.py --dataset none --teacher {grey} --teacher_ckpt grey.pth {student} {steps}", cwd=cwd)
    scored = succeed(f"bsr_main.py --dataset digits --evaluate_only {student}", cwd=cwd)
    assert float(re.search(r": ([\d.]+) % \(", scored)[1]) >= 90, scored


def test_a_few_labelled_images_give_accuracy_beside_agreement(cwd):
    write_folder(cwd / "few", splits=("x",), classes=("a", "b", "c"), count=4)
    given = f"{BSR} {GREY} --teacher_args num_classes=3 --test_teacher"
    printed = succeed(given, "--eval_folder", "few/x", cwd=cwd)
    assert "of 12 right" in printed
    row = metrics(cwd / "out")[-1]
    assert row["repository"] == 42  # an eighth of 48 is held out, for the agreement
    summary = json.loads((cwd / "out/summary.json").read_text())
    assert summary["last_top1"] == row["test_top1"]
    assert summary["last_holdout_agreement"] == row["holdout_agreement"]
    assert re.search(rf"student, last epoch +{row['test_top1']:.2f} %", printed)
    assert re.search(rf"agreement, last epoch +{row['holdout_agreement']:.2f} % \(", printed)
    assert json.loads((cwd / "out/config.json").read_text())["judged_by"] == "test_top1"
    write_folder(cwd / "more", splits=("x",), classes=("a", "b"), count=2)
    other = run_here(f"{given} --eval_folder more/x --save_dir o", cwd=cwd)
    assert_refused(other, "has 2 class folders, and the teacher 3 classes")


BAD = [
    ("net.py:leaves", "raised SystemExit: bye"),
    ("net.py:no_module", "returned a str: return a torch.nn.Module"),
    ("net.py:maps", "returns (2, 4, 30, 5) for 2 images of 3 x 32 x 32"),
    ("net.py:Gray", "has no function or class Gray, did you mean Grey?"),
    ("net.py:no_linear", "name one with --feature_layer"),
    ("broken.py:f", "raised SyntaxError"),
    ("absent.py:f", "there is no Python file absent.py"),
    ("net.py:Grey --feature_layer hed", "has no such layer, did you mean head?"),
    ("net.py:Grey --teacher_args width", "is not name=value"),
    ("net.py:Grey --student_args num_classes=4", "has 4 classes, not 10"),
    ("timm:resnet10", "timm has no model resnet10, did you mean resnet10t?"),
    ("keras:resnet18", "none of timm:NAME, torchvision:NAME, file.py:factory"),
    ("net.py:Grey --channels 3", "cannot take images of 3 x 32 x 32: RuntimeError"),
    ("torchvision:alexnet", "cannot take images of 3 x 32 x 32"),
    ("net.py:Grey --student net.py:Twice", "returns tuple for 2 images of 1 x 32 x 32 in train mode"),
    ("wrn16_1 --teacher_args a=1 --teacher_ckpt t.pth", "raised TypeError"),
]


@pytest.mark.parametrize(("teacher", "message"), BAD, ids=lambda value: value[-45:])
def test_networks_that_cannot_be_used_are_refused_in_a_line(teacher, message, cwd):
    (cwd / "broken.py").write_text("def f(:\n")
    torch.save({"fc.weight": torch.zeros(10, 64)}, cwd / "t.pth")
    assert_refused(run_here(f"{BSR} {GREY} --teacher {teacher}", cwd=cwd), message)
    assert not (cwd / "out").exists()


def test_an_image_size_that_is_nowhere_recorded_is_requested(cwd):
    words = f"{BSR} --teacher net.py:Grey --student net.py:Grey"
    assert_refused(run_here(words, cwd=cwd), "the size of the teacher's images is unknown: give --img_size")


def test_features_come_from_a_named_layer_where_there_is_no_linear_one(cwd):
    given = "--img_size 32 --teacher net.py:no_linear --feature_layer 0 --student wrn16_1"
    assert "3072 features" in succeed(f"{BSR} {given}", cwd=cwd)


class Attention(nn.Module):
    """Its last linear layer is never called as one, and another is called after the classifier."""

    def __init__(self):
        super().__init__()
        self.classify, self.project = nn.Linear(8, 3), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, images):
        rows = images.flatten(2).transpose(1, 2)[..., :8]
        pooled = self.attention(rows, rows, rows)[0].mean(1)
        logits = self.classify(pooled)
        self.projected = self.project(pooled)
        return logits


def test_the_classifier_is_the_linear_layer_that_returns_the_logits():
    network = Attention().eval()
    assert PenultimateFeatures(network, images=torch.rand(2, 8, 4, 4)).layer is network.classify


def test_a_file_may_import_modules_from_its_folder_even_one_named_models(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/small.py").write_text("from torch import nn\nmake = lambda: nn.Linear(3, 2)\n")
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "import neighbour\nfrom models.small import make as inner\n"
        "@dataclass\nclass Config:\n    width: int = 2\n"
        "def make():\n    Config()\n    return inner()\n"
    )
    assert isinstance(build(named(f"{tmp_path}/mine.py:make"), "--teacher"), nn.Linear)
    assert not {"models.small", "neighbour"} & sys.modules.keys()
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("teacher", "more", "content", "expected"),
    [
        ("net.py:flat", ["--img_size", 28, "--channels", 1], None, (1, 28)),  # the flags
        ("net.py:flat", [], {"img_size": 28, "mean": [0.5], "std": [0.5]}, (1, 28)),  # the checkpoint
        ("wrn16_1", ["--img_size", 32], {"channels": 1}, (1, 32)),  # the shape of its first convolution
        ("net.py:Grey", ["--img_size", 32], None, (1, 32)),  # the network's first convolution
        ("timm:resnet10t", [], None, (3, 176)),  # its own configuration
        ("net.py:shuffled", ["--img_size", 16], None, (3, 16)),  # nothing: colours
    ],
)
def test_channels_and_size_of_a_teachers_images(teacher, more, content, expected, cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    if content is not None:
        channels = content.pop("channels", None)
        network = build(named(teacher), "--teacher", 10, channels)
        torch.save({**content, "state_dict": network.state_dict()}, "t.pth")
        more = [*more, "--teacher_ckpt", "t.pth"]
    teacher = prepare_teacher(flags(*TINY.split(), "--teacher", teacher, *more), CPU)
    assert (teacher.data.channels, teacher.data.img_size) == expected
    assert teacher.found.num_classes == teacher.data.num_classes
    assert any("no --mean and --std" in warning for warning in teacher.warnings) == (
        "mean" not in (content or {}) and expected != (3, 176)
    )


def test_a_teacher_without_a_checkpoint_has_the_same_weights_in_every_process():
    name = named("torchvision:mobilenet_v3_small")
    one, other = (load_teacher(name, 4, None, None, CPU) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert input_channels(load_teacher(name, 4, None, None, CPU, channels=1)) == 3  # it is not replaced


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet8", 0.08), ("resnet14", 0.18), ("resnet20", 0.28), ("resnet56", 0.86)]
)
def test_one_name_means_the_resnets_of_two_publications_and_the_keys_decide(name, parameters, tmp_path):
    projection = models.create(name, 100, projection=True)  # RepDistiller's, which counts their millions
    assert round(sum(p.numel() for p in projection.parameters()) / 1e6, 2) == parameters
    keys = [key for key in projection.state_dict() if "layer2.0" in key or key.startswith("fc")]
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = [f"layer2.0.{part}" for part in ["conv1.weight", *(f"bn1.{name}" for name in bn), "conv2.weight"]]
    block += [*(f"layer2.0.bn2.{name}" for name in bn), "layer2.0.downsample.0.weight"]
    assert keys == [*block, *(f"layer2.0.downsample.1.{name}" for name in bn), "fc.weight", "fc.bias"]
    assert len(projection.layer3) == (int(name.removeprefix("resnet")) - 2) // 6
    assert projection.layer3[0].conv1.weight.shape == (64, 32, 3, 3)

    images, file = torch.rand(2, 3, 32, 32).double(), tmp_path / "t.pth"
    for network in (projection, models.create(name, 100)):
        more = {"best_acc1": np.float64(72.5), "opt": argparse.Namespace(lr=0.1)}
        torch.save({"model": network.state_dict(), **more}, file)
        loaded = load_teacher(named(name), None, file, checkpoint.read(file), CPU)
        torch.testing.assert_close(loaded.double()(images), network.double().eval()(images))


def test_torchvision_downloads_nothing_unless_weights_are_requested(monkeypatch):
    def fetch(*_args, **_options):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    for name in ("lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large", "mobilenet_v3_small"):
        assert isinstance(build(named(f"torchvision:{name}"), "--student", 5), nn.Module)
    monkeypatch.setattr("torchvision.models.get_model", lambda name, **given: small(0))
    network = build(named("torchvision:resnet18"), "--teacher", arguments={"weights": "DEFAULT"})
    own = own_settings(network)
    assert (own["img_size"], tuple(own["mean"])) == (224, (0.485, 0.456, 0.406))


# Student files


def test_a_student_is_rebuilt_from_its_checkpoint_alone_and_runs_no_file(tmp_path):
    spec = ImageSpec("none", ("a", "b"), 32, (0.5,), (0.5,), False)
    student = build(named("wrn16_1"), "--student", 2, channels=1)
    content = describe(student, named("wrn16_1"), None, None, spec)
    torch.save(content, tmp_path / "student.pth")
    rebuilt = datafree.load_student(tmp_path / "student.pth")
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(rebuilt(images), student.eval()(images))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for arch in (f"{tmp_path}/evil.py:f", f"{tmp_path}/evil.py/.:f", "timm:evil.py:f", "a:b:c"):
        torch.save({**content, "arch": arch}, tmp_path / "student.pth")
        with pytest.raises(UserError, match=r"needs the network's code|does not tell how to rebuild"):
            datafree.load_student(tmp_path / "student.pth")
    assert not (tmp_path / "ran").exists()


def described(**changed):
    spec = ImageSpec("none", ("a", "b"), 32, (0.5,) * 3, (0.5,) * 3, True).as_dict()
    architecture = {"arch": "torchvision:mobilenet_v2", "arch_args": None, "arch_source": None}
    return {**architecture, **spec, "state_dict": {"a": torch.zeros(2)}, **changed}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (described(arch_args="width_mult=2"), "not a checkpoint of torchvision:mobilenet_v2 with 2 classes"),
        (described(arch_args=7), "does not tell how to rebuild"),
        (described(arch=["resnet18"]), "does not tell how to rebuild"),
        (described(arch="wrn16_1 + wrn16_1"), "there is no Python file"),
        (described(state_dict=None), "has no state dict"),
        (None, "does not tell how to rebuild"),
    ],
)
def test_a_student_file_without_what_rebuilding_needs_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "s.pth")
    with pytest.raises(UserError, match=message) as raised:
        datafree.load_student(tmp_path / "s.pth")
    assert "\n" not in str(raised.value)


def test_no_student_file_makes_a_connection(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for arch in ("torchvision:fcn_resnet50", "torchvision:mobilenet_v3_small", "timm:resnet10t"):
        more = "pretrained=True" if arch.startswith("timm") else "weights=DEFAULT"
        torch.save(described(arch=arch, arch_args=more), tmp_path / "s.pth")
        with pytest.raises(UserError, match="not a checkpoint"):
            datafree.load_student(tmp_path / "s.pth")


# Starts: standard deviations of initial weights, He et al. for fan out or fan in, otherwise PyTorch's

STARTS = [
    ("resnet20", "conv1.weight", (2 / (16 * 9)) ** 0.5),
    ("resnet20", "linear.weight", (2 / 64) ** 0.5),
    ("resnet8x4", "conv1.weight", (2 / (32 * 9)) ** 0.5),
    ("wrn40_2", "block3.layer.0.conv1.weight", (2 / (128 * 9)) ** 0.5),
    ("vgg11", "classifier.weight", 0.01),
    ("mobilenetv2", "linear.1.weight", 0.01),
    ("mobilenetv2", "module.follow_Conv.baseConv.0.weight", (2 / 1280) ** 0.5),
]


@pytest.mark.parametrize(("arch", "key", "deviation"), STARTS)
def test_networks_start_with_the_published_deviations(arch, key, deviation):
    torch.manual_seed(0)
    weight = models.create(arch, 100).state_dict()[key]
    assert weight.std().item() == pytest.approx(deviation, rel=0.06)


def test_dropout_is_where_it_was_published():
    rates = {
        name: [layer.p for layer in models.create(name, 10).modules() if isinstance(layer, nn.Dropout)]
        for name in ("mobilenetv2", "resnet18", "wrn40_2", "vgg11", "shufflenetv2")
    }
    assert rates == {"mobilenetv2": [0.5], "resnet18": [], "wrn40_2": [], "vgg11": [], "shufflenetv2": []}
