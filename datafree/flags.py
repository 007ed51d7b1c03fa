"""Command-line parsing that both scripts share; imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from datafree.errors import Stopped, UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """Dashes and underscores in option names are the same; errors are one line with status 2."""

    def __init__(self, description: str, epilog: str | None = None):
        super().__init__(
            description=description, epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=False
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse; `given` in the result is the set of the destinations named on the command line."""
        registered = {_canonical(name): name for name in self._option_string_actions}
        tokens, given = [], set()
        for token in sys.argv[1:] if args is None else args:
            name, equals, value = token.partition("=")
            if name.startswith("--") and _canonical(name) in registered:
                name = registered[_canonical(name)]
                token = name + equals + value
            if name in self._option_string_actions:
                given.add(self._option_string_actions[name].dest)
            tokens.append(token)
        parsed, unknown = self.parse_known_args(tokens, namespace)
        if unknown:
            hint = did_you_mean(_canonical(unknown[0]), registered)
            self.error(f"unknown argument {unknown[0]}{hint or '; see --help'}")
        parsed.given = given
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Appends the default to every help text that has one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        shown = default is not None and default is not False and default not in ("", argparse.SUPPRESS)
        return (action.help or "") + (" (default: %(default)s)" if shown else "")


def _canonical(option: str) -> str:
    return "--" + option.partition("=")[0].lstrip("-").replace("-", "_")


def _bounded(kind: type, low: float, strict: bool, what: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not abs(value) < 2**63 or value < low or (strict and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


positive_int = _bounded(int, 0, True, "a whole number above 0")
non_negative_int = _bounded(int, 0, False, "a whole number, 0 or more")
positive_float = _bounded(float, 0, True, "a number above 0")
non_negative_float = _bounded(float, 0, False, "a number, 0 or more")


def fraction(text: str) -> float:
    value = non_negative_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def memory_size(text: str) -> int:
    """Bytes, from a number with an optional KB, MB or GB (powers of 1,000)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    unit = text[-2:].upper()
    number = non_negative_float(text[:-2] if unit in units else text)
    return int(number * units.get(unit, 1))


def one_of(what: str, known: Sequence[str]) -> Callable[[str], str]:
    """A type that takes one of the names and suggests the nearest for any other."""

    def parse(text: str) -> str:
        if text not in known:
            hint = did_you_mean(text, known)
            raise argparse.ArgumentTypeError(f"unknown {what} {text}{hint} (known: {' '.join(known)})")
        return text

    return parse


def is_foreign(name: str) -> bool:
    """Whether a network is none of this project's: `timm:NAME`, `torchvision:NAME`, `file.py:factory`."""
    return ":" in name


def of_file(name: str) -> bool:
    """Whether a network is made by code of the user's own, which is run to make it."""
    return is_foreign(name) and name.rpartition(":")[0] not in ("timm", "torchvision")


def network_name(known: Sequence[str]) -> Callable[[str], str]:
    """A type that takes one of this project's networks, or one of others."""
    own = one_of("network", known)

    def parse(text: str) -> str:
        if not is_foreign(text):
            return own(text)
        source, _, name = text.rpartition(":")
        if not name or not (source in ("timm", "torchvision") or source.endswith(".py")):
            kinds = "timm:NAME, torchvision:NAME, file.py:factory"
            raise argparse.ArgumentTypeError(f"{text} is none of {kinds}")
        return text

    return parse


def add_device_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gpu", type=non_negative_int, help="number of the GPU to use")
    group.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    group.add_argument(
        "-j", "--workers", type=non_negative_int, default=4, help="threads that decode image files"
    )


def add_sgd_flags(group: argparse._ArgumentGroup) -> None:
    """Of the scripts that train on real images."""
    group.add_argument("--lr", type=positive_float, default=0.1, help="learning rate (SGD, cosine to 0)")
    group.add_argument("--momentum", type=fraction, default=0.9, help="momentum of SGD")
    group.add_argument(
        "--wd",
        "--weight_decay",
        dest="weight_decay",
        type=non_negative_float,
        default=1e-4,
        help="weight decay",
    )
    group.add_argument("--seed", type=non_negative_int, default=0, help="seed of everything random")


def add_data_flags(group: argparse._ArgumentGroup, datasets: Sequence[str], dataset: str) -> None:
    group.add_argument(
        "--dataset", type=one_of("dataset", datasets), default=dataset, help=f"one of {', '.join(datasets)}"
    )
    group.add_argument(
        "--data_root", default="data", help="folder with the data; torchdata/ below it is searched too"
    )
    group.add_argument("--download", action="store_true", help="fetch cifar10, cifar100 or svhn if absent")
    group.add_argument(
        "--mean",
        help="what the teacher's input is normalised with: three numbers "
        "0.49,0.48,0.45, or a dataset's name, which sets --std too",
    )
    group.add_argument("--std", help="standard deviation, likewise")
    group.add_argument(
        "--img_size", type=positive_int, help="pixels a side, a multiple of 4; the dataset's own by default"
    )
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mirror images at random; on by default except for digits and svhn",
    )


def run(main: Callable[[], None], prog: str) -> NoReturn:
    """Call a script's main function; a UserError becomes one line on stderr and status 2."""
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        sys.stdout.flush()
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
