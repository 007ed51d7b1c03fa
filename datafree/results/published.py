"""The figures of the papers, by the runs that they belong to. Imports nothing heavy."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import NamedTuple

from datafree.networks.names import Pair
from datafree.results.read import FinishedRun
from datafree.settings import TABLE, as_dict, resolve

METHODS = {  # method: its name in paper_results.json
    "bsr": "BSR",
    "deepinv": "ADI (DeepInversion)",
    "dafl": "DAFL",
    "zskt": "ZSKT",
    "dfq": "DFQ",
}
METHODS_BY_STEPS = {  # method and g_steps: its name in paper_results.json
    ("fast_meta", 10): "FM10 (fast_meta, g_steps 10)",
    ("fast_meta", 5): "Fast-5",
    ("fast_meta", 2): "Fast-2",
    ("cmi", 500): "CMI-500",
}
# Generator steps behind the printed figures of the methods that have only one.
STEPS = {"bsr": 10, "deepinv": 2000, "dafl": 1, "zskt": 1, "dfq": 1}
# The weight of the adversarial loss in the published commands of bsr and fast_meta, by teacher.
ADV = {"resnet34": 1.33, "vgg11": 1.0, "wrn40_2": 1.1}
# Settings that may differ from the published ones without a star: they select the figure, or the data decide
# their value.
FREE = ("oh_step", "oh_memory_size", "images", "img_size", "flip")


class Sweep(NamedTuple):
    """A setting of DLW that the paper varies while it holds another."""

    title: str  # in paper_results.json
    varied: str
    held: str
    value: float  # of the setting that is held


SWEEPS = {
    "oh_memory_size": Sweep("oh_memory_size (mz)", "oh_memory_size", "oh_step", 0.1),
    "oh_step_coarse": Sweep("oh_step, coarse", "oh_step", "oh_memory_size", 8),
    "oh_step_fine": Sweep("oh_step, fine", "oh_step", "oh_memory_size", 8),
}
SWEPT_DATASET, SWEPT_PAIR = "cifar10", "resnet34-resnet18"


class Published:
    """The figures in `paper_results.json`."""

    def __init__(self) -> None:
        file = files("datafree.results") / "paper_results.json"
        self.figures = json.loads(file.read_text(encoding="utf-8"))

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
        if method == "bsr":
            swept = self._of_sweep(run)
            if swept is not None or (run.setting("oh_memory_size"), run.setting("oh_step")) != (8, 0.1):
                return swept
        name = METHODS.get(method) or METHODS_BY_STEPS.get((method, run.setting("g_steps")))
        return self.of(name, run.dataset, run.pair) if name else None

    def text(self, run: FinishedRun) -> str:
        """The published figure for a cell of a table. A star marks runs with other settings than the
        published ones."""
        figure = self.of_run(run)
        return number(figure) if figure is None or self._as_published(run) else f"{number(figure)}*"

    def sweep(self, name: str) -> tuple[list[float], list[float]]:
        """The values of the setting that a sweep varies, and the accuracy at each.

        Args:
            name: a key of SWEEPS.
        """
        points = self.figures["hyperparameters_cifar10_resnet34_resnet18"][SWEEPS[name].title]
        return points["x"], points["accuracy"]

    def _of_sweep(self, run: FinishedRun) -> float | None:
        if (run.dataset, str(run.pair)) != (SWEPT_DATASET, SWEPT_PAIR):
            return None
        for name, sweep in SWEEPS.items():
            values, accuracies = self.sweep(name)
            if run.setting(sweep.held) == sweep.value and run.setting(sweep.varied) in values:
                return accuracies[values.index(run.setting(sweep.varied))]
        return None

    @staticmethod
    def _as_published(run: FinishedRun) -> bool:
        method, teacher = run.config["method"], run.pair.teacher
        steps = STEPS.get(method, run.setting("g_steps"))
        published = as_dict(resolve({"method": method, "teacher": teacher, "g_steps": steps})[0])
        if method in ("bsr", "fast_meta"):
            published["adv"] = ADV.get(str(teacher), published["adv"])
        names = [name for name in TABLE if name in published and name not in FREE]
        return all(run.config.get(name, published[name]) == published[name] for name in names)


def number(value: float | None) -> str:
    """A figure as a cell shows it."""
    return "-" if value is None else f"{value:.2f}"
