"""Networks of any make, no data, the library and what is shipped."""

import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_script
from test_scripts import assert_refused, metrics, write_folder
from torch import nn
from torch.nn import functional as F

import datafree
from datafree import data, networks
from datafree.errors import UserError
from datafree.penultimate import find_layer
from datafree.run_samples import load_student
from datafree.runs import read_run

TINY = ["--dataset", "none", "--epochs", 3, "--warmup", 1, "--kd_steps", 2, "--ep_steps", 2,
        "--batch_size", 16, "--g_steps", 2, "--device", "cpu", "--save_dir", "out"]  # fmt: skip
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
        "bsr_main.py", *TINY, "--teacher", teacher, "--teacher_args", arguments, "--student", student,
        "--img_size", size, cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    assert "which is not accuracy" in done.stdout
    assert "agreement, last epoch" in done.stdout
    assert ("no BatchNorm statistics" in done.stdout) == (kind == "a ViT")
    assert "MFLOPs an image" in done.stdout
    config = json.loads((cwd / "out/config.json").read_text())
    assert config["judged_by"] == "agreement"
    source = ["--student", student] if ".py:" in student else []
    exported = run_script("scripts/export.py", "out", *source, cwd=cwd)
    assert exported.returncode == 0, exported.stderr
    loaded = load_student(read_run(cwd / "out"), torch.device("cpu"), f"{cwd}/{student}" if source else None)
    images = torch.rand(256, len(config["mean"]), size, size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = loaded((images - mean) / std)
    session = onnxruntime.InferenceSession(str(cwd / "out/export/student.onnx"))
    logits = session.run(None, {"image": images.numpy()})[0]
    assert logits.argmax(1).tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    card = (cwd / "out/export/model_card.md").read_text()
    assert "this is not accuracy" in card
    assert f"| student | {student} |" in card


@pytest.mark.parametrize("kind", ["torch_export", "safetensors"])
def test_other_formats_give_the_same_logits(kind, cwd):
    done = run_script("bsr_main.py", *TINY, "--teacher", "net.py:Digits", "--student", "net.py:Digits",
                      "--img_size", 32, cwd=cwd)  # fmt: skip
    assert done.returncode == 0, done.stderr
    source = ["--student", "net.py:Digits"]
    exported = run_script("scripts/export.py", "out", *source, "--format", kind, cwd=cwd)
    assert exported.returncode == 0, exported.stderr
    assert "256 random images: the same class for 100.0 %" in exported.stdout
    images = torch.rand(5, 1, 32, 32)
    student = load_student(read_run(cwd / "out"), torch.device("cpu"), f"{cwd}/net.py:Digits")
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


def test_a_one_channel_teacher_of_digits_is_distilled_without_data(cwd):
    """The student never sees an image; it is scored on the real test digits afterwards, here."""
    sys.path.insert(0, str(cwd))
    try:
        from net import Digits
    finally:
        sys.path.remove(str(cwd))
    train, test = (data.load("digits", split, cwd).for_channels(1) for split in ("train", "test"))
    mean, std = 0.312, 0.356
    images, tests = ((s.read(torch.arange(len(s))).float() / 255 - mean) / std for s in (train, test))
    torch.manual_seed(0)
    teacher = Digits()
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(images)).split(96)[:-1]:
            moved = torch.roll(images[rows], torch.randint(-2, 3, (2,)).tolist(), (2, 3))
            loss = F.cross_entropy(teacher(moved), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(teacher.eval().state_dict(), cwd / "teacher.pth")
    assert (teacher(tests).argmax(1) == test.labels).float().mean() > 0.95
    done = run_script(
        "bsr_main.py", "--dataset", "none", "--teacher", "net.py:Digits", "--teacher_ckpt", "teacher.pth",
        "--student", "net.py:Digits", "--student_args", "width=12", "--img_size", 32, "--mean", mean,
        "--std", std, "--no-flip", "--epochs", 26, "--warmup", 5, "--kd_steps", 40, "--ep_steps", 40,
        "--batch_size", 64, "--g_steps", 5, "--device", "cpu", "--save_dir", "out", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    student = load_student(read_run(cwd / "out"), torch.device("cpu"), f"{cwd}/net.py:Digits")
    with torch.no_grad():
        accuracy = (student(tests).argmax(1) == test.labels).float().mean().item()
    assert accuracy >= 0.9


def test_a_few_labelled_images_replace_agreement_by_accuracy(cwd):
    write_folder(cwd / "few", splits=("x",), classes=("a", "b", "c"), count=4)
    more = ["--teacher", "net.py:Digits", "--student", "net.py:Digits", "--teacher_args", "num_classes=3",
            "--img_size", 32]  # fmt: skip
    done = run_script("bsr_main.py", *TINY, *more, "--eval_folder", "few/x", "--test_teacher", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "agreement" not in done.stdout
    assert "of 12 right" in done.stdout
    assert metrics(cwd / "out")[-1]["repository"] == 48  # nothing is held out
    write_folder(cwd / "more", splits=("x",), classes=("a", "b"), count=2)
    other = run_script("bsr_main.py", *TINY, *more, "--eval_folder", "more/x", "--save_dir", "o", cwd=cwd)
    assert_refused(other, "has 2 class folders, and the teacher 3 classes")


BAD = [
    (["--teacher", "net.py:raises"], "raised RuntimeError: not today"),
    (["--teacher", "net.py:leaves"], "raised SystemExit: bye"),
    (["--teacher", "net.py:no_module"], "returned a str: return a torch.nn.Module"),
    (["--teacher", "net.py:maps"], "gives (2, 4, 30, 5) for 2 images"),
    (["--teacher", "net.py:Digit"], "has no function or class Digit, did you mean Digits?"),
    (["--teacher", "net.py:no_linear"], "name the layer whose input they are with --feature_layer"),
    (["--teacher", "broken.py:f"], "raised SyntaxError"),
    (["--teacher", "absent.py:f"], "there is no Python file absent.py"),
    (["--teacher", "net.py:Digits", "--feature_layer", "hed"], "has no such layer, did you mean head?"),
    (["--teacher", "net.py:Digits", "--teacher_args", "width"], "is not name=value"),
    (["--teacher", "net.py:Digits", "--teacher_args", "wide=3"], "raised TypeError"),
    (["--teacher", "net.py:Digits", "--student_args", "num_classes=4"], "gives 4 classes, not 10"),
    (["--teacher", "timm:resnet10"], "timm has no model resnet10, did you mean resnet10t?"),
    (["--teacher", "torchvision:resnt18"], "torchvision has no model resnt18, did you mean resnet18?"),
    (["--teacher", "keras:resnet18"], "none of timm:NAME, torchvision:NAME, file.py:factory"),
    (["--teacher", "net.py:Digits", "--channels", 3], "cannot take images of 3 x 32 x 32"),
    (["--teacher", "net.py:Digits", "--test_teacher"], "add --eval_folder"),
    (["--teacher", "wrn16_1", "--teacher_args", "a=1", "--teacher_ckpt", "t.pth"], "takes no --teacher_args"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: str(value)[-45:])
def test_networks_that_cannot_be_used_are_refused_in_a_line(given, message, cwd):
    (cwd / "broken.py").write_text("def f(:\n")
    torch.save({"fc.weight": torch.zeros(10, 64)}, cwd / "t.pth")
    student = [] if "--student" in given else ["--student", "net.py:Digits"]
    done = run_script("bsr_main.py", *TINY, "--img_size", 32, *student, *given, cwd=cwd)
    assert_refused(done, message)
    assert not (cwd / "out").exists()


def test_features_of_a_layer_by_name_where_there_is_no_linear_one(cwd):
    done = run_script(
        "bsr_main.py", *TINY, "--img_size", 32, "--teacher", "net.py:no_linear", "--feature_layer", "0",
        "--student", "wrn16_1", cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    assert "3072 features" in done.stdout


def test_a_student_of_a_file_is_not_run_unasked(cwd):
    done = run_script("bsr_main.py", *TINY, "--img_size", 32, "--teacher", "net.py:Digits", "--student",
                      "net.py:Digits", cwd=cwd)  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = run_script("show_result/report.py", "out", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    assert "<b>This is not accuracy.</b>" in (cwd / "report.html").read_text()
    assert "bsr, agreement" in run_script("scripts/table.py", "out", cwd=cwd).stdout
    (cwd / "net.py").write_text("open('ran', 'w')\n" + NET)
    for script in ("scripts/export.py", "show_result/show_points_ablation.py"):
        assert_refused(run_script(script, "out", cwd=cwd), "add --student net.py:Digits")
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
    assert find_layer(network, images=torch.rand(2, 8, 4, 4)) is network.classify


def test_a_network_for_colours_is_made_for_grey():
    network = networks.build("wrn16_1", "--student", 10, channels=1)
    assert networks.input_channels(network) == 1
    assert network.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 10)


# The library


def small(seed, width=8, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


FEW = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "epochs": 3, "warmup": 1, "kd_steps": 2,
       "ep_steps": 2, "batch_size": 16, "g_steps": 2, "lr": 0.01}  # fmt: skip


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
    _, record = datafree.distill(small(0), small(1), **FEW, method="dafl", evaluate=lambda network: 12.5)
    assert {row["test_top1"] for row in record} == {12.5}
    with pytest.raises(TypeError, match="no setting epoch, did you mean epochs"):
        datafree.distill(small(0), small(1), **FEW, epoch=3)
    with pytest.raises(TypeError, match="no setting save_dir"):
        datafree.distill(small(0), small(1), **FEW, save_dir="x")
    with pytest.raises(UserError, match="the student gives 5 classes, and the teacher 4"):
        datafree.distill(small(0), small(1, classes=5), **FEW)
    with pytest.raises(UserError, match="multiple of 4"):
        datafree.distill(small(0), small(1), **{**FEW, "image_size": 9})


def test_the_example_runs_and_is_short(tmp_path):
    example = ROOT / "examples/distill.py"
    assert len(example.read_text().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreement") == 6
    assert (tmp_path / "student.pth").is_file()


def test_importing_the_library_is_cheap():
    code = "import sys, datafree; assert 'torch' not in sys.modules; assert datafree.distill.__module__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
