"""The sample repository: the synthesised images, resident on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as 8 bits a channel: 255 times the value, truncated."""
    return (images * 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


class SampleRepository:
    """Images with their labels, penultimate features and margins, in the order they were stored.

    Rows lie in fixed slots that grow by doubling: adding and removing never moves an image.

    Args:
        image_shape: (C, H, W).
        feature_dim: length of a feature vector.
        num_classes: labels are 0 .. num_classes - 1.
        device: where everything lies.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], feature_dim: int, num_classes: int,
        device: torch.device | str = "cpu",
    ):
        self.num_classes = num_classes
        self.device = torch.device(device)
        self._rows = {
            "images": torch.empty((0, *image_shape), dtype=torch.uint8, device=device),
            "labels": torch.empty(0, dtype=torch.long, device=device),
            "features": torch.empty((0, feature_dim), device=device),
            "margins": torch.empty(0, device=device),
        }
        self._order = torch.empty(0, dtype=torch.long, device=device)  # slots, oldest sample first
        self._free = torch.empty(0, dtype=torch.long, device=device)  # slots that hold no sample

    def __len__(self) -> int:
        return len(self._order)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, oldest first; so are `features`, `margins` and `images`."""
        return self._rows["labels"][self._order]

    @property
    def features(self) -> Tensor:
        """(N, D) float32: the teacher's penultimate features, taken when the sample was made."""
        return self._rows["features"][self._order]

    @property
    def margins(self) -> Tensor:
        """(N,) float32: the teacher's top probability minus its second, in [0, 1]."""
        return self._rows["margins"][self._order]

    def images(self, indices: Tensor) -> Tensor:
        """uint8 (len(indices), C, H, W) of the samples at these places of the stored order."""
        return self._rows["images"][self._order[indices]]

    def counts(self) -> Tensor:
        """Samples of each class, int64 (num_classes,)."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def add(self, images: Tensor, labels: Tensor, features: Tensor, margins: Tensor) -> None:
        """Store n samples behind those there are.

        Args:
            images: (n, C, H, W), uint8, or floating point in [0, 1].
            labels: (n,) int64.
            features: (n, D).
            margins: (n,).

        Raises:
            ValueError: a label outside 0 .. num_classes - 1.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"labels must be in 0 .. {self.num_classes - 1}")
        if images.dtype != torch.uint8:
            images = to_uint8(images)
        count = len(images)
        if len(self._free) < count:
            self._grow(count)
        slots, self._free = self._free[:count], self._free[count:]
        new = {"images": images, "labels": labels, "features": features, "margins": margins}
        for name, values in new.items():
            rows = self._rows[name]
            rows[slots] = values.to(rows)
        self._order = torch.cat([self._order, slots])

    def _grow(self, count: int) -> None:
        capacity = len(self._rows["labels"])
        larger = max(2 * capacity, capacity + count)
        for name, rows in self._rows.items():
            grown = rows.new_empty((larger, *rows.shape[1:]))
            grown[:capacity] = rows
            self._rows[name] = grown
        new_slots = torch.arange(capacity, larger, device=self.device)
        self._free = torch.cat([self._free, new_slots])

    def remove(self, indices: Tensor) -> None:
        """Drop the samples at these places of the stored order, int64, each at most once."""
        keep = torch.ones(len(self), dtype=torch.bool, device=self.device)
        keep[indices] = False
        self._free = torch.cat([self._order[~keep], self._free])
        self._order = self._order[keep]

    def batches(self, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`steps` batches of exactly `batch_size` uint8 images, cut from an endless row of shuffles of
        the repository: full even where it holds fewer samples than a batch, since a last batch of a
        few images would ruin the student's BatchNorm statistics.

        Raises:
            ValueError: the repository is empty.
        """
        if not len(self):
            raise ValueError("the repository is empty: synthesise before drawing from it")
        queue = self._order[:0]
        for _ in range(steps):
            while len(queue) < batch_size:
                shuffle = torch.randperm(len(self), generator=generator, device=self.device)
                queue = torch.cat([queue, self._order[shuffle]])
            batch, queue = queue[:batch_size], queue[batch_size:]
            yield self._rows["images"][batch]

    def state_dict(self) -> dict:
        """The samples without the spare slots, in order."""
        return {name: rows[self._order] for name, rows in self._rows.items()}

    def load_state_dict(self, state: dict) -> None:
        self._rows = {name: state[name].to(rows) for name, rows in self._rows.items()}
        self._order = torch.arange(len(state["labels"]), device=self.device)
        self._free = self._order[:0]
