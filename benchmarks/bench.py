"""Speed and memory against the obvious way to write the same thing, as ratios within one run.

    make bench      (fifteen minutes on two cores; all figures go to run/bench.json too)

What is compared is run in turns, so that a machine that slows down slows both. Times are medians, with
the fastest and the slowest run in brackets. A result that misses its bar is marked, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import sklearn
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from benchmarks import obvious
from benchmarks.common import (
    AUGMENT,
    CLASSES,
    IMAGE_SHAPE,
    know,
    make_distiller,
    network,
    noise_samples,
    train_student,
)
from datafree.data.image_set import to_float
from datafree.distiller import Distiller
from datafree.iho import HomogeneityOperator
from datafree.models.generator import Generator
from datafree.networks.penultimate import PenultimateFeatures
from datafree.repository import SampleRepository
from datafree.runs.environment import environment
from datafree.runs.measure import MeasuredDistiller
from datafree.samples import Samples
from datafree.settings import Settings, resolve
from datafree.torch_utils import checkpoint

BATCH = 128  # images in a step of KD and of synthesis
STUDENT = "wrn16_1"
PARTS = ("kd", "reuse", "synthesis", "iho", "growth", "batches", "epoch", "memory")


class Table:
    """Rows of what was measured; a bar is the ratio to reach."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def times(
        self, what: str, ours: list[float], other: list[float], bar: float | None, faster: bool
    ) -> None:
        """Seconds of ours and of what it is compared with; `faster`: the ratio is other over ours."""
        ratio = median(other) / median(ours) if faster else median(ours) / median(other)
        texts = seconds_text(ours), seconds_text(other)
        self.add(what, *texts, ratio, bar, at_least=faster, seconds=ours, compared=other)

    def add(
        self,
        what: str,
        ours: str,
        other: str,
        result: float,
        bar: float | None,
        at_least: bool,
        **figures: Any,
    ) -> None:
        met = bar is None or (result >= bar if at_least else result <= bar)
        self.rows.append({"what": what, "result": result, "bar": bar, "met": met, **figures})
        wanted = "" if bar is None else f"{'>=' if at_least else '<='} {bar}{'' if met else '  MISSED'}"
        print(f"{what:68} {ours:>24} {other:>26} {result:8.3g}  {wanted}", flush=True)


def seconds_text(seconds: list[float]) -> str:
    middle, low, high = (1e3 * value for value in (median(seconds), min(seconds), max(seconds)))
    return f"{middle:.1f} ms ({low:.0f}-{high:.0f})"


def in_turns(*functions: Callable[[], Any], times: int) -> list[list[float]]:
    """Seconds of each of `times` calls of every function, after one of each that is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(times + 1):
        for function, kept in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                kept.append(time.perf_counter() - start)
    return seconds


def rounds(function: Callable[[], Any], count: int) -> list[float]:
    """Seconds a call in each of `count` rounds of 16 calls (data loaders deliver in bursts)."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(16):
            function()
        seconds.append((time.perf_counter() - start) / 16)
    return seconds


def teacher(arch: str) -> torch.nn.Module:
    """Frozen; its BatchNorm statistics are those of noise, so that activations stay of the usual size."""
    made = network(arch).train()
    with torch.no_grad():
        for _ in range(5):
            made(torch.randn(64, *IMAGE_SHAPE))
    return made.eval().requires_grad_(False)


def filled_repository(samples: Samples) -> SampleRepository:
    repository = SampleRepository(IMAGE_SHAPE, samples.features.shape[1], CLASSES)
    repository.add(samples)
    return repository


def bsr_settings(g_steps: int, kd_steps: int, **changes: Any) -> Settings:
    """The published ones of BSR but for the warm-up, the number of epochs, the work in each, and changes."""
    steps = {"g_steps": g_steps, "kd_steps": kd_steps, "ep_steps": kd_steps, "batch_size": BATCH}
    return resolve({**steps, "epochs": 1000, "warmup": 0, **changes})[0]


