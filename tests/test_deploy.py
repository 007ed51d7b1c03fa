"""Export, int8 and model cards. Exported files are read by the formats' own libraries."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import run_here, succeed
from helpers import DIGITS, assert_refused, write_folder, write_teacher
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import datafree
from datafree.data.augment import Normalize
from datafree.data.image_folders import load_labelled
from datafree.data.image_set import to_float
from datafree.data.load import load_split
from datafree.deploy import int8, model_card
from datafree.deploy.export import NormalizedNetwork, compare, export, onnx_network
from datafree.deploy.quantization import BN_SHARE, _bn_weight, balanced
from datafree.errors import UserError
from datafree.networks.bn_statistics import BNStatistics
from datafree.results.read import FinishedRun
from datafree.settings import resolve_quantization

ONNX_RUNTIME_ALONE = """
import sys
import numpy, onnxruntime
images = numpy.load("images.npy")
session = onnxruntime.InferenceSession("student_int8.onnx", providers=["CPUExecutionProvider"])
print(session.run(None, {"image": images})[0].argmax(1).tolist())
assert not any(name.partition(".")[0] in ("torch", "datafree") for name in sys.modules)
"""
OWN = '''
from torch import nn

def small(num_classes=10, width=8):
    """A comment that only the file has."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, num_classes))
