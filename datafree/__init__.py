"""Data-free knowledge distillation with a balanced sample repository (BSR).

    student, record = datafree.distill(teacher, student, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
"""

from __future__ import annotations

from typing import Any

__all__ = ["distill"]


def __getattr__(name: str) -> Any:
    """`distill`, with all that it imports, when it is first asked for."""
    if name == "distill":
        from datafree.api import distill

        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