def bsr(arch: str, count: int, settings: Settings, log: Path | None = None) -> Distiller:
    """A run with a teacher of this architecture and `count` samples to begin with."""
    return make_distiller(settings, teacher(arch), network(STUDENT), count, log)


def bench_batches(table: Table, folder: Path, repository: SampleRepository) -> None:
    """A batch of 256 augmented images from 50,000."""
    rng = torch.Generator().manual_seed(0)
    ours = repository.batches(256, 10**6, rng)
    loader = iter(obvious.png_loader(folder, 256))
    times, pngs = [], []
    for turn in range(6):
        time.sleep(1)  # until the workers have worked ahead as far as they do, and rest
        block = rounds(lambda: AUGMENT(next(ours), rng), 1)
        rounds(loader.__next__, 1)  # what they had ready
        other = rounds(loader.__next__, 1)
        if turn:
            times, pngs = times + block, pngs + other
    del loader
    table.times("batch of 256 from 50,000, against PNGs and 4 workers", times, pngs, 6, True)

    v2_transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    v2_normalize = v2.Normalize(obvious.MEAN, obvious.STD)
    # torchvision's v2 draws one offset for a whole batch, so each image is transformed by itself.
    theirs = repository.batches(256, 10**6, rng)
    a, b = in_turns(
        lambda: AUGMENT(next(ours), rng),
        lambda: v2_normalize(torch.stack([v2_transform(image) for image in to_float(next(theirs))])),
        times=5,
    )
    table.times("  ... against torchvision v2, image by image", a, b, None, True)
    from kornia import augmentation as kornia

    chain = torch.nn.Sequential(
        kornia.RandomCrop((32, 32), padding=4),
        kornia.RandomHorizontalFlip(),
        kornia.Normalize(torch.tensor(obvious.MEAN), torch.tensor(obvious.STD)),
    )
    a, b = in_turns(lambda: AUGMENT(next(ours), rng), lambda: chain(to_float(next(theirs))), times=8)
    table.times("  ... against kornia, whole batches", a, b, None, True)


def bench_iho(table: Table) -> None:
    """An epoch's arrivals and removals, against scoring everything with scikit-learn."""
    for count, times in ((5_000, 4), (20_000, 3), (50_000, 3), (100_000, 1)):
        repository = filled_repository(noise_samples(count, 512))
        operator = HomogeneityOperator(CLASSES, 256, epochs=1000)
        operator.measure(repository.table())
        ours, theirs = [], []
        for _ in range(times):
            repository.add(noise_samples(256, 512))
            features, labels = repository.features.numpy(), repository.labels.numpy()
            start = time.perf_counter()
            spread = operator.measure(repository.table())
            chosen = operator.select(spread, repository.labels)
            middle = time.perf_counter()
            expected = obvious.outside_whiskers(features, labels, CLASSES)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
            assert spread.outside.tolist() == sorted(expected), "removals differ from scikit-learn's"
            repository.remove(chosen)
        what = f"IHO at {count:,} x 512, 256 new, against scikit-learn"
        table.times(what, ours, theirs, 30 if count == 50_000 else None, True)


def bench_kd_step(table: Table) -> None:
    distiller = bsr("wrn40_2", 20_000, bsr_settings(g_steps=1, kd_steps=1))
    student, frozen = network(STUDENT).train(), distiller.student.teacher
    resident = torch.randn(BATCH, *IMAGE_SHAPE).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.no_grad():
            teacher_logits = frozen(resident)
        student.zero_grad()
        F.mse_loss(student(resident), teacher_logits).backward()

    ours, other = in_turns(lambda: train_student(distiller), bare, times=16)
    table.times("KD step, wrn40_2 to wrn16_1, batch 128, against its networks", ours, other, 1.1, False)


def bench_reuse(table: Table) -> None:
    """The KD phase of an epoch in which the teacher has seen 70 % of the views, as over a published run (see
    published_draws.py), against its bare networks on resident tensors in float32."""
    measure_reuse(table, ("wrn40_2", STUDENT), 40, {"off": 0.5, "bf16": 0.3})
    measure_reuse(table, ("resnet34", "resnet18"), 10, {"off": 0.8, "bf16": None})


