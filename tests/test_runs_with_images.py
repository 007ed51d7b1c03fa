"""Runs that see images: distilling with real ones, and synthesis that starts from a folder."""

import json

import pytest
from conftest import run_here, run_script
from helpers import assert_refused, metrics, write_folder, write_teacher


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
    listed = run_here("scripts/table.py", "run", cwd=tmp_path)
    assert "vanilla_kd_transfer" in listed.stdout


STARTS = {"fast_meta": [18], "fast": [18], "cmi": [18, 26]}  # samples after each epoch


@pytest.mark.parametrize("method", STARTS)
def test_synthesis_starts_with_the_images_of_a_folder(method, tmp_path):
    write_folder(tmp_path / "first", splits=("any",), classes=("thing",), count=10)
    write_teacher(tmp_path / "teacher.pth")
    words = "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 --warmup 0"
    words += (
        " --kd_steps 1 --ep_steps 1 --batch_size 8 --g_steps 1 --cmi_init first --save_dir out --device cpu"
    )
    sizes = ["--method", method, "--epochs", len(STARTS[method])]
    done = run_script("bsr_main.py", *words.split(), *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["repository"] for row in metrics(tmp_path / "out")] == STARTS[method]
