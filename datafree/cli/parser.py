"""Command lines made from settings, and errors of one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from datafree.errors import Stopped, UserError, did_you_mean
from datafree.kinds import Kind, Setting, settings_of

_TORCHRUN = ": start the script with `torchrun --nproc_per_node N` instead"
INSTEAD = {  # of flags that published commands have
    **dict.fromkeys(("--multiprocessing_distributed", "--world_size", "--rank"), _TORCHRUN),
    **dict.fromkeys(("--dist_url", "--dist_backend"), _TORCHRUN),
    "--start_epoch": ": --resume continues where it stopped",
    "--images": ": it is called --transfer_set",
}


class Parser(argparse.ArgumentParser):
    """Dashes and underscores in the names of flags are the same; errors are one line with exit status 2."""

    def __init__(self, description: str, epilog: str | None = None):
        self._spellings: dict[str, str] = {}  # a flag with underscores: as it is registered
        self._opposites: dict[str, list[str]] = {}  # a flag without a value: what "False" behind it means
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        return self._known(super().add_argument(*names, **options))

    def add_settings(self, owner: type) -> None:
        """Add a flag for each setting of a dataclass, in its groups. What is parsed holds the settings that
        were given, and no others."""
        groups: dict[str, Any] = {}
        for setting in settings_of(owner):
            if setting.group not in groups:
                groups[setting.group] = self.add_argument_group(setting.group)
            self._known(
                groups[setting.group].add_argument(
                    *setting.flags,
                    dest=setting.name,
                    default=argparse.SUPPRESS,
                    help=_help(setting),
                    **_value(setting.traits.kind),
                )
            )

    def _known(self, action: argparse.Action) -> argparse.Action:
        names = [name for name in action.option_strings if name[:2] == "--"]
        self._spellings |= {_canonical(name): name for name in names}
        if action.nargs == 0 and action.dest != "help":
            self._opposites[names[0]] = names[1:]  # `--no-` and the name, or nothing
        return action

    def given(self, words: Sequence[str] | None = None) -> dict[str, Any]:
        """The settings that the command line gives, by name."""
        return vars(self.parse_args(words))

    def parse_args(  # type: ignore[override]  # argparse's overloads say the same in three parts
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if word in ("True", "False") and words and words[-1] in self._opposites:
                if word == "False":  # `--test_teacher False`, as published commands have it
                    words[-1:] = self._opposites[words[-1]]
                continue
            name, equals, value = word.partition("=")
            words.append(self._spelled(name) + equals + value)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flag = _canonical(unknown[0].partition("=")[0])
            hint = INSTEAD.get(flag) or did_you_mean(flag, self._spellings) or "; see --help"
            self.error(f"unknown argument {unknown[0]}{hint}")
        return parsed

    def _spelled(self, name: str) -> str:
        """A flag as it is registered: with dashes or underscores, or cut short where that leaves no doubt."""
        canonical = _canonical(name)
        if canonical in self._spellings or name[:2] != "--" or len(name) < 4:
            return self._spellings.get(canonical, name)
        longer = [own for spelled, own in self._spellings.items() if spelled.startswith(canonical)]
        return longer[0] if len(longer) == 1 else name

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _canonical(word: str) -> str:
    return "--" + word[2:].replace("-", "_") if word[:2] == "--" else word


def _help(setting: Setting) -> str:
    default = f" (default: {setting.default_text})" if setting.default_text else ""
    return (setting.traits.help + default).replace("%", "%%")


def _value(kind: Kind) -> dict[str, Any]:
    """How argparse reads values of a kind."""
    if kind.switch == "on":
        return {"action": "store_true"}
    if kind.switch == "on or off":
        return {"action": argparse.BooleanOptionalAction}
    options: dict[str, Any] = {"type": argument(kind), "metavar": kind.metavar}
    if kind.values:
        options["metavar"] = "{" + ",".join(map(str, kind.values)) + "}"
    if kind.alone is not None:
        options |= {"nargs": "?", "const": kind.alone}
    if kind.joined is not None:
        options |= {"nargs": "+", "action": _Join, "type": str, "const": kind}
    return options


class _Join(argparse.Action):
    """Several words are one value, put together as the kind, its `const`, says."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            setattr(namespace, self.dest, self.const.parse(self.const.joined.join(values)))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def argument(kind: Kind) -> Callable[[str], Any]:
    """A kind as the `type` of an argument."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _open_streams() -> None:
    """Whatever the console is, what is said does not stop a command. A stream that is closed takes all, lest
    a file that is opened gets its number; a letter that a terminal does not know is written by its code."""
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        handle = os.dup(handle)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 (kept)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[], None]) -> NoReturn:
    """Call a command's function. A UserError becomes one line on stderr and exit status 2."""
    prog = os.path.basename(sys.argv[0])
    _open_streams()
    os.environ["MPLBACKEND"] = "agg"  # matplotlib would not be imported with a name that it does not know
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        sys.stdout.flush()
        if str(stopped):  # one of several processes tells
            print(f"{prog}: {' '.join(str(stopped).split())}", file=sys.stderr)
        sys.exit(stopped.status)
    except BrokenPipeError:  # the reader of our output went away: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        print(f"{prog}: error: {error}: free space, or choose another place", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print(f"{prog}: error: out of memory: lower --batch_size or --img_size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