def measure_reuse(table: Table, archs: tuple[str, str], steps: int, bars: dict[str, float | None]) -> None:
    batch = resolve({})[0].batch_size
    frozen, student = teacher(archs[0]), network(archs[1]).train()
    resident = torch.randn(batch, *IMAGE_SHAPE).contiguous(memory_format=torch.channels_last)
    asked: dict[str, int] = {}

    def bare() -> None:
        for _ in range(steps):
            with torch.no_grad():
                teacher_logits = frozen(resident)
            student.zero_grad()
            F.mse_loss(student(resident), teacher_logits).backward()

    def ours(amp: str) -> Callable[[], None]:
        changes = {"batch_size": batch, "lr": 1e-3, "amp": amp, "reuse_teacher": 40_000_000}
        distiller = make_distiller(
            bsr_settings(1, steps, **changes), teacher(archs[0]), network(archs[1]), 5_000
        )

        def phase() -> None:
            phases: list[str] = []
            know(distiller, 0.7)
            distiller.student.train(distiller.batches(lambda phase, _loss: phases.append(phase)))
            asked[amp] = len(phases)

        return phase

    other, *phases = in_turns(bare, *map(ours, bars), times=2)
    for (amp, bar), own in zip(bars.items(), phases, strict=True):
        what = f"KD phase, {' to '.join(archs)}, {asked[amp]} of {steps} batches asked, --amp {amp}"
        table.times(what, own, other, bar, False)


def bench_synthesis_step(table: Table) -> None:
    steps = 5
    distiller, half = (
        bsr("wrn40_2", 500, bsr_settings(steps, kd_steps=1, amp=amp)) for amp in ("off", "bf16")
    )
    targets = torch.randint(0, CLASSES, (BATCH,))
    generator, frozen = distiller.synthesizer.generator, distiller.student.teacher
    student = network(STUDENT).eval().requires_grad_(False)
    z = torch.randn(BATCH, 256, requires_grad=True)

    def bare() -> None:
        for _ in range(steps):
            images = generator(z)
            F.mse_loss(student(images), frozen(images)).backward()

    ours, in_bf16, other = in_turns(
        lambda: distiller.synthesizer.synthesize(targets, 0.5),
        lambda: half.synthesizer.synthesize(targets, 0.5),
        bare,
        times=3,
    )
    what = "synthesis of 5 steps, wrn40_2 and wrn16_1, batch 128, against networks"
    table.times(what, ours, other, 1.4, False)
    table.times("  ... with --amp bf16, against the networks in float32", in_bf16, other, 0.85, False)


def bench_epoch(table: Table, folder: Path, samples: Samples) -> None:
    """Synthesis of 2 steps, IHO, BLG and 40 steps of KD (published: 10 and 400), with 50,000 samples there
    already. Ours also writes a checkpoint."""
    arch, g_steps, kd_steps = "vgg8", 2, 40
    frozen, student = (
        made.to(memory_format=torch.contiguous_format) for made in (teacher(arch), network(STUDENT))
    )
    dim = PenultimateFeatures(frozen).dim
    samples = replace(samples, features=torch.relu(torch.randn(len(samples), dim)))
    settings = bsr_settings(g_steps, kd_steps)
    run = obvious.ObviousRun(frozen, student, Generator(), folder, samples.features, samples.labels, settings)

    def ours(**changes: Any) -> Callable[[], None]:
        log = folder / f"samples-{'-'.join(changes)}.bin"
        of_ours = bsr_settings(g_steps, kd_steps, **changes)
        distiller = bsr(arch, 0, of_ours, log)
        distiller.repository.add(samples)
        run, epochs = MeasuredDistiller(distiller, of_ours), iter(range(100))

        def epoch() -> None:
            if "reuse_teacher" in changes:
                know(distiller, 0.7)
            run.run_epoch(next(epochs))
            checkpoint.save(run.state_dict(), folder / "checkpoint.pth")

        return epoch

    fast = {"amp": "bf16", "reuse_teacher": 400_000_000}
    plain, compiled, all_of_it, both, other = in_turns(
        ours(), ours(compile=True), ours(**fast), ours(**fast, compile=True), run.epoch, times=2
    )
    what = f"epoch, {arch} ({dim} features) to wrn16_1, against the obvious"
    table.times(what, plain, other, 2.4, True)
    table.times("  ... with --compile", compiled, other, None, True)
    table.times("  ... with --amp bf16 --reuse_teacher, asked 30 %", all_of_it, other, 4, True)
    table.times("  ... and --compile", both, other, None, True)


