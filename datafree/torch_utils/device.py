"""The device of a command."""

from __future__ import annotations

import torch

from datafree.errors import UserError
from datafree.torch_utils.distributed import torchrun


def choose_device(device: str | None, gpu: int | None) -> torch.device:
    """`--device` if given, else GPU number `--gpu` if given, else a GPU if there is one, else the CPU; under
    `torchrun` each process its own GPU.

    Raises:
        UserError: there is no such device, or several processes would share it.
    """
    name = device or (f"cuda:{gpu}" if gpu is not None else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name}: use cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return chosen
    if chosen.index is not None and torchrun("LOCAL_WORLD_SIZE", 1) > 1:
        raise UserError(f"all processes would share {name}: leave out --gpu, or give --device cuda")
    # The number as written: torch.device keeps it in eight bits.
    index = torchrun("LOCAL_RANK", 0) if chosen.index is None else int(name.partition(":")[2])
    if not 0 <= index < torch.cuda.device_count():
        raise UserError(
            f"no device cuda:{index}: {torch.cuda.device_count()} GPUs are visible; try --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
