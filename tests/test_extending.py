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
from test_scripts import metrics, write_teacher

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCK = re.compile(r"<!-- (?:new file: (\S+)|(\S+), after: (.+?)) -->\n```python\n(.*?)```\n", re.DOTALL)
SHORT = "--epochs 3 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 1 --device cpu".split()


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("datafree", "models", "scripts", "docs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    for script in ("bsr_main.py", "train_scratch.py"):
        shutil.copy(ROOT / script, copy)
    for new_file, file, line, code in BLOCK.findall(PAGE):
        if new_file:
            assert not (copy / new_file).exists()
            (copy / new_file).write_text(code)
        else:
            text = (copy / file).read_text()
            assert text.count(f"\n{line}\n") == 1, f"{file} has no line {line}"
            (copy / file).write_text(text.replace(f"\n{line}\n", f"\n{line}\n{code}"))
    return copy


def run(extended, script, *words):
    env = {**os.environ, "PYTHONPATH": str(extended)}  # before a checkout that is installed
    command = [sys.executable, str(extended / script), *map(str, words)]
    done = subprocess.run(command, cwd=extended, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_a_method_a_network_and_a_dataset():
    new = [block[0] for block in BLOCK.findall(PAGE) if block[0]]
    assert new == ["datafree/synthesis/random_images.py", "models/tiny.py", "datafree/data/shapes.py"]


def test_the_method_runs_resumes_and_is_in_help_tables_and_pages(extended):
    write_teacher(extended / "teacher.pth")
    words = [
        *"--method random_images --dataset digits --teacher wrn16_1".split(),
        *"--teacher_ckpt teacher.pth --student tiny8".split(),
        *SHORT,
        "--save_dir",
        "out",
    ]
    run(extended, "bsr_main.py", *words)
    assert [row["repository"] for row in metrics(extended / "out")] == [16, 32, 48]
    assert json.loads((extended / "out/config.json").read_text())["warmup"] == 1
    help_text = run(extended, "bsr_main.py", "--help")
    assert re.search(r"^  random_images +--epochs 200 --warmup 1$", help_text, re.MULTILINE)
    assert re.search(r"^random_images ", run(extended, "scripts/table.py", "out"), re.MULTILINE)
    run(extended, "scripts/derive.py")
    assert "| `random_images` | `--epochs 200 --warmup 1` |  |" in (extended / "docs/flags.md").read_text()


def test_the_network_and_the_dataset_are_trained_and_distilled(extended):
    random = np.random.RandomState(0)
    for split in ("train", "test"):
        images = random.randint(0, 256, (32, 32, 32, 3), dtype=np.uint8)
        np.savez(extended / f"shapes_{split}.npz", images=images, labels=np.arange(32) % 2)
    common = ["--dataset", "shapes", "--data_root", "."]
    run(extended, "train_scratch.py", *common, "--model", "tiny8", "--epochs", 1, "--batch_size", 8)
    out = run(
        extended,
        "bsr_main.py",
        *common,
        *"--teacher tiny8 --student tiny8".split(),
        *SHORT,
        "--test_teacher",
        "--save_dir",
        "shapes",
    )
    assert "of 32 right" in out
    assert json.loads((extended / "shapes/config.json").read_text())["classes"] == ["circle", "square"]
