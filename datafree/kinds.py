"""What a setting is made of: the kind of its values, and its traits. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datafree.errors import did_you_mean

S = TypeVar("S")


@dataclass(frozen=True)
class Kind:
    """The values that a setting takes.

    Args:
        check: returns a Python value as the setting holds it; raises ValueError, with one line that says
            what is wrong, for a value that is not of this kind.
        read: turns a word of the command line into a value for `check`.
        switch: how a flag without a value works: "" (it has a value), "on" (`--flag`), or "on or off"
            (`--flag`, `--no-flag`).
        metavar: what stands for the value in help texts; None for the flag's name in capitals.
        values: the only values, where they are few.
        alone: what the flag means without a value, where it may have one.
        joined: what comes between several words, where the flag may have more than one, in the value.
    """

    check: Callable[[Any], Any]
    read: Callable[[str], Any] = str
    switch: str = ""
    metavar: str | None = None
    values: tuple[Any, ...] = ()
    alone: str | None = None
    joined: str | None = None

    def parse(self, text: str) -> Any:
        """A word of the command line as a value. Raises ValueError as `check` does."""
        return self.check(self.read(text))


def _number(whole: bool, what: str, low: float, *, above: bool = False, below: float = 2**63) -> Kind:
    def check(value: Any) -> Any:
        try:
            if isinstance(value, (str, bool)):
                raise TypeError
            number = operator.index(value) if whole else float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{value!r} is not {what}") from None
        if not abs(number) < below or number < low or (above and number == low):
            raise ValueError(f"{value} is not {what}")
        return number

    def read(text: str) -> Any:
        try:
            return int(text) if whole else float(text)
        except ValueError:
            return text  # which `check` refuses by name

    return Kind(check, read)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _folder(value: Any) -> str:
    if not _text(value):
        raise ValueError("a folder without a name: the one that you are in is called .")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither True nor False")
    return value


def _bytes(text: str) -> Any:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    unit = text[-2:].upper()
    number = NON_NEGATIVE.parse(text[:-2] if unit in units else text)
    return int(number * units.get(unit, 1))


def choice(what: str, known: Sequence[str]) -> Kind:
    """One of some names. For any other the nearest is suggested."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            hint = did_you_mean(str(value), known)
            raise ValueError(f"unknown {what} {value}{hint} (known: {' '.join(known)})")
        return value

    return Kind(check)


def few(*values: int) -> Kind:
    """One of a few numbers."""

    def check(value: Any) -> int:
        if value not in values:
            raise ValueError(f"{value} is not one of {', '.join(map(str, values))}")
        return int(value)

    return Kind(check, WHOLE.read, values=values)


WHOLE = _number(True, "a whole number", -(2**63))
COUNT = _number(True, "a whole number above 0", 0, above=True)
COUNT_OR_NONE = _number(True, "a whole number, 0 or more", 0)
POSITIVE = _number(False, "a number above 0", 0, above=True)
NON_NEGATIVE = _number(False, "a number, 0 or more", 0)
FRACTION = _number(False, "in [0, 1)", 0, below=1)
SIZE = Kind(COUNT_OR_NONE.check, _bytes, metavar="SIZE")
TEXT = Kind(_text)
FOLDER = Kind(_folder, metavar="DIR")
SWITCH = Kind(_switch, switch="on")
ON_OR_OFF = Kind(_switch, switch="on or off")


@dataclass(frozen=True)
class Traits:
    """What there is to know of a setting, beside its name, type and default.

    Args:
        kind: the values that it takes.
        help: what it means, for `--help` and docs/flags.md.
        identity: whether a run can only be continued with the same value.
        table: whether runs that differ in it are different rows of a table.
        library: whether `datafree.distill` takes it.
        weighs: whether it is the weight of a loss term of the synthesis.
        also: other names of its flag.
        default_text: the default in words, where None stands for it.
    """

    kind: Kind
    help: str
    identity: bool
    table: bool
    library: bool
    weighs: bool = False
    also: tuple[str, ...] = ()
    default_text: str = ""


def setting(
    default: Any,
    kind: Kind,
    help: str,
    *,
    identity: bool = True,
    table: bool = True,
    library: bool = True,
    weighs: bool = False,
    also: tuple[str, ...] = (),
    default_text: str = "",
) -> Any:
    """A field of a dataclass of settings; see `Traits`."""
    traits = Traits(kind, help, identity, table, library, weighs, also, default_text)
    return field(default=default, metadata={"traits": traits})


def weight(default: float, help: str) -> Any:
    """The weight of a loss term of the synthesis."""
    return setting(default, NON_NEGATIVE, help, weighs=True)


def option(default: Any, kind: Kind, help: str, **traits: Any) -> Any:
    """A setting that may change when a run is resumed, that no table compares and the library does not take,
    unless `traits` say otherwise."""
    return setting(default, kind, help, **{"identity": False, "table": False, "library": False, **traits})


@dataclass(frozen=True)
class Setting:
    """A setting as a dataclass of settings defines it."""

    name: str
    type: str  # the annotation
    default: Any
    group: str
    traits: Traits

    @property
    def flags(self) -> tuple[str, ...]:
        return (*self.traits.also, f"--{self.name}")

    @property
    def default_text(self) -> str:
        """The default in words; empty where there is nothing to say."""
        if self.default is None or self.default is False or self.default == "":
            return self.traits.default_text
        return str(self.default)


def settings_of(owner: type) -> list[Setting]:
    """The settings of a dataclass, group by group. The classes that it inherits from are the groups; `title`
    names each."""
    groups: dict[str, str] = {}
    for parent in reversed(owner.__mro__):
        if "title" in vars(parent):
            groups |= {one.name: vars(parent)["title"] for one in dataclasses.fields(parent)}
    return [
        Setting(one.name, str(one.type), one.default, groups[one.name], one.metadata["traits"])
        for one in dataclasses.fields(owner)
        if "traits" in one.metadata
    ]
