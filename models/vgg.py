"""VGGs with BatchNorm for 32 x 32 images and one linear classifier (Simonyan and Zisserman, ICLR 2015).

Five blocks of convolutions; pooling follows the first three and, globally, the last. The ReLU that
ends a block is applied in `forward`, so that `blockN` holds pre-activations as in the published code.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _block(in_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    def __init__(self, widths: tuple[tuple[int, ...], ...], num_classes: int):
        super().__init__()
        self.block0 = _block(3, widths[0])
        self.block1 = _block(widths[0][-1], widths[1])
        self.block2 = _block(widths[1][-1], widths[2])
        self.block3 = _block(widths[2][-1], widths[3])
        self.block4 = _block(widths[3][-1], widths[4])
        self.classifier = nn.Linear(widths[4][-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.block0(x)), 2)
        out = F.max_pool2d(F.relu(self.block1(out)), 2)
        out = F.max_pool2d(F.relu(self.block2(out)), 2)
        out = F.relu(self.block3(out))
        if x.shape[2] >= 64:
            out = F.max_pool2d(out, 2)
        out = F.relu(self.block4(out))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def vgg8(num_classes: int) -> VGG:
    return VGG(((64,), (128,), (256,), (512,), (512,)), num_classes)


def vgg11(num_classes: int) -> VGG:
    return VGG(((64,), (128,), (256, 256), (512, 512), (512, 512)), num_classes)


def vgg13(num_classes: int) -> VGG:
    return VGG(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), num_classes)
