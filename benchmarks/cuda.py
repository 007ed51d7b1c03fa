"""What is worth measuring on a CUDA GPU, with random data, in less than ten minutes; see cuda.sh.

On the console a table, in --output all figures: the device's bf16 matrix rate; images a second in KD
(resnet34 to resnet18, batch 256) and their share of that rate, by precision, with and without torch.compile
and --reuse_teacher; synthesis; IHO at 100,000 samples; and the time that these make of the published 420
epochs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import CLASSES, IMAGE_SHAPE, know, make_distiller, network, train_student
from datafree.distiller import Distiller
from datafree.iho import HomogeneityOperator
from datafree.repository import SampleRepository
from datafree.runs.environment import environment
from datafree.samples import Samples
from datafree.settings import resolve
from datafree.torch_utils.precision import set_kernels

PUBLISHED, _ = resolve({})
BATCH = PUBLISHED.batch_size
TABLE, REPEATS = 10**9, 0.7  # bytes of the teacher's logits; the share known, see published_draws.py


def seconds(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """Of one call, on average, after two that are not counted."""
    for call in range(times + 2):
        if call == 2:
            wait(device)
            start = time.perf_counter()
        function()
    wait(device)
    return (time.perf_counter() - start) / times


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, size: int) -> float:
    """Floating-point operations a second of a bf16 product of two square matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, device, 20)


def step_flops(teacher: torch.nn.Module, student: torch.nn.Module, device: torch.device) -> int:
    """Floating-point operations of KD on one image."""
    images = torch.randn(2, *IMAGE_SHAPE, device=device)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            teacher(images)
        student(images).sum().backward()
    return counter.get_total_flops() // 2


def bsr(
    device: torch.device, archs: tuple[str, str], samples: int, kd_steps: int, **changes: Any
) -> Distiller:
    """A run with the published settings but for the warm-up, the student's learning rate, `kd_steps` and
    changes."""
    torch.manual_seed(0)
    steps = {"kd_steps": kd_steps, "ep_steps": kd_steps, "warmup": 0}
    settings, _ = resolve({**steps, "lr": 1e-3, **changes})
    teacher, student = (network(arch, device) for arch in archs)
    return make_distiller(settings, teacher.eval().requires_grad_(False), student, samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("run/cuda.json"))
    parser.add_argument("--tiny", action="store_true", help="a trial of the script, on any device")
    args = parser.parse_args()
    device = torch.device(args.device)
    set_kernels(deterministic=False)
    archs = ("wrn16_1", "wrn16_1") if args.tiny else ("resnet34", "resnet18")
    samples, matrix, steps = (2_000, 256, 2) if args.tiny else (100_000, 8192, 60)
    figures: dict[str, Any] = {**environment(device), "bf16_matrix_flops": matrix_rate(device, matrix)}
    print(f"{figures['device_name']}: bf16 matrix product {figures['bf16_matrix_flops'] / 1e12:.1f} TFLOP/s")

    def report(name: str, value: float, text: str) -> None:
        figures[name] = value
        print(f"{name:32} {text}", flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(figures, indent=2) + "\n")  # as soon as there is something

    dim = 64 if args.tiny else 512
    repository = SampleRepository((1, 1, 1), dim, CLASSES, device)

    def arrive(count: int) -> None:
        labels = torch.randint(0, CLASSES, (count,), device=device)
        nothing = torch.zeros(count, 1, 1, 1, dtype=torch.uint8, device=device)
        repository.add(
            Samples(nothing, labels, torch.randn(count, dim, device=device), *torch.rand(2, count))
        )

    operator = HomogeneityOperator(CLASSES, BATCH, epochs=1000)
    arrive(samples)
    start = time.perf_counter()
    operator.measure(repository.table())
    wait(device)
    report("iho_from_scratch_seconds", time.perf_counter() - start, f"{time.perf_counter() - start:.3f} s")

    def update() -> None:
        arrive(BATCH)
        repository.remove(operator.select(operator.measure(repository.table()), repository.labels))

    iho = seconds(update, device, 10)
    report("iho_update_seconds", iho, f"{iho * 1e3:.1f} ms")
    for amp, compiled in (("off", False), ("bf16", False), ("fp16", False), ("off", True), ("bf16", True)):
        name = f"{amp}{', compiled' if compiled else ''}"
        try:
            changes = {"amp": amp, "compile": compiled}
            reusing = bsr(device, archs, samples, steps, reuse_teacher=TABLE, **changes)
            kd = seconds(lambda d=reusing: (know(d, REPEATS), train_student(d)), device, 1) / steps
            report(f"kd_images_per_second[{name}, reuse]", BATCH / kd, f"{BATCH / kd:,.0f} at 70 % repeats")
            del reusing
            distiller = bsr(device, archs, samples, steps, **changes)
            kd = seconds(lambda d=distiller: train_student(d), device, 1) / steps
            flops = step_flops(distiller.student.teacher, distiller.student.network, device)
            rate = BATCH / kd
            share = flops * rate / figures["bf16_matrix_flops"]
            report(f"kd_images_per_second[{name}]", rate, f"{rate:,.0f} ({share:.1%} of the matrix rate)")
            if compiled:
                continue
            targets = torch.randint(0, CLASSES, (BATCH,), device=device)
            call = seconds(lambda d=distiller, t=targets: d.synthesizer.synthesize(t, 0.5), device, 3)
            report(f"synthesis_seconds[{name}]", call, f"{call:.3f} s")
            trained = PUBLISHED.epochs - PUBLISHED.warmup
            whole = (trained * (PUBLISHED.kd_steps * kd + iho) + PUBLISHED.epochs * call) / 60
            report(f"published_run_minutes[{name}]", whole, f"{whole:.1f} min without tests of the student")
        except RuntimeError as error:  # a compiler that is not there, say: the rest is worth having
            print(f"{name}: {error}", flush=True)


if __name__ == "__main__":
    main()
