"""Reports: one page on a run or on several."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import succeed
from helpers import samples, write_metrics, write_run

from datafree.repository import SampleRepository
from datafree.results.read import read_run
from datafree.results.report import summary_table
from datafree.results.report_figures import ReportRun, factors_figure, samples_figure
from datafree.results.stored import StoredSamples
from datafree.runs.files import SAMPLES
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint

# Names that would be a formula, markup, another alphabet, and nothing that a font has.
NAMES = [r"$\foo$", "<b>bold</b>", "données", "\ud800\x00 \t"]


def report(folder, *args):
    succeed("show_result/report.py", *args, "--output", folder / "report.html", cwd=folder)
    return (folder / "report.html").read_text()


class Text(HTMLParser):
    """The words of a page, its references, and how many settings it marks."""

    def __init__(self, page):
        super().__init__()
        self.words, self.references, self.marked = [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.marked += ("class", "differs") in attrs

    def handle_data(self, data):
        self.words.append(data.strip())


def write_shown_run(folder, classes=10, epochs=3, method="bsr"):
    """A run with samples."""
    names = [*NAMES, *(f"class {k}" for k in range(4, classes))]
    data = {"img_size": 8, "classes": names, "mean": [0.5] * 3, "std": [0.5] * 3}
    write_run(folder, 0, 50.0, method=method, epochs=epochs, device="cpu", **data)
    counts = np.random.default_rng(0).integers(0, 30, (epochs, classes))
    losses = {"loss_kd": None, "loss_oh": 1.0, "loss_bn": 1.0, "loss_adv": 0.0}
    more = {"margin": 0.5, "repository": 5, "seconds": {"kd": 1.0}, "test_recall": [50.0] * classes}
    rows = [
        {"alpha": 0.5 + e / 10, "test_top1": 10.0 + e, "counts": counts[e].tolist(), **losses, **more}
        for e in range(epochs)
    ]
    write_metrics(folder, rows)
    torch.manual_seed(0)
    log = SampleLog(folder / SAMPLES, (3, 8, 8), 4)
    repository = SampleRepository((3, 8, 8), 4, classes, log=log)
    count = 15 * classes
    labels, margins = torch.arange(count) % classes, torch.rand(count)
    repository.add(samples(torch.rand(count, 3, 8, 8), labels, torch.randn(count, 4), margins))
    repository.remove(torch.arange(0, count, 7))
    checkpoint.save({"distiller": {"repository": repository.state_dict()}}, folder / "checkpoint.pth")


def test_a_report_of_two_runs_shows_figures_samples_and_what_differs(tmp_path):
    write_shown_run(tmp_path / "bsr")
    write_shown_run(tmp_path / "fast_meta", method="fast_meta")
    text = Text(report(tmp_path, "bsr", "fast_meta"))
    assert text.words[text.words.index("student, last epoch") :][1:3] == ["12.00 %", "12.00 %"]
    headings = {"Test accuracy", "Balance over the classes", "Spread within the classes", "Recall by class"}
    assert headings | {"The teacher's confidence", "Samples", "Time", "Settings"} <= set(text.words)
    assert text.marked == 4  # method, dlw, blg, iho
    assert text.words.count("bsr, resnet34 to resnet18, seed 0") == 7  # legend, two tables and four figures
    assert all(value.startswith(("data:", "#")) for value in text.references)
    page = (tmp_path / "report.html").read_text()
    assert report(tmp_path, "bsr", "fast_meta") == page
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 13
    assert "<b>bold" not in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_boxes_of_local_outlier_factors_are_scikit_learns(tmp_path):
    write_shown_run(tmp_path / "run", 4, 1)
    one = ReportRun(read_run(tmp_path / "run"), "run", "black")
    axes = factors_figure(one).axes
    labels, features = one.samples.labels.numpy(), one.samples.features
    from sklearn.neighbors import LocalOutlierFactor

    for label, box in enumerate(axes[0].patches):
        factors = -LocalOutlierFactor(10).fit(features[labels == label]).negative_outlier_factor_
        q1, q3 = np.percentile(factors, [25, 75])
        assert (box.get_y(), box.get_height()) == pytest.approx((q1, q3 - q1), rel=1e-4)
    assert axes[1].get_title().startswith("samples kept: 51; ")


def test_the_samples_nearest_to_their_class_are_at_the_left_and_the_farthest_at_the_right(tmp_path):
    write_run(tmp_path / "run", classes=["a", "b"], img_size=8, mean=[0.5] * 3, std=[0.5] * 3)
    shown = ReportRun(read_run(tmp_path / "run"), "run", "black")
    features = torch.arange(20.0)[:, None] ** 2
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) * 10
    kept, labels = torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.long)
    shown.__dict__["samples"] = StoredSamples(
        labels, kept, features, features[:, 0], features[:, 0], lambda rows: images[rows]
    )
    sheet = sorted(samples_figure(shown).axes[0].images, key=lambda image: image.get_extent()[0])
    distances = (features[:, 0] - features.mean()).abs().argsort()
    expected = [*distances[:6], *distances[-6:].flip(0)]
    assert [image.get_array()[0, 0, 0] // 10 for image in sheet] == expected


def test_a_report_has_the_best_epoch_and_the_last(tmp_path):
    write_run(tmp_path / "run", last=90.0, epochs=1)
    write_metrics(tmp_path / "run", [{"test_top1": 90.0, "seconds": {"synthesis": 1.0}}])
    lines = summary_table([ReportRun(read_run(tmp_path / "run"), "run", "black")])
    assert lines["student, last epoch"] == ["90.00 %"]
    assert lines["student, best epoch (chosen on test data)"] == ["91.00 %"]
    assert lines["student, best epoch minus last"] == ["1.00 %"]


def test_agreement_on_held_out_samples_is_shown_and_is_not_accuracy(tmp_path):
    rows = {"both": {"test_top1": 40.0, "holdout_agreement": 80.0}, "none": {"holdout_agreement": 80.0}}
    for name, row in rows.items():
        metric = next(iter(row))
        write_run(tmp_path / name, epochs=1, classes=["a", "b"], judged_by=metric, dataset="none")
        (tmp_path / name / "summary.json").unlink()  # not finished
        write_metrics(tmp_path / name, [{**row, "seconds": {"kd": 1.0}}])
        page = report(tmp_path, name)
        words = Text(page).words
        assert words[words.index("student, last epoch") + 1] == f"{row[metric]:.2f} %"
        assert words[words.index("agreement with the teacher on held-out samples") + 1] == "80.00 %"
        assert ("<b>This is not accuracy.</b>" in page) == (name == "none")
        assert ("Test accuracy" in words) == (name == "both")
