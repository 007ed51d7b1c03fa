"""How tables and reports name the measures of a run. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """The names of a measure."""

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
