"""The run folder: whose it is, who may write there, and what a log of samples keeps."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import succeed
from helpers import DIGITS, samples, write_teacher

from datafree.errors import Damaged, UserError
from datafree.repository import SampleRepository
from datafree.runs.contact_sheet import contact_sheet, folder_names
from datafree.runs.folder import RunFolder, is_run
from datafree.runs.sample_log import SampleLog

SETTINGS = {"dataset": "digits", "seed": 0, "git_commit": None, "threads": 2}


def opened(path, overwrite=False):
    """A run folder in which a run has begun."""
    folder = RunFolder(path, resume=not overwrite, overwrite=overwrite)
    folder.lock()
    folder.open("config.json", SETTINGS, None)
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["config.json", "training.json", "metrics.jsonl", "checkpoint.pth"])
@pytest.mark.parametrize("flag", ["resume", "overwrite", None])
def test_files_of_someone_else_are_left_as_they_are(name, flag, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.txt").write_text("mine")
    (tmp_path / "log.txt").write_text("mine")
    (tmp_path / name).write_text('{"name": "an application", "dataset": "digits"}')
    before = files(tmp_path)
    with pytest.raises(UserError, match="which no run of this project wrote"):
        RunFolder(tmp_path, **{flag: True} if flag else {}).check()
    assert files(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_written_to_links_pipes_and_folders_in_place_of_files(tmp_path, resume):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    kinds = (lambda path: path.symlink_to(theirs), os.mkfifo, os.mkdir)
    for number, make in enumerate(kinds):
        for name in ("log.txt", ".lock", "metrics.jsonl", "student.pth", *["images"] * (make != os.mkdir)):
            path = tmp_path / f"run-{number}-{name}"
            path.mkdir()
            make(path / name)
            with pytest.raises(UserError, match="is a symlink or a special file"):
                RunFolder(path, resume, not resume).check()


def test_a_run_is_known_by_its_settings_and_replaced_whole(tmp_path):
    with opened(tmp_path / "out") as folder:
        folder.append_metrics({"epoch": 0, "seconds": {}})
    assert is_run(tmp_path / "out")
    (tmp_path / "out/export").mkdir()
    (tmp_path / "out/export/student.onnx").write_text("old")
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already contains a run: continue it with --resume"):
        RunFolder(tmp_path / "out").check()
    with opened(tmp_path / "out", overwrite=True):
        left = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert left == [".lock", "config.json", "log.txt", "notes.txt"]
    for spoilt in ("{", '{"a": 1}', "[]"):
        (tmp_path / "out/config.json").write_text(spoilt)
        assert not is_run(tmp_path / "out")


def test_a_second_command_is_refused_while_the_first_one_writes(tmp_path):
    with opened(tmp_path / "out"):
        for given in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another command writes to"):
                RunFolder(tmp_path / "out", **given).lock()
    with opened(tmp_path / "out"):
        pass
    late = RunFolder(tmp_path / "out")  # was checked before the other one began
    with pytest.raises(UserError, match="already contains a run"):
        late.lock()


def test_nothing_is_written_to_a_folder_that_was_removed_or_created_anew(tmp_path):
    with opened(tmp_path / "run") as run:
        for again in (False, True):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            if again:
                (tmp_path / "run").mkdir()
                (tmp_path / "run/log.txt").write_text("another run's")
            for write in (
                lambda: run.append_metrics({"epoch": 0}),
                lambda: run.save_checkpoint({}),
                lambda: run.save_student({}),
                lambda: run.write_json("summary.json", {}),
                lambda: run.save_samples(1, None, ()),
            ):
                with pytest.raises(UserError, match="was removed or replaced"):
                    write()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    with opened(tmp_path / "run") as run:
        for epoch in range(2, 6):
            run.append_metrics({"epoch": epoch})
        with open(tmp_path / "run/metrics.jsonl", "a") as file:
            file.write('{"epoch": 6, "lo')  # cut off by a crash
        run.truncate_metrics(2, 5)
        lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [2, 3, 4]


def test_a_sample_log_knows_its_checksum_after_it_was_continued(tmp_path):
    log = SampleLog(tmp_path / "samples.bin", (3, 8, 8), 1)
    some = samples(torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.long), torch.zeros(5, 1))
    log.append(some)
    for count in (10, 15):
        again = SampleLog(tmp_path / "samples.bin", (3, 8, 8), 1)
        again.require(count - 5, log.checksum)
        again.truncate(count - 5)
        again.append(some)
        log = again
    SampleLog(tmp_path / "samples.bin", (3, 8, 8), 1).require(15, log.checksum)
    with pytest.raises(Damaged):
        SampleLog(tmp_path / "samples.bin", (3, 8, 8), 1).require(15, log.checksum ^ 1)
    with pytest.raises(Damaged, match="contains 15 of the 16 samples"):
        log.truncate(16)


def test_a_contact_sheet_shows_the_newest_samples_first():
    repository = SampleRepository((3, 8, 8), 1, 2)
    shades = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) * 10
    repository.add(samples(shades, torch.zeros(20, dtype=torch.long), torch.zeros(20, 1)))
    sheet = np.array(contact_sheet(repository, ["a", "b"]))
    row = sheet[34, 96 + 32 :: 66, 0][:16]
    assert row.tolist() == [190 - 10 * column for column in range(16)]


def test_classes_that_would_share_a_folder_do_not():
    names = folder_names(["C++", "C##", "a", "A", "b/c", "..", ""])
    assert names == ["C__-class0", "C__-class1", "a-class2", "A-class3", "b_c", "_-class5", "_-class6"]


def test_a_checkpoint_continues_in_a_new_folder_with_its_samples_and_metrics(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    succeed(f"{DIGITS} --save_dir one", cwd=tmp_path)
    succeed(f"{DIGITS} --resume one/checkpoint.pth --save_dir new", cwd=tmp_path)
    for name in ("samples.bin", "metrics.jsonl"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
