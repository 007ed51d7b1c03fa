"""The teacher's BatchNorm statistics and penultimate features."""

import numpy as np
import pytest
import torch
from torch import nn

from datafree.errors import UserError
from datafree.networks.bn_statistics import BNStatistics
from datafree.networks.penultimate import PenultimateFeatures


def bn_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7)
    ).eval()


def test_momentum_mixes_in_the_batches_before(rng):
    network = bn_network().double()
    batches = [torch.rand(6, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(3)]
    statistics = BNStatistics(network, momentum=0.9)
    moments, distances = [], []
    for batch in batches:
        with statistics.capture():
            network(batch)
        distances.append(statistics.distance().item())
        statistics.update_averages()
        inputs = network[0](batch).detach().numpy()
        moments.append(np.stack([inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))]))
    target = np.stack([np.zeros(5), np.ones(5)])
    average = 0.9 * moments[0] + 0.1 * moments[1]
    mixed = [moments[0], 0.1 * moments[1] + 0.9 * moments[0], 0.1 * moments[2] + 0.9 * average]
    expected = [np.linalg.norm(target - m, axis=1).sum() for m in mixed]
    assert distances == pytest.approx(expected, rel=1e-10)


def test_gradients_of_the_distance_are_those_of_autograd(rng):
    network = bn_network().double()
    images = torch.rand(6, 3, 8, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    statistics = BNStatistics(network)
    with statistics.capture():
        logits = network(images)
    (statistics.distance() + logits.square().sum()).backward()
    actual, images.grad = images.grad, None
    inputs = network[0](images)
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    (torch.norm(1 - variance) + torch.norm(mean) + network(images).square().sum()).backward()
    torch.testing.assert_close(actual, images.grad, rtol=1e-9, atol=1e-12)


def test_penultimate_features_are_the_input_of_the_last_linear_layer(rng):
    network, images = bn_network(), torch.rand(2, 3, 8, 8, generator=rng)
    features = PenultimateFeatures(network)
    with features.capture():
        logits = network(images)
    torch.testing.assert_close(network[-1](features.value), logits)
    with pytest.raises(UserError, match="no linear layer"):
        PenultimateFeatures(nn.Conv2d(3, 3, 1))


def test_statistics_that_do_not_belong_to_the_weights_are_recognised(rng):
    network, images = bn_network(), torch.rand(256, 3, 8, 8, generator=rng)
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
