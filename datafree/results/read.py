"""Run folders as data, to be compared: which rows of a table they belong to. Imports nothing heavy."""

from __future__ import annotations

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
from datafree.runs.files import CONFIG, EXPORTED, METRICS, SUMMARY
from datafree.runs.schema import LISTS, config_of, metrics_of, read_json, read_text, summary_of
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

    def told(self, name: str) -> Any:
        """A fact of the data, or a setting, that `config.json` must tell for what is asked of the run.

        Raises:
            UserError: it does not.
        """
        if self.config.get(name) is None:
            raise UserError(f"{self.path}/{CONFIG} has no {name}: leave the run out")
        return self.config[name]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """A dictionary an epoch."""
        try:
            rows = metrics_of(read_text(self.path / METRICS))
            classes = self.config.get("classes")
            if any(
                len(row[name]) != len(classes) for row in rows for name in LISTS if classes and name in row
            ):
                raise ValueError("figures of other classes than there are")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} has no readable metrics ({error}): leave it out") from error
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
        last_fifth = rows[-math.ceil(len(rows) / 5) :]
        last = [row["test_top1"] for row in last_fifth if row.get("evaluated", True)] or [
            rows[-1]["test_top1"]
        ]
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
        on = [name for name in COMPONENTS if self.config.get(name)]
        off = [name for name in COMPONENTS if name not in on]
        word, listed = ("without", off) if method == "bsr" else ("with", on)
        text = method
        if listed:
            text += f" {word} {' and '.join(name.upper() for name in listed)}"
        elif self.config.get("store_samples") and not METHODS[method].stores:
            text += " with stored samples"
        if self.config.get("dlw") and self.setting("dlw_mode") != "dynamic":
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
        found = [config for config in found if not is_export(config)]
        if not found:
            raise UserError(f"no run in {path}: name a run folder, or a folder of some")
        for config in found:
            if (config.parent / SUMMARY).is_file():
                runs[config.parent.resolve()] = read_run(config.parent)
            else:
                unfinished.append(config.parent)
    return list(runs.values()), unfinished


def is_export(config: Path) -> bool:
    """Whether a `config.json` is that of an exported student, and not of a run."""
    try:
        return EXPORTED.items() <= read_json(config).items()
    except (OSError, ValueError, AttributeError):
        return False


def read_run(path: Path, finished: bool = True) -> Run:
    """A run's folder; `finished` says that it must be one that has come to its end.

    Raises:
        UserError: it is no run, or not finished.
    """
    try:
        config = config_of(read_json(path / CONFIG))
    except FileNotFoundError as error:
        raise UserError(f"{path} is no run: it has no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a run ({CONFIG}: {error}): leave it out") from error
    try:
        return Run(path, config, summary_of(read_json(path / SUMMARY)))
    except FileNotFoundError as error:
        if not finished:
            return Run(path, config, {})
        raise UserError(f"{path} is not finished: it has no {SUMMARY}; continue it with --resume") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a finished run ({SUMMARY}: {error}): leave it out"
        ) from error


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
