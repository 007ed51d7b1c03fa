"""Networks of any make, no data, the library and what is shipped."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_here, run_script
from helpers import FEW, assert_refused, flags, metrics, named, samples, small, write_folder
from torch import nn

import datafree
from datafree import models
from datafree.data.image_folders import load_labelled
from datafree.data.image_spec import ImageSpec
from datafree.errors import UserError
from datafree.evaluation import HeldOut
from datafree.networks.build import build, input_channels
from datafree.networks.penultimate import PenultimateFeatures
from datafree.networks.student_file import describe
from datafree.networks.teacher import load_teacher, own_settings, prepare_teacher
from datafree.results.read import read_run
from datafree.results.stored import student_of
from datafree.torch_utils import checkpoint

TINY = [
    *"--dataset none --epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16".split(),
    *"--g_steps 2 --device cpu --save_dir out".split(),
]
NET = '''
import torch
from torch import nn

class Digits(nn.Module):
    """One grey channel in, BatchNorm1d in its head."""

    def __init__(self, num_classes=10, width=16):
        super().__init__()
        layers, channels = [], 1
        for factor in (1, 2, 4):
            layers += [nn.Conv2d(channels, factor * width, 3, padding=1, bias=False),
                       nn.BatchNorm2d(factor * width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = factor * width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels, 32), nn.BatchNorm1d(32), nn.ReLU(),
                                  nn.Linear(32, num_classes))

    def forward(self, images):
        return self.head(self.body(images))

def raises():
    raise RuntimeError("not today")

def leaves():
    raise SystemExit("bye")

def no_module():
    return "network"

def maps():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(30, 5))

class tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Conv2d(3, 10, 32)

    def forward(self, images):
        self.inner(images.reshape(-1, 48)[:, :16])
        return self.outer(images).flatten(1)

class Twice(Digits):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits

def four():
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def flat(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, num_classes))

def shuffled():
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(144, 5))

def no_linear(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, num_classes, 32), nn.Flatten())
'''
TEACHERS = {  # teacher, its arguments, student, image size
    "a timm CNN": ("timm:resnet10t", "num_classes=7", "timm:lcnet_050", 64),
    "a torchvision CNN": ("torchvision:mobilenet_v3_small", "num_classes=5", "wrn16_1", 32),
    "a user's file": ("net.py:Digits", "width=8", "net.py:Digits", 32),
    "a ViT": ("timm:vit_tiny_patch16_224", "num_classes=6,img_size=32,patch_size=8", "resnet20", 32),
}


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("kind", TEACHERS)
def test_any_teacher_is_distilled_and_its_student_exported(kind, cwd):
    teacher, arguments, student, size = TEACHERS[kind]
    done = run_script(
        "bsr_main.py",
        *TINY,
        "--teacher",
        teacher,
        "--teacher_args",
        arguments,
        "--student",
        student,
        "--img_size",
        size,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    assert "which is not accuracy" in done.stdout
    assert "agreement, last epoch" in done.stdout
    assert ("no BatchNorm2d statistics" in done.stdout) == (kind == "a ViT")
    assert "MFLOPs an image" in done.stdout
    config = json.loads((cwd / "out/config.json").read_text())
    assert config["judged_by"] == "holdout_agreement"
    source = ["--student", student] if ".py:" in student else []
    exported = run_here("scripts/export.py", "out", *source, cwd=cwd)
    assert exported.returncode == 0, exported.stderr
    loaded = student_of(
        read_run(cwd / "out"), torch.device("cpu"), named(f"{cwd}/{student}") if source else None
    )
    images = torch.rand(256, len(config["mean"]), size, size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = loaded((images - mean) / std)
    session = onnxruntime.InferenceSession(str(cwd / "out/export/student.onnx"))
    logits = session.run(None, {"image": images.numpy()})[0]
    assert logits.argmax(1).tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    card = (cwd / "out/export/model_card_onnx.md").read_text()
    assert "This is not accuracy" in card
    assert f"| student | {student} |" in card


@pytest.mark.parametrize("kind", ["torch_export", "safetensors"])
def test_other_formats_give_the_same_logits(kind, cwd):
    done = run_script(
        "bsr_main.py",
        *TINY,
        *"--teacher net.py:Digits --student net.py:Digits --img_size 32".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    source = ["--student", "net.py:Digits"]
    exported = run_here("scripts/export.py", "out", *source, "--format", kind, cwd=cwd)
    assert exported.returncode == 0, exported.stderr
    assert "256 random images: the same class for 100.0 %" in exported.stdout
    images = torch.rand(5, 1, 32, 32)
    student = student_of(read_run(cwd / "out"), torch.device("cpu"), named(f"{cwd}/net.py:Digits"))
    expected = student((images - 0.5) / 0.5)
    if kind == "torch_export":
        logits = torch.export.load(cwd / "out/export/student.pt2").module()(images)
    else:
        from safetensors.torch import load_file

        state = load_file(cwd / "out/export/student.safetensors")
        assert state["mean"].item() == 0.5
        inner = {key.removeprefix("student."): value for key, value in state.items() if "." in key}
        student.load_state_dict(inner)
        logits = student((images - state["mean"]) / state["std"])
    torch.testing.assert_close(logits, expected)


def test_the_second_example_of_the_readme(cwd):
    """One grey channel, no data; the student is scored on the real test digits afterwards."""
    grey = f"{ROOT}/examples/grey.py:Grey"
    taught = run_script(
        *"train_scratch.py --dataset digits --model".split(),
        grey,
        *"--epochs 12 --batch_size 64 --lr 0.1 --wd 5e-4 --output grey.pth --device cpu".split(),
        cwd=cwd,
    )
    assert taught.returncode == 0, taught.stderr
    done = run_script(
        *"bsr_main.py --dataset none --teacher".split(),
        grey,
        "--teacher_ckpt",
        "grey.pth",
        "--student",
        grey,
        *"--student_args width=12 --epochs 18 --warmup 4 --kd_steps 40 --ep_steps 40".split(),
        *"--batch_size 64 --g_steps 5 --device cpu --save_dir out".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    scored = run_script(
        *"bsr_main.py --dataset digits --evaluate_only --student".split(),
        grey,
        *"--student_args width=12 --save_dir out --device cpu".split(),
        cwd=cwd,
    )
    assert float(re.search(r": ([\d.]+) % \(", scored.stdout)[1]) >= 90, scored.stdout


def test_a_few_labelled_images_give_accuracy_beside_agreement(cwd):
    write_folder(cwd / "few", splits=("x",), classes=("a", "b", "c"), count=4)
    more = [
        *"--teacher net.py:Digits --student net.py:Digits --teacher_args num_classes=3".split(),
        *"--img_size 32".split(),
    ]
    done = run_script("bsr_main.py", *TINY, *more, "--eval_folder", "few/x", "--test_teacher", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "of 12 right" in done.stdout
    row = metrics(cwd / "out")[-1]
    assert row["repository"] == 42  # an eighth of 48 is held out, for the agreement
    summary = json.loads((cwd / "out/summary.json").read_text())
    assert summary["last_top1"] == row["test_top1"]
    assert summary["last_holdout_agreement"] == row["holdout_agreement"]
    assert re.search(rf"student, last epoch +{row['test_top1']:.2f} %", done.stdout)
    assert re.search(rf"agreement, last epoch +{row['holdout_agreement']:.2f} % \(", done.stdout)
    assert json.loads((cwd / "out/config.json").read_text())["judged_by"] == "test_top1"
    write_folder(cwd / "more", splits=("x",), classes=("a", "b"), count=2)
    other = run_script("bsr_main.py", *TINY, *more, "--eval_folder", "more/x", "--save_dir", "o", cwd=cwd)
    assert_refused(other, "has 2 class folders, and the teacher 3 classes")


BAD = [
    (["--teacher", "net.py:raises"], "raised RuntimeError: not today"),
    (["--teacher", "net.py:leaves"], "raised SystemExit: bye"),
    (["--teacher", "net.py:no_module"], "returned a str: return a torch.nn.Module"),
    (["--teacher", "net.py:maps"], "returns (2, 4, 30, 5) for 2 images of 3 x 32 x 32"),
    (["--teacher", "net.py:Digit"], "has no function or class Digit, did you mean Digits?"),
    (["--teacher", "net.py:no_linear"], "name one with --feature_layer"),
    (["--teacher", "broken.py:f"], "raised SyntaxError"),
    (["--teacher", "absent.py:f"], "there is no Python file absent.py"),
    (["--teacher", "net.py:Digits", "--feature_layer", "hed"], "has no such layer, did you mean head?"),
    (["--teacher", "net.py:Digits", "--teacher_args", "width"], "is not name=value"),
    (["--teacher", "net.py:Digits", "--teacher_args", "wide=3"], "raised TypeError"),
    (["--teacher", "net.py:Digits", "--student_args", "num_classes=4"], "has 4 classes, not 10"),
    (["--teacher", "timm:resnet10"], "timm has no model resnet10, did you mean resnet10t?"),
    (["--teacher", "torchvision:resnt18"], "torchvision has no model resnt18, did you mean resnet18?"),
    (["--teacher", "keras:resnet18"], "none of timm:NAME, torchvision:NAME, file.py:factory"),
    (["--teacher", "net.py:Digits", "--channels", 3], "cannot take images of 3 x 32 x 32: RuntimeError"),
    (["--teacher", "net.py:tokens"], "sees 128 rows in a forward pass of 2 images"),
    (["--teacher", "torchvision:alexnet"], "cannot take images of 3 x 32 x 32"),
    (["--teacher", "net.py:four"], "cannot take images of 3 x 32 x 32"),
    (
        ["--teacher", "net.py:Digits", "--student", "net.py:Twice"],
        "returns tuple for 2 images of 1 x 32 x 32 in train mode",
    ),
    (["--teacher", "net.py:Digits", "--test_teacher"], "add --eval_folder"),
    (["--teacher", "wrn16_1", "--teacher_args", "a=1", "--teacher_ckpt", "t.pth"], "raised TypeError"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: str(value)[-45:])
def test_networks_that_cannot_be_used_are_refused_in_a_line(given, message, cwd):
    (cwd / "broken.py").write_text("def f(:\n")
    torch.save({"fc.weight": torch.zeros(10, 64)}, cwd / "t.pth")
    student = [] if "--student" in given else ["--student", "net.py:Digits"]
    done = run_here("bsr_main.py", *TINY, "--img_size", 32, *student, *given, cwd=cwd)
    assert_refused(done, message)
    assert not (cwd / "out").exists()


def test_features_of_a_layer_by_name_where_there_is_no_linear_one(cwd):
    done = run_script(
        "bsr_main.py",
        *TINY,
        *"--img_size 32 --teacher net.py:no_linear --feature_layer 0 --student wrn16_1".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    assert "3072 features" in done.stdout


def test_a_student_of_a_file_is_not_run_unasked(cwd):
    done = run_script(
        "bsr_main.py",
        *TINY,
        *"--img_size 32 --teacher net.py:Digits --student net.py:Digits".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    shown = run_here("show_result/report.py", "out", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    assert "<b>This is not accuracy.</b>" in (cwd / "report.html").read_text()
    assert "bsr, agreement" in run_script("scripts/table.py", "out", cwd=cwd).stdout
    (cwd / "net.py").write_text("open('ran', 'w')\n" + NET)
    for script in ("scripts/export.py", "show_result/show_points_ablation.py"):
        assert_refused(run_here(script, "out", cwd=cwd), "add --student net.py:Digits")
    assert not (cwd / "ran").exists()


def test_the_layer_found_is_the_one_that_is_used_last():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.classify = nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2)  # its last linear layer is never called as one

        def forward(self, images):
            rows = images.flatten(2).transpose(1, 2)[..., :8]
            return self.classify(self.attention(rows, rows, rows)[0].mean(1))

    network = Attention().eval()
    assert PenultimateFeatures(network, images=torch.rand(2, 8, 4, 4)).layer is network.classify


def test_a_layer_called_after_the_classifier_is_not_taken_for_it():
    class Projecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.classify, self.project = nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, images):
            logits = self.classify(images.mean((2, 3)))
            self.projected = self.project(images.mean((2, 3)))
            return logits

    network = Projecting().eval()
    assert PenultimateFeatures(network, images=torch.rand(2, 8, 4, 4)).layer is network.classify


def test_a_file_may_import_what_lies_beside_it_even_its_own_models(tmp_path):
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
    assert "models.small" not in sys.modules
    assert str(tmp_path) not in sys.path
    assert "neighbour" not in sys.modules


def test_an_image_size_that_nothing_tells_is_asked_for(cwd):
    done = run_here("bsr_main.py", *TINY, "--teacher", "net.py:Digits", "--student", "net.py:Digits", cwd=cwd)
    assert_refused(done, "the size of the teacher's images is unknown: give --img_size")


@pytest.mark.parametrize(
    ("teacher", "more", "content", "expected"),
    [
        ("net.py:flat", ["--img_size", 28, "--channels", 1], None, (1, 28)),  # the flags
        ("net.py:flat", [], {"img_size": 28, "mean": [0.5], "std": [0.5]}, (1, 28)),  # the checkpoint
        ("wrn16_1", ["--img_size", 32], {"channels": 1}, (1, 32)),  # the shape of its first convolution
        ("net.py:Digits", ["--img_size", 32], None, (1, 32)),  # the network's first convolution
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
    teacher = prepare_teacher(flags(*TINY, "--teacher", teacher, *more), torch.device("cpu"))
    assert (teacher.data.channels, teacher.data.img_size) == expected
    assert teacher.found.num_classes == teacher.data.num_classes
    assert any("no --mean and --std" in warning for warning in teacher.warnings) == (
        "mean" not in (content or {}) and expected != (3, 176)
    )


def test_a_teachers_first_convolution_is_not_replaced():
    network = load_teacher(named("torchvision:resnet18"), 4, None, None, torch.device("cpu"), channels=1)
    assert input_channels(network) == 3


def test_a_teacher_without_a_checkpoint_is_the_same_in_every_process():
    one, other = (
        load_teacher(named("torchvision:mobilenet_v3_small"), 4, None, None, torch.device("cpu"))
        for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet8", 0.08), ("resnet14", 0.18), ("resnet20", 0.28), ("resnet56", 0.86)]
)
def test_one_name_stands_for_the_resnets_of_two_publications_and_the_keys_tell_which(
    name, parameters, tmp_path
):
    projection = models.create(name, 100, projection=True)  # RepDistiller's, which counts their millions
    assert round(sum(p.numel() for p in projection.parameters()) / 1e6, 2) == parameters
    depth = (int(name.removeprefix("resnet")) - 2) // 6
    keys = [key for key in projection.state_dict() if "layer2.0" in key or key.startswith("fc")]
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = [f"layer2.0.{part}" for part in ["conv1.weight", *(f"bn1.{name}" for name in bn), "conv2.weight"]]
    block += [*(f"layer2.0.bn2.{name}" for name in bn), "layer2.0.downsample.0.weight"]
    assert keys == [*block, *(f"layer2.0.downsample.1.{name}" for name in bn), "fc.weight", "fc.bias"]
    assert len(projection.layer3) == depth
    assert projection.layer3[0].conv1.weight.shape == (64, 32, 3, 3)

    images = torch.rand(2, 3, 32, 32).double()
    for network in (projection, models.create(name, 100)):
        file = tmp_path / "t.pth"
        more = {"best_acc1": np.float64(72.5), "opt": argparse.Namespace(lr=0.1)}
        torch.save({"model": network.state_dict(), **more}, file)
        loaded = load_teacher(named(name), None, file, checkpoint.read(file), torch.device("cpu"))
        torch.testing.assert_close(loaded.double()(images), network.double().eval()(images))


def test_names_as_repdistiller_writes_them():
    assert str(named("wrn_40_2")) == "wrn40_2"
    with pytest.raises(ValueError, match="wrn_40_9"):
        named("wrn_40_9")


def test_a_student_with_projection_shortcuts_is_distilled_and_scored(cwd):
    torch.save({"state_dict": models.create("resnet8", 10, projection=True).state_dict()}, cwd / "t.pth")
    common = ["--student", "resnet8", "--save_dir", "out"]
    teach = ["--teacher", "resnet8", "--teacher_ckpt", "t.pth", "--student_args", "projection=True"]
    done = run_here("bsr_main.py", *TINY, *teach, *common, "--img_size", 32, cwd=cwd)
    assert done.returncode == 0, done.stderr
    scored = run_here("bsr_main.py", "--dataset", "digits", "--evaluate_only", *common, cwd=cwd)
    assert scored.returncode == 0, scored.stderr
    assert "of 360 right" in scored.stdout
    assert any(".downsample." in key for key in datafree.load_student(cwd / "out/student.pth").state_dict())


def test_no_network_of_torchvision_fetches_anything_unasked(monkeypatch):
    def fetch(*_args, **_options):
        raise AssertionError("it reaches out")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    for name in ("lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large", "mobilenet_v3_small"):
        assert isinstance(build(named(f"torchvision:{name}"), "--student", 5), nn.Module)


def test_pretrained_torchvision_networks_know_their_images(monkeypatch):
    import torchvision.models as tv

    monkeypatch.setattr(tv, "get_model", lambda name, **given: small(0))  # nothing is downloaded
    network = build(named("torchvision:resnet18"), "--teacher", arguments={"weights": "DEFAULT"})
    assert own_settings(network)["img_size"] == 224
    assert tuple(own_settings(network)["mean"]) == (0.485, 0.456, 0.406)


def test_normalisation_by_channel():
    facts = ImageSpec("none", (), 32, (0.3,), (0.1, 0.2, 0.3), False)
    assert facts.for_channels(3).mean == (0.3, 0.3, 0.3)
    assert facts.for_channels(3).std == (0.1, 0.2, 0.3)
    assert facts.for_channels(1).std == (pytest.approx(0.2),)


def test_folders_named_by_numbers_are_classes_of_these_numbers(tmp_path):
    write_folder(tmp_path, splits=("x",), classes=("10", "2"), count=1)
    images = load_labelled(tmp_path / "x", 32, num_classes=11)
    assert images.labels.tolist() == [10, 2]
    assert list(images.classes) == [str(label) for label in range(11)]


def test_every_eighth_sample_is_held_out_however_small_the_batches():
    held = HeldOut((3, 8, 8), small(0).eval(), lambda images: images, torch.device("cpu"))
    kept = 0
    for _ in range(6):
        new = samples(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), torch.zeros(4, 2))
        kept += len(held.take(new))
    assert (kept, len(held.images)) == (21, 3)


def test_a_network_for_colours_is_made_for_grey():
    network = build(named("wrn16_1"), "--student", 10, channels=1)
    assert input_channels(network) == 1
    assert network.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 10)


# The library


def test_runs_in_one_process_repeat_themselves_and_touch_nothing_else(capsys):
    seen, results = [], []
    teacher = small(0)
    teacher_before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for _ in range(2):
        student = small(1)
        state = torch.get_rng_state()
        student, record = datafree.distill(teacher, student, **FEW, on_epoch=seen.append)
        assert torch.equal(torch.get_rng_state(), state)
        results.append((student.state_dict(), [{**row, "seconds": None} for row in record]))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][key]) for key, value in results[0][0].items())
    assert [row["epoch"] for row in seen] == [0, 1, 2] * 2
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, teacher_before[key]) for key, value in teacher.state_dict().items())
    assert capsys.readouterr() == ("", "")


def test_the_library_takes_methods_scores_and_refuses_what_cannot_be(rng):
    modes = set()

    def evaluate(network):
        dtype = network(torch.rand(1, 3, FEW["img_size"], FEW["img_size"])).dtype
        modes.add((network.training, torch.is_grad_enabled(), dtype))
        return 12.5

    _, record = datafree.distill(small(0), small(1), **FEW, method="dafl", evaluate=evaluate, amp="bf16")
    assert {row["test_top1"] for row in record} == {12.5}
    assert modes == {(False, False, torch.float32)}
    with pytest.raises(TypeError, match="no setting epoch, did you mean epochs"):
        datafree.distill(small(0), small(1), **FEW, epoch=3)
    with pytest.raises(TypeError, match="no setting save_dir"):
        datafree.distill(small(0), small(1), **FEW, save_dir="x")
    with pytest.raises(UserError, match="the student has 5 classes, the teacher 4"):
        datafree.distill(small(0), small(1, classes=5), **FEW)
    with pytest.raises(UserError, match="from 8 to 2048"):
        datafree.distill(small(0), small(1), **{**FEW, "img_size": 7})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "foo"}, "method: foo is not one of bsr"),
        ({"std": (0.5, 0.5, float("nan"))}, "give 1 or 3 finite numbers each"),
        ({"mean": ()}, "give 1 or 3 finite numbers each"),
        ({"img_size": 7}, "from 8 to 2048"),
        ({"img_size": 8.5}, "whole number"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        datafree.distill(small(0), small(1), **{**FEW, **given})


def test_settings_without_effect_and_teachers_without_batchnorm_are_warned_of():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with (
        pytest.warns(UserWarning, match="--tv has no effect with --method bsr"),
        pytest.warns(UserWarning, match="no BatchNorm2d statistics"),
    ):
        datafree.distill(teacher, small(1), **FEW, tv=0.1)


def test_what_callbacks_draw_changes_nothing():
    students = [
        datafree.distill(small(0), small(1), **FEW, on_epoch=callback)[0]  # which have dropout
        for callback in (None, lambda row: torch.rand(3))
    ]
    assert all(torch.equal(*pair) for pair in zip(*(s.parameters() for s in students), strict=True))


class Viewing(nn.Module):
    """Relies on plain memory, as many networks do, and has no linear layer if it is a student."""

    def __init__(self, linear=True, side=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(side**2, 4) if linear else nn.Conv1d(side**2, 4, 1)

    def forward(self, images):
        features = self.body(images)
        features = features.view(features.size(0), -1)
        if isinstance(self.head, nn.Linear):
            return self.head(features)
        return self.head(features[..., None])[..., 0]


def test_networks_that_need_plain_memory_or_have_no_linear_layer():
    networks_given = Viewing(), Viewing(linear=False)
    datafree.distill(*networks_given, **FEW, reset_bn=False, is_maml=True)
    assert not any(network._forward_pre_hooks for network in networks_given)


def test_a_network_of_one_channel_that_needs_plain_memory():
    def network():
        body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        return nn.Sequential(body, Flattened(), nn.Linear(64, 4))

    class Flattened(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    torch.manual_seed(0)
    grey = {"mean": (0.5,), "std": (0.5,)}
    _, metrics = datafree.distill(network(), network(), **{**FEW, **grey})
    assert len(metrics) == 3


def test_a_student_is_rebuilt_from_its_checkpoint_alone(tmp_path):
    facts = ImageSpec("none", ("a", "b"), 32, (0.5,), (0.5,), False)
    student = build(named("wrn16_1"), "--student", 2, channels=1)
    torch.save(describe(student, named("wrn16_1"), None, None, facts), tmp_path / "student.pth")
    rebuilt = datafree.load_student(tmp_path / "student.pth")
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(rebuilt(images), student.eval()(images))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for arch in (f"{tmp_path}/evil.py:f", f"{tmp_path}/evil.py/.:f", "timm:evil.py:f", "a:b:c"):
        made = describe(student, named("wrn16_1"), None, None, facts)
        torch.save({**made, "arch": arch}, tmp_path / "student.pth")
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
        (described(arch_args="width_mult"), "is not name=value"),
        (described(arch_args=7), "does not tell how to rebuild"),
        (described(arch=["resnet18"]), "does not tell how to rebuild"),
        (described(arch="wrn16_1 + wrn16_1"), "there is no Python file"),
        (described(classes=3), "does not tell how to rebuild"),
        (described(state_dict=None), "has no state dict"),
        (torch.zeros(2), "does not tell how to rebuild"),
        (None, "does not tell how to rebuild"),
    ],
)
def test_a_student_file_that_tells_too_little_is_refused_in_a_line(content, message, tmp_path):
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


def test_the_example_runs_and_is_short(tmp_path):
    example = ROOT / "examples/distill.py"
    assert len(example.read_text().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreement") == 6
    assert (tmp_path / "student.pth").is_file()


def test_importing_the_library_is_cheap():
    code = "import sys, datafree; assert 'torch' not in sys.modules; assert datafree.distill.__module__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
