"""Run folders as data, to be compared: which rows of a table they belong to. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from datafree.errors import UserError
from datafree.methods import METHODS
from datafree.networks.names import NetworkName, Pair
from datafree.runs.files import CONFIG, METRICS, SUMMARY
from datafree.settings import FIELDS, TABLE

COMPONENTS = ("dlw", "blg", "iho")
DEFAULTS = {one.name: one.default for one in FIELDS}


@dataclass(frozen=True)
class Run:
    """A run folder. `summary` is empty in one that is not finished."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def dataset(self) -> str:
        return self.config["dataset"]

    @cached_property
    def pair(self) -> Pair:
        """Teacher and student."""
        return Pair(NetworkName.parse(self.config["teacher"]), NetworkName.parse(self.config["student"]))

    def setting(self, name: str) -> Any:
        """A setting as it was resolved; the default in a run that is older than the setting."""
        return self.config.get(name, DEFAULTS.get(name))

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """A dictionary an epoch."""
        try:
            if not (self.path / METRICS).is_file():
                raise FileNotFoundError(METRICS)
            text = (self.path / METRICS).read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
            for row in rows:
                seconds = row["seconds"].values()
                if not all(isinstance(v, (int, float)) for v in (row["epoch"], row["test_top1"], *seconds)):
                    raise TypeError("a figure that is no number")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.path} has no readable metrics ({error!r}): leave it out") from error
        if not rows:
            raise UserError(f"{self.path} has not finished an epoch yet: wait for one")
        return rows

    @cached_property
    def figures(self) -> dict[str, float]:
        """Final figures by name, without those that the run does not have: those of the summary, and those
        that follow from the metrics. Made are all images that the generator made, stored those in the
        repository at the end; the last fifth of the epochs is of interest because without data nobody can
        choose the best one."""
        found = {name: value for name, value in self.summary.items() if isinstance(value, (int, float))}
        if "best_top1_chosen_on_test_data" in found:
            found["best_minus_last"] = found["best_top1_chosen_on_test_data"] - found["last_top1"]
        if "seconds" in found:
            found["hours"] = found["seconds"] / 3600
        if not (self.path / METRICS).is_file():
            return found
        rows = self.metrics
        last = [row["test_top1"] for row in rows[-math.ceil(len(rows) / 5) :]]
        found |= {"last_fifth_mean": mean(last), "last_fifth_deviation": pstdev(last)}
        if all("made" in row for row in rows):
            found["images_made"] = sum(row["made"] for row in rows)
        if self.stores and "repository" in rows[-1]:
            found["images_stored"] = rows[-1]["repository"]
        if any("synthesis" in row["seconds"] for row in rows):
            found["hours_synthesis"] = sum(row["seconds"].get("synthesis", 0.0) for row in rows) / 3600
        return found

    @property
    def accurate(self) -> bool:
        """Whether the student was tested on real images, or else by its agreement with the teacher."""
        return self.config.get("judged_by") != "agreement"

    @property
    def stores(self) -> bool:
        """Whether the student learned from samples that were kept."""
        return bool(self.config.get("store_samples", self.config["method"] in METHODS))

    @property
    def variant(self) -> str:
        """Method and components: `bsr`, `bsr without BLG and IHO`, `dafl with DLW`."""
        method = self.config["method"]
        if method not in METHODS:
            return method
        on = [name for name in COMPONENTS if self.config[name]]
        off = [name for name in COMPONENTS if name not in on]
        word, listed = ("without", off) if method == "bsr" else ("with", on)
        text = method
        if listed:
            text += f" {word} {' and '.join(name.upper() for name in listed)}"
        elif self.config.get("store_samples") and not METHODS[method].stores:
            text += " with stored samples"
        if self.config["dlw"] and self.config["dlw_mode"] != "dynamic":
            text += f", {self.config['dlw_mode']}"
        return text if self.accurate else f"{text}, agreement"


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs among these folders and those below them, and the folders of unfinished ones.

    Raises:
        UserError: a folder is missing, or holds no run at all, or a run's files cannot be read.
    """
    runs, unfinished = {}, []
    for path in paths:
        own = path / CONFIG
        found = [own] if own.is_file() else sorted(path.rglob(own.name))
        if not found:
            raise UserError(f"no run in {path}: name a run folder, or a folder of some")
        for config in found:
            if (config.parent / SUMMARY).is_file():
                runs[config.parent.resolve()] = read_run(config.parent)
            else:
                unfinished.append(config.parent)
    return list(runs.values()), unfinished


def read_run(path: Path, finished: bool = True) -> Run:
    """A run's folder; `finished` says that it must be one that has come to its end.

    Raises:
        UserError: it is no run, or not finished.
    """
    try:
        summary: dict[str, Any] = {}
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        run = Run(path, config, summary)
        _check(config)
        if finished or (path / SUMMARY).is_file():
            summary.update(json.loads((path / SUMMARY).read_text(encoding="utf-8")))
            figures = [value for name, value in summary.items() if name != "device"]
            if not all(isinstance(value, (int, float, type(None))) for value in figures):
                raise TypeError("a figure that is no number")
            float(summary["last_top1"])
    except FileNotFoundError as error:
        if (path / CONFIG).is_file():
            raise UserError(
                f"{path} is not finished: it has no {SUMMARY}; continue it with --resume"
            ) from error
        raise UserError(f"{path} is no run: it has no {CONFIG}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        kind = "a finished run" if finished else "a run"
        raise UserError(f"{path} cannot be read as {kind} ({error!r}): leave it out") from error
    return run


def _check(config: dict[str, Any]) -> None:
    """See that a configuration, which may come from anywhere, is of the kinds that are relied on.

    Raises:
        TypeError, ValueError: it is not.
    """
    kinds = {"dataset": str, "teacher": str, "student": str, "method": str, "seed": int}
    optional = {"img_size": int, "classes": list, "mean": list, "std": list, "epochs": int, "dlw_mode": str}
    for name, kind in (kinds | {name: kind for name, kind in optional.items() if name in config}).items():
        if not isinstance(config[name], kind):
            raise TypeError(f"{name} is {config[name]!r}")
    for name in ("teacher", "student"):
        NetworkName.parse(config[name])
    for name, kind in (("classes", str), ("mean", float), ("std", float)):
        if not all(isinstance(value, kind) for value in config.get(name, [])):
            raise TypeError(f"{name} is {config[name]!r}")
    for name in COMPONENTS if config["method"] in METHODS else ():
        if not isinstance(config[name], bool) or (config["dlw"] and "dlw_mode" not in config):
            raise TypeError(f"{name} is {config[name]!r}")


def labels(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by row of a table: the variant, and the settings in which runs of one variant on the same data and
    networks differ."""
    by_variant: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_variant[run.variant].append(run)
    rows: dict[str, list[Run]] = defaultdict(list)
    for variant, members in by_variant.items():
        names = differing(members)
        for run in members:
            shown = ", ".join(f"{name} {run.setting(name)}" for name in names)
            rows[f"{variant} ({shown})" if shown else variant].append(run)
    return dict(rows)


def differing(runs: Iterable[Run]) -> list[str]:
    """Names of the settings in which runs on the same data and networks differ."""
    values: dict[tuple[str, str, Pair], set[str]] = defaultdict(set)
    for run in runs:
        for name in TABLE:
            values[name, run.dataset, run.pair].add(str(run.setting(name)))
    found = {name for (name, *_), different in values.items() if len(different) > 1}
    return [name for name in TABLE if name in found]
