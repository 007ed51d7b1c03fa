"""Augmentation and normalisation of whole batches on their device, differentiable, each image with its
own crop and flip."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4  # pixels around a small image, before it is cropped back
SCALE = (0.75, 1.0)  # share of a large image's area that a crop keeps
ASPECT = (3 / 4, 4 / 3)


class Normalize:
    """`(images - mean) / std` per channel, for images (N, C, H, W) in [0, 1]."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        # float64, so that a float64 computation is exact; uploaded once a device.
        self._mean = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return (images - self._mean.to(images.dtype)) / self._std.to(images.dtype)


class Augment:
    """Random crop, horizontal flip and normalisation of images (N, C, H, W) in [0, 1].

    Images of up to 32 pixels are padded with four black pixels and cropped back; larger ones get a
    random resized crop of 75 to 100 % of their area. Gradients flow to the images.

    Args:
        normalize: applied last.
        flip: whether to flip half of the images; not where a flip changes the class (digits).
    """

    def __init__(self, normalize: Normalize, flip: bool):
        self.normalize = normalize
        self.flip = flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.normalize(self.warp(images, generator))

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip without normalising; (N, C, H, W) as given."""
        n, height, width = len(images), images.shape[2], images.shape[3]
        small = max(height, width) <= 32
        if small:
            shift_y, shift_x = self._padded_crop(n, height, width, generator)
            scale_y = scale_x = torch.ones(n, device=images.device)
        else:
            (scale_y, shift_y), (scale_x, shift_x) = self._resized_crop(n, generator)
        if self.flip:
            sign = torch.rand(n, generator=generator, device=images.device) < 0.5
            scale_x = torch.where(sign, -scale_x, scale_x)
        zero = torch.zeros_like(shift_x)
        theta = torch.stack([scale_x, zero, shift_x, zero, scale_y, shift_y], 1).view(n, 2, 3)
        grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
        # Whole-pixel shifts: the nearest pixel is the pixel itself, so that nothing is interpolated.
        mode = "nearest" if small else "bilinear"
        return F.grid_sample(images, grid, mode, padding_mode="zeros", align_corners=False)

    @staticmethod
    def _padded_crop(
        n: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Shifts by -4 .. 4 pixels, in the units of `affine_grid` (the image spans -1 .. 1)."""
        pixels = torch.randint(
            -PADDING, PADDING + 1, (2, n), generator=generator, device=generator.device
        )
        return pixels[0] * (2 / height), pixels[1] * (2 / width)

    @staticmethod
    def _resized_crop(
        n: int, generator: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Scale and shift of rows and of columns: area uniform in SCALE, aspect log-uniform in ASPECT,
        a side that would leave the image cut to its edge."""
        u = torch.rand(4, n, generator=generator, device=generator.device)
        area = SCALE[0] + (SCALE[1] - SCALE[0]) * u[0]
        low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
        root = (0.5 * (low + (high - low) * u[1])).exp()
        scale_x = (area.sqrt() * root).clamp(max=1)
        scale_y = (area.sqrt() / root).clamp(max=1)
        return (scale_y, (2 * u[2] - 1) * (1 - scale_y)), (scale_x, (2 * u[3] - 1) * (1 - scale_x))
