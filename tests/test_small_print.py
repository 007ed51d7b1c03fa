"""Numbers and orders that nothing else would notice: each of these has been got wrong on purpose, once."""

import copy
import math

import pytest
import torch
from helpers import NORMALIZE, SHORT, distiller, flags
from torch import nn

from datafree import models
from datafree.models.generator import Generator
from datafree.runs.distil import store_images
from datafree.torch_utils.precision import found_precision


def test_images_from_elsewhere_are_labelled_as_the_teacher_sees_them():
    made = distiller(flags("--method", "cmi", *SHORT)).distiller
    images = (torch.rand(5, 3, 8, 8) * 255).byte()
    store_images(made, images)
    logits = made.student.teacher(NORMALIZE(images / 255))
    assert torch.equal(made.repository.labels, logits.argmax(1))
    assert torch.equal(made.repository.images(torch.arange(5)), images)
    top = logits.softmax(1).topk(2).values
    torch.testing.assert_close(made.repository.margins, top[:, 0] - top[:, 1])


# Networks

# Standard deviations of initial weights: He et al. for fan out or fan in, else PyTorch's own.
STARTS = [
    ("resnet20", "conv1.weight", math.sqrt(2 / (16 * 9))),
    ("resnet20", "linear.weight", math.sqrt(2 / 64)),
    ("resnet8x4", "conv1.weight", math.sqrt(2 / (32 * 9))),
    ("wrn40_2", "block3.layer.0.conv1.weight", math.sqrt(2 / (128 * 9))),
    ("vgg11", "classifier.weight", 0.01),
    ("mobilenetv2", "linear.1.weight", 0.01),
    ("mobilenetv2", "module.follow_Conv.baseConv.0.weight", math.sqrt(2 / 1280)),
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


def test_larger_images_go_through_the_same_weights_as_published():
    torch.manual_seed(0)
    network = models.create("resnet20", 10).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    generator = Generator(256, 64, 64, 3)
    assert generator.eval()(torch.zeros(1, 256)).shape == (1, 3, 64, 64)
    assert copy.deepcopy(generator.l1[0]).weight.shape[0] == 128 * 16 * 16


def test_auto_is_bf16_where_the_device_computes_with_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, amp in (
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "off"),
        ({}, "off"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert found_precision("auto", cpu) == amp
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in early versions of torch
    assert found_precision("auto", cpu) == "off"
    assert [found_precision(amp, cpu) for amp in ("off", "bf16", "fp16")] == ["off", "bf16", "fp16"]
