"""Tables of finished runs."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import run_here
from helpers import assert_refused, write_metrics, write_run, write_training
from scipy import stats

from datafree.results.read import BALANCE
from datafree.runs import distil


@pytest.fixture
def runs(tmp_path):
    lasts = {"bsr": [94.0, 95.0, 96.5], "fast_meta": [93.0, 94.5, 95.0]}
    for method, values in lasts.items():
        for seed, last in enumerate(values):
            write_run(tmp_path / "runs" / f"{method}-{seed}", seed, last, method)
    write_run(tmp_path / "runs/vgg", 0, 90.0, "bsr", ("vgg11", "resnet18"), adv=1.0)
    write_run(tmp_path / "runs/half", 0, 89.0, "bsr", iho=False)
    (tmp_path / "runs/cut").mkdir()
    (tmp_path / "runs/cut/config.json").write_text("{}")
    write_training(tmp_path / "checkpoints/cifar10_resnet18.pth.training", 93.21)
    return tmp_path


def table(*args, cwd):
    done = run_here("scripts/table.py", *args, "--checkpoints", "checkpoints", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_a_table_has_means_deviations_and_the_published_figures(runs):
    done = table("runs", "--format", "markdown", cwd=runs)
    assert "not finished, left out: runs/cut" in done.stderr
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    ]
    deviation = np.std([94.0, 95.0, 96.5], ddof=1)
    assert ["method", "resnet34-resnet18", "vgg11-resnet18"] in cells
    assert ["bsr", f"95.17 ± {deviation:.2f} [94.80]", "90.00 [91.06]"] in cells
    assert ["teacher", "95.50 [95.70]", "95.50 [92.25]"] in cells
    assert ["student from scratch", "93.21 [95.20]", "93.21 [95.20]"] in cells
    assert ["bsr without IHO", "89.00", "-"] in cells
    headings = next(row for row in cells if row[:2] == ["method", "seeds"])
    (detail,) = (row for row in cells if row[:2] == ["bsr", "0 1 2"])
    shown = dict(zip(headings, detail, strict=True))
    assert shown["last"] == f"95.17 ± {deviation:.2f}"
    assert shown["best"] == f"96.17 ± {deviation:.2f}"
    assert (shown["best - last"], shown["published"]) == ("1.00 ± 0.00", "94.80")
    assert (shown["count variation"], shown["hours"]) == ("0.250 ± 0.000", "0.03")
    # Of runs without metrics there is nothing to tell.
    assert {shown[name] for name in ("last fifth", "± epochs", "made", "stored", "synthesis hours")} == {"-"}


def test_a_table_has_the_last_fifth_of_the_epochs_images_and_hours(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"runs/{seed}"
        write_run(folder, seed, 90.0 + seed)
        tops = [10.0] * 8 + [88.0 + seed, 90.0 + seed]
        seconds = {"synthesis": 360.0, "kd": 1.0}
        write_metrics(
            folder,
            [
                {"test_top1": top, "made": 256, "repository": 100 * (epoch + 1), "seconds": seconds}
                for epoch, top in enumerate(tops)
            ],
        )
    lines = list(csv.DictReader(io.StringIO(table("runs", "--format", "csv", cwd=tmp_path).stdout)))
    found = {name: float(value) for name, value in lines[0].items() if name.endswith("_mean") and value}
    assert found["last_fifth_mean_mean"] == 89.5
    assert found["last_fifth_deviation_mean"] == 1.0
    assert found["best_minus_last_mean"] == 1.0
    assert (found["images_made_mean"], found["images_stored_mean"]) == (2560, 1000)
    assert found["hours_synthesis_mean"] == pytest.approx(1.0)
    assert found["hours_mean"] == pytest.approx(120 / 3600)
    printed = table("runs", cwd=tmp_path).stdout
    assert re.search(r"last fifth .*± epochs .*made .*stored .*hours", printed)
    assert re.search(r"89\.50 ± 0\.71 +1\.00 ± 0\.00 .* 2,560 +1,000 +1\.00 +0\.03", printed)


def test_runs_without_test_images_have_their_agreement(tmp_path):
    for seed, last in ((0, 80.0), (1, 82.0)):
        folder = tmp_path / f"runs/{seed}"
        write_run(folder, seed, dataset="none", judged_by="holdout_agreement")
        summary = {"last_holdout_agreement": last, "best_holdout_agreement": last + 2, "best_epoch": 0}
        (folder / "summary.json").write_text(json.dumps(summary))
        write_metrics(folder, [{"holdout_agreement": last + 2}, {"holdout_agreement": last}])
    lines = list(csv.DictReader(io.StringIO(table("runs", "--format", "csv", cwd=tmp_path).stdout)))
    assert [lines[0][name] for name in ("method", "last_mean", "best_mean", "last_fifth_mean_mean")] == [
        *("bsr, agreement", "81.0", "83.0", "81.0")
    ]
    assert "agreement with the teacher (which is not accuracy) in %" in table("runs", cwd=tmp_path).stdout


def test_balance_has_the_names_that_runs_write():
    assert tuple(BALANCE) == distil.BALANCE


def test_tables_for_spreadsheets_and_for_latex(runs):
    lines = list(csv.DictReader(io.StringIO(table("runs", "--format", "csv", cwd=runs).stdout)))
    (line,) = (row for row in lines if (row["pair"], row["method"]) == ("resnet34-resnet18", "bsr"))
    assert float(line["last_mean"]) == pytest.approx(95.1667, abs=1e-3)
    assert (line["seeds"], line["published"]) == ("3", "94.8")
    table("runs", "--format", "latex", "--output", "table.tex", cwd=runs)
    text = (runs / "table.tex").read_text()
    assert r"fast\_meta & 94.17 $\pm$ 1.04 [94.05] & - \\" in text


def test_two_methods_are_compared_over_the_seeds_they_share(runs):
    out = table("runs", "--compare", "bsr", "fast_meta", cwd=runs).stdout.splitlines()[-1]
    interval = stats.ttest_rel([94.0, 95.0, 96.5], [93.0, 94.5, 95.0]).confidence_interval(0.95)
    expected = f"+1.00 points, 95 % confidence {interval.low:+.2f} to {interval.high:+.2f} (3 shared seeds)"
    assert out.endswith(expected)


def rows_of(printed):
    """Method, seeds and last accuracy of the rows of detail tables, as Markdown."""
    lines = (line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|"))
    return [tuple(cell.strip() for cell in line[:3]) for line in lines if len(line) > 5]


def test_settings_that_differ_split_a_row_dropped_ones_too(runs):
    write_run(runs / "runs/mz2", 0, 94.1, oh_memory_size=2)
    out = table("runs", cwd=runs).stdout
    assert re.search(r"bsr \(oh_memory_size 2\) +0 +94.10 +94.56", out)
    assert re.search(r"bsr \(oh_memory_size 8\) +0 1 2 +95.17", out)
    shutil.rmtree(runs / "runs/mz2")
    write_run(runs / "runs/refill", 0, 94.1, refill=True)
    write_run(runs / "runs/four", 4, 94.1, refill=False)  # others are older than the setting
    out = table("runs", cwd=runs).stdout
    assert re.search(r"bsr \(refill True\) +0 +94.10", out)
    assert re.search(r"bsr \(refill False\) +0 1 2 4 +94.90", out)


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)], ids=["different seeds", "the same seed"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_networks_with_different_arguments_are_different_rows_and_yardsticks(role, seeds, tmp_path):
    pair = ("net.py:Big", "resnet18") if role == "teacher" else ("resnet34", "net.py:Small")
    for seed, width, last in zip(seeds, (8, 12), (90.0, 91.0), strict=True):
        folder = tmp_path / f"runs/{width}"
        write_run(folder, seed, last, pair=pair, **{f"{role}_args": f"width={width}"})
        if role == "teacher":
            summary = json.loads((folder / "summary.json").read_text())
            (folder / "summary.json").write_text(json.dumps({**summary, "teacher_top1": 80.0 + width}))
    write_training(tmp_path / "checkpoints/cifar10_net.py_Small.pth.training", 93.21)
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert (f"bsr ({role}_args width=8)", str(seeds[0]), "90.00") in rows
    assert (f"bsr ({role}_args width=12)", str(seeds[1]), "91.00") in rows
    if role == "teacher":
        assert ("teacher", "", "92.00 / 88.00") in rows  # in the order of the rows
    assert not re.search("±|student from scratch", str(rows))


@pytest.mark.parametrize(
    ("student", "file"),
    [
        ("my-nets/net.py:Small", "cifar10_my_nets_net.py_Small"),
        ("torchvision:mobilenet_v3_small", "cifar10_torchvision_mobilenet_v3_small"),
    ],
)
def test_the_student_from_scratch_is_found_whatever_the_networks_are_called(student, file, tmp_path):
    write_run(tmp_path / "runs/one", pair=("resnet34", student))
    write_training(tmp_path / f"checkpoints/{file}.pth.training", 93.21)
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert ("student from scratch", "", "93.21") in rows


def test_a_table_can_be_sorted_have_differences_and_fewer_columns(runs):
    write_run(runs / "runs/four", 4, 99.9, "fast_meta")
    more = "--format markdown --sort --against fast_meta --columns".split()
    lines = table("runs", *more, "seeds,last,minus fast_meta", cwd=runs).stdout.splitlines()
    first = lines.index("| method | seeds | last | minus fast_meta |")
    interval = stats.ttest_rel([94.0, 95.0, 96.5], [93.0, 94.5, 95.0]).confidence_interval(0.95)
    assert lines[first + 2 : first + 7] == [
        "| teacher |  | 95.50 |  |",
        "| student from scratch |  | 93.21 |  |",
        "| fast_meta | 0 1 2 4 | 95.60 ± 2.99 | - |",
        f"| bsr | 0 1 2 | 95.17 ± 1.26 | +1.00 ({interval.low:+.2f} to {interval.high:+.2f}) |",
        "| bsr without IHO | 0 | 89.00 | -4.00 |",
    ]


def test_bad_tables_get_one_line(runs):
    shutil.copytree(runs / "runs/bsr-0", runs / "runs/twice")
    for words, message in (
        ("nowhere", "no run in nowhere"),
        ("runs/bsr-0 --against bsrr", "no runs of bsrr, did you mean bsr?"),
        ("runs/bsr-0 --columns seeds,lst", "no column lst, did you mean last?"),
        ("runs/bsr-0 --columns last --format csv", "leave out"),
        ("runs/bsr-0 runs/twice", "are the same run"),
    ):
        assert_refused(run_here(f"scripts/table.py {words}", cwd=runs), message)
