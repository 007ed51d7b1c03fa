"""Differentiable augmentation and normalisation of batches on their device; each image has its own crop and
flip, drawn from a given generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 64  # pixels a side; images up to this size are padded and cropped back
PADDING = 4  # pixels around a small image before the crop
OFFSETS = 2 * PADDING + 1  # of the crop, in each direction
SYNTHESIS_SCALE = (0.75, 1.0)  # share of a large image's area that a crop keeps in synthesis
TRAINING_SCALE = (0.08, 1.0)  # and in KD and the training of teachers (torchvision's default)
ASPECT = (3 / 4, 4 / 3)


class Normalize:
    """`(images - mean) / std` per channel, for images (N, C, H, W) in [0, 1]."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        # In float64, so that a float64 computation is exact.
        self._mean = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)

    @property
    def channels(self) -> int:
        return self._mean.numel()

    def __call__(self, images: Tensor, inplace: bool = False) -> Tensor:
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        mean, std = self._mean.to(images.dtype), self._std.to(images.dtype)
        return (images.sub_(mean) if inplace else images.sub(mean)).div_(std)


class Augment:
    """Random crop, horizontal flip and normalisation of images (N, C, H, W) in [0, 1].

    Images of up to 64 pixels are padded with four black pixels and cropped back; larger ones get a random
    resized crop. Gradients flow to the images. (kornia's crops take no `torch.Generator`.)

    Args:
        normalize: applied last.
        flip: whether to flip half of the images; not if a flip changes the class (digits).
        scale: crop and resize images of any size to shares of their area in this range.
        large_scale: the range for images above 64 pixels.
    """

    def __init__(
        self,
        normalize: Normalize,
        flip: bool,
        scale: tuple[float, float] | None = None,
        large_scale: tuple[float, float] = SYNTHESIS_SCALE,
    ):
        self.normalize = normalize
        self.flip = flip
        self.scale, self.large_scale = scale, large_scale

    def for_training(self) -> Augment:
        """The augmentation of KD and the training of teachers: crops of large images keep 8 % or more of the
        area."""
        return Augment(self.normalize, self.flip, self.scale, TRAINING_SCALE)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images (N, C, H, W) in [0, 1]; stored ones (uint8) become float32, in channels-last layout
        if they are small."""
        if images.dtype != torch.uint8:
            return self.normalize(self.warp(images, generator))
        if not self._shifts(images):
            return self(images.float().div_(255), generator)
        # Cropped in 8 bits, which is faster.
        return self.view(images, self.draw_views(len(images), generator))

    def views(self, image_shape: tuple[int, int, int]) -> int | None:
        """How many views a stored image (C, H, W) has: 81 offsets of the crop, mirrored or not. None for
        large images, whose crops are resized, and for derived classes."""
        if type(self) is not Augment or self.scale is not None or max(image_shape[1:]) > SMALL:
            return None
        return OFFSETS**2 * (2 if self.flip else 1)

    def draw_views(self, n: int, generator: torch.Generator) -> Tensor:
        """Random views for n images, int64 (n,), for `view`."""
        down, right = self._pixel_shifts(n, generator) + PADDING
        views = down * OFFSETS + right
        if self.flip:
            views = 2 * views + (torch.rand(n, generator=generator, device=views.device) < 0.5)
        return views

    def view(self, images: Tensor, views: Tensor) -> Tensor:
        """Crop, flip and normalise stored images.

        Args:
            images: (N, C, H, W) uint8, up to 64 pixels a side.
            views: (N,) int64, each in 0 .. `views(...)` - 1.

        Returns:
            (N, C, H, W) float32, in channels-last layout.
        """
        n, channels, height, width = images.shape
        columns = torch.arange(width, device=images.device).expand(n, -1)
        if self.flip:
            columns = torch.where((views % 2 == 1)[:, None], columns.flip(1), columns)
            views = views // 2
        rows = torch.arange(height, device=images.device) + (views // OFFSETS)[:, None]
        columns = columns + (views % OFFSETS)[:, None]
        pixels = rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]
        pixels = pixels.view(n, 1, -1).expand(-1, channels, -1)
        padded = F.pad(images, (PADDING,) * 4)
        cropped = padded.flatten(2).gather(2, pixels).view(images.shape)
        cropped = cropped.to(torch.float32, memory_format=torch.channels_last)
        return self.normalize(cropped.div_(255), inplace=True)

    def _shifts(self, images: Tensor) -> bool:
        """Whether images (N, C, H, W) are padded and cropped, not resized."""
        return self.scale is None and max(images.shape[2:]) <= SMALL

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip images (N, C, H, W) without normalising them."""
        n, height, width = len(images), images.shape[2], images.shape[3]
        small = self._shifts(images)
        if small:
            pixels = self._pixel_shifts(n, generator)
            shift_y, shift_x = pixels[0] * (2 / height), pixels[1] * (2 / width)  # images span -1 .. 1
            scale_y = scale_x = torch.ones(n, device=images.device)
        else:
            u = torch.rand(4, n, generator=generator, device=generator.device)
            (scale_y, shift_y), (scale_x, shift_x) = crop_windows(u, self.scale or self.large_scale)
        if self.flip:
            sign = torch.rand(n, generator=generator, device=images.device) < 0.5
            scale_x = torch.where(sign, -scale_x, scale_x)
        zero = torch.zeros_like(shift_x)
        theta = torch.stack([scale_x, zero, shift_x, zero, scale_y, shift_y], 1).view(n, 2, 3)
        grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
        # Shifts by whole pixels need no interpolation.
        mode = "nearest" if small else "bilinear"
        return F.grid_sample(images, grid, mode, padding_mode="zeros", align_corners=False)

    @staticmethod
    def _pixel_shifts(n: int, generator: torch.Generator) -> Tensor:
        """Random shifts of n images in pixels, down and to the right, int64 (2, n)."""
        return torch.randint(-PADDING, PADDING + 1, (2, n), generator=generator, device=generator.device)


def crop_windows(
    u: Tensor, scale: tuple[float, float], shape: float = 1.0
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The windows of a random resized crop: area uniform in `scale`, aspect log-uniform in ASPECT, cut at the
    image's edges.

    Args:
        u: (4, n), uniform in [0, 1).
        scale: share of the image's area.
        shape: height over width of the image.

    Returns:
        Scale and shift of rows, and of columns: a window is shift - scale .. shift + scale where the image is
        -1 .. 1.
    """
    area = scale[0] + (scale[1] - scale[0]) * u[0]
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    root = (0.5 * (low + (high - low) * u[1])).exp() * shape**0.5
    scale_x = (area.sqrt() * root).clamp(max=1)
    scale_y = (area.sqrt() / root).clamp(max=1)
    return (scale_y, (2 * u[2] - 1) * (1 - scale_y)), (scale_x, (2 * u[3] - 1) * (1 - scale_x))


class OnlyFlip(Augment):
    """No crop: for images that are already random crops."""

    def _shifts(self, images: Tensor) -> bool:
        return False

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mirror each image with probability 1/2 if `flip` is on."""
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class OnlyNormalize(OnlyFlip):
    """No crop and no flip."""

    def __init__(self, normalize: Normalize):
        super().__init__(normalize, flip=False)
