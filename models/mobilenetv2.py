"""MobileNetV2 (Sandler et al., CVPR 2018) as the published DFKD code has it: under its keys, and with a
stage's stride on the expansion as well as on the depthwise convolution. A stage of stride 2 therefore
divides height and width by 4, and images of 32 pixels are single points from the third stage on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# expansion, output channels, number of bottlenecks, stride of the first
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class BaseConv(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU6())
        self.baseConv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.baseConv(x)


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        # Index 0 stays empty without expansion, so that the keys of the other two do not move.
        self.block1 = nn.Sequential(
            BaseConv(in_channels, hidden, 1, stride) if expansion != 1 else nn.Sequential(),
            BaseConv(hidden, hidden, 3, stride, groups=hidden),
            BaseConv(hidden, out_channels, 1, relu=False),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.block1(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.module = nn.Sequential()
        self.module.add_module("first_Conv", BaseConv(3, 32, 3, stride=2))
        channels = 32
        for stage, (expansion, width, count, stride) in enumerate(STAGES):
            for i in range(count):
                block = InvertedResidual(channels, width, stride if i == 0 else 1, expansion)
                self.module.add_module(f"bottleneck{stage}_{i + 1}", block)
                channels = width
        self.module.add_module("follow_Conv", BaseConv(channels, 1280, 1))
        self.linear = nn.Sequential(nn.Dropout(0.5), nn.Linear(1280, num_classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = F.adaptive_avg_pool2d(self.module(x), 1)
        return self.linear(torch.flatten(out, 1))


def mobilenetv2(num_classes: int) -> MobileNetV2:
    return MobileNetV2(num_classes)
