"""The table scripts, the tables they end in, and the yardsticks beside them."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, run_here, run_script
from making import named
from scipy import stats
from test_scripts import assert_refused, metrics, write_folder, write_teacher

from datafree.cli import bsr
from datafree.results.measures import BALANCE
from datafree.results.published import Published
from datafree.results.read import read_run
from datafree.runs import progress
from datafree.settings import as_dict, resolve

ROWS = {  # of bsr_main.py: cifar10_cpu has two of vanilla_kd.py besides
    "bsr": 12,
    "baselines": 120,
    "ablation": 39,
    "ohs": 28,
    "digits": 10,
    "nayer": 33,
    "equal_images": 2,
    "cifar10_cpu": 12,
    "cifar10_cpu_ablation": 6,
    "cifar10_cpu_long": 3,
    "cifar10_cpu_variants": 5,
    "cifar10_cpu_why": 6,
    "cifar100_cpu": 4,
}


def table_script(name, **environment):
    done = subprocess.run(
        ["bash", str(ROOT / f"scripts/{name}.sh")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done


def parsed(line):
    """The settings of a command, and the warnings about them."""
    command = shlex.split(line)
    script = next(i for i, word in enumerate(command) if word.endswith(".py"))
    return resolve(bsr.build_parser().given(command[script + 1 :]))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_a_table_script_is_a_command_that_parses(name):
    printed = table_script(name, DRY_RUN="1", DATA_ROOT="somewhere", SEEDS="3 4", EXTRA="--print_freq 7")
    assert printed.returncode == 0, printed.stderr
    lines = [line for line in printed.stdout.splitlines() if "bsr_main.py" in line]
    assert len(set(lines)) == len(lines) == 2 * ROWS[name]
    folders = set()
    for line in lines:
        settings, warnings = parsed(line)
        assert warnings == []
        assert (settings.data_root, settings.print_freq) == ("somewhere", 7)
        assert settings.seed in (3, 4)
        folders.add(settings.save_dir)
    assert len(folders) == len(lines)


def test_a_row_that_is_not_there_and_a_missing_teacher_are_named(tmp_path):
    done = table_script("digits", DRY_RUN="1", ONLY="fast fast_metta")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no row fast_metta in ONLY; there are: bsr cmi dafl" in done.stderr
    assert done.stdout.count("--method fast ") == 1
    done = table_script("cifar10_cpu", TEACHER=str(tmp_path / "none.th"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"no teacher at {tmp_path}/none.th: put https://github.com/akamaster/" in done.stderr


def test_the_rows_of_the_ablation_have_the_published_settings():
    lines = table_script("ablation", DRY_RUN="1").stdout.splitlines()
    settings = {parsed(line)[0].save_dir.split("-")[-2]: parsed(line)[0] for line in lines}
    shown = {
        name: (settings[name].g_steps, settings[name].dlw, settings[name].blg, settings[name].iho)
        for name in ("none", "iho", "blg", "dlw", "con_max")
    }
    assert shown["none"] == (2, False, False, False)
    assert shown["con_max"] == (10, True, True, True)
    two = [parsed(line)[0] for line in lines if "-blg-iho-seed" in line]
    assert len(two) == 5
    for s in two:
        assert (s.g_steps, s.dlw, s.blg, s.iho, s.adv) == (10, False, True, True, 1.33)


def test_bsr_without_its_components_is_fast_meta(tmp_path):
    """So that one run stands for both in the ablation on CIFAR-10."""
    flags = "--dataset none --img_size 32 --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1"
    flags += (
        " --epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 8 --g_steps 10 --adv 1.33 --device cpu"
    )
    write_teacher(tmp_path / "teacher.pth")
    rows = {}
    for name, more in (("bsr", ["--no-dlw", "--no-blg", "--no-iho"]), ("fast_meta", [])):
        command = ("bsr_main.py", *flags.split(), "--method", name, *more, "--save_dir", name)
        done = run_here(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows[name] = metrics(tmp_path / name)
    assert rows["bsr"] == rows["fast_meta"]


def test_the_sweep_takes_every_published_value_once():
    points = [parsed(line)[0] for line in table_script("ohs", DRY_RUN="1").stdout.splitlines()]
    swept = json.loads((ROOT / "datafree/results/paper_results.json").read_text())
    swept = swept["hyperparameters_cifar10_resnet34_resnet18"]
    expected = {(size, 0.1) for size in swept["oh_memory_size (mz)"]["x"]}
    expected |= {(8, step) for kind in ("coarse", "fine") for step in swept[f"oh_step, {kind}"]["x"]}
    assert sorted((point.oh_memory_size, point.oh_step) for point in points) == sorted(expected)


def test_a_smoke_run_executes_every_row_then_skips_continues_and_goes_on_past_failures(tmp_path):
    environment = {"SMOKE": "1", "RUNS": str(tmp_path)}
    first = table_script("digits", **environment)
    assert first.returncode == 0, first.stderr
    runs = sorted((tmp_path / "smoke-digits").iterdir())
    assert len(runs) == ROWS["digits"]
    summaries = {run: (run / "summary.json").stat().st_mtime_ns for run in runs}
    runs[0].joinpath("summary.json").unlink()  # as if it had been stopped
    shutil.rmtree(runs[1])
    runs[1].write_text("a file where a run should go")
    second = table_script("digits", **environment)
    assert second.returncode == 1
    assert f"failed: {runs[1]}" in second.stderr
    assert second.stderr.count("failed:") == 1
    assert second.stdout.count("finished: ") == ROWS["digits"] - 2
    assert (runs[0] / "summary.json").is_file()
    for run in runs[2:]:
        assert (run / "summary.json").stat().st_mtime_ns == summaries[run]


def write_run(folder, seed=0, last=90.0, method="bsr", pair=("resnet34", "resnet18"), **config):
    folder.mkdir(parents=True)
    on = method == "bsr"
    flags = {
        "method": method,
        "dataset": "cifar10",
        "teacher": pair[0],
        "student": pair[1],
        "seed": seed,
        "dlw": on,
        "blg": on,
        "iho": on,
        "dlw_mode": "dynamic",
        "store_samples": True,
        "adv": 1.33,
        "oh_memory_size": 8,
        "oh_step": 0.1,
        "g_steps": 10,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(flags))
    summary = {
        "last_top1": last,
        "best_top1_chosen_on_test_data": last + 1,
        "teacher_top1": 95.5,
        "count_variation": 0.25,
        "count_entropy": 0.99,
        "lof_relative_iqr": 0.05,
        "lof_outside_share": 0.01,
        "margin": 0.9,
        "seconds": 120.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


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
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/cifar10_resnet18.json").write_text(json.dumps({"test_top1": 93.21}))
    return tmp_path


def table(*args, cwd):
    done = run_script("scripts/table.py", *args, "--checkpoints", "checkpoints", cwd=cwd)
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


def test_a_table_tells_of_the_last_fifth_of_the_epochs_of_images_and_of_hours(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"runs/{seed}"
        write_run(folder, seed, 90.0 + seed)
        tops = [10.0] * 8 + [88.0 + seed, 90.0 + seed]
        rows = [
            {"epoch": epoch, "test_top1": top, "made": 256, "repository": 100 * (epoch + 1)}
            | {"seconds": {"synthesis": 360.0, "kd": 1.0}}
            for epoch, top in enumerate(tops)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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


def test_settings_that_differ_within_a_row_split_it(runs):
    write_run(runs / "runs/mz2", 0, 94.1, oh_memory_size=2)
    out = table("runs", cwd=runs).stdout
    assert re.search(r"bsr \(oh_memory_size 2\) +0 +94.10 +94.56", out)
    assert re.search(r"bsr \(oh_memory_size 8\) +0 1 2 +95.17", out)


def rows_of(printed):
    """Method, seeds and last accuracy of the rows of detail tables, as Markdown."""
    lines = (line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|"))
    return [tuple(cell.strip() for cell in line[:3]) for line in lines if len(line) > 5]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)], ids=["different seeds", "the same seed"])
def test_students_with_different_arguments_are_different_rows(seeds, tmp_path):
    for seed, width, last in zip(seeds, (8, 12), (90.0, 91.0), strict=True):
        write_run(
            tmp_path / f"runs/{width}",
            seed,
            last,
            pair=("resnet34", "net.py:Small"),
            student_args=f"width={width}",
        )
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert ("bsr (student_args width=8)", str(seeds[0]), "90.00") in rows
    assert ("bsr (student_args width=12)", str(seeds[1]), "91.00") in rows
    assert "±" not in str(rows)


def test_teachers_with_different_arguments_are_different_rows_and_yardsticks(tmp_path):
    for width, last, taught in ((8, 90.0, 95.0), (12, 91.0, 97.0)):
        folder = tmp_path / f"runs/{width}"
        write_run(folder, 0, last, pair=("net.py:Big", "resnet18"), teacher_args=f"width={width}")
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "teacher_top1": taught}))
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert ("bsr (teacher_args width=8)", "0", "90.00") in rows
    assert ("bsr (teacher_args width=12)", "0", "91.00") in rows
    assert ("teacher", "", "97.00 / 95.00") in rows  # in the order of the rows


@pytest.mark.parametrize(
    ("teacher", "student", "file"),
    [
        ("my-nets/net.py:Big", "resnet18", "cifar10_resnet18.json"),
        ("my-nets/net.py:Big", "my-nets/net.py:Small", "cifar10_my_nets_net.py_Small.json"),
        ("resnet34", "torchvision:mobilenet_v3_small", "cifar10_torchvision_mobilenet_v3_small.json"),
    ],
)
def test_the_student_from_scratch_is_found_whatever_the_networks_are_called(teacher, student, file, tmp_path):
    write_run(tmp_path / "runs/one", pair=(teacher, student))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / file).write_text(json.dumps({"test_top1": 93.21}))
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert ("student from scratch", "", "93.21") in rows


def test_a_student_from_scratch_is_no_yardstick_for_students_with_different_arguments(tmp_path):
    for width in (8, 12):
        pair = ("resnet34", "net.py:Small")
        write_run(tmp_path / f"runs/{width}", pair=pair, student_args=f"width={width}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/cifar10_net.py_Small.json").write_text(json.dumps({"test_top1": 93.21}))
    rows = rows_of(table("runs", "--format", "markdown", cwd=tmp_path).stdout)
    assert "student from scratch" not in str(rows)


def test_a_star_marks_what_was_published_with_other_settings(tmp_path):
    settings, _ = resolve({"method": "bsr"})
    published = {name: getattr(settings, name) for name in ("epochs", "lr", "T", "batch_size")}
    texts = []
    for number, differing in enumerate(({}, {"adv": 1.0}, {"epochs": 100}, {"feature_layer": "fc"})):
        write_run(tmp_path / str(number), **{**published, **differing})
        texts.append(Published().text(read_run(tmp_path / str(number))))
    assert texts == ["94.80", "94.80*", "94.80*", "94.80*"]


def test_balance_is_shown_by_the_names_that_runs_write():
    assert tuple(BALANCE) == progress.BALANCE


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


def test_a_table_can_be_sorted_have_differences_and_fewer_columns(runs):
    write_run(runs / "runs/four", 4, 99.9, "fast_meta")
    flags = [
        "--format",
        "markdown",
        "--sort",
        "--against",
        "fast_meta",
        "--columns",
        "seeds,last,minus fast_meta",
    ]
    lines = table("runs", *flags, cwd=runs).stdout.splitlines()
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
    def refused(*args):
        return run_here("scripts/table.py", *args, cwd=runs)

    assert_refused(refused("nowhere"), "no run in nowhere")
    assert_refused(refused("runs/bsr-0", "--compare", "bsr", "fsat_meta"), "no runs of fsat_meta")
    assert_refused(refused("runs/bsr-0", "--against", "bsrr"), "no runs of bsrr, did you mean bsr?")
    assert_refused(refused("runs/bsr-0", "--columns", "seeds,lst"), "no column 'lst', did you mean last?")
    assert_refused(refused("runs/bsr-0", "--columns", "last", "--format", "csv"), "leave out")
    shutil.copytree(runs / "runs/bsr-0", runs / "runs/twice")
    assert_refused(refused("runs/bsr-0", "runs/twice"), "are the same run")
    (runs / "runs/twice/summary.json").write_text("[]")
    assert_refused(refused("runs/twice"), "cannot be read as a finished run")


def test_distilling_with_real_images_and_with_a_folder_of_others(tmp_path):
    write_folder(tmp_path / "images", splits=("train", "test"))
    write_folder(tmp_path / "other", splits=("any",), classes=("thing",), count=10)
    write_teacher(tmp_path / "teacher.pth", num_classes=3)
    common = [
        *"--dataset folder --data_root images --teacher wrn16_1 --teacher_ckpt teacher.pth".split(),
        *"--student wrn16_1 --epochs 2 --batch_size 4 --device cpu".split(),
    ]
    for more, name, count in (
        ([], "vanilla_kd", 18),
        (["--transfer_set", "other"], "vanilla_kd_transfer", 10),
    ):
        done = run_script("vanilla_kd.py", *common, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{count} images" in done.stdout
        folder = tmp_path / f"run/{name}-folder-wrn16_1-wrn16_1-seed0"
        rows = metrics(folder)
        assert [row["epoch"] for row in rows] == [0, 1]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["last_top1"] == rows[-1]["test_top1"]
        assert (folder / "student.pth").is_file()
    again = run_here("vanilla_kd.py", *common, cwd=tmp_path)
    assert_refused(again, "--overwrite")
    absent = run_here("vanilla_kd.py", *common, "--transfer_set", "no", "--save_dir", "new", cwd=tmp_path)
    assert_refused(absent, "neither a folder nor a dataset")
    assert not (tmp_path / "new").exists()
    listed = table("run", cwd=tmp_path)
    assert "vanilla_kd_transfer" in listed.stdout


STARRED = [  # method, teacher, settings of the run, its cell
    ("bsr", "resnet34", {}, "94.80"),
    ("bsr", "resnet34", {"adv": 1.0}, "94.80*"),
    ("bsr", "resnet34", {"lr_g": 0.1}, "94.80*"),
    ("bsr", "resnet34", {"g_steps": 5}, "94.80*"),
    ("bsr", "vgg11", {"adv": 1.0}, "91.06"),
    ("bsr", "vgg11", {}, "91.06*"),
    ("fast_meta", "resnet34", {"g_steps": 5, "lr_g": 3e-3, "lr_z": 0.01}, "93.63"),
    ("fast_meta", "resnet34", {"g_steps": 5, "lr_g": 2e-3, "lr_z": 0.01}, "93.63*"),
    ("fast_meta", "resnet34", {"oh": 0.4}, "94.05*"),
    ("deepinv", "resnet34", {"g_steps": 2000}, "93.26"),
    ("deepinv", "resnet34", {"g_steps": 1000}, "93.26*"),
    ("cmi", "resnet34", {"g_steps": 500}, "94.84"),
    ("dafl", "resnet34", {}, "92.22"),
    ("dafl", "resnet34", {"lr": 0.2}, "92.22*"),
]


@pytest.mark.parametrize(("method", "teacher", "changes", "cell"), STARRED, ids=str)
def test_a_star_says_that_a_run_has_other_settings_than_the_published_ones(
    method, teacher, changes, cell, tmp_path
):
    settings = as_dict(resolve({"method": method, "teacher": named(teacher)})[0])
    for name in ("method", "dataset", "teacher", "student", "seed", "mean", "std"):
        del settings[name]
    settings |= {"img_size": 32, "flip": True}  # as the data decide
    pair = teacher, "resnet18"
    write_run(tmp_path / "run", method=method, pair=pair, **{**settings, **changes})
    assert Published().text(read_run(tmp_path / "run")) == cell


@pytest.mark.parametrize("method", ["fast_meta", "fast"])
def test_fast_methods_start_with_the_images_of_a_folder_too(method, tmp_path):
    write_folder(tmp_path / "first", splits=("any",), classes=("thing",), count=10)
    write_teacher(tmp_path / "teacher.pth")
    words = "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 --epochs 1"
    words += " --warmup 0 --kd_steps 1 --ep_steps 1 --batch_size 8 --g_steps 1 --cmi_init first"
    done = run_script(
        "bsr_main.py",
        "--method",
        method,
        *words.split(),
        "--save_dir",
        "out",
        "--device",
        "cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [row["repository"] for row in metrics(tmp_path / "out")] == [18]


def test_cmi_starts_with_the_images_of_a_folder(tmp_path):
    write_folder(tmp_path / "first", splits=("any",), classes=("thing",), count=10)
    write_teacher(tmp_path / "teacher.pth")
    done = run_script(
        *"bsr_main.py --method cmi --dataset digits --teacher wrn16_1".split(),
        *"--teacher_ckpt teacher.pth --student wrn16_1 --epochs 2 --kd_steps 1".split(),
        *"--ep_steps 1 --batch_size 8 --g_steps 1 --cmi_init first --save_dir out".split(),
        *"--device cpu".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [row["repository"] for row in metrics(tmp_path / "out")] == [18, 26]
    assert json.loads((tmp_path / "out/config.json").read_text())["lr"] == 0.1
