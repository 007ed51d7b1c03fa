"""Command lines from settings, and errors of one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from datafree.errors import Stopped, UserError, did_you_mean
from datafree.networks.names import AND
from datafree.settings import Setting, Switch, read, settings_of

_TORCHRUN = ": start the script with `torchrun --nproc_per_node N` instead"
_PROCESSES = ("multiprocessing_distributed", "world_size", "rank", "dist_url", "dist_backend")
INSTEAD = {  # of flags in published commands
    **{f"--{name}": _TORCHRUN for name in _PROCESSES},
    "--start_epoch": ": --resume continues where it stopped",
}


class Parser(argparse.ArgumentParser):
    """Dashes and underscores in flags are the same; errors are one line with exit status 2."""

    def __init__(self, description: str, epilog: str | None = None):
        super().__init__(
            description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.settings: dict[str, Setting] = {}

    def add_settings(self, owner: type) -> None:
        """Add a flag for each setting of a dataclass; see `given`."""
        self.settings = {one.name: one for one in settings_of(owner)}
        titles = dict.fromkeys(one.group for one in self.settings.values())
        groups = {title: self.add_argument_group(title) for title in titles}
        for name, one in self.settings.items():
            common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            options = {**common, "help": one.help.replace("%", "%%"), "nargs": one.nargs}
            options["metavar"] = {int: "N", float: "X", bool: "True|False"}.get(one.kind.__origin__)
            if one.kind == Switch:  # --flag, --flag True, --flag False, --no-flag
                off = {**common, "action": "store_const", "const": "False", "help": argparse.SUPPRESS}
                groups[one.group].add_argument(f"--no-{name}", **off)
                options |= {"nargs": "?", "const": "True"}
            elif one.nargs == "?":
                options["const"] = ""
            flags = [f"--{name}", one.also] if one.also else [f"--{name}"]
            groups[one.group].add_argument(*flags, **options)

    def given(self, words: Sequence[str] | None = None) -> dict[str, Any]:
        """The settings on the command line, by name, and no others."""
        found = {}
        for name, value in vars(self.parse_args(words)).items():
            word = AND.join(value) if isinstance(value, list) else value
            try:
                found[name] = read(word, self.settings[name].kind)
            except ValueError as error:
                self.error(f"--{name}: {error}")
        return found

    def parse_args(  # type: ignore[override]  # argparse has the same signature as three overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        words = map(_underscored, sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(list(words), namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = INSTEAD.get(flag) or did_you_mean(flag, self._option_string_actions) or "; see --help"
            self.error(f"unknown argument {unknown[0]}{hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _underscored(word: str) -> str:
    """A flag as it is registered: `--batch-size=3` is `--batch_size=3`, and `--no_dlw` is `--no-dlw`."""
    name, equals, value = word.partition("=")
    if name[:2] != "--":
        return word
    return re.sub("^--no_", "--no-", "--" + name[2:].replace("-", "_")) + equals + value


def argument(kind: Any) -> Callable[[str], Any]:
    """A type of settings, such as `Count`, as the `type` of an argument."""

    def parse(word: str) -> Any:
        try:
            return read(word, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _open_streams() -> None:
    """Make printing safe: open closed streams, so that no other file takes their number, and write letters
    that the terminal cannot show by their code."""
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        handle = os.dup(handle)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 (stays open)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[], None]) -> NoReturn:
    """Call a command's function and exit. Errors of the user are one line on stderr, with status 2."""
    _open_streams()
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot be imported with an unknown name here
    line, status = "", 0
    try:
        main()
    except UserError as error:
        line, status = f"error: {error}", 2
    except Stopped as stopped:
        line, status = str(stopped), stopped.status  # without a text in all processes but one
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        line, status = f"error: {error}: free space, or choose another folder", 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        line, status = "error: out of memory: lower --batch_size or --img_size", 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    sys.stdout.flush()
    if line:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)
