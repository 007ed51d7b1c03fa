"""The image generator of Fast-Meta (Fang et al., AAAI 2022), as BSR uses it."""

from torch import Tensor, nn


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
        return self.conv_blocks(self.l1(z).view(-1, *self.base))
