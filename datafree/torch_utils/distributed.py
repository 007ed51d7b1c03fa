"""Several processes that work as one, on PyTorch's distributed engine (`torchrun`)."""

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


def torchrun(name: str, alone: int) -> int:
    """A number that `torchrun` tells the processes that it starts; `alone` in a process that it has not
    started, whatever other programs have left in the environment.

    Raises:
        UserError: it is no such number.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return alone
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r} in the environment, which torchrun sets to a number: start anew")
    return int(text)


@dataclass(frozen=True)
class Processes:
    """Which process this is, and of how many; a process alone needs no engine and no messages."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def started_by_torchrun(cls, device: torch.device) -> Processes:
        """Join the others that `torchrun` has started; alone without it. NCCL connects GPUs, gloo CPUs.

        Raises:
            UserError: the environment tells of no such processes.
        """
        processes = cls(torchrun("RANK", 0), torchrun("WORLD_SIZE", 1))
        if processes.rank >= processes.world_size:
            raise UserError(f"RANK {processes.rank} is beyond WORLD_SIZE {processes.world_size}: start anew")
        if processes.world_size > 1 and not dist.is_initialized():
            try:
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            except ValueError as error:  # of MASTER_ADDR or MASTER_PORT
                raise UserError(f"cannot join the other processes ({error}): start anew") from error
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
        """Every `world_size`-th row, beginning with row `rank`: this process's part of what all have."""
        return rows[self.rank :: self.world_size]

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all, put together as `shard` divides them; the same number from each."""
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
        """Replace tensors by the first process's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def end(self) -> None:
        """Take leave of the others: no messages from here on."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Return when all have come this far."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process runs the block before the others do: it may have to fetch something for all."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """What the first process gives, in all of them; plain data or tensors on the CPU."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """What each process gives, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def freeze_unused(self, network: nn.Module, unused: Sequence[str]) -> None:
        """Freeze parameters that no loss reaches, which the processes would wait for; they stay as they are
        in a process alone, too."""
        for name in unused if self.world_size > 1 else ():
            network.get_parameter(name).requires_grad_(False)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged in its backward pass; its BatchNorm statistics stay each
        process's own until `average` is asked for them."""
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():  # newer versions have another name for it
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


SINGLE_PROCESS = Processes()


def batch_statistics(network: nn.Module) -> list[Tensor]:
    """The running statistics of a network's layers: its floating-point buffers."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]
