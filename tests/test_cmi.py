"""CMI: its loss against its formula in NumPy, how views are described, and the bank."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    NORMALIZE,
    SHORT,
    TARGETS,
    N,
    TinyGenerator,
    cross_entropy,
    flags,
    kl,
    normalized,
    outputs,
    softmax,
    synthesis_inputs,
)
from torch import nn

from datafree import models
from datafree.settings import Settings
from datafree.synthesis import cmi
from datafree.synthesis.cmi import CMISynthesizer, ViewDescription


def test_the_losses_of_cmi(networks, rng):
    teacher, student = networks
    settings = Settings(method="cmi", g_steps=1, lr_g=1e-3, lr_z=1e-3, bn=0.5, adv=0.6, cr=0.8, cr_T=0.2)
    synthesizer = CMISynthesizer(synthesis_inputs(networks, rng), settings, TinyGenerator())
    synthesizer.local_augment = lambda images, _rng: NORMALIZE(images) ** 2
    bank = np.zeros((0, 6))
    for call in range(2):
        head = copy.deepcopy(synthesizer.head)
        made = synthesizer.synthesize(TARGETS, 0.9)
        inputs = normalized(made.images)
        logits, _, distance = outputs(teacher, inputs)
        student_logits = outputs(student, inputs)[0]
        agree = student_logits.argmax(1) == logits.argmax(1)

        def project(views, head=head):
            hidden = views @ head[0].weight.detach().numpy().T + head[0].bias.detach().numpy()
            out = np.maximum(hidden, 0) @ head[2].weight.detach().numpy().T + head[2].bias.detach().numpy()
            return out / np.linalg.norm(out, axis=1, keepdims=True)

        local, whole = (inputs**2).mean((2, 3)), inputs.mean((2, 3))
        anchors = project(np.concatenate([local, bank[:, 3:]]))
        candidates = project(np.concatenate([whole, bank[:, :3]]))
        scores, own = anchors @ candidates.T / 0.2, np.arange(len(anchors))
        cached = cross_entropy(scores[N:], own[N:]) if call else 0
        expected = {
            "oh": cross_entropy(logits, TARGETS.numpy()),
            "bn": distance,
            "adv": -(kl(softmax(logits), softmax(student_logits)) * agree).mean(),
            "cr": cross_entropy(scores[:N], own[:N]) + cached,
        }
        weights = {"oh": 0.9, "bn": 0.5, "adv": 0.6, "cr": 0.8}
        expected["total"] = sum(weights[name] * value for name, value in expected.items())
        assert made.losses == pytest.approx(expected, rel=1e-3), f"call {call}"
        bank = np.concatenate([bank, np.concatenate([whole, local], 1)])
        np.testing.assert_allclose(synthesizer.bank.float(), bank, rtol=1e-3, atol=1e-3)


def test_cmi_describes_views_by_the_inputs_of_batchnorm_and_of_resnet34_by_those_of_its_stages():
    """A network with `layer1` to `layer4` is not taken for resnet34."""
    resnet34, resnet18 = models.create("resnet34", 4).eval(), models.create("resnet18", 4).eval()
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    for network, side in ((plain, 4), (resnet34, 32), (resnet18, 32)):
        description, inputs, seen_by = ViewDescription(network), torch.rand(2, 3, side, side), []
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        if network is resnet34:
            layers = [network.layer1, network.layer2, network.layer3, network.layer4]
        for layer in layers:
            layer.register_forward_pre_hook(lambda _layer, given, seen=seen_by: seen.append(given[0].clone()))
        with torch.no_grad(), description.capture():
            network(inputs)
        expected = torch.cat([x.mean((2, 3)) for x in seen_by], 1)
        torch.testing.assert_close(description.value(), expected)
        assert network is not resnet34 or expected.shape == (2, 512)


def test_a_full_bank_forgets_its_oldest_views(networks, rng, monkeypatch):
    monkeypatch.setattr(cmi, "BANK_SIZE", 9)
    synthesizer = cmi.CMISynthesizer(
        synthesis_inputs(networks, rng), flags("--method", "cmi", *SHORT, "--cr", 0), TinyGenerator()
    )
    monkeypatch.setattr(cmi, "draw_weights", lambda *_: None)
    banks = []
    for _ in range(3):
        synthesizer.synthesize(TARGETS, 1.0)
        banks.append(synthesizer.bank.clone())
    assert [len(bank) for bank in banks] == [6, 9, 9]
    assert torch.equal(banks[1][:3], banks[0][3:])
    assert torch.equal(banks[2][:3], banks[1][6:])
