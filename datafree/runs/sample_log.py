"""Every sample ever stored, in a file: what a run continues from, and where images lie that memory has no
room for."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datafree.errors import Damaged, UserError
from datafree.samples import Samples

READ_BYTES = 64 << 20  # read at a time


class SampleLog:
    """Fixed-size records, appended and never moved: sample number `serial` (from 0, in the order of storing)
    is record number `serial`.

    Args:
        path: the file; made when the first sample comes.
        image_shape: (C, H, W).
        feature_dim: length of a feature vector.
        writable: False where another process writes the file, and this one only reads it.
    """

    def __init__(
        self, path: Path, image_shape: tuple[int, int, int], feature_dim: int, writable: bool = True
    ):
        self.path, self.writable = path, writable
        self.checksum = 0  # CRC-32 of all that was written
        self._file: BinaryIO | None = None  # open while it is written to: no other file has its number then
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
        """Write samples behind those there are; see `SampleRepository.add`.

        Raises:
            UserError: the file is no longer the one that was written to.
        """
        if not self.writable:
            return
        self._file = self._file or open(self.path, "ab")  # noqa: SIM115 (kept)
        written = os.fstat(self._file.fileno())
        if not (self.path.exists() and os.path.samestat(written, os.stat(self.path))):
            raise UserError(f"{self.path} was removed or replaced while the run was going on: start again")
        records = np.empty(len(samples), self.record)
        records["image"] = samples.images.cpu().numpy()
        records["features"] = samples.features.float().cpu().numpy()
        records["margin"] = samples.margins.cpu().numpy()
        records["label"] = samples.labels.cpu().numpy()
        records["confidence"] = samples.confidences.cpu().numpy()
        data = records.tobytes()
        self._file.write(data)
        self._file.flush()
        self.checksum = zlib.crc32(data, self.checksum)

    def images(self, serials: Tensor) -> Tensor:
        """uint8 (n, C, H, W), on the CPU. The file is mapped only for the length of the call, so that
        what was read does not stay in the memory of the process."""
        return torch.from_numpy(self._records()["image"][serials.cpu().numpy()])

    def read(self, serials: Tensor) -> Iterator[Samples]:
        """These samples, some megabytes at a time."""
        for part in serials.cpu().split(max(1, READ_BYTES // self.record.itemsize)):
            records = self._records()[part.numpy()]
            yield Samples(
                *(
                    torch.from_numpy(records[name].copy())  # a field of one record has odd strides
                    for name in ("image", "label", "features", "margin", "confidence")
                )
            )

    def _records(self) -> np.memmap:
        """The whole ones: a kill can leave a part of one behind them."""
        count = self.path.stat().st_size // self.record.itemsize
        return np.memmap(self.path, self.record, "r", shape=(count,))

    def flush(self) -> None:
        """Return when the disk has it all."""
        if self.writable and self.path.exists():
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())

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
            raise Damaged(f"{self.path} is damaged: its samples are not those that were stored")
        self.checksum = found

    def truncate(self, count: int) -> None:
        """Forget all samples but the first `count`, those stored after a checkpoint, say.

        Raises:
            Damaged: there are fewer.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        wanted = count * self.record.itemsize
        if size < wanted:
            raise Damaged(
                f"{self.path} holds {size // self.record.itemsize} of the {count} samples of the checkpoint: "
                "it must lie beside its checkpoint.pth"
            )
        if self._file:
            self._file.close()
            self._file = None
        if self.writable and self.path.exists() and self.path.stat().st_nlink > 1:
            # A copy of the folder by links shares the file: what is written here must not show there.
            temporary = self.path.with_name(self.path.name + ".tmp")
            shutil.copyfile(self.path, temporary)
            temporary.replace(self.path)
        if size > wanted and self.writable:
            os.truncate(self.path, wanted)
