"""int8: of a run's student and of any network; read by ONNX Runtime alone. And students that start pruned."""

import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import run_here, run_script
from helpers import assert_refused, write_folder, write_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datafree
from datafree import models
from datafree.data.pixels import to_float
from datafree.deploy import int8
from datafree.deploy.export import Shipped, export
from datafree.errors import UserError
from datafree.extras.pruned import keep_zeros, zeros_of
from datafree.networks.bn_statistics import BNStatistics
from datafree.settings import resolve_quantization

settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("plain")

SINGLE_PROCESS = """
import sys
import numpy, onnxruntime
images = numpy.load("images.npy")
session = onnxruntime.InferenceSession("student_int8.onnx", providers=["CPUExecutionProvider"])
print(session.run(None, {"image": images})[0].argmax(1).tolist())
assert not any(name.partition(".")[0] in ("torch", "datafree") for name in sys.modules)
"""
OWN = '''
from torch import nn

class odd(nn.Module):
    """What no exporter follows."""
    def __init__(self, num_classes=10):
        super().__init__()
        self.last = nn.Linear(3, num_classes)

    def forward(self, images):
        pooled = images.mean((2, 3))
        return self.last(pooled * (2 if float(pooled.detach().sum()) > 0 else 1))

def small(num_classes=10, width=8):
    """A comment that only the file has."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, num_classes))
'''
TINY = "--epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 32 --g_steps 2 --lr 0.01".split()


def as_onnx(network, tmp_path, size=8):
    file = tmp_path / "float.onnx"
    export(
        Shipped(network.eval(), (0.5,) * 3, (0.25,) * 3).eval(),
        torch.rand(2, 3, size, size),
        file,
        "onnx",
        {},
    )
    return file.read_bytes()


