"""The sample repository: the synthesised images, on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor

from datafree.neighbours import SlotTable
from datafree.samples import Samples
from datafree.torch_utils.distributed import SINGLE_PROCESS, Processes


class Log(Protocol):
    """A copy of all samples in a file, see `runs.sample_log.SampleLog`."""

    checksum: int

    def append(self, samples: Samples) -> None: ...
    def images(self, serials: Tensor) -> Tensor: ...
    def read(self, serials: Tensor) -> Iterator[Samples]: ...
    def flush(self) -> None: ...
    def require(self, count: int, checksum: int) -> None: ...
    def truncate(self, count: int) -> None: ...


class SampleRepository:
    """Images with their labels, penultimate features, margins and confidences, in the order they were stored.

    Rows are kept in fixed slots that grow by doubling: adding and removing never moves an image. Images
    beyond `resident_bytes` are in the log alone. With several processes, each keeps the images of every
    `world_size`-th sample and draws its batches from these; labels and features of all are in every process.

    Args:
        image_shape: (C, H, W).
        feature_dim: length of a feature vector.
        num_classes: labels are 0 .. num_classes - 1.
        device: of all tensors.
        max_samples: the oldest go when there are more; None for no limit.
        log: where samples are written as well.
        resident_bytes: of images kept on the device; None for all. Needs a log.
        processes: among which the images are divided.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        feature_dim: int,
        num_classes: int,
        device: torch.device | str = "cpu",
        max_samples: int | None = None,
        log: Log | None = None,
        resident_bytes: int | None = None,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.num_classes, self.max_samples = num_classes, max_samples
        self.device = torch.device(device)
        self.log, self.processes = log, processes
        self.loads = 0  # of a state, after which serials are of other samples
        image_bytes = image_shape[0] * image_shape[1] * image_shape[2]
        self._room = None if resident_bytes is None else resident_bytes // image_bytes  # in images
        self.image_shape, self._feature_dim = image_shape, feature_dim
        self._clear()

    def _clear(self) -> None:
        def none(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.empty((0, *shape), dtype=dtype, device=self.device)

        self.stored = self.removed = 0  # samples, ever
        self._rows = {
            "labels": none(),
            "features": none(self._feature_dim, dtype=torch.float32),
            "margins": none(dtype=torch.float32),
            "confidences": none(dtype=torch.float32),
            "serials": none(),
            "places": none(),  # index of the image in `_images`, or -1 - serial where it is not in memory
        }
        self._images = none(*self.image_shape, dtype=torch.uint8)
        self._order = none()  # slots, oldest sample first
        self._free = none()  # unused slots
        self._free_places = none()  # unused indices of `_images`
        self._some_away = False  # whether images that this process draws are not in memory

    def __len__(self) -> int:
        return len(self._order)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, oldest first; so are `features` and `margins`."""
        return self._rows["labels"][self._order]

    @property
    def features(self) -> Tensor:
        """(N, D) float32: the teacher's penultimate features when the sample was generated."""
        return self._rows["features"][self._order]

    @property
    def margins(self) -> Tensor:
        """(N,) float32: the teacher's top probability minus its second, in [0, 1]."""
        return self._rows["margins"][self._order]

    @property
    def confidences(self) -> Tensor:
        """(N,) float32: the teacher's top probability, in [0, 1]."""
        return self._rows["confidences"][self._order]

    @property
    def serials(self) -> Tensor:
        """(N,) int64, ascending: how many samples were stored before each."""
        return self._rows["serials"][self._order]

    def table(self) -> SlotTable:
        """Features and labels in their slots."""
        rows = self._rows
        return SlotTable(rows["features"], rows["labels"], rows["serials"], self._order)

    def images(self, indices: Tensor) -> Tensor:
        """Images, uint8 (n, C, H, W), of the samples at `indices` (n,) in the stored order. Those of other
        processes are read from the log."""
        return self._mixed(self._rows["places"][self._order[indices]])

    def drawn(self, indices: Tensor) -> Tensor:
        """Like `images`, for samples in `own()`; does not wait for the device."""
        places = self._rows["places"][self._order[indices]]
        return self._mixed(places) if self._some_away else self._images[places]

    def counts(self) -> Tensor:
        """Samples of each class, int64 (num_classes,)."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def add(self, samples: Samples) -> None:
        """Append samples.

        Raises:
            ValueError: a label outside 0 .. num_classes - 1.
        """
        if self.log:
            self.log.append(samples)
        serials = torch.arange(self.stored, self.stored + len(samples), device=self.device)
        self._put(samples, serials)
        self.stored += len(samples)
        if self.max_samples is not None and len(self) > self.max_samples:
            self.remove(torch.arange(len(self) - self.max_samples, device=self.device))
        self.processes.barrier()  # until the main process has logged the samples

    def _put(self, samples: Samples, serials: Tensor) -> None:
        labels = samples.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"labels must be in 0 .. {self.num_classes - 1}")
        count = len(labels)
        if len(self._free) < count:
            capacity = len(self._rows["labels"])
            larger = max(2 * capacity, capacity + count)
            self._rows = {name: _grown(rows, larger) for name, rows in self._rows.items()}
            self._free = torch.cat([self._free, torch.arange(capacity, larger, device=self.device)])
        slots, self._free = self._free[:count], self._free[count:]
        places = -1 - serials
        own = self._are_own(serials).nonzero().squeeze(1)
        room = self._make_room(len(own))
        self._some_away |= room < len(own)
        taken, self._free_places = self._free_places[:room], self._free_places[room:]
        self._images[taken] = samples.images.to(self.device)[own[:room]]
        places[own[:room]] = taken
        new = {
            "labels": labels,
            "features": samples.features,
            "margins": samples.margins,
            "confidences": samples.confidences,
            "serials": serials,
            "places": places,
        }
        for name, values in new.items():
            self._rows[name][slots] = values.to(self._rows[name])
        self._order = torch.cat([self._order, slots])

    def _make_room(self, count: int) -> int:
        """How many of `count` images can be kept in memory; so many places are free afterwards."""
        capacity = len(self._images)
        if len(self._free_places) < count:
            larger = max(2 * capacity, capacity + count)
            larger = larger if self._room is None else min(larger, self._room)
            if larger > capacity:
                self._images = _grown(self._images, larger)
                new = torch.arange(capacity, larger, device=self.device)
                self._free_places = torch.cat([self._free_places, new])
        return min(count, len(self._free_places))

    def remove(self, indices: Tensor) -> None:
        """Remove the samples at `indices` in the stored order, int64, each at most once."""
        keep = torch.ones(len(self), dtype=torch.bool, device=self.device)
        keep[indices] = False
        slots = self._order[~keep]
        places = self._rows["places"][slots]
        self._free = torch.cat([slots, self._free])
        self._free_places = torch.cat([places[places >= 0], self._free_places])
        self._order = self._order[keep]
        self.removed += len(slots)

    def _are_own(self, serials: Tensor) -> Tensor:
        """Which samples have their images in this process, bool."""
        return serials % self.processes.world_size == self.processes.rank

    def own(self) -> Tensor:
        """Indices in the stored order, int64, of the samples from which this process draws its batches: those
        whose images it keeps, or all, where so few are stored that it keeps none."""
        own = self._are_own(self.serials).nonzero().squeeze(1)
        if len(own) or not len(self):
            return own
        self._some_away = True  # it reads those of the others
        return torch.arange(len(self), device=self.device)

    def draws(self, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`steps` batches of exactly `batch_size` indices in the stored order, cut from an endless sequence
        of shuffles of `own()`. They are full even where there are fewer samples than a batch, since a last
        batch of a few images would ruin the student's BatchNorm statistics.

        Raises:
            ValueError: the repository is empty.
        """
        own = self.own()
        if not len(own):
            raise ValueError("the repository is empty: synthesise before drawing from it")
        queue = own[:0]
        for _ in range(steps):
            while len(queue) < batch_size:
                shuffle = torch.randperm(len(own), generator=generator, device=self.device)
                queue = torch.cat([queue, own[shuffle]])
            batch, queue = queue[:batch_size], queue[batch_size:]
            yield batch

    def batches(self, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The uint8 images (batch_size, C, H, W) of `draws`."""
        return map(self.drawn, self.draws(batch_size, steps, generator))

    def _mixed(self, places: Tensor) -> Tensor:
        """Images from memory and from the log."""
        images = self._images.new_empty(len(places), *self.image_shape)
        away = places < 0
        images[~away] = self._images[places[~away]]
        if away.any():
            assert self.log is not None  # which has them
            images[away] = self.log.images(-1 - places[away]).to(self.device)
        return images

    def state_dict(self) -> dict:
        """Which samples of the log are stored, in order; without a log, the samples themselves."""
        state = {"stored": self.stored, "serials": self.serials, "feature_dim": self._feature_dim}
        if self.log:
            self.log.flush()
            return {**state, "checksum": self.log.checksum}
        images = self.images(torch.arange(len(self), device=self.device))
        samples = Samples(images, self.labels, self.features, self.margins, self.confidences)
        return {**state, **vars(samples)}

    def load_state_dict(self, state: dict) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            UserError: the log lacks some of them.
            ValueError: the state makes no sense.
        """
        serials, stored = state["serials"].to(self.device), state["stored"]
        if serials.dim() != 1 or serials.dtype != torch.long or type(stored) is not int:
            raise ValueError("serials are not a list of numbers")
        ends = (0, *serials[:1].tolist(), *serials[-1:].tolist(), stored)
        if list(ends) != sorted(ends) or stored in serials or not (serials.diff() > 0).all():
            raise ValueError("serials are not of samples stored")
        self._clear()
        if self.log:
            self.log.truncate(stored)
            self.log.require(stored, state["checksum"])
            start = 0
            for part in self.log.read(serials):
                self._put(part, serials[start : start + len(part)])
                start += len(part)
        else:
            self._put(Samples(*(state[one.name] for one in fields(Samples))), serials)
        self.stored, self.loads = state["stored"], self.loads + 1


class FreshSamples(SampleRepository):
    """For methods whose student learns from fresh samples: keeps the newest batch alone, to be measured."""

    def add(self, samples: Samples) -> None:
        removed = self.removed
        self.remove(torch.arange(len(self), device=self.device))
        super().add(samples)
        self.removed = removed  # nothing that the student would have learned from


def _grown(rows: Tensor, capacity: int) -> Tensor:
    grown = rows.new_empty((capacity, *rows.shape[1:]))
    grown[: len(rows)] = rows
    return grown
