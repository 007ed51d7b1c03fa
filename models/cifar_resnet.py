"""The three-stage CIFAR ResNets of He et al. (CVPR 2016), in two published layouts.

`resnet8 .. resnet110`: 16-32-64 channels with parameter-free shortcuts (option A), under the keys of
akamaster/pytorch_resnet_cifar10; with `projection=True` those that RepDistiller (CRD, Tian et al., ICLR 2020)
calls by the same names: projection shortcuts, and its keys. `resnet8x4`, `resnet32x4`: the latter, four times
as wide.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - in_channels) // 2
        self.downsample = None
        if projection and (stride != 1 or in_channels != channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.pad:  # option A: subsample, and fill the new channels with zeros
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, widths: tuple[int, int, int, int], projection: bool):
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage in (1, 2, 3):
            blocks = [
                BasicBlock(
                    widths[stage - 1] if i == 0 else widths[stage],
                    widths[stage],
                    2 if i == 0 and stage > 1 else 1,
                    projection,
                )
                for i in range(count)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)


class OptionAResNet(CifarResNet):
    def __init__(self, depth: int, num_classes: int):
        super().__init__(depth, (16, 16, 32, 64), projection=False)
        self.linear = nn.Linear(64, num_classes)
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class ProjectionResNet(CifarResNet):
    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int):
        super().__init__(depth, widths, projection=True)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def arguments_of(name: str, keys: Iterable[str]) -> dict[str, bool]:
    """The arguments of the network `name` with which its state dict has such keys."""
    projection = not name.endswith("x4") and any(".downsample." in key for key in keys)
    return {"projection": True} if projection else {}


def _narrow(depth: int, num_classes: int, projection: bool = False) -> CifarResNet:
    if projection:
        return ProjectionResNet(depth, (16, 16, 32, 64), num_classes)
    return OptionAResNet(depth, num_classes)


resnet8 = partial(_narrow, 8)
resnet14 = partial(_narrow, 14)
resnet20 = partial(_narrow, 20)
resnet32 = partial(_narrow, 32)
resnet44 = partial(_narrow, 44)
resnet56 = partial(_narrow, 56)
resnet110 = partial(_narrow, 110)


def resnet8x4(num_classes: int) -> ProjectionResNet:
    return ProjectionResNet(8, (32, 64, 128, 256), num_classes)


def resnet32x4(num_classes: int) -> ProjectionResNet:
    return ProjectionResNet(32, (32, 64, 128, 256), num_classes)
