"""What is drawn and written from the runs that are kept in results/."""

import json
import re

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT
from helpers import write_metrics, write_run

from datafree.errors import UserError
from datafree.results.read import find_runs
from datafree.results.tables import collect
from show_result import results


def write_tops(folder, tops, warmup, evaluated=lambda epoch: True):
    config = json.loads((folder / "config.json").read_text())
    more = {"warmup": warmup, "kd_steps": 30, "ep_steps": 60}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    write_metrics(folder, [{"test_top1": top, "evaluated": evaluated(e)} for e, top in enumerate(tops)])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def runs(tmp_path):
    """Two seeds of bsr and one of fast_meta: six epochs, the first two warm-up, every other one evaluated."""
    for method, seed, tops in (
        ("bsr", 0, [10, 10, 10, 30, 30, 50]),
        ("bsr", 1, [10, 10, 10, 40, 40, 70]),
        ("fast_meta", 0, [10, 10, 10, 20, 20, 60]),
    ):
        folder = tmp_path / f"runs/{method}-{seed}"
        write_run(folder, seed, float(tops[-1]), method)
        write_tops(folder, [float(top) for top in tops], 2, lambda epoch: epoch == 0 or epoch % 2 == 1)
    return tmp_path / "runs"


def test_every_table_of_the_pages_is_what_its_command_prints():
    found = 0
    for name in results.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert results.refreshed(page, name) == page, f"{name} is stale: make results"
        found += len(results.TABLE.findall(page))
    assert found >= 3
    stale = "a <!-- scripts/table.py results/cifar10_cpu/*-bsr-* --columns last -->\nold<!-- end --> b"
    fresh = results.refreshed(stale, "page")
    assert "    python scripts/table.py results/cifar10_cpu/*-bsr-* --columns last\n" in fresh
    assert "| bsr |" in fresh
    assert "old" not in fresh
    assert fresh.startswith("a <!-- ")
    assert fresh.endswith("<!-- end --> b")


def test_the_headline_of_the_readme_is_that_of_its_table():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"bsr minus fast_meta: (.*) points, 95 % confidence (.*) \(5 shared seeds\)", page)
    (headline,) = re.findall(r"bsr minus fast_meta is (.*) points\*\*, 95 % confidence (.*), over five", page)
    assert line == headline
    shown = re.search("vary by (.*), those of fast_meta, .*, by (.*)\\. At", page)
    for method, variation in zip(("bsr", "fast_meta"), shown.groups(), strict=True):
        assert re.search(rf"^\| {method} \|.*\| {variation} ± ", page, re.MULTILINE)