def small():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits, and its folder's folder."""
    cwd = tmp_path_factory.mktemp("int8")
    (cwd / "own.py").write_text(OWN)
    write_teacher(cwd / "teacher.pth")
    words = (
        "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student own.py:small --save_dir out"
    )
    done = run_script("bsr_main.py", *TINY, *words.split(), cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "mean 0 and variance 1 throughout" in done.stdout  # it was never trained
    return cwd


def test_a_runs_student_in_int8_is_read_by_onnx_runtime_alone(run):
    done = run_here(
        "scripts/export.py", "out", "--student", "own.py:small", "--int8", "--calibration", 40, cwd=run
    )
    assert done.returncode == 0, done.stderr
    folder = run / "out/export"
    card = (folder / "model_card_onnx.md").read_text()
    for row in ("float", "float, PyTorch", "int8, calibrated on 40 synthesised images"):
        assert f"\n| {row} |" in card, row
    assert "same class as float on 360 test images | accuracy |" in card
    assert "int8, calibrated on 40 random images" in card
    assert "Layers that lose most" in card
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.save(folder / "images.npy", images.numpy())
    alone = subprocess.run(
        [sys.executable, "-c", SINGLE_PROCESS], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert alone.returncode == 0, alone.stderr
    here = int8.OnnxNetwork((folder / "student_int8.onnx").read_bytes())(images)
    assert json.loads(alone.stdout) == here.argmax(1).tolist()
    floats = int8.OnnxNetwork((folder / "student.onnx").read_bytes())(images)
    assert (floats - here).abs().max() < 0.2 * floats.abs().max()
    assert not torch.equal(floats, here)
    graph = onnx.load(folder / "student_int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    scales = {one.name: list(one.dims) for one in graph.initializer if one.name.endswith("_scale")}
    assert [8] in scales.values()  # of the convolution's weights: one a channel


def test_a_folder_of_weights_is_read_back_and_carries_the_file_of_a_users_network(run):
    done = run_here(
        "scripts/export.py", "out", "--student", "own.py:small", "--format", "safetensors", cwd=run
    )
    assert done.returncode == 0, done.stderr
    folder = run / "out/export"
    assert (folder / "network.py").read_text() == OWN
    assert "is the user's own file" in (folder / "model_card_safetensors.md").read_text()
    with pytest.raises(UserError, match="not run unasked"):
        datafree.load_student(folder)
    (run / "own.py").rename(run / "gone.py")
    student = datafree.load_student(folder, source=f"{folder}/network.py:small")
    (run / "gone.py").rename(run / "own.py")
    expected = datafree.load_student(run / "out/student.pth", source=f"{run}/own.py:small")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(student(images), expected(images))
    tabled = run_here("scripts/table.py", ".", cwd=run)  # for which the folder is no run
    assert tabled.returncode == 0, tabled.stderr
    assert "export" not in tabled.stdout + tabled.stderr
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="not as it was written"):
        datafree.load_student(folder)
    (folder / "student.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no exported student"):
        datafree.load_student(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("out --opset 11", "--opset 11: PyTorch writes 18 and later"),
        ("out --int8 --format safetensors", "of --format onnx, not safetensors"),
        ("out --calibration 9", "no effect without --int8"),
        ("out --opset 900 --student own.py:small", "cannot be exported as onnx"),
    ],
)
def test_what_cannot_be_exported_is_refused(words, message, run):
    assert_refused(run_here("scripts/export.py", *words.split(), cwd=run), message)


def test_a_run_without_samples_has_nothing_to_calibrate_on(run):
    words = "--method dafl --dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1"
    done = run_here("bsr_main.py", *TINY, *words.split(), "--save_dir", "dafl", cwd=run)
    assert done.returncode == 0, done.stderr
    assert_refused(run_here("scripts/export.py", "dafl", "--int8", cwd=run), "no samples")
    assert not list((run / "dafl/export").iterdir())


def test_any_network_is_quantised_without_distilling(run):
    write_folder(run / "real", splits=("val",), classes=tuple("abcdefghij"), count=3)
    words = "--teacher own.py:small --img_size 32 --calibration 40 --g_steps 2 --keep_float 1 --output q"
    judged = "--eval_folder real/val --real_calibration 10"
    done = run_script("scripts/quantize.py", *words.split(), *judged.split(), cwd=run)
    assert done.returncode == 0, done.stderr
    card = (run / "q/int8.md").read_text()
    assert "same class as float on 30 real images | accuracy |" in card
    assert "int8, calibrated on 10 real images" in card
    assert "Left in float: " in card
    whole, quantised = (onnx.load(run / f"q/{name}.onnx") for name in ("float", "int8"))
    assert len(int8.layers(whole)) == 2
    assert [node.op_type for node in quantised.graph.node].count("QuantizeLinear") > 0
    assert_refused(run_here("scripts/quantize.py", *words.split(), cwd=run), "is there already")
    again = run_here("scripts/quantize.py", *words.split(), "--overwrite", "--method", "fast_meta", cwd=run)
    assert again.returncode == 0, again.stderr
    assert "same class as float on 64 other images | MB" in (run / "q/int8.md").read_text()
    assert "% of those made of the class asked for" in (run / "q/int8.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--real_calibration 5", "needs real images"),
        ("--adv 1", "unknown argument --adv"),
        ("--method zskt", "zskt has nothing to optimise"),
        ("--synthesis_batch_size 1", "--synthesis_batch_size 1: a batch needs 2 images or more"),
        ("--teacher own.py:small --img_size 8 --g_steps 1 --eval_folder gone", "gone"),
        ("--teacher own.py:odd --img_size 8 --g_steps 900000", "cannot be exported as onnx"),
    ],
)
def test_what_cannot_be_quantised_is_refused(words, message, run):
    assert_refused(run_here("scripts/quantize.py", *words.split(), "--output", "never", cwd=run), message)
    assert not (run / "never").exists() or not list((run / "never").iterdir())


