"""A run's folder with damaged files: whatever reads it works, or reports in one line what is wrong.

FUZZ_CASES=500 python -m pytest tests/robustness/test_fuzz.py     (more cases; part of make soak)
"""

import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import run_here, succeed
from helpers import DIGITS, write_teacher
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "50"))
RUN = f"{DIGITS} --kd_steps 1 --ep_steps 1 --g_steps 1 --save_dir out"
READERS = {
    "table": "scripts/table.py out",
    "report": "show_result/report.py out",
    "points": "show_result/show_points_ablation.py out --output points --max_points 20",
    "sweep": "show_result/hyperparameters/hp.py out --output sweep",
    "export": "scripts/export.py out --format safetensors",
    "resume": f"{RUN} --resume",
    "evaluate": f"{RUN} --evaluate_only",
    "overwrite": f"{RUN} --overwrite --epochs 0",
}
JSON = ("config.json", "summary.json", "metrics.jsonl")
FILES = (*JSON, "samples.bin", "checkpoint.pth", "checkpoint.previous.pth", "student.pth", "log.txt")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("genuine")
    write_teacher(cwd / "teacher.pth")
    succeed(RUN, cwd=cwd)
    return cwd


def spoil(file: Path, how: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if how == "flipped" and file.name not in JSON:
        for _ in range(rng.choice([1, 10, 1000])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif how == "longer":
        file.write_bytes(data + rng.randbytes(rng.randrange(1, 5000)))
    elif how == "text":
        file.write_text(rng.choice(["", "{}", "[]", "null", "3", '"x"', "\n\n", "{}\n{}\n", "\0"]))
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()


HOW = "flipped cut longer text folder gone".split()


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(sorted(READERS)), st.sampled_from(FILES), st.sampled_from(HOW), st.integers(0, 2**32))
@example("report", "samples.bin", "longer", 0)  # a kill leaves a part of a record
@example("points", "samples.bin", "flipped", 1)
def test_a_damaged_run_is_read_or_refused_in_a_line(genuine, reader, file, how, seed):
    work = genuine / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    shutil.copytree(genuine / "out", work / "out")
    shutil.copy(genuine / "teacher.pth", work)
    spoil(work / "out" / file, how, random.Random(seed))
    done = run_here(READERS[reader], cwd=work)
    assert done.returncode in (0, 2), done.stderr
    lines = [line for line in done.stderr.splitlines() if "not finished, left out" not in line]
    assert len(lines) <= (1 if done.returncode == 2 else 0), done.stderr
