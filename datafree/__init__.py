"""Data-free knowledge distillation with a balanced sample repository (BSR).

student, metrics = datafree.distill(teacher, student, img_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
student = datafree.load_student("run/.../student.pth")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.api import distill
    from datafree.networks.student_file import load_student

__all__ = ["distill", "load_student"]


def __getattr__(name: str) -> Any:
    """The library, with all that it imports, when it is first asked for."""
    if name == "distill":
        from datafree.api import distill

        return distill
    if name == "load_student":
        from datafree.networks.student_file import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
