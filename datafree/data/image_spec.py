"""What distillation needs to know about the images: classes, size, normalisation. No image is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datafree.data.augment import Augment, Normalize
from datafree.data.datasets import NORMALIZATIONS, SPECS, DatasetSpec
from datafree.data.image_folders import find_split, image_classes, probe_img_size
from datafree.errors import UserError, did_you_mean
from datafree.settings import Data

MIN_SIZE, MAX_SIZE = 8, 2048  # pixels a side
LEAST_STD = 1e-6  # a smaller one makes numbers that networks cannot compute with
NO_DATASET = DatasetSpec(None, None, "half")  # --dataset none


@dataclass(frozen=True)
class ImageSpec:
    """Everything that distillation knows about the images."""

    dataset: str
    classes: tuple[str, ...]
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def for_channels(self, channels: int) -> ImageSpec:
        """This spec for images with 1 or 3 channels: one number is repeated, three are averaged."""

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        return replace(self, mean=fit(self.mean), std=fit(self.std))

    def with_classes(self, count: int) -> ImageSpec:
        """This spec, with numbers as class names if there are no names."""
        return self if self.classes else replace(self, classes=tuple(map(str, range(count))))

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std)

    @property
    def augment(self) -> Augment:
        return Augment(self.normalize, self.flip)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and `config.json`."""
        values = asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def image_spec(settings: Data, split: str, recorded: Mapping[str, Any] | None = None) -> ImageSpec:
    """The spec from the settings, else from what is recorded, else the dataset's own. With `--dataset none`
    the classes are unknown, the normalisation is to -1 .. 1, and images may be flipped.

    Args:
        settings: dataset, image size, normalisation, flips.
        split: where to look up the classes of an image folder.
        recorded: from the teacher's checkpoint, see `recorded_spec`.

    Raises:
        UserError: the data are absent, the image size is unknown, or a value makes no sense.
    """
    s, recorded = settings, recorded or {}
    own = SPECS.get(s.dataset, NO_DATASET)
    img_size, classes = s.img_size or recorded.get("img_size") or own.img_size, []
    if own.reader:
        classes = [str(label) for label in range(own.num_classes or 0)]
    elif own is not NO_DATASET:
        folder = find_split(s.dataset, split, Path(s.data_root))
        classes = image_classes(folder)
        img_size = img_size or probe_img_size(folder)
    if img_size is None:
        raise UserError("the size of the teacher's images is unknown: give --img_size")
    if img_size < MIN_SIZE:
        raise UserError(f"images of {img_size} pixels: --img_size must be {MIN_SIZE} or more")
    own_mean, own_std = NORMALIZATIONS[own.normalization]
    mean = channel_values("--mean", s.mean, 0) or recorded.get("mean") or own_mean
    named = s.mean if s.mean in NORMALIZATIONS and s.std is None else s.std
    std = channel_values("--std", named, 1) or recorded.get("std") or own_std
    if min(std) < LEAST_STD:
        raise UserError(f"--std {named} has a value below {LEAST_STD}")
    flip = recorded.get("flip", own.flip) if s.flip is None else s.flip
    return ImageSpec(s.dataset, tuple(classes), img_size, tuple(mean), tuple(std), flip)


def channel_values(flag: str, text: str | None, index: int) -> tuple[float, ...] | None:
    """One number a channel from `"0.5,0.5,0.5"`, or those of a dataset by its name."""
    if text is None:
        return None
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text][index]
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = did_you_mean(text, NORMALIZATIONS) or f" (names: {' '.join(NORMALIZATIONS)})"
        raise UserError(f"{flag} {text} is neither three numbers nor a known name{hint}") from None
    if len(values) not in (1, 3) or not all(abs(value) < 1e6 for value in values):
        raise UserError(f"{flag} needs three finite numbers separated by commas (one for grey), not {text}")
    return values


def recorded_spec(content: Any) -> dict[str, Any]:
    """Image size, normalisation and flips recorded in a checkpoint by `ImageSpec.as_dict`, without values of
    another kind, which other people's checkpoints may have under these names."""
    if not isinstance(content, Mapping):
        return {}
    if isinstance(content.get("facts"), Mapping):  # of a run
        content = content["facts"]

    def numbers(values: Any, low: float) -> bool:
        known = isinstance(values, list) and len(values) in (1, 3)
        return known and all(isinstance(value, float) and low < value < 1e6 for value in values)

    fits = {
        "img_size": lambda value: isinstance(value, int) and MIN_SIZE <= value <= MAX_SIZE,
        "flip": lambda value: isinstance(value, bool),
        "mean": lambda values: numbers(values, -1e6),
        "std": lambda values: numbers(values, 0.0),
    }
    return {name: content[name] for name, fit in fits.items() if fit(content.get(name))}
