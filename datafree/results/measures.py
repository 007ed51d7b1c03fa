"""The balance measures of a run as tables and reports show them. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """How a measure is called."""

    heading: str  # of a column
    words: str  # where there is room


BALANCE = {  # the measures by their names in `summary.json` and `metrics.jsonl`
    "count_variation": Measure("count variation", "variation of class counts"),
    "count_entropy": Measure("count entropy", "entropy of class counts"),
    "lof_relative_iqr": Measure("LOF spread", "LOF: IQR over median"),
    "lof_outside_share": Measure("LOF outside", "LOF: share outside the whiskers"),
    "margin": Measure("margin", "confidence margin"),
}
