"""Speed and memory against the obvious way to write the same thing, as ratios within one run.

    make bench      (five minutes on two cores; the table on the console, all figures in run/bench.json)

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
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import sklearn
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

import models
from benchmarks import obvious
from datafree import checkpoint
from datafree.augment import Augment, Normalize
from datafree.datasets import NORMALIZATIONS
from datafree.distiller import Distiller, DistillSettings
from datafree.evaluate import Evaluation
from datafree.iho import HomogeneityOperator
from datafree.penultimate import PenultimateFeatures
from datafree.record import environment
from datafree.repository import SampleRepository, to_float
from datafree.sample_log import SampleLog
from datafree.streams import RandomStreams
from datafree.synthesis.fast_meta import FastMetaSettings, FastMetaSynthesizer
from models.generator import Generator

AUGMENT = Augment(Normalize(*NORMALIZATIONS["cifar10"]), flip=True)
CLASSES = 10
PARTS = ("kd", "synthesis", "iho", "growth", "batches", "epoch", "memory")


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


def network(arch: str) -> torch.nn.Module:
    return models.create(arch, CLASSES).to(memory_format=torch.channels_last)


def teacher(arch: str) -> torch.nn.Module:
    """Frozen; its BatchNorm statistics are those of noise, so that activations stay of the usual size."""
    made = network(arch).train()
    with torch.no_grad():
        for _ in range(5):
            made(torch.randn(64, 3, 32, 32))
    return made.eval().requires_grad_(False)


def noise_samples(count: int, dim: int) -> tuple[torch.Tensor, ...]:
    """uint8 images, labels, clustered features and margins."""
    labels = torch.randint(0, CLASSES, (count,))
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(1))
    features = torch.relu(centres[labels] + torch.randn(count, dim))
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), labels, features, torch.rand(count)


def filled_repository(count: int, dim: int, log: Path | None = None) -> SampleRepository:
    shape = (3, 32, 32)
    repository = SampleRepository(shape, dim, CLASSES, log=SampleLog(log, shape, dim) if log else None)
    repository.add(*noise_samples(count, dim))
    return repository


def make_distiller(
    teacher_arch: str,
    student_arch: str,
    count: int,
    batch_size: int,
    g_steps: int,
    kd_steps: int,
    log: Path | None = None,
    compiled: bool = False,
) -> Distiller:
    """Of a run in full swing, with `count` samples of noise to begin with."""
    streams = RandomStreams(0)
    frozen, student = teacher(teacher_arch), network(student_arch)
    repository = filled_repository(count, PenultimateFeatures(frozen).dim, log)
    synthesizer = FastMetaSynthesizer(
        frozen,
        student,
        Generator().to(memory_format=torch.channels_last),
        AUGMENT,
        FastMetaSettings(g_steps, 2e-3, 0.01, bn=10, adv=1.33, warmup=0, bn_momentum=0.9),
        streams.synthesis,
    )
    settings = DistillSettings(
        epochs=1000,
        warmup=0,
        kd_steps=kd_steps,
        ep_steps=kd_steps,
        batch_size=batch_size,
        synthesis_batch_size=batch_size,
        lr=0.2,
        momentum=0.9,
        weight_decay=1e-4,
        temperature=20,
        oh=0.5,
        dlw=True,
        blg=True,
        iho=True,
        dlw_mode="dynamic",
        oh_min=0.5,
        oh_max=1,
        oh_step=0.1,
        oh_memory_size=8,
        compile=compiled,
    )
    return Distiller(
        frozen,
        student,
        synthesizer,
        repository,
        AUGMENT,
        settings,
        streams,
        lambda _student: Evaluation(0.0, 0.0, 0.0, 0, 1),
    )


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
        repository = filled_repository(count, 512)
        operator = HomogeneityOperator(CLASSES, 256)
        operator.measure(repository.table())
        ours, theirs = [], []
        for _ in range(times):
            repository.add(*noise_samples(256, 512))
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
    distiller = make_distiller("wrn40_2", "wrn16_1", 20_000, 128, 1, 1)
    student, frozen = network("wrn16_1").train(), distiller.teacher
    resident = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.no_grad():
            teacher_logits = frozen(resident)
        student.zero_grad()
        F.mse_loss(student(resident), teacher_logits).backward()

    distiller.student.train()
    ours, other = in_turns(lambda: distiller._distill(lambda *_: None), bare, times=16)
    table.times("KD step, wrn40_2 to wrn16_1, batch 128, against its networks", ours, other, 1.1, False)


def bench_synthesis_step(table: Table) -> None:
    steps = 5
    distiller = make_distiller("wrn40_2", "wrn16_1", 500, 128, steps, 1)
    targets = torch.randint(0, CLASSES, (128,))
    generator, frozen = distiller.synthesizer.generator, distiller.teacher
    student = network("wrn16_1").eval().requires_grad_(False)
    z = torch.randn(128, 256, requires_grad=True)

    def bare() -> None:
        for _ in range(steps):
            images = generator(z)
            F.mse_loss(student(images), frozen(images)).backward()

    ours, other = in_turns(lambda: distiller.synthesizer.synthesize(targets, 0.5), bare, times=3)
    what = "synthesis of 5 steps, wrn40_2 and wrn16_1, batch 128, against networks"
    table.times(what, ours, other, 1.4, False)


def bench_epoch(table: Table, folder: Path, samples: tuple[torch.Tensor, ...]) -> None:
    """Synthesis of 2 steps, IHO, BLG and 40 steps of KD (published: 10 and 400), with 50,000 samples there
    already. Ours also writes a checkpoint."""
    arch, g_steps, kd_steps = "vgg8", 2, 40
    images, labels, _, margins = samples
    frozen, student = (
        made.to(memory_format=torch.contiguous_format) for made in (teacher(arch), network("wrn16_1"))
    )
    dim = PenultimateFeatures(frozen).dim
    features = torch.relu(torch.randn(len(labels), dim))
    run = obvious.ObviousRun(frozen, student, Generator(), folder, features, labels, 128, g_steps, kd_steps)

    def ours(compiled: bool) -> Callable[[], None]:
        log = folder / f"samples-{compiled}.bin"
        distiller = make_distiller(arch, "wrn16_1", 0, 128, g_steps, kd_steps, log, compiled)
        distiller.repository.add(images, labels, features, margins)
        epochs = iter(range(100))

        def epoch() -> None:
            distiller.run_epoch(next(epochs))
            checkpoint.save(distiller.state_dict(), folder / "checkpoint.pth")

        return epoch

    plain, compiled, other = in_turns(ours(False), ours(True), run.epoch, times=2)
    what = f"epoch, {arch} ({dim} features) to wrn16_1, against the obvious"
    table.times(what, plain, other, None, True)
    table.times("  ... with --compile", compiled, other, 2.5, True)


def bench_growth(table: Table, folder: Path) -> None:
    distillers = [
        make_distiller("resnet20", "wrn16_1", count, 128, 5, 20, folder / f"samples-{count}.bin")
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
            obvious.write_pngs(Path(folder), samples[0], samples[1], 0)
            if wanted("batches"):
                repository = SampleRepository((3, 32, 32), 1, CLASSES)
                repository.add(*samples)
                bench_batches(table, Path(folder), repository)
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
