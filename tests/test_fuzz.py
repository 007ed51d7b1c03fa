"""A run's folder, damaged in every way: whatever reads it does its work or says in one line what is wrong.

FUZZ_CASES=500 python -m pytest tests/test_fuzz.py     (more cases; part of make soak)
"""

import json
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
from conftest import run_here
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_scripts import write_teacher

CASES = int(os.environ.get("FUZZ_CASES", "50"))
RUN = [
    *"--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 --device cpu".split(),
    *"--epochs 4 --warmup 1 --kd_steps 1 --ep_steps 1 --batch_size 16 --g_steps 1 --save_dir out".split(),
]
READERS = {
    "table": ("scripts/table.py", "out"),
    "csv": ("scripts/table.py", "out", "--format", "csv"),
    "report": ("show_result/report.py", "out"),
    "points": ("show_result/show_points_ablation.py", *"out --output points --max_points 20".split()),
    "sweep": ("show_result/hyperparameters/hp.py", "out", "--output", "sweep"),
    "export": ("scripts/export.py", "out", "--format", "safetensors"),
    "resume": ("bsr_main.py", *RUN, "--resume"),
    "evaluate": ("bsr_main.py", *RUN, "--evaluate_only"),
    "overwrite": ("bsr_main.py", *RUN, "--overwrite", "--epochs", "0"),
}
JSON = ("config.json", "summary.json", "metrics.jsonl")
FILES = (*JSON, "samples.bin", "checkpoint.pth", "checkpoint.previous.pth", "student.pth", "log.txt", ".lock")
ODD = [
    *(None, True, -1, 0, 1, 10**9, 10**400, 1e308, float("nan"), float("inf"), -0.5, "", "x", "é" * 1000),
    *([], [None], [[1]], {}, {"a": 1}, [10**9] * 3, "../../../etc", "wrn16_1", "timm:resnet18"),
]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("genuine")
    write_teacher(cwd / "teacher.pth")
    done = run_here("bsr_main.py", *RUN, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def spoil_json(text: str, rng: random.Random) -> str:
    """One value, somewhere, dropped or replaced by something else."""
    lines = text.splitlines() if text.count("\n{") else [text]
    place = rng.randrange(len(lines))
    content = here = json.loads(lines[place])
    while True:
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        if not (isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.5):
            break
        here = here[key]
    if rng.random() < 0.2:
        del here[key]
    else:
        here[key] = rng.choice(ODD)
    lines[place] = json.dumps(content)
    return "\n".join(lines) + "\n"


def spoil(file: Path, how: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if how == "a value" and file.name in JSON:
        file.write_text(spoil_json(file.read_text(), rng))
    elif how in ("flipped", "a value"):
        for _ in range(rng.choice([1, 10, 1000])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif how == "longer":
        file.write_bytes(data + rng.randbytes(rng.randrange(1, 5000)))
    elif how == "deep":
        file.write_text("[" * 100_000)
    elif how == "text":
        file.write_text(rng.choice(["", "{}", "[]", "null", "3", '"x"', "\n\n", "{}\n{}\n", "\0"]))
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "huge":
            with open(file, "wb") as holes:  # which take no room on the disk
                holes.truncate(1 << 40)
        elif how == "endless":
            file.symlink_to("/dev/zero")


HOW = ["a value"] * 6 + "flipped cut longer deep text folder pipe huge gone endless".split()


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.sampled_from(sorted(READERS)),
    st.sampled_from((*JSON * 3, *FILES)),
    st.sampled_from(HOW),
    st.integers(0, 2**32),
)
@example("report", "samples.bin", "longer", 0)  # a kill leaves a part of a record
@example("points", "samples.bin", "flipped", 1)
@example("table", "config.json", "pipe", 0)
@example("report", "metrics.jsonl", "endless", 0)
@example("export", "config.json", "huge", 0)
@example("resume", "metrics.jsonl", "pipe", 0)
@example("resume", "metrics.jsonl", "huge", 0)
def test_a_damaged_run_is_read_or_refused_in_a_line(genuine, reader, file, how, seed):
    work = genuine / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    shutil.copytree(genuine / "out", work / "out")
    shutil.copy(genuine / "teacher.pth", work)
    spoil(work / "out" / file, how, random.Random(seed))
    script, *words = READERS[reader]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run_here(script, *words, cwd=work)
    assert done.returncode in (0, 2), done.stderr
    said = [line for line in done.stderr.splitlines() if "not finished, left out" not in line]
    assert len(said) <= (1 if done.returncode == 2 else 0), done.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "a gigabyte more"


EMPTY = ["", "index,x,y\n", "index,x,y\n0,nan,1\n", "index\n0\n", "index,x,y\n0,1e300,0\n", "\0"]


@pytest.mark.parametrize("text", EMPTY)
@pytest.mark.parametrize("kind", ["points", "targets", "counts"])
def test_points_that_are_none_are_refused(text, kind, tmp_path):
    good = {"points": "i,x,y\n0,1,2\n", "targets": "i,t\n0,1\n", "counts": "i,c\n0,1\n1,1\n"}
    for name, content in {**good, kind: text}.items():
        (tmp_path / f"a_{name}.csv").write_text(content)
    done = run_here("show_result/ablation.py", "--points", tmp_path, "--output", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
