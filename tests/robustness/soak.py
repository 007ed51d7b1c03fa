"""Kill a run at random moments, continue it each time, and compare it with a run that was never stopped.

python tests/robustness/soak.py [--kills 25] [--seed 0]            (make soak)
python tests/robustness/soak.py --methods dafl zskt --kills 100    (samples come and go)
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from processes import epochs_done, start  # noqa: E402

# Samples come and go; at this rate no student of a teacher with random weights diverges.
COMPONENTS = "--store_samples --dlw --blg --iho --max_samples 600 --lr 0.02"
MOMENTS = ("at random", "inside a save", "between phases")


def command(teacher: Path, folder: Path, epochs: int, *more: str) -> list[str]:
    words = (
        f"bsr_main.py --dataset digits --teacher wrn16_1 --teacher_ckpt {teacher} --student mobilenetv2 "
        f"--device cpu --epochs {epochs} --warmup 2 --kd_steps 2 --ep_steps 4 --batch_size 32 --g_steps 2 "
        f"--save_every 2 --save_dir {folder}"
    )
    return [*words.split(), *more]


def size_of(file: Path) -> int:
    """In bytes; 0 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def wait_for(
    moment: str, folder: Path, process: subprocess.Popen, rng: random.Random, most_epochs: int
) -> None:
    """Return when the run has gone on for some epochs and come to the moment, or to its end."""
    temporary, metrics, log = (folder / name for name in ("checkpoint.pth.tmp", "metrics.jsonl", "log.txt"))
    temporary.unlink(missing_ok=True)  # of a kill before
    size = size_of(log)
    while process.poll() is None and size_of(log) <= size:  # until the run is under way
        time.sleep(0.005)
    wanted = epochs_done(folder) + rng.randint(0, most_epochs)
    while process.poll() is None and epochs_done(folder) < wanted:
        time.sleep(0.005)
    size, deadline = size_of(metrics), time.monotonic() + rng.uniform(0, 1.5)
    come = {
        "inside a save": temporary.exists,
        "between phases": lambda: size_of(metrics) != size,
        "at random": lambda: time.monotonic() > deadline,
    }[moment]
    while process.poll() is None and not come():
        time.sleep(0.0005)


def soak(teacher: Path, work: Path, epochs: int, kills: int, seed: int, flags: tuple[str, ...] = ()) -> None:
    """Raises:
    AssertionError: the continued run differs from the uninterrupted one, or would not go on.
    """
    whole, broken = work / "whole", work / "broken"
    done = start(*command(teacher, whole, epochs, *flags))
    assert done.wait() == 0, done.stderr.read()
    rng = random.Random(seed)
    killed = 0
    while True:
        more = []
        if (broken / "checkpoint.pth").exists() or (broken / "checkpoint.previous.pth").exists():
            more = ["--resume"]
        elif broken.exists():
            more = ["--overwrite"]
        process = start(*command(teacher, broken, epochs, *flags, *more))
        moment = MOMENTS[killed % len(MOMENTS)]
        if killed < kills:
            wait_for(moment, broken, process, rng, epochs // (2 * kills))
        if killed == kills or process.poll() is not None:
            assert process.wait() == 0, process.stderr.read()
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        print(f"killed {killed} of {kills}, {moment}, in epoch {epochs_done(broken) + 1}", flush=True)
    assert killed == kills, f"the run was over after {killed} kills: give it more epochs"
    compare(whole, broken)
    print(f"killed {killed} times: student, samples and metrics are the uninterrupted run's, bit for bit")


def compare(whole: Path, broken: Path) -> None:
    from helpers import metrics

    from datafree.torch_utils import checkpoint

    assert metrics(whole) == metrics(broken)
    assert (whole / "samples.bin").read_bytes() == (broken / "samples.bin").read_bytes()
    for file, part in (("student.pth", "state_dict"), ("checkpoint.pth", "distiller")):
        assert same(*(checkpoint.read(folder / file)[part] for folder in (whole, broken))), file


def same(a: object, b: object) -> bool:
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="a run of each, with all components")
    args = parser.parse_args()
    runs = {method: f"--method {method} {COMPONENTS}" for method in args.methods or ()} or {"bsr": ""}
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.pth"
        train = f"train_scratch.py --dataset digits --model wrn16_1 --epochs 0 --output {teacher}"
        assert start(*train.split()).wait() == 0
        for method, flags in runs.items():
            work = Path(folder) / method
            work.mkdir()
            soak(teacher, work, args.epochs, args.kills, args.seed, tuple(flags.split()))


if __name__ == "__main__":
    main()
