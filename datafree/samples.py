"""A batch of samples: the one thing that travels from a synthesis to the repository."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """n synthesised images with what the teacher says of them, all detached."""

    images: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64: the teacher's argmax on a freshly augmented view
    features: Tensor  # (n, D): the teacher's penultimate features when the images were made
    margins: Tensor  # (n,) in [0, 1]: the teacher's top probability minus its second on the fresh view

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Samples:
        """Those of some rows: indices (k,) or a mask (n,)."""
        return Samples(self.images[rows], self.labels[rows], self.features[rows], self.margins[rows])
