"""Networks as users name them: `resnet34`, `timm:NAME`, `torchvision:NAME`, `path/to/file.py:factory`."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datafree.errors import UserError, did_you_mean
from datafree.models import NAMES

Kind = Literal["own", "timm", "torchvision", "file", "several"]
AND = " + "  # between several teachers, and between their checkpoints and arguments
# Keyword arguments of networks that name pretrained weights.
WEIGHT_ARGUMENTS = (
    *("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("weights", "weights_backbone"),
)


@dataclass(frozen=True)
class NetworkName:
    """A network's name, parsed once. `str()` returns it as the user wrote it."""

    kind: Kind
    target: str  # name in this project or in the library; the factory in a file
    file: str = ""  # the Python file, of kind "file"
    parts: tuple[NetworkName, ...] = ()  # of kind "several"

    @classmethod
    def parse(cls, text: str) -> NetworkName:
        """Parse a name, or several joined by " + ".

        Raises:
            ValueError: the text is no network's name; the message is one line with a suggestion.
        """
        if AND in text and not (".py:" in text and Path(text.rpartition(":")[0]).is_file()):
            parts = tuple(cls.parse(part) for part in text.split(AND))
            return cls("several", AND.join(map(str, parts)), parts=parts)
        source, _, target = text.rpartition(":")
        if not source:
            target = re.sub(r"^wrn_(\d+_\d+)$", r"wrn\1", target)  # as RepDistiller writes it
            if target not in NAMES:
                hint = did_you_mean(target, NAMES)
                raise ValueError(f"unknown network {text}{hint} (known: {' '.join(NAMES)})")
            return cls("own", target)
        if target and source == "timm":
            return cls("timm", target)
        if target and source == "torchvision":
            return cls("torchvision", target)
        if target and source.endswith(".py"):
            return cls("file", target, source)
        raise ValueError(f"{text} is none of timm:NAME, torchvision:NAME, file.py:factory")

    def __str__(self) -> str:
        if self.kind in ("own", "several"):
            return self.target
        return f"{self.file or self.kind}:{self.target}"

    @property
    def stem(self) -> str:
        """The name as a part of a file name: all but letters, digits, `_` and `.` becomes `_`."""
        return re.sub(r"[^\w.]+", "_", str(self))

    @property
    def path(self) -> Path:
        """The Python file, of kind "file"."""
        return Path(self.file)


class Pair(NamedTuple):
    """The networks of a run."""

    teacher: NetworkName
    student: NetworkName

    def __str__(self) -> str:
        return f"{self.teacher}-{self.student}"

    @property
    def words(self) -> str:
        return f"{self.teacher} to {self.student}"


def parse_arguments(text: str | None, flag: str) -> dict[str, Any]:
    """Keyword arguments of a network: `{"width": 2, "act": "gelu"}` from `width=2,act=gelu`.

    Raises:
        UserError: a part has no `=`.
    """
    arguments: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"{flag} {text}: {part!r} is not name=value")
        try:
            arguments[name.strip()] = literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[name.strip()] = value.strip()
    return arguments


def without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those that name pretrained weights: nothing is downloaded or read for a network
    whose weights are in a checkpoint."""
    return {name: value for name, value in arguments.items() if name not in WEIGHT_ARGUMENTS}
