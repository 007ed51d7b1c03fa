"""The image generators of CMI and Fast-Meta (Fang et al., IJCAI 2021, AAAI 2022)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init


class Generator(nn.Module):
    """Latent codes (N, nz) to images (N, channels, img_size, img_size) in [0, 1].

    A linear layer to a quarter of the image size, then twice upsampling by 2, convolution,
    BatchNorm and LeakyReLU, and a last convolution with a sigmoid.

    Args:
        nz: length of a latent code.
        ngf: channels before the last convolution; twice as many before the one ahead of it.
        start: channels at the start, as a multiple of ngf: 2 in the small generator (Fast-Meta, BSR, CMI), 4
            in the large one (DAFL, ZSKT, DFAD and DFQ, as CMI's code runs them).
        img_size: height and width of the images. One that is not a multiple of 4 is cut from the middle of
            the next larger multiple.
        channels: channels of the images.
    """

    def __init__(self, nz: int = 256, ngf: int = 64, img_size: int = 32, channels: int = 3, start: int = 2):
        super().__init__()
        self.nz = nz
        self.img_size = img_size
        quarter = -(-img_size // 4)
        self.base = (ngf * start, quarter, quarter)
        self.l1 = nn.Sequential(nn.Linear(nz, ngf * start * quarter**2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(ngf * start),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(ngf * start, ngf * 2, 3, padding=1, bias=False),
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
        images = self.conv_blocks(x) if x.device.type != "cpu" else self._on_cpu(x)
        margin = (images.shape[2] - self.img_size) // 2
        end = margin + self.img_size
        return images if images.shape[2] == self.img_size else images[:, :, margin:end, margin:end]

    def _on_cpu(self, x: Tensor) -> Tensor:
        """What `conv_blocks` computes, in fewer products."""
        x = x.contiguous(memory_format=torch.channels_last)
        layers = list(self.conv_blocks)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(following, nn.Conv2d) and isinstance(layer, nn.Upsample):
                x = upsample_and_convolve(x, following.weight)
            elif not (isinstance(layer, nn.Conv2d) and layer.bias is None):  # those were part of the above
                x = layer(x)
        return x


class LabelGenerator(Generator):
    """Embeddings of classes (N, dim) to images (N, channels, img_size, img_size) in [0, 1] (NAYER, Tran et
    al., CVPR 2024).

    BatchNorm on the embeddings, then layers of noise, each for one row of every class, since rows of one
    class that share a layer become the same image; a linear layer and the blocks of the small generator
    follow. Images above 64 pixels begin at a sixteenth of their size, with four upsamplings and no BatchNorm
    behind the linear layer.

    Args:
        dim: length of an embedding.
        num_classes: rows for which a noisy layer is.
        items: rows of a batch.
        width: of the noisy layers.
        img_size, channels: see `Generator`.
    """

    def __init__(
        self, dim: int, num_classes: int, items: int, width: int = 1000, img_size: int = 32, channels: int = 3
    ):
        super().__init__(width, 64, img_size, channels)
        self.num_classes = num_classes
        if img_size > 64:
            side, blocks = -(-img_size // 16), []
            self.base = (128, side, side)
            self.l1 = nn.Sequential(nn.Linear(width, 128 * side**2))
            for wide in (128, 128, 128, 64):
                convolution = nn.Conv2d(128, wide, 3, padding=1, bias=False)
                blocks += [
                    nn.Upsample(scale_factor=2),
                    convolution,
                    nn.BatchNorm2d(wide),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            self.conv_blocks = nn.Sequential(*blocks, nn.Conv2d(64, channels, 3, padding=1), nn.Sigmoid())
        self.n1 = nn.BatchNorm1d(dim)
        self.le1 = nn.ModuleList(nn.Linear(dim, width) for _ in range(-(-items // num_classes)))

    def resize(self, layers: int) -> None:
        """Have so many noisy layers; the weights of new ones are not drawn."""
        first = self.le1[0]
        assert isinstance(first, nn.Linear)
        shape, device = (first.in_features, first.out_features), first.weight.device
        more = (skip_init(nn.Linear, *shape, device=device) for _ in range(len(self.le1), layers))
        self.le1 = nn.ModuleList([*self.le1[:layers], *more])

    def forward(self, embeddings: Tensor, layers: Tensor | None = None) -> Tensor:
        """`layers`, int64 (N,), tells the noisy layer of each row; by default each is for `num_classes`
        successive rows."""
        if layers is None:
            layers = torch.arange(len(embeddings), device=embeddings.device) // self.num_classes
        order = layers.argsort(stable=True)
        parts = self.n1(embeddings)[order].split(torch.bincount(layers, minlength=len(self.le1)).tolist())
        codes = torch.cat([layer(part) for layer, part in zip(self.le1, parts, strict=True) if len(part)])
        return super().forward(codes[order.argsort()])


def upsample_and_convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest upsampling by 2 and a 3 x 3 convolution with padding 1 and no bias, in one transposed
    convolution: 4 products for each output where the two take 9, with the same result to rounding."""
    kernel = weight.transpose(0, 1).flip(2, 3)
    padded = [F.pad(kernel, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1)]
    kernel = padded[0] + padded[1] + padded[2] + padded[3]
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)
