"""The figures of the papers, by the runs that they belong to. Imports nothing heavy."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import NamedTuple

from datafree.networks.names import Pair
from datafree.results.read import FinishedRun
from datafree.settings import TABLE, as_dict, resolve

# Settings that may differ from the published ones without a star: they select the figure, or the data decide
# their value.
FREE = ("oh_step", "oh_memory_size", "images", "img_size", "flip")
SWEPT_DATASET, SWEPT_PAIR = "cifar10", "resnet34-resnet18"


class Sweep(NamedTuple):
    """A setting of DLW that the paper varies while it holds another."""

    title: str
    varied: str
    held: str
    value: float  # of the setting that is held
    x: list[float]  # values of the setting that is varied
    accuracy: list[float]  # at each


class Published:
    """The figures in `paper_results.json`."""

    def __init__(self) -> None:
        file = files("datafree.results") / "paper_results.json"
        self.figures = json.loads(file.read_text(encoding="utf-8"))
        sweeps = self.figures["hyperparameters_cifar10_resnet34_resnet18"]
        self.sweeps = {name: Sweep(**sweep) for name, sweep in sweeps.items()}

    def of(self, name: str, dataset: str, pair: Pair) -> float | None:
        """The figure of a method, by its name in the file; None if nothing was published."""
        if name not in self.figures.get(dataset, {}) or str(pair) not in self.figures["pairs"]:
            return None
        return self.figures[dataset][name][self.figures["pairs"].index(str(pair))]

    def of_run(self, run: FinishedRun) -> float | None:
        """The figure published for a run's method and networks; None if there is none."""
        method = run.config["method"]
        if run.variant != method:
            return None
        if method == "bsr" and (run.setting("oh_memory_size"), run.setting("oh_step")) != (8, 0.1):
            swept = (run.dataset, str(run.pair)) == (SWEPT_DATASET, SWEPT_PAIR)
            for sweep in self.sweeps.values() if swept else ():
                value = run.setting(sweep.varied)
                if run.setting(sweep.held) == sweep.value and value in sweep.x:
                    return sweep.accuracy[sweep.x.index(value)]
            return None
        name = self.figures["methods"].get(method, {}).get(self._steps(run))
        return self.of(name, run.dataset, run.pair) if name else None

    def text(self, run: FinishedRun) -> str:
        """The published figure for a cell of a table. A star marks runs with other settings than the
        published ones."""
        figure, method, teacher = self.of_run(run), run.config["method"], run.pair.teacher
        if figure is None:
            return "-"
        settings = {"method": method, "teacher": teacher, "g_steps": int(self._steps(run))}
        published = as_dict(resolve(settings)[0])
        if method in ("bsr", "fast_meta"):
            published["adv"] = self.figures["adv_of_bsr_and_fast_meta"].get(str(teacher), published["adv"])
        names = [name for name in TABLE if name in published and name not in FREE]
        same = all(run.config.get(name, published[name]) == published[name] for name in names)
        return number(figure) if same else f"{number(figure)}*"

    def _steps(self, run: FinishedRun) -> str:
        """The generator steps of the figure for a run: the only ones with a figure, else the run's own."""
        steps = list(self.figures["methods"].get(run.config["method"], ()))
        return steps[0] if len(steps) == 1 else str(run.setting("g_steps"))


def number(value: float | None) -> str:
    """A figure as a cell shows it."""
    return "-" if value is None else f"{value:.2f}"
