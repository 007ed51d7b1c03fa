"""What goes wrong because of what the user gave, as opposed to a defect of this project."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line: what is wrong and what to do. Scripts print it and exit with status 2."""


class Damaged(UserError):
    """A file is not what was once written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`", did you mean wrn16_1?"` when a known name is close to `name`, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""


class Stopped(Exception):
    """The user, or the system, has asked the program to end; the text says how to go on.

    Args:
        text: one line.
        status: exit status of the program.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status