'''
BSR = f"{DIGITS} --epochs 3 --batch_size 32 --lr 0.01"
SMALL = "--student own.py:small"


def as_onnx(network, size=8):
    wrapped = NormalizedNetwork(network.eval(), (0.5,) * 3, (0.25,) * 3).eval()
    return export(wrapped, torch.rand(2, 3, size, size), "onnx")


def small():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def error(file, images, expected):
    return (onnx_network(file)(images) - expected).square().mean()


def table(card):
    """The figures of a card's last table, by the first column."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    last = max(place for place, line in enumerate(lines) if set(line[0]) <= {"-"})
    return {name: [float(cell.rstrip(" %")) for cell in cells] for name, *cells in lines[last + 1 :]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run on digits in `out`."""
    cwd = tmp_path_factory.mktemp("deploy")
    (cwd / "own.py").write_text(OWN)
    write_teacher(cwd / "teacher.pth")
    succeed(f"{BSR} {SMALL} --save_dir out", cwd=cwd)
    return cwd


def test_a_runs_student_in_int8_is_read_by_onnx_runtime_alone(run):
    succeed(f"scripts/export.py out {SMALL} --int8 --calibration 40", cwd=run)
    folder = run / "out/export"
    rows = table((folder / "model_card_onnx.md").read_text())
    test = load_split("digits", "test", "data", 32)
    images = to_float(test.read(torch.arange(len(test))))
    files = [(folder / name).read_bytes() for name in ("student.onnx", "student_int8.onnx")]
    whole, quantised = (onnx_network(file)(images) for file in files)
    correct, same = ((a == b).double().mean().item() for a, b in (
        (quantised.argmax(1), test.labels), (quantised.argmax(1), whole.argmax(1)))
    )  # fmt: skip
    assert rows["int8, calibrated on 40 synthesised images"][:2] == [
        pytest.approx(100 * value, abs=0.005) for value in (same, correct)
    ]
    last = json.loads((run / "out/summary.json").read_text())["last_top1"]
    for name in ("float", "float, PyTorch"):
        assert rows[name][:2] == [100, pytest.approx(last, abs=0.005)]
    assert "int8, calibrated on 40 random images" in rows
    assert 0 < (whole - quantised).abs().max() < 0.2 * whole.abs().max()
    np.save(folder / "images.npy", images.numpy())
    alone = subprocess.run(
        [sys.executable, "-c", ONNX_RUNTIME_ALONE], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert json.loads(alone.stdout) == quantised.argmax(1).tolist(), alone.stderr
    graph = onnx.load(folder / "student_int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    scales = {one.name: list(one.dims) for one in graph.initializer if one.name.endswith("_scale")}
    assert [8] in scales.values()  # of the convolution's weights: one a channel


def test_other_formats_give_the_same_logits_and_carry_the_file_of_a_users_network(run):
    succeed(f"scripts/export.py out {SMALL} --format safetensors", cwd=run)
    folder = run / "out/export"
    assert (folder / "network.py").read_text() == OWN
    assert 'source="folder/network.py:small"' in (folder / "model_card_safetensors.md").read_text()
    with pytest.raises(UserError, match="needs the network's code"):
        datafree.load_student(folder)
    student = datafree.load_student(folder, source=f"{folder}/network.py:small")
    expected = datafree.load_student(run / "out/student.pth", source=f"{run}/own.py:small")
    images, config = torch.rand(4, 3, 32, 32), json.loads((run / "out/config.json").read_text())
    assert torch.equal(student(images), expected(images))
    printed = succeed(f"scripts/export.py out {SMALL} --format torch_export", cwd=run)
    assert "256 random images: the same class for 100.0 %" in printed
    exported = torch.export.load(folder / "student.pt2").module()
    normalize = Normalize(config["mean"], config["std"])
    torch.testing.assert_close(exported(images), expected(normalize(images)))
    tabled = run_here("scripts/table.py .", cwd=run)  # for which the folder is no run
    assert tabled.returncode == 0, tabled.stderr
    assert "export" not in tabled.stdout + tabled.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("out --int8 --format safetensors", "--format onnx, not safetensors"),
        ("out --calibration 9", "no effect without --int8"),
        ("out --opset 900 --student own.py:small", "does not write opset 900"),
    ],
)
def test_what_cannot_be_exported_is_refused(words, message, run):
    assert_refused(run_here(f"scripts/export.py {words}", cwd=run), message)


def test_a_run_without_samples_has_nothing_to_calibrate_on(run):
    succeed(f"{BSR} --save_dir dafl --method dafl --student wrn16_1", cwd=run)
    assert_refused(run_here("scripts/export.py dafl --int8", cwd=run), "no samples")
    assert not list((run / "dafl/export").iterdir())


def test_any_network_is_quantised_without_distilling(run):
    write_folder(run / "real", splits=("val",), classes=tuple("abcdefghij"), count=3)
    given = "--teacher own.py:small --img_size 32 --calibration 40 --g_steps 2 --keep_float 1 --output q"
    command = f"scripts/quantize.py {given}"
    succeed(f"{command} --eval_folder real/val --real_calibration 10", cwd=run)
    card = (run / "q/int8.md").read_text()
    rows = table(card)
    test = load_labelled(run / "real/val", 32, 10)
    images = to_float(test.read(torch.arange(30)))
    whole, quantised = (
        onnx_network((run / f"q/{name}.onnx").read_bytes())(images).argmax(1) for name in ("float", "int8")
    )
    expected = [(quantised == other).double().mean().item() for other in (whole, test.labels)]
    assert rows["int8, calibrated on 40 synthesised images"][:2] == [
        pytest.approx(100 * value, abs=0.005) for value in expected
    ]
    assert "int8, calibrated on 10 real images" in rows
    kept = card.partition("Left in float: ")[2].partition(".\n")[0]
    weights = {one.name: one.data_type for one in onnx.load(run / "q/int8.onnx").graph.initializer}
    assert weights[f"student.{kept}.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.INT8 in weights.values()  # the other layer's
    assert_refused(run_here(command, cwd=run), "is there already")
    succeed(f"{command} --overwrite --method fast_meta", cwd=run)
    card = (run / "q/int8.md").read_text()
    assert [len(row) for row in table(card).values()] == [3, 3, 3]  # no accuracy
    assert "on 64 other images" in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--real_calibration 5", "needs real images"),
        ("--method zskt", "zskt has nothing to optimise"),
        ("--teacher own.py:small --img_size 8 --g_steps 1 --eval_folder gone", "gone"),
    ],
)
def test_what_cannot_be_quantised_is_refused(words, message, run):
    assert_refused(run_here(f"scripts/quantize.py {words} --output never", cwd=run), message)
    assert not (run / "never").exists() or not list((run / "never").iterdir())


def test_an_export_is_compared_with_what_was_exported():
    network = NormalizedNetwork(small(), (0.5,) * 3, (0.25,) * 3).eval()
    images = torch.rand(4, 3, 8, 8)
    assert compare(network, network, images) == (0, 100)
    for factor, difference in ((2, "1"), (float("nan"), "nan")):
        with pytest.raises(UserError, match=f"logits differ by {difference} from"):
            compare(network, lambda given, by=factor: network(given) * by, images)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("tested", [False, True])
def test_a_model_card_calls_accuracy_accuracy_and_agreement_agreement(tested, best, tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "milliseconds", lambda *_: 64.0)
    config = {
        "dataset": "digits", "teacher": "wrn16_1", "student": "wrn16_1", "seed": 3, "method": "bsr",
        "dlw": True, "blg": True, "iho": True, "epochs": 9, "classes": ["<a>", "b"],
        "mean": [0.5], "std": [0.5],
        "img_size": 32, "judged_by": "test_top1" if tested else "holdout_agreement", "git_commit": None,
    }  # fmt: skip
    summary = {"best_epoch": 6, "last_holdout_agreement": 33.125}
    if tested:
        summary |= {"last_top1": 81.25, "best_top1_chosen_on_test_data": 82.5, "teacher_top1": 95.0}
    else:
        summary |= {"best_holdout_agreement": 44.0}
    network = NormalizedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)), (0.5,), (0.5,))
    run = FinishedRun(tmp_path, config, summary)
    card = model_card.model_card(run, network, "student.onnx", {}, best=best)
    agreement = "- Agreement with the teacher on synthetic samples held out from training"
    last = f"{agreement}, last epoch: 33.12 %. This is not accuracy"
    if tested and best:
        expected = "- Test accuracy: 82.50 % in epoch 7, which was chosen on these test data"
    elif tested:
        expected = f"- Test accuracy on digits, last epoch: 81.25 % (teacher: 95.00 %).\n{last}.\n"
    else:
        expected = f"{agreement}: 44.00 % in epoch 7, which was chosen by it. This is not" if best else last
    assert expected in card
    assert ("Test accuracy" in card) == tested
    assert "classes in this order: &lt;a&gt;, b." in card
    assert "| student | wrn16_1 | 2,050 | 0.01 | 2.00 |" in card
    assert "| teacher | wrn16_1 | 174,258 | 0.70 | 2.00 |" in card


def test_the_weight_of_the_statistics_follows_the_network_unless_it_is_given():
    own, made, _ = resolve_quantization({})
    assert (own.dataset, made.method, made.g_steps, made.adv) == ("none", "deepinv", 150, 0)
    network, noise = small().eval(), torch.rand(16, 3, 8, 8)
    statistics = BNStatistics(network)
    with statistics.capture():
        loss_oh = -network(noise).log_softmax(1).mean()
    weight = BN_SHARE * loss_oh.item() / statistics.distance().item()
    assert _bn_weight(network, noise) == pytest.approx(weight, rel=1e-4)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 35), st.integers(0, 2**31))
def test_calibration_takes_as_many_of_each_class_as_can_be(labels, count, seed):
    labels = torch.tensor(labels, dtype=torch.long)
    rows = balanced(labels, count, torch.Generator().manual_seed(seed))
    assert len(set(rows.tolist())) == len(rows) == min(count, len(labels))
    taken, there = (torch.bincount(some, minlength=4) for some in (labels[rows], labels))
    full = taken.max() if len(rows) else 0
    assert all(have >= min(full - 1, all_of) for have, all_of in zip(taken, there, strict=True))


def test_the_layer_that_loses_most_is_named_and_kept():
    network = small()
    with torch.no_grad():
        # One weight in a thousand times the others: what is rounded away of the rest of its channel.
        network[3].weight[:, 0] *= 500
        network[3].weight[:, 1:] *= 0.5
    model, images = as_onnx(network), torch.rand(32, 3, 8, 8)
    lost = int8.damage(model, images)
    assert sorted(lost) == ["0", "3", "7"]
    assert next(iter(lost)) == "3"
    assert list(lost.values()) == sorted(lost.values(), reverse=True)
    whole = onnx_network(model)(images)
    kept = int8.quantize(model, images, keep_float=("3",))
    assert error(kept, images, whole) < error(int8.quantize(model, images), images, whole)


def test_a_layer_left_in_float_is_not_quantised_when_the_file_is_read():
    """ONNX Runtime would do so, with one scale for all channels, whose weights here differ by thousands."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    with torch.no_grad():
        network[2].weight[0] *= 3000
    model, images = as_onnx(network), torch.rand(32, 3, 8, 8)
    whole = onnx_network(model)(images)
    assert error(int8.quantize(model, images, keep_float=("2",)), images, whole) < 1e-3 * whole.var()


def test_layers_have_the_names_of_their_pytorch_modules():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    tied = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = list(int8.layers(onnx.load_from_string(as_onnx(tied))))
    assert (found[:2], len(found)) == (["0", "1"], 3)
