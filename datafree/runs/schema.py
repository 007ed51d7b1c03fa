"""Reading JSON and text files of runs. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

LONGEST, LONGEST_OBJECT = 64 << 20, 8 << 20  # bytes of a file, and of one JSON object


def read_text(file: Path, errors: str = "strict", longest: int = LONGEST) -> str:
    """The text of a regular file; a pipe, say, would never end.

    Args:
        errors: what to do about bytes that are no text, as of `bytes.decode`.
        longest: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it cannot be read, or is no text of a sensible size.
    """
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError(f"{file.name} is no file")
        data = opened.read(longest + 1)
    if len(data) > longest:
        raise ValueError(f"{file.name} is longer than {longest} bytes")
    return data.decode("utf-8", errors)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it cannot be read, or is something else.
    """
    return _object(read_text(file, longest=LONGEST_OBJECT))


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content
