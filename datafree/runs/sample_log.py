"""Every sample ever stored, in a file: a run continues from it, and reads from it images that do not fit in
memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datafree.errors import Damaged
from datafree.runs.files import unshare
from datafree.samples import Samples

READ_BYTES = 64 << 20  # read at a time


class SampleLog:
    """Fixed-size records, appended and never moved: sample number `serial` (from 0, in the order of storing)
    is record number `serial`.

    Args:
        path: the file; created with the first sample.
        image_shape: (C, H, W).
        feature_dim: length of a feature vector.
        writable: False in a process that only reads what another one writes.
    """

    def __init__(
        self, path: Path, image_shape: tuple[int, int, int], feature_dim: int, writable: bool = True
    ):
        self.path, self.writable = path, writable
        self.checksum = 0  # CRC-32 of everything written
        self._file: BinaryIO | None = None
        self.record = np.dtype(
            [
                ("image", np.uint8, image_shape),
                ("features", np.float32, (feature_dim,)),
                ("margin", np.float32),
                ("label", np.int64),
                ("confidence", np.float32),
            ]
        )

    def append(self, samples: Samples) -> None:
        """Write samples at the end; see `SampleRepository.add`."""
        if not self.writable:
            return
        records = np.empty(len(samples), self.record)
        records["image"] = samples.images.cpu().numpy()
        records["features"] = samples.features.float().cpu().numpy()
        records["margin"] = samples.margins.cpu().numpy()
        records["label"] = samples.labels.cpu().numpy()
        records["confidence"] = samples.confidences.cpu().numpy()
        data = records.tobytes()
        # Kept open: if the folder is replaced, nothing is written to another run's file.
        self._file = self._file or open(self.path, "ab")  # noqa: SIM115
        self._file.write(data)
        self._file.flush()
        self.checksum = zlib.crc32(data, self.checksum)

    def images(self, serials: Tensor) -> Tensor:
        """uint8 (n, C, H, W), on the CPU. The file is mapped only during the call, so that the process does
        not keep in memory what it read."""
        return torch.from_numpy(self._records()["image"][serials.cpu().numpy()])

    def read(self, serials: Tensor) -> Iterator[Samples]:
        """Samples by their numbers, some megabytes at a time."""
        names = ("image", "label", "features", "margin", "confidence")
        for part in serials.cpu().split(max(1, READ_BYTES // self.record.itemsize)):
            records = self._records()[part.numpy()]
            # Copied, since a field of a single record has odd strides.
            yield Samples(*(torch.from_numpy(records[name].copy()) for name in names))

    def _records(self) -> np.memmap:
        """The whole records: a kill can leave part of one at the end."""
        count = self.path.stat().st_size // self.record.itemsize
        return np.memmap(self.path, self.record, "r", shape=(count,))

    def flush(self) -> None:
        """Return when the disk has everything."""
        if self._file:
            os.fsync(self._file.fileno())

    def require(self, count: int, checksum: int) -> None:
        """See that the first `count` samples are as they were written.

        Raises:
            Damaged: they are not.
        """
        if not self.writable:
            return
        found, left = 0, count * self.record.itemsize
        if left:
            with open(self.path, "rb") as file:
                while left and (data := file.read(min(left, READ_BYTES))):
                    found, left = zlib.crc32(data, found), left - len(data)
        if found != checksum:
            raise Damaged(f"{self.path} is damaged: its samples are not the ones that were stored")
        self.checksum = found

    def truncate(self, count: int) -> None:
        """Forget all samples after the first `count`, such as those stored after a checkpoint.

        Raises:
            Damaged: there are fewer.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        wanted = count * self.record.itemsize
        if size < wanted:
            raise Damaged(
                f"{self.path} contains {size // self.record.itemsize} of the {count} samples of the "
                "checkpoint: it must be beside its checkpoint.pth"
            )
        if not self.writable:
            return
        if self._file:
            self._file.close()
            self._file = None
        unshare(self.path)
        if size > wanted:
            os.truncate(self.path, wanted)
