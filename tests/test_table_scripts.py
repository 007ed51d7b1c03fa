"""The table scripts (`scripts/*.sh`) and the settings of their commands."""

import json
import os
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT, succeed
from helpers import DIGITS, metrics, write_teacher

from datafree.cli import bsr
from datafree.settings import resolve

ROWS = {  # of bsr_main.py: two scripts have rows of vanilla_kd.py besides
    "bsr": 12,
    "baselines": 120,
    "ablation": 39,
    "ohs": 28,
    "digits": 10,
    "nayer": 33,
    "cifar10_cpu": 12,
    "cifar10_cpu_ablation": 6,
    "cifar10_cpu_long": 4,
    "cifar10_cpu_variants": 5,
    "cifar10_cpu_why": 6,
    "cifar100_cpu": 4,
}


def table_script(name, **environment):
    command, env = ["bash", str(ROOT / f"scripts/{name}.sh")], {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)


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
    words = f"{DIGITS} --dataset none --img_size 32 --batch_size 8 --g_steps 10 --adv 1.33"
    write_teacher(tmp_path / "teacher.pth")
    rows = {}
    for name, more in (("bsr", "--no-dlw --no-blg --no-iho"), ("fast_meta", "")):
        succeed(f"{words} --method {name} {more} --save_dir {name}", cwd=tmp_path)
        rows[name] = metrics(tmp_path / name)
    assert rows["bsr"] == rows["fast_meta"]


def test_the_sweep_takes_every_published_value_once():
    points = [parsed(line)[0] for line in table_script("ohs", DRY_RUN="1").stdout.splitlines()]
    swept = json.loads((ROOT / "datafree/results/paper_results.json").read_text())
    swept = swept["hyperparameters_cifar10_resnet34_resnet18"]
    expected = {(size, 0.1) for size in swept["oh_memory_size"]["x"]}
    expected |= {(8, step) for kind in ("coarse", "fine") for step in swept[f"oh_step_{kind}"]["x"]}
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
