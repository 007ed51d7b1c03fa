"""Runs as a report shows them: each with a name, a colour and its metrics as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datafree.results import style
from datafree.results.read import FinishedRun
from datafree.results.stored import NoSamples, StoredSamples, read_samples


@dataclass(frozen=True)
class ReportRun:
    """A run, its name on the page and its colour."""

    run: FinishedRun
    name: str
    color: str

    def column(self, name: str) -> np.ndarray:
        """A metric by epoch; NaN where it is missing."""
        return np.array([np.nan if row.get(name) is None else row[name] for row in self.run.metrics], float)

    def has(self, name: str) -> bool:
        """Whether any epoch has the metric."""
        return bool(np.isfinite(self.column(name)).any())

    @property
    def epochs(self) -> np.ndarray:
        """The epochs of the metrics, counted from 1."""
        return np.array([row["epoch"] + 1 for row in self.run.metrics])

    @property
    def classes(self) -> list[str]:
        """Names of the classes for matplotlib, to which a dollar sign begins a formula."""
        shown = (
            "".join(c if c.isprintable() else "?" for c in name) for name in self.run.required("classes")
        )
        return [name.replace("$", r"\$") for name in shown]

    @cached_property
    def samples(self) -> StoredSamples | None:
        """None if the run left none."""
        try:
            return read_samples(self.run)
        except NoSamples:
            return None


def report_runs(runs: Sequence[FinishedRun]) -> list[ReportRun]:
    """Runs with different names and, up to ten runs, different colours. A name is method, pair and seed, with
    the folder's name where several runs share these."""
    names = [f"{run.variant}, {run.pair.words}, seed {run.seed}" for run in runs]
    return [
        ReportRun(
            run,
            name if names.count(name) == 1 else f"{name} ({run.path.resolve().name})",
            style.COLORS[place % len(style.COLORS)],
        )
        for place, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
