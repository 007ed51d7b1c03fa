"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016): wrn{depth}_{width factor}."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        if self.convShortcut is None:
            return x + out
        return self.convShortcut(activated) + out


class Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, count: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(in_channels if i == 0 else out_channels, out_channels, stride if i == 0 else 1)
                for i in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, num_classes: int):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, 16 * width, count, 1)
        self.block2 = Stage(16 * width, 32 * width, count, 2)
        self.block3 = Stage(32 * width, 64 * width, count, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def wrn16_1(num_classes: int) -> WideResNet:
    return WideResNet(16, 1, num_classes)


def wrn16_2(num_classes: int) -> WideResNet:
    return WideResNet(16, 2, num_classes)


def wrn40_1(num_classes: int) -> WideResNet:
    return WideResNet(40, 1, num_classes)


def wrn40_2(num_classes: int) -> WideResNet:
    return WideResNet(40, 2, num_classes)
