"""docs/extending.md, followed to the letter in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers import metrics, write_teacher

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCK = re.compile(r"<!-- (.+?) -->\n```python\n(.*?)```\n", re.DOTALL)
PLACE = re.compile(
    r"new file: (?P<new>\S+)|(?P<file>\S+), (?P<how>after|instead of|at its end)(?:: (?P<line>.+))?"
)
SHORT = "--epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 1 --device cpu".split()


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("datafree", "models", "scripts", "docs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    for script in ("bsr_main.py", "train_scratch.py"):
        shutil.copy(ROOT / script, copy)
    for comment, code in BLOCK.findall(PAGE):
        place = PLACE.fullmatch(comment)
        if place["new"]:
            assert not (copy / place["new"]).exists()
            (copy / place["new"]).write_text(code)
            continue
        text, line = (copy / place["file"]).read_text(), f"\n{place['line']}\n"
        assert place["how"] == "at its end" or text.count(line) == 1, f"{place['file']} has no line {line}"
        edited = {
            "at its end": text + code,
            "after": text.replace(line, line + code),
            "instead of": text.replace(line, f"\n{code}"),
        }
        (copy / place["file"]).write_text(edited[place["how"]])
    return copy


def run(extended, script, *words):
    env = {**os.environ, "PYTHONPATH": str(extended)}  # before a checkout that is installed
    command = [sys.executable, str(extended / script), *map(str, words)]
    done = subprocess.run(command, cwd=extended, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_page_is_used():
    assert PAGE.count("```python") == len(BLOCK.findall(PAGE)) == 10
    new = [PLACE.fullmatch(comment)["new"] for comment, _ in BLOCK.findall(PAGE)]
    assert [name for name in new if name] == [
        "datafree/synthesis/random_images.py",
        "models/tiny.py",
        "datafree/data/shapes.py",
    ]


def test_the_loss_term_and_the_method_run_and_are_in_tables_and_pages(extended):
    write_teacher(extended / "teacher.pth")
    words = ["--dataset", "digits", "--teacher", "wrn16_1", "--teacher_ckpt", "teacher.pth", *SHORT]
    for method, student, name, *more in (
        ("fast_meta", "wrn16_1", "with", "--ent", 0.5),
        ("fast_meta", "wrn16_1", "without"),
        ("random_images", "tiny8", "out"),
    ):
        given = ["--method", method, "--student", student, "--save_dir", name]
        run(extended, "bsr_main.py", *words, *given, *more)
    assert all(0 < row["loss_ent"] < 2.31 for row in metrics(extended / "with"))
    for row in metrics(extended / "with"):
        total = 10 * row["loss_bn"] + 0.5 * row["loss_oh"] + 1.33 * row["loss_adv"] + 0.5 * row["loss_ent"]
        assert row["loss_total"] == pytest.approx(total, rel=1e-4)
    assert [row["repository"] for row in metrics(extended / "out")] == [16, 32, 48]
    assert json.loads((extended / "out/config.json").read_text())["warmup"] == 1
    table = run(extended, "scripts/table.py", "with", "without", "out")
    assert all(row in table for row in ("fast_meta (ent 0.5)", "fast_meta (ent 0.0)", "\nrandom_images "))
    run(extended, "scripts/derive.py")
    page = (extended / "docs/flags.md").read_text()
    assert "| `--ent` | weight of the entropy" in page
    assert "| `random_images` | `--epochs 200 --warmup 1` |  |" in page


def test_the_network_and_the_dataset_are_trained_and_distilled(extended):
    random = np.random.RandomState(0)
    for split in ("train", "test"):
        images = random.randint(0, 256, (32, 32, 32, 3), dtype=np.uint8)
        np.savez(extended / f"shapes_{split}.npz", images=images, labels=np.arange(32) % 2)
    common = ["--dataset", "shapes", "--data_root", "."]
    run(extended, "train_scratch.py", *common, "--model", "tiny8", "--epochs", 1, "--batch_size", 8)
    both = "--teacher tiny8 --student tiny8 --test_teacher --save_dir shapes".split()
    out = run(extended, "bsr_main.py", *common, *both, *SHORT)
    assert "of 32 right" in out
    assert json.loads((extended / "shapes/config.json").read_text())["classes"] == ["circle", "square"]