def test_the_weight_of_the_statistics_follows_the_network_unless_it_is_given():
    own, made, _ = resolve_quantization({})
    assert (own.dataset, made.dataset, made.method, made.g_steps, made.adv) == (
        "none",
        "none",
        "deepinv",
        150,
        0,
    )
    assert resolve_quantization({"method": "fast", "g_steps": 3})[1].g_steps == 3
    assert resolve_quantization({"method": "bsr"})[2] == []
    from datafree.deploy.calibration import BN_SHARE, _bn_weight

    network, noise = small().eval(), torch.rand(16, 3, 8, 8)
    statistics = BNStatistics(network)
    with statistics.capture():
        loss_oh = -network(noise).log_softmax(1).mean()
    assert _bn_weight(network, noise) * statistics.distance().item() == pytest.approx(
        BN_SHARE * loss_oh.item(), rel=1e-4
    )


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 35), st.integers(0, 2**31))
def test_calibration_takes_as_many_of_each_class_as_can_be(labels, count, seed):
    rows = int8.balanced(torch.tensor(labels, dtype=torch.long), count, torch.Generator().manual_seed(seed))
    assert len(set(rows.tolist())) == len(rows) == min(count, len(labels))
    taken = torch.bincount(torch.tensor(labels, dtype=torch.long)[rows], minlength=4)
    there = torch.bincount(torch.tensor(labels, dtype=torch.long), minlength=4)
    full = taken.max() if len(rows) else 0
    assert all(have >= min(full - 1, all_of) for have, all_of in zip(taken, there, strict=True))


def test_the_layer_that_loses_most_is_named_and_kept(tmp_path):
    network = small()
    with torch.no_grad():
        # One weight in a thousand times the others: what is rounded away of the rest of its channel.
        network[3].weight[:, 0] *= 500
        network[3].weight[:, 1:] *= 0.5
    model, images = as_onnx(network, tmp_path), torch.rand(32, 3, 8, 8)
    lost = int8.damage(model, images)
    assert set(lost) == {"0", "3", "7"}
    assert next(iter(lost)) == "3"
    assert list(lost.values()) == sorted(lost.values(), reverse=True)
    uint8 = (images * 255).to(torch.uint8)
    seen = [
        int8.quantize_and_judge(model, uint8, lambda: uint8.split(16), keep_float=kept) for kept in (0, 1)
    ]
    assert [one.kept for one in seen] == [(), ("3",)]
    whole = int8.OnnxNetwork(model)(to_float(uint8))
    errors = [(int8.OnnxNetwork(one.file)(to_float(uint8)) - whole).square().mean() for one in seen]
    assert errors[1] < errors[0]
    assert [row.agreement for row in seen[0].rows][:1] == [100.0]


