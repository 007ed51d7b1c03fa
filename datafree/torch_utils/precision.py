"""Half precision, TF32, reproducible kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # capabilities of CPUs that compute with it
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # `--amp`
Autocast = Callable[[], AbstractContextManager]


def found_precision(amp: str, device: torch.device) -> str:
    """`--amp`, with auto replaced by bf16 if the device computes with it, else by off."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    able: dict = getattr(torch.cpu, "get_capabilities", dict)()  # absent in early versions of torch
    return "bf16" if any(able.get(name) for name in BF16) else "off"


def autocast(amp: str, device: torch.device) -> Autocast:
    """Contexts in which networks run forward at the precision `amp`, a key of AMP."""
    return partial(torch.autocast, device.type, AMP[amp], enabled=AMP[amp] is not None)


def at_least_single(values: Tensor) -> Tensor:
    """Half precision as float32, for losses."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def set_kernels(deterministic: bool) -> None:
    """On CUDA, use TF32 and the fastest kernels, or else kernels with equal results every time."""
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
