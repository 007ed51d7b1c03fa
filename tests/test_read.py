"""Run folders read back: the kept runs, and folders that are damaged or not runs."""

import json
import re

import pytest
from conftest import ROOT, run_here
from helpers import assert_refused, write_metrics, write_run

from datafree.errors import UserError
from datafree.results.read import find_runs, read_run
from datafree.results.tables import collect
from show_result import results

KEPT = sorted(ROOT.glob("results/*/*/config.json"))


def test_kept_runs_are_finished_and_name_no_machine():
    assert len(KEPT) == 117
    for config in KEPT:
        run = read_run(config.parent)
        assert len(run.metrics) == run.config["epochs"]
        assert run.metrics[-1]["test_top1"] == run.summary["last_top1"]
        assert re.fullmatch("[0-9a-f]{40}", run.config["git_commit"])
        assert not [name for name, value in run.config.items() if str(value).startswith(("/", "~"))]
        assert {path.name for path in config.parent.iterdir()} == set(results.KEPT)


def test_kept_runs_of_a_method_have_the_same_settings_but_for_the_seed():
    own = set("seed save_dir resume git_commit threads device_name python torch torchvision numpy".split())
    for row in collect(find_runs([ROOT / "results"])[0]):
        names = set().union(*(run.config for run in row.runs)) - own
        settings = [{name: run.setting(name) for name in names} for run in row.runs]
        assert all(one == settings[0] for one in settings), row.label


def test_a_line_that_a_crash_has_cut_is_left_out(tmp_path):
    write_run(tmp_path / "run")
    write_metrics(tmp_path / "run", [{"test_top1": 1.0}, {"test_top1": 2.0}])
    text = (tmp_path / "run/metrics.jsonl").read_text()
    (tmp_path / "run/metrics.jsonl").write_text(text[:-5])
    assert [row["test_top1"] for row in read_run(tmp_path / "run").metrics] == [1.0]


SPOILT = [  # a file, and what it contains instead
    *(("config.json", text) for text in ("", "[]", "{}", "[" * 10**5, "\0", '{"teacher": 3}')),
    *(("config.json", {name: value}) for name, value in (("seed", "0"), ("method", None))),
    *(("summary.json", text) for text in ("", "[]", "{}", {"last_top1": None})),
]


@pytest.mark.parametrize("reader", ["scripts/table.py out", "scripts/export.py out --format safetensors"])
def test_a_damaged_run_is_refused_in_a_line_that_names_the_file(reader, tmp_path):
    write_run(tmp_path / "out")
    for name, content in SPOILT:
        good = (tmp_path / "out" / name).read_text()
        text = content if isinstance(content, str) else json.dumps({**json.loads(good), **content})
        (tmp_path / "out" / name).write_text(text)
        assert_refused(run_here(reader, cwd=tmp_path), f"out/{name}")
        (tmp_path / "out" / name).write_text(good)


@pytest.mark.parametrize("change", [{"epoch": "1"}, {"test_top1": None}, {"seconds": 3}], ids=str)
def test_metrics_without_what_is_needed_are_refused(change, tmp_path):
    write_run(tmp_path / "run")
    write_metrics(tmp_path / "run", [{"test_top1": 1.0, **change}])
    with pytest.raises(UserError, match=rf"cannot read .*metrics.jsonl .*{next(iter(change))}"):
        _ = read_run(tmp_path / "run").metrics


def test_a_folder_without_a_run_and_a_run_that_is_not_finished_are_named(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="is not a run: it has no config"):
        read_run(tmp_path)
    write_run(tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    assert find_runs([tmp_path]) == ([], [tmp_path / "run"])
    with pytest.raises(UserError, match="not finished"):
        read_run(tmp_path / "run")
    assert read_run(tmp_path / "run", finished=False).summary == {}
