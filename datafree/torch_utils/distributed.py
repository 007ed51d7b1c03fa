"""Several processes that work as one, by `torch.distributed`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.errors import UserError


def torchrun(name: str, default: int) -> int:
    """A number that `torchrun` sets in the environment of its processes; `default` in other processes, even
    if another program has left such a variable."""
    return int(os.environ.get(name, default)) if dist.is_torchelastic_launched() else default


@dataclass(frozen=True)
class Processes:
    """Which process this is, and of how many. A single process sends no messages."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def started_by_torchrun(cls, device: torch.device) -> Processes:
        """Connect the processes that `torchrun` has started, GPUs by NCCL and CPUs by gloo."""
        processes = cls(torchrun("RANK", 0), torchrun("WORLD_SIZE", 1))
        if processes.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.rank == 0

    def require_divisible(self, flag: str, batch_size: int) -> None:
        """Raises:
        UserError: a batch, whose size `flag` sets, does not leave each process as many images, 2 or more.
        """
        if batch_size % self.world_size or batch_size < 2 * self.world_size:
            raise UserError(
                f"{flag} {batch_size} cannot be divided among {self.world_size} processes: "
                "choose a multiple, 2 images or more for each"
            )

    def shard(self, rows: Tensor) -> Tensor:
        """Every `world_size`-th row from row `rank` on: this process's part."""
        return rows[self.rank :: self.world_size]

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in the order that `shard` divided; an equal number from each."""
        if self.world_size == 1:
            return rows
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)

    @torch.no_grad()
    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors by their means over the processes, in one message."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten().to(tensors[0].dtype) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def end(self) -> None:
        """Leave the process group: no messages from here on."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Return when all processes have called this."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process runs the block before the others: it may have to download something for all."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """The value of the first process, in all of them; plain data or tensors on the CPU."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def freeze_unused(self, network: nn.Module, unused: Sequence[str]) -> None:
        """Freeze parameters that no loss reaches: the processes would wait for their gradients."""
        for name in unused if self.world_size > 1 else ():
            network.get_parameter(name).requires_grad_(False)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged in its backward pass. Its BatchNorm statistics are not: see
        `batch_statistics`."""
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():  # newer versions have another name for it
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


SINGLE_PROCESS = Processes()


def batch_statistics(network: nn.Module) -> list[Tensor]:
    """The running statistics of a network's layers: its floating-point buffers."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]
