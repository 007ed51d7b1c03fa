"""The measures of a run as tables and reports show them. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """How a measure is called."""

    heading: str  # of a column
    words: str  # where there is room
    pattern: str = "{:.2f}"  # of a figure


PROTOCOL = {  # of `Run.figures`, what is told beside the last epoch's accuracy
    "last_fifth_mean": Measure("last fifth", "mean of the last fifth of the epochs"),
    "last_fifth_deviation": Measure("± epochs", "deviation over these epochs"),
    "best_top1_chosen_on_test_data": Measure("best", "best epoch (chosen on test data)"),
    "best_minus_last": Measure("best - last", "best epoch minus last"),
    "last_test_agreement": Measure("agreement", "agreement with the teacher on test images"),
}
COST = {
    "images_made": Measure("made", "images made", "{:,.0f}"),
    "images_stored": Measure("stored", "images stored at the end", "{:,.0f}"),
    "hours_synthesis": Measure("synthesis hours", "hours of synthesis"),
    "hours": Measure("hours", "hours in all"),
}
BALANCE = {  # the measures by their names in `summary.json` and `metrics.jsonl`
    "count_variation": Measure("count variation", "variation of class counts"),
    "count_entropy": Measure("count entropy", "entropy of class counts"),
    "lof_relative_iqr": Measure("LOF spread", "LOF: IQR over median"),
    "lof_outside_share": Measure("LOF outside", "LOF: share outside the whiskers"),
    "margin": Measure("margin", "confidence margin"),
}