def bench_growth(table: Table, folder: Path) -> None:
    settings = bsr_settings(g_steps=5, kd_steps=20)
    distillers = [
        MeasuredDistiller(bsr("resnet20", count, settings, folder / f"samples-{count}.bin"), settings)
        for count in (100_000, 5_000)
    ]
    saves = []
    seconds: tuple[list[float], list[float]] = ([], [])
    iho: tuple[list[float], list[float]] = ([], [])
    for epoch in range(6):
        for distiller, kept, own in zip(distillers, seconds, iho, strict=True):
            start = time.perf_counter()
            row = distiller.run_epoch(epoch)
            if epoch:
                kept.append(time.perf_counter() - start - row["seconds"]["iho"])
                own.append(row["seconds"]["iho"])
        start = time.perf_counter()
        checkpoint.save(distillers[0].state_dict(), folder / "checkpoint.pth", keep_previous=True)
        saves.append(time.perf_counter() - start)
    table.times("epoch outside IHO, 100,000 samples against 5,000", *seconds, 1.05, False)
    table.times("  ... IHO itself (64 features), 100,000 against 5,000", *iho, None, False)
    table.times("a checkpoint at 100,000 samples, against an epoch", saves, seconds[0], 0.02, False)


def bench_memory(table: Table) -> None:
    for what, mode, bar in (
        ("GB for 107,520 images of 32 x 32 with 512 features", "small", 1.2),
        ("GB for 20,000 images of 224 x 224, --repository_memory 500MB", "large", 1.5),
    ):
        script = Path(__file__).with_name("memory.py")
        command = [sys.executable, str(script), mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
        peak = f"{figures['peak_gb']:.2f} GB at its peak"
        table.add(what, peak, "", figures["resident_gb"], bar, at_least=False, **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("run/bench.json"))
    parser.add_argument("--only", nargs="*", default=[], choices=PARTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    table, start = Table(), time.perf_counter()
    facts = {**environment(torch.device("cpu")), "scikit-learn": sklearn.__version__, "cpu": cpu_name()}
    print(", ".join(f"{name} {facts[name]}" for name in ("cpu", "threads", "torch", "scikit-learn")))

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    if wanted("kd"):
        bench_kd_step(table)
    if wanted("reuse"):
        bench_reuse(table)
    if wanted("synthesis"):
        bench_synthesis_step(table)
    if wanted("iho"):
        bench_iho(table)
    if wanted("growth"):
        with tempfile.TemporaryDirectory() as folder:
            bench_growth(table, Path(folder))
    if wanted("batches") or wanted("epoch"):
        with tempfile.TemporaryDirectory() as folder:
            samples = noise_samples(50_000, 1)
            obvious.write_pngs(Path(folder), samples.images, samples.labels, 0)
            if wanted("batches"):
                bench_batches(table, Path(folder), filled_repository(samples))
            if wanted("epoch"):
                bench_epoch(table, Path(folder), samples)
    if wanted("memory"):
        bench_memory(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**facts, "rows": table.rows}, indent=2) + "\n")
    print(f"{time.perf_counter() - start:.0f} s; written to {args.output}")
    sys.exit(0 if all(row["met"] for row in table.rows) else 1)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
