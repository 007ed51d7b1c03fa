"""What a run leaves as JSON, and what its readers may rely on: it is checked here once, when it is read. A
file may be of an earlier version, cut by a crash, or from a stranger. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datafree.networks.names import NetworkName
from datafree.settings import FIELDS

LONGEST, LONGEST_OBJECT = 64 << 20, 8 << 20  # bytes of a file, and of one JSON object
MOST_EPOCHS = 100_000
LONGEST_NAME = 1_000  # characters, of a class
LISTS = ("counts", "test_recall")  # metrics that are a figure for each class
LARGEST = 1e15  # of a figure
MOST_CLASSES = 100_000
SIZES = range(8, 2049)  # pixels a side
FOUND = ("mean", "std", "img_size", "flip")  # settings whose value in the end is a fact of the data
NAMED = ("teacher", "student", "method", "dataset")  # settings by which networks, methods and data are found


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


def config_of(content: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, with the facts of its data, as they are to be.

    Raises:
        ValueError: they are not.
    """
    for name in NAMED:
        _require(name, content.get(name), isinstance(content.get(name), str))
    for name in ("teacher", "student"):
        NetworkName.parse(content[name])
    for one in FIELDS:
        value = content.get(one.name)
        if value is None or one.name in (*FOUND, *NAMED):
            continue
        try:
            one.check(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{one.name} is {value!r:.80}: {error}") from None
    _require("seed", content.get("seed"), content.get("seed") is not None)
    classes, img_size = content.get("classes", []), content.get("img_size", SIZES[0])
    texts = isinstance(classes, list) and all(
        isinstance(name, str) and len(name) <= LONGEST_NAME for name in classes
    )
    _require("classes", classes, texts and len(classes) <= MOST_CLASSES)
    _require("img_size", img_size, type(img_size) is int and img_size in SIZES)
    mean, std = content.get("mean", [0.5]), content.get("std", [0.5])
    for name, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, list) and len(values) in (1, 3) and all(map(_is_figure, values))
        _require(name, values, numbers and len(values) == len(mean))
    _require("std", std, min(std) > 0)
    return content


def summary_of(content: dict[str, Any]) -> dict[str, Any]:
    """Final figures as they are to be.

    Raises:
        ValueError: they are not.
    """
    for name, value in content.items():
        _require(name, value, value is None or _is_figure(value) or name == "device")
    _require("last_top1", content.get("last_top1"), content.get("last_top1") is not None)
    return content


def metrics_of(text: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` as dictionaries; the last one, if a crash has cut it short, is left out.

    Raises:
        ValueError: a line is not as it is to be.
    """
    lines = [line for line in text.splitlines() if line]
    if lines and not text.endswith("\n"):
        lines.pop()
    _require("the number of lines", len(lines), len(lines) <= MOST_EPOCHS)
    rows = [_object(line) for line in lines]
    lengths: dict[str, int] = {}
    for row in rows:
        epoch = row.get("epoch")
        _require("epoch", epoch, type(epoch) is int and 0 <= epoch < LARGEST)
        _require("test_top1", row.get("test_top1"), row.get("test_top1") is not None)
        seconds = row.get("seconds")
        known = isinstance(seconds, dict) and all(map(_is_figure, seconds.values()))
        _require("seconds", seconds, known)
        for name, value in row.items():
            if name in LISTS:
                _require(name, value, isinstance(value, list) and _are_figures(value))
                _require(name, value, len(value) == lengths.setdefault(name, len(value)))
            elif name != "seconds":
                _require(name, value, value is None or _is_figure(value))
    return rows


def _are_figures(values: Iterable[Any]) -> bool:
    return all(value is None or _is_figure(value) for value in values)


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and -LARGEST < value < LARGEST  # which NaN is not


def _require(name: str, value: Any, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r:.80}")
