"""The image generator of Fast-Meta (Fang et al., AAAI 2022), as BSR uses it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Generator(nn.Module):
    """Latent codes (N, nz) to images (N, channels, img_size, img_size) in [0, 1].

    A linear layer to a quarter of the image size, then twice upsampling by 2, convolution,
    BatchNorm and LeakyReLU, and a last convolution with a sigmoid.

    Args:
        nz: length of a latent code.
        ngf: channels before the last convolution; twice as many at the start.
        img_size: height and width of the images, a multiple of 4.
        channels: channels of the images.

    Raises:
        ValueError: `img_size` is no positive multiple of 4.
    """

    def __init__(self, nz: int = 256, ngf: int = 64, img_size: int = 32, channels: int = 3):
        super().__init__()
        if img_size < 4 or img_size % 4:
            raise ValueError(f"img_size must be a positive multiple of 4, not {img_size}")
        self.nz = nz
        self.img_size = img_size
        self.base = (ngf * 2, img_size // 4, img_size // 4)
        self.l1 = nn.Sequential(nn.Linear(nz, ngf * 2 * (img_size // 4) ** 2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(ngf * 2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(ngf * 2, ngf * 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(ngf * 2, ngf, 3, padding=1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ngf, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.l1(z).view(-1, *self.base)
        if x.device.type != "cpu":
            return self.conv_blocks(x)
        x = x.contiguous(memory_format=torch.channels_last)
        layers = list(self.conv_blocks)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(following, nn.Conv2d) and isinstance(layer, nn.Upsample):
                x = upsample_and_convolve(x, following.weight)
            elif not (isinstance(layer, nn.Conv2d) and layer.bias is None):  # those were part of the above
                x = layer(x)
        return x


def upsample_and_convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest upsampling by 2 and a 3 x 3 convolution with padding 1 and no bias, in one transposed
    convolution: 4 products for each output where the two take 9, with the same result to rounding."""
    kernel = weight.transpose(0, 1).flip(2, 3)
    kernel = sum(F.pad(kernel, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1))
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)