def test_finished_runs_are_kept_without_their_large_files(runs, tmp_path):
    (runs / "bsr-0/samples.bin").write_bytes(b"large")
    (runs / "fast_meta-0/summary.json").unlink()
    assert results.keep(runs, tmp_path / "results") == 2
    kept = {str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.*")}
    assert kept == {f"runs/bsr-{seed}/{name}" for seed in (0, 1) for name in results.KEPT}


SPOILT = [
    (lambda runs: (runs / "fast_meta-0/metrics.jsonl").unlink(), "cannot read .*metrics.jsonl"),
    (lambda runs: write_tops(runs / "bsr-1", [10.0, 70.0], 2), "not evaluated at the same epochs"),
    (lambda runs: write_run(runs / "b", method="dafl", pair=("vgg11", "resnet18")), "folders of their"),
    (lambda runs: [(run / "summary.json").unlink() for run in runs.iterdir()], "is finished yet"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_runs_that_do_not_go_together_are_not_kept(runs, tmp_path, spoil, message):
    spoil(runs)
    with pytest.raises(UserError, match=message):
        results.keep(runs, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_runs_are_kept_beside_those_that_are_there_and_in_place_of_their_own_copies(runs, tmp_path):
    results.keep(runs, tmp_path / "results")
    results.keep(runs, tmp_path / "results")
    (runs / "bsr-0").rename(runs / "again")
    with pytest.raises(UserError, match="are the same run"):
        results.keep(runs, tmp_path / "results")
    assert not (tmp_path / "results/runs/again").exists()
    for wrong in (runs / "bsr-1", tmp_path / "results/runs"):
        with pytest.raises(UserError, match="name the folder that the runs of a script are in"):
            results.keep(wrong, tmp_path / "results")


def test_accuracy_is_drawn_by_student_steps_with_a_band_over_seeds(runs):
    figure = results.accuracy_figure(collect(find_runs([runs])[0]))
    (axis,) = figure.axes
    bsr, fast_meta, teacher = axis.lines
    assert bsr.get_xdata().tolist() == fast_meta.get_xdata().tolist() == [0, 120, 240]
    assert bsr.get_ydata().tolist() == [10, 35, 60]
    assert fast_meta.get_ydata().tolist() == [10, 20, 60]
    assert set(teacher.get_ydata()) == {95.5}
    write_tops(runs / "fast_meta-0", [10.0, 30.0, 60.0], 0)  # without warm-up there is no figure of no step
    figure = results.accuracy_figure(collect(find_runs([runs])[0]))
    (axis,) = figure.axes
    assert axis.lines[1].get_xdata().tolist() == [60, 120, 180]
    corners = axis.collections[0].get_paths()[0].vertices
    assert {(240.0, 50.0), (240.0, 70.0)} <= {tuple(corner) for corner in corners}
    assert [text.get_text() for text in axis.texts] == ["60.0 bsr", "60.0 fast_meta", "95.5 teacher"]


def test_the_variation_of_class_counts_is_drawn_by_variant(runs):
    write_run(runs / "half", blg=False)
    figure = results.variation_figure(collect(find_runs([runs])[0]))
    (axis,) = figure.axes
    here, published = (points.get_offsets().tolist() for points in axis.collections)
    assert sorted(here) == [[0.25, 0], [0.25, 5], [0.25, 7], [0.25, 7]]
    assert published[0] == [0.192, 0]
    assert [label.get_text() for label in axis.get_yticklabels()][5] == "DLW+IHO"


def test_samples_and_recall_of_each_class_are_drawn_by_the_samples_of_the_last_row(runs):
    ends = {"bsr-0": ([5, 5], [80, 60]), "bsr-1": ([7, 5], [90, 40]), "fast_meta-0": ([8, 2], [70, 50])}
    for name, (counts, recall) in ends.items():
        write_metrics(runs / name, [{"test_top1": 60.0, "counts": counts, "test_recall": recall}])
        config = json.loads((runs / name / "config.json").read_text())
        (runs / name / "config.json").write_text(json.dumps({**config, "classes": ["cat", "dog"]}))
    figure = results.classes_figure(collect(find_runs([runs])[0]))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["dog", "cat"]
    drawn = [
        points.get_offsets()[:, 0].tolist() for axis in (left, right) for points in axis.collections[1::2]
    ]
    assert drawn == [[5, 6], [2, 8], [50, 85], [50, 70]]
    bars = [line.tolist() for line in right.collections[0].get_segments()]
    assert [[x for x, _ in bar] for bar in bars] == [[40, 60], [80, 90]]


def test_what_iho_removed_is_drawn_as_means_over_samples_and_in_the_order_of_their_number():
    def line(run, part, name, made, removed, loss_kept, loss_removed):
        return {
            **{"run": run, "part": part, "class": name, "made": made, "removed": removed},
            **{"loss_kept": loss_kept, "loss_removed": loss_removed},
        }

    figure = results.removed_figure(
        [
            line("a", "0", "cat", "4", "1", "2.0", "5.0"),
            line("a", "1", "cat", "3", "2", "6.0", "8.0"),
            line("a", "0", "dog", "2", "2", "", "1.0"),
            line("a", "1", "dog", "6", "3", "4.0", "6.0"),
            line("b", "0", "cat", "2", "1", "1.0", "3.0"),
            line("b", "0", "dog", "2", "1", "2.0", "2.0"),
        ]
    )
    loss, count = figure.axes
    assert [label.get_text() for label in loss.get_yticklabels()] == ["cat", "dog"]
    drawn = [points.get_offsets()[:, 0].tolist() for points in loss.collections[1::2]]
    assert drawn == [[(3 + 1) / 2, (4 + 2) / 2], [(7 + 3) / 2, (4 + 2) / 2]]
    assert count.collections[1].get_offsets()[:, 0].tolist() == [2, 3]
    assert [line.tolist()[0][0] for line in count.collections[0].get_segments()] == [1, 1]


def test_differences_are_drawn_with_each_seed_and_their_interval(runs):
    bsr, fast_meta = collect(find_runs([runs])[0])
    figure = results.balance_figure([("one", bsr, fast_meta), ("itself", bsr, bsr)])
    (axis,) = figure.axes
    points = [found.get_offsets().tolist() for found in axis.collections if len(found.get_offsets())]
    seeds, mean, own_seeds, own_mean = (found for found in points if found != [[0.0, 0.0]])
    assert (seeds, mean) == ([[-10, 0]], [[-10, 0]])
    assert (own_seeds, own_mean) == ([[0, 1], [0, 1]], [[0, 1]])
    assert [text.get_text() for text in axis.texts] == ["-10.00 (one seed)", "+0.00 (+0.00 to +0.00)"]


def test_growth_is_drawn_with_samples_of_all_epochs_and_accuracy_of_those_evaluated(runs):
    for folder in runs.iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [{**line, "repository": 10 * line["epoch"]} for line in lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = results.growth_figure(collect(find_runs([runs])[0]))
    samples, accuracy = figure.axes
    assert samples.lines[0].get_xydata().tolist() == [[1, 0], [2, 10], [3, 20], [4, 30], [5, 40], [6, 50]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 10], [2, 10], [4, 35], [6, 60]]
    assert [text.get_text() for text in accuracy.texts] == ["bsr", "fast_meta"]
