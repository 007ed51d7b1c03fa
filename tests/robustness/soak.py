"""Kill a run at random moments, continue it each time, and see that it ends as one that was never stopped.

python tests/robustness/soak.py [--kills 25] [--seed 0]     (make soak)
python tests/robustness/soak.py --all --kills 100           (over all methods, with samples that come and go)
python tests/robustness/soak.py --all --kills 100 --methods dafl zskt  (of those, these two)
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from processes import epochs_done, start  # noqa: E402

# Samples come and go; the rate is one at which no student of a teacher of random weights diverges.
COMPONENTS = "--store_samples --dlw --blg --iho --max_samples 600 --lr 0.02"
MOMENTS = ("at random", "inside a save", "between phases")


def command(teacher: Path, folder: Path, epochs: int, *more: str) -> list[object]:
    return [
        "bsr_main.py",
        *"--dataset digits --teacher wrn16_1 --teacher_ckpt".split(),
        teacher,
        *"--student mobilenetv2 --device cpu --epochs".split(),
        epochs,
        *"--warmup 2 --kd_steps 2 --ep_steps 4 --batch_size 32 --g_steps 2 --save_every 2".split(),
        "--save_dir",
        folder,
        *more,
    ]


def size_of(file: Path) -> int:
    """In bytes; 0 where there is none, as when a run that had no checkpoint yet begins anew."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def wait_for(
    moment: str, folder: Path, process: subprocess.Popen, rng: random.Random, most_epochs: int
) -> None:
    """Return when the run has gone on for some epochs and come to the moment, or to its end."""
    temporary, metrics = folder / "checkpoint.pth.tmp", folder / "metrics.jsonl"
    temporary.unlink(missing_ok=True)  # of a kill before
    log = folder / "log.txt"
    size = size_of(log)
    while process.poll() is None:  # until the run is under way
        if size_of(log) > size:
            break
        time.sleep(0.005)
    wanted = epochs_done(folder) + rng.randint(0, most_epochs)
    while process.poll() is None and epochs_done(folder) < wanted:
        time.sleep(0.005)
    size = size_of(metrics)
    deadline = time.monotonic() + rng.uniform(0, 1.5)
    while process.poll() is None:
        if moment == "inside a save" and temporary.exists():
            return
        if moment == "between phases" and size_of(metrics) != size:
            return
        if moment == "at random" and time.monotonic() > deadline:
            return
        time.sleep(0.0005)


def soak(
    teacher: Path,
    work: Path,
    epochs: int,
    kills: int,
    seed: int,
    say: Callable[[str], None] = print,
    flags: tuple[str, ...] = (),
) -> None:
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
        if killed < kills:
            moment = MOMENTS[killed % len(MOMENTS)]
            wait_for(moment, broken, process, rng, epochs // (2 * kills))
        if killed < kills and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            say(f"killed {killed} of {kills}, {moment}, in epoch {epochs_done(broken) + 1}")
            continue
        assert process.wait() == 0, process.stderr.read()
        break
    assert killed == kills, f"the run was over after {killed} kills: give it more epochs"
    compare(whole, broken)
    say(f"killed {killed} times: student, samples and metrics are the uninterrupted run's, bit for bit")


def compare(whole: Path, broken: Path) -> None:
    import torch
    from helpers import metrics

    from datafree.torch_utils import checkpoint

    assert metrics(whole) == metrics(broken)
    assert (whole / "samples.bin").read_bytes() == (broken / "samples.bin").read_bytes()
    students = [
        torch.load(folder / "student.pth", weights_only=True)["state_dict"] for folder in (whole, broken)
    ]
    assert same(*students)
    states = [checkpoint.read(folder / "checkpoint.pth")["distiller"] for folder in (whole, broken)]
    assert same(*states)


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
    parser.add_argument("--all", action="store_true", help="a run of each method, with all components")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="with --all: only these of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.pth"
        words = ["--dataset", "digits", "--model", "wrn16_1", "--epochs", "0", "--output", str(teacher)]
        assert start("train_scratch.py", *words).wait() == 0
        start_time = time.monotonic()
        if args.all:
            from datafree.methods import METHODS

            for number, method in enumerate(METHODS):
                if args.methods and method not in args.methods:
                    continue
                kills = args.kills * (number + 1) // len(METHODS) - args.kills * number // len(METHODS)
                work = Path(folder) / method
                work.mkdir()
                print(f"{method}:", flush=True)
                flags = tuple(f"--method {method} {COMPONENTS}".split())
                soak(teacher, work, args.epochs, kills, args.seed + number, flags=flags)
        else:
            soak(teacher, Path(folder), args.epochs, args.kills, args.seed)
        print(f"{time.monotonic() - start_time:.0f} s")


if __name__ == "__main__":
    main()
