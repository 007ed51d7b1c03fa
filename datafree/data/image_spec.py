"""Facts about the data that distillation needs: classes, image size, normalisation. No image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datafree.data.augment import Augment, Normalize
from datafree.data.datasets import NORMALIZATIONS, SPECS
from datafree.data.image_folders import find_split, image_classes, probe_img_size
from datafree.errors import UserError, did_you_mean
from datafree.settings import Data

MAX_SIZE = 2048  # pixels a side, of a recorded image size
LEAST_STD = 1e-6  # less divides images into numbers that networks cannot compute with


@dataclass(frozen=True)
class ImageSpec:
    """What must be known of the data to distil: nothing of it is an image."""

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
        """The same for images of so many channels: a single number is meant for each, and one grey channel
        has the mean of three."""

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        return replace(self, mean=fit(self.mean), std=fit(self.std))

    def with_classes(self, count: int) -> ImageSpec:
        """The same, with classes named by their numbers where none are known."""
        return self if self.classes else replace(self, classes=tuple(str(label) for label in range(count)))

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std)

    @property
    def augment(self) -> Augment:
        return Augment(self.normalize, self.flip)

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain data, for checkpoints and `config.json`."""
        return {
            "dataset": self.dataset,
            "classes": list(self.classes),
            "img_size": self.img_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "flip": self.flip,
        }


def image_spec(settings: Data, split: str, recorded: Mapping[str, Any] | None = None) -> ImageSpec:
    """Classes, image size and normalisation: from the settings, else from what the teacher's checkpoint
    records (as those of this project do), else the dataset's own.

    Raises:
        UserError: data that should tell are absent, or a value makes no sense.
    """
    dataset, img_size, flip = settings.dataset, settings.img_size, settings.flip
    spec = SPECS[dataset]
    recorded = recorded or {}
    img_size = img_size or recorded.get("img_size") or spec.img_size
    if spec.reader:
        classes = tuple(str(label) for label in range(spec.num_classes or 0))
    else:  # folders of images
        folder = find_split(dataset, split, Path(settings.data_root))
        classes = tuple(image_classes(folder))
        img_size = img_size or probe_img_size(folder)
    img_size = require_img_size(img_size)
    own_mean, own_std = NORMALIZATIONS[spec.normalization]
    mean, std = normalization(settings, recorded.get("mean") or own_mean, recorded.get("std") or own_std)
    if flip is None:
        flip = recorded.get("flip", spec.flip)
    return ImageSpec(dataset, classes, img_size, mean, std, flip)


def require_img_size(img_size: int | None) -> int:
    """The size, if it is large enough for a generator.

    Raises:
        UserError: it is not.
    """
    if img_size is None or img_size < 8:
        raise UserError(f"images of {img_size} pixels: --img_size must be 8 or more")
    return img_size


def normalization(
    settings: Data, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as the settings say, else those given.

    Raises:
        UserError: a value makes no sense.
    """
    text = settings.mean if settings.mean in NORMALIZATIONS and settings.std is None else settings.std
    chosen = channel_values("--mean", settings.mean, 0) or tuple(mean)
    deviations = channel_values("--std", text, 1) or tuple(std)
    if min(deviations) < LEAST_STD:
        raise UserError(f"--std {text} has a value that is not {LEAST_STD} or more")
    return chosen, deviations


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
    """Image size, normalisation and flips recorded in a checkpoint by `ImageSpec.as_dict`, if any;
    whatever is not of the right kind is left out."""
    if not isinstance(content, Mapping):
        return {}
    if isinstance(content.get("facts"), Mapping):
        content = content["facts"]
    facts: dict[str, Any] = {}
    if isinstance(content.get("img_size"), int) and 8 <= content["img_size"] <= MAX_SIZE:
        facts["img_size"] = content["img_size"]
    if isinstance(content.get("flip"), bool):
        facts["flip"] = content["flip"]
    for name in ("mean", "std"):
        values = content.get(name)
        known = isinstance(values, list) and len(values) in (1, 3)
        low = 0.0 if name == "std" else -1e6  # also what is not a number fails
        if known and all(isinstance(v, float) and low < v < 1e6 for v in values):
            facts[name] = tuple(values)
    return facts
