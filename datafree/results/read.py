"""Run folders read back as data, to be compared. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple

from datafree.errors import UserError
from datafree.methods import METHODS
from datafree.networks.names import NetworkName, Pair
from datafree.runs.files import CONFIG, EXPORTED, METRICS, SUMMARY
from datafree.settings import FIELDS, TABLE

COMPONENTS = ("dlw", "blg", "iho")
# Settings of kept runs that were tried and dropped, with their defaults.
DROPPED = {"label_conditional": False, "sampling": "uniform", "evict": "oldest", "refill": False}
DEFAULTS = {**{one.name: one.default for one in FIELDS}, **DROPPED}
NEEDED = {"teacher": str, "student": str, "method": str, "dataset": str, "seed": int}
LAST = {"test_top1": "last_top1", "holdout_agreement": "last_holdout_agreement"}  # by `judged_by`


class Measure(NamedTuple):
    """How tables and reports name a figure of a run."""

    heading: str  # of a column
    words: str  # where there is room
    pattern: str = "{:.2f}"  # of a figure


PROTOCOL = {  # by the names in `FinishedRun.figures`
    "last_fifth_mean": Measure("last fifth", "mean of the last fifth of the epochs"),
    "last_fifth_deviation": Measure("± epochs", "deviation over these epochs"),
    "best": Measure("best", "best epoch (chosen on test data)"),
    "best_minus_last": Measure("best - last", "best epoch minus last"),
    "last_test_agreement": Measure("test agreement", "agreement with the teacher on test images"),
}
BALANCE = {  # also by the names in `summary.json` and `metrics.jsonl`
    "count_variation": Measure("count variation", "variation of class counts", "{:.3f}"),
    "count_entropy": Measure("count entropy", "entropy of class counts", "{:.3f}"),
    "lof_relative_iqr": Measure("LOF spread", "LOF: IQR over median", "{:.3f}"),
    "lof_outside_share": Measure("LOF outside", "LOF: share outside the whiskers", "{:.3f}"),
    "margin": Measure("margin", "confidence margin", "{:.3f}"),
}
COST = {
    "images_made": Measure("made", "images generated", "{:,.0f}"),
    "images_stored": Measure("stored", "images stored at the end", "{:,.0f}"),
    "hours_synthesis": Measure("synthesis hours", "hours of synthesis"),
    "hours": Measure("hours", "hours in all"),
}


@dataclass(frozen=True)
class FinishedRun:
    """A run folder. `summary` is empty if the run is not finished yet, see `read_run`."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def dataset(self) -> str:
        return self.config["dataset"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def pair(self) -> Pair:
        """Teacher and student."""
        return Pair(NetworkName.parse(self.config["teacher"]), NetworkName.parse(self.config["student"]))

    def setting(self, name: str) -> Any:
        """A setting as resolved; its default if the run is older than the setting."""
        return self.config.get(name, DEFAULTS.get(name))

    def required(self, name: str) -> Any:
        """A property of the data or a setting.

        Raises:
            UserError: `config.json` does not have it.
        """
        if self.config.get(name) is None:
            raise UserError(f"{self.path}/{CONFIG} has no {name}: leave the run out")
        return self.config[name]

    @property
    def accurate(self) -> bool:
        """Whether the student was tested on real images. If not, the run has only its agreement with the
        teacher on held-out samples."""
        return self.metric == "test_top1"

    @property
    def metric(self) -> str:
        """The metric that evaluates the student: `test_top1` or `holdout_agreement`."""
        return self.config.get("judged_by", "test_top1")

    @property
    def last(self) -> float:
        """The student's accuracy (or agreement) after the last epoch, in percent."""
        return self.summary[LAST[self.metric]]

    @property
    def stores(self) -> bool:
        """Whether the student learned from stored samples."""
        return bool(self.config.get("store_samples", self.config["method"] in METHODS))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """A dictionary for each epoch.

        Raises:
            UserError: the file cannot be read, or no epoch is finished.
        """
        needed = {"epoch": int, self.metric: float, "seconds": dict}
        rows = _read(self.path / METRICS, needed, by_line=True)
        if not rows:
            raise UserError(f"{self.path} has not finished an epoch yet: wait for one")
        return rows

    @cached_property
    def figures(self) -> dict[str, float]:
        """Final figures by name: those of the summary, and those computed from the metrics. `images_made`
        counts all generated images, `images_stored` those in the repository at the end. The last fifth of
        the epochs matters because without data nobody can choose the best one."""
        found = {name: value for name, value in self.summary.items() if isinstance(value, (int, float))}
        best = "best_top1_chosen_on_test_data" if self.accurate else "best_holdout_agreement"
        if self.summary:
            found["last"] = self.last
        if best in found:
            found |= {"best": found[best], "best_minus_last": found[best] - self.last}
        if "seconds" in found:
            found["hours"] = found["seconds"] / 3600
        if not (self.path / METRICS).is_file():
            return found
        rows = self.metrics
        last_fifth = rows[-math.ceil(len(rows) / 5) :]
        last = [row[self.metric] for row in last_fifth if row.get("evaluated", True)]
        last = last or [rows[-1][self.metric]]
        found |= {"last_fifth_mean": mean(last), "last_fifth_deviation": pstdev(last)}
        if all("made" in row for row in rows):
            found["images_made"] = sum(row["made"] for row in rows)
        if self.stores and "repository" in rows[-1]:
            found["images_stored"] = rows[-1]["repository"]
        synthesis = [row["seconds"]["synthesis"] for row in rows if "synthesis" in row["seconds"]]
        if synthesis:
            found["hours_synthesis"] = sum(synthesis) / 3600
        return found

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


def find_runs(paths: Iterable[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The finished runs in these folders and below them, and the folders of unfinished ones.

    Raises:
        UserError: a folder is missing or contains no run, or a run's files cannot be read.
    """
    runs, unfinished = {}, []
    for path in paths:
        found = [path / CONFIG] if (path / CONFIG).is_file() else sorted(path.rglob(CONFIG))
        folders = [config.parent for config in found if not is_export(config)]
        if not folders:
            raise UserError(f"no run in {path}: name a run folder, or a folder that contains some")
        for folder in folders:
            if (folder / SUMMARY).is_file():
                runs[folder.resolve()] = read_run(folder)
            else:
                unfinished.append(folder)
    return list(runs.values()), unfinished


def is_export(config: Path) -> bool:
    """Whether a `config.json` belongs to an exported student, not to a run."""
    try:
        return EXPORTED.items() <= _read(config, {"format": str})[0].items()
    except UserError:
        return False


def read_run(path: Path, finished: bool = True) -> FinishedRun:
    """Read a run's folder.

    Args:
        path: the folder.
        finished: False to accept a run without `summary.json`.

    Raises:
        UserError: it is not a run, it is not finished, or a file cannot be read.
    """
    if not (path / CONFIG).exists():
        raise UserError(f"{path} is not a run: it has no {CONFIG}")
    run = FinishedRun(path, _read(path / CONFIG, NEEDED)[0], {})
    if run.metric not in LAST:
        raise UserError(f"{path / CONFIG}: judged_by is not one of {', '.join(LAST)}: leave the run out")
    if (path / SUMMARY).exists():
        run.summary.update(_read(path / SUMMARY, {LAST[run.metric]: float})[0])
    elif finished:
        raise UserError(f"{path} is not finished: it has no {SUMMARY}; continue it with --resume")
    return run


def _read(file: Path, needed: dict[str, type], by_line: bool = False) -> list[dict[str, Any]]:
    """The JSON object in a file, or those in its lines.

    Raises:
        UserError: it cannot be read, or something needed is missing or of another type.
    """
    try:
        text = file.read_text(encoding="utf-8")
        # A crash may have cut the last line.
        parts = text[: text.rfind("\n") + 1].splitlines() if by_line else [text]
        found = [json.loads(part) for part in parts if part or not by_line]
        for content in found:
            for name, kind in needed.items():
                if not isinstance(content[name], (int, float) if kind is float else kind):
                    raise TypeError(f"{name} is {content[name]!r:.80}")
        return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {file} ({error!r:.200}): leave the run out") from error


def differing(runs: Iterable[FinishedRun]) -> list[str]:
    """Names of the settings that differ among runs on the same data and networks."""
    values: dict[str, dict[tuple[str, Pair], set[str]]] = {
        name: defaultdict(set) for name in (*DROPPED, *TABLE)
    }
    for run in runs:
        for name, of_name in values.items():
            of_name[run.dataset, run.pair].add(str(run.setting(name)))
    return [name for name, of_name in values.items() if any(len(found) > 1 for found in of_name.values())]