def test_a_layer_left_in_float_is_not_quantised_when_the_file_is_read(tmp_path):
    """ONNX Runtime would do so, with one scale for all channels, whose weights here differ by thousands."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    with torch.no_grad():
        network[2].weight[0] *= 3000
    model, images = as_onnx(network, tmp_path), torch.rand(32, 3, 8, 8)
    whole = int8.OnnxNetwork(model)(images)
    left = int8.OnnxNetwork(int8.quantize(model, images, keep_float=("2",)))(images)
    assert (left - whole).square().mean() < 1e-3 * whole.var()


def test_layers_have_the_names_that_they_have_in_pytorch(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    tied = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = int8.layers(onnx.load_from_string(as_onnx(tied, tmp_path)))
    assert len(found) == 3
    assert list(found)[:2] == ["0", "1"]
    encoder = nn.Sequential(
        nn.Flatten(2),
        nn.Linear(64, 16),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.Flatten(),
    )
    names = set(int8.layers(onnx.load_from_string(as_onnx(encoder, tmp_path))))
    assert {"1", "2.linear1", "2.linear2"} <= names


def test_a_network_without_layers_to_quantise_is_refused(tmp_path):
    model = as_onnx(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), tmp_path)
    with pytest.raises(UserError, match="no convolution and no matrix"):
        int8.quantize(model, torch.rand(2, 3, 8, 8))


def test_random_images_calibrate_worse_where_real_ones_are_elsewhere(tmp_path):
    """Images that are dark: noise in [0, 1] shows activations that never come."""
    model, dark = as_onnx(small(), tmp_path), torch.rand(64, 3, 8, 8) / 50
    whole = int8.OnnxNetwork(model)(dark)
    errors = [
        (int8.OnnxNetwork(int8.quantize(model, images))(dark) - whole).square().mean()
        for images in (dark, torch.rand(64, 3, 8, 8))
    ]
    assert errors[0] < errors[1]


def test_zeros_stay_zero_through_momentum_and_decay():
    network = small()
    with torch.no_grad():
        network[0].weight[:, :2] = 0
        network[7].weight[1] = 0
    before = copy.deepcopy(network.state_dict())
    zeros, count = zeros_of(network)
    assert (zeros, count) == (8 * 2 * 9 + 8, 8 * 27 + 8 * 72 + 40)
    keep_zeros(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.rand(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        if name.endswith("weight") and value.dim() > 1:
            assert torch.equal(value == 0, before[name] == 0), name
            assert not torch.equal(value, before[name])
    assert network[0].bias.abs().max() > 0


def test_a_pruned_student_recovers_and_is_continued_only_from_its_own_start(run):
    torch.manual_seed(1)
    student = models.create("wrn16_1", 10)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < parameter.abs().median()] = 0
    torch.save(student.state_dict(), run / "pruned.pth")
    words = (
        "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 --save_dir pruned"
    )
    start = ("--student_ckpt", "pruned.pth", "--keep_zeros")
    done = run_here("bsr_main.py", *TINY, *words.split(), *start, cwd=run)
    assert done.returncode == 0, done.stderr
    assert "50.0 % of its weights are zero, and stay so" in done.stdout
    assert "student at the start: " in done.stdout
    trained = torch.load(run / "pruned/student.pth", weights_only=True)["state_dict"]
    for name, value in student.state_dict().items():
        if value.dim() > 1:
            assert (trained[name][value == 0] == 0).all()
            assert not torch.equal(trained[name], value)
    torch.save(models.create("wrn16_1", 10).state_dict(), run / "other.pth")
    more = ("--resume", "--student_ckpt", "other.pth", "--keep_zeros")
    assert_refused(run_here("bsr_main.py", *TINY, *words.split(), *more, cwd=run), "student_start was")
    refused = {
        "--keep_zeros": "add --student_ckpt",
        "--student_ckpt teacher.pth --pretrained": "contradict each other",
        "--student_ckpt none.pth": "no checkpoint at none.pth",
        "--student_ckpt teacher.pth --student vgg8": "vgg8 with 10 classes",
    }
    for flags, message in refused.items():
        words = f"--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --save_dir no {flags}"
        assert_refused(run_here("bsr_main.py", *TINY, *words.split(), cwd=run), message)
        assert not (run / "no").exists()


def test_statistics_that_are_not_those_of_the_weights_are_told_from_those_that_are(rng):
    network, images = small(), torch.rand(256, 3, 8, 8, generator=rng)
    statistics = BNStatistics(network)
    assert statistics.untouched
    network.train()
    with torch.no_grad():
        network[0].weight.mul_(10)
        for _ in range(100):
            network(images)
    network.eval()
    assert not statistics.untouched

    def mismatch():
        with statistics.capture(), torch.no_grad():
            network(images)
        return statistics.mismatch()

    assert mismatch() < 0.05
    network[1].running_var.mul_(10)
    assert mismatch() == pytest.approx(1, abs=0.05)
    network[1].running_var.div_(10)
    network[1].running_mean.add_(2 * network[1].running_var.sqrt())
    assert mismatch() == pytest.approx(2, abs=0.05)
