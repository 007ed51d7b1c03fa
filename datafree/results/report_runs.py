"""Runs as a report shows them: each with a name, a colour and its metrics as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datafree.results import style
from datafree.results.read import Run
from datafree.results.stored import NoSamples, StoredSamples, read_samples


@dataclass(frozen=True)
class ReportRun:
    """A run, its name on the page and its colour."""

    run: Run
    name: str
    color: str

    def column(self, name: str) -> np.ndarray:
        """A metric by epoch, NaN where there is none."""
        return np.array([np.nan if row.get(name) is None else row[name] for row in self.run.metrics], float)

    def has(self, name: str) -> bool:
        """Whether a metric is there in any epoch."""
        return bool(np.isfinite(self.column(name)).any())

    @property
    def epochs(self) -> np.ndarray:
        """The epochs of the metrics, counted from 1."""
        return np.array([row["epoch"] + 1 for row in self.run.metrics])

    @property
    def classes(self) -> list[str]:
        """Names as matplotlib can show them: a dollar sign begins no formula."""
        shown = ("".join(c if c.isprintable() else "?" for c in name) for name in self.run.told("classes"))
        return [name.replace("$", r"\$") for name in shown]

    @cached_property
    def samples(self) -> StoredSamples | None:
        """None of a run that left none."""
        try:
            return read_samples(self.run)
        except NoSamples:
            return None


def report_runs(runs: Sequence[Run]) -> list[ReportRun]:
    """Runs with different names and, up to ten runs, different colours."""
    return [
        ReportRun(run, name, style.COLORS[place % len(style.COLORS)])
        for place, (run, name) in enumerate(zip(runs, unique_names(runs), strict=True))
    ]


def unique_names(runs: Sequence[Run]) -> list[str]:
    """Method, pair and seed; the folder's name where that is not enough to tell runs apart."""
    names = [f"{run.variant}, {run.pair.words}, seed {run.seed}" for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.path.resolve().name})"
        for name, run in zip(names, runs, strict=True)
    ]
