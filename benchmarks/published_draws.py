"""How many of a published run's teacher forwards repeat one before, counted from its draws alone.

    python benchmarks/published_draws.py [--seed 0]      (less than a minute; no network is run)

420 epochs make 256 samples each. From the 21st on a student takes 400 steps of 256 images, drawn and
augmented by the code that does it in a run. IHO removes as many as in the authors' run: of 107,520 samples
made their repository has kept 84,004, which is 59.5 an epoch that prunes. Which ones it removed is not
published: here they are any of those there are, or else of the newest batch.

The teacher's share of a KD step's arithmetic (forward; the student's is forward and backward) then says what
is left of a step with `--reuse_teacher`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from datafree import models
from datafree.data.augment import Augment, Normalize
from datafree.iho import LAST_UNPRUNED
from datafree.repository import SampleRepository
from datafree.samples import Samples
from datafree.settings import Settings, resolve

CLASSES, IMAGE_SHAPE = 10, (3, 32, 32)
KEPT = 84_004  # of resnet34 to resnet18 on CIFAR-10, with DLW, BLG and IHO
PAIRS = (
    ("resnet34", "resnet18"),
    ("vgg11", "resnet18"),
    ("wrn40_2", "wrn16_1"),
    ("wrn40_2", "wrn40_1"),
    ("wrn40_2", "wrn16_2"),
)


def repeats(s: Settings, removed: str, flip: bool, seed: int) -> tuple[int, int]:
    """How many views of stored samples a run draws, and how many of them it has drawn before.

    Args:
        s: of the run.
        removed: which samples IHO removes: "none", "any" or "newest".
        flip: whether images are mirrored.
        seed: of all draws.
    """
    rng = torch.Generator().manual_seed(seed)
    augment = Augment(Normalize((0.5,) * 3, (0.5,) * 3), flip)
    views = augment.views(IMAGE_SHAPE)
    made = s.epochs * s.synthesis_batch_size
    removals = removals_by_epoch(s, made - KEPT if removed != "none" else 0)
    # Only which samples are there matters: images of one pixel, and no features to speak of.
    repository = SampleRepository((1, 1, 1), 1, CLASSES)
    nothing = torch.zeros(s.synthesis_batch_size)
    new = Samples(nothing.byte().view(-1, 1, 1, 1), nothing.long(), nothing.view(-1, 1), nothing, nothing)
    seen = torch.zeros(made * views, dtype=torch.bool)
    drawn = 0
    for epoch in range(s.epochs):
        repository.add(new)
        if epoch < s.warmup:
            continue
        there = s.synthesis_batch_size if removed == "newest" else len(repository)
        gone = torch.randperm(there, generator=rng)[: next(removals)]
        repository.remove(len(repository) - 1 - gone)
        serials = repository.serials
        for places in repository.draws(s.batch_size, s.kd_steps, rng):
            seen[serials[places] * views + augment.draw_views(len(places), rng)] = True
            drawn += len(places)
    return drawn, drawn - int(seen.sum())


def removals_by_epoch(s: Settings, total: int) -> Iterator[int]:
    """How many samples IHO removes in each epoch after the warm-up; none in the last ones."""
    epochs = s.epochs - s.warmup - LAST_UNPRUNED
    for epoch in range(epochs):
        yield total * (epoch + 1) // epochs - total * epoch // epochs
    yield from [0] * LAST_UNPRUNED


def teacher_share(teacher: str, student: str) -> float:
    """Of the arithmetic of a KD step."""
    images = torch.empty(1, *IMAGE_SHAPE, device="meta")
    counted = []
    for arch, trained in ((teacher, False), (student, True)):
        network = models.create(arch, CLASSES).to("meta")
        with FlopCounterMode(display=False) as counter:
            logits = network(images)
            if trained:
                logits.sum().backward()
        counted.append(counter.get_total_flops())
    return counted[0] / sum(counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    settings = resolve({})[0]
    found = {}
    for removed, flip in product(("none", "any", "newest"), (True, False)):
        drawn, again = repeats(settings, removed, flip, args.seed)
        found[removed, flip] = again / drawn
        what = f"removed: {removed}; {'162 views' if flip else '81 views (no flip)'}"
        print(f"{what:36} {again:12,} of {drawn:12,} repeat one before: {again / drawn:.1%}", flush=True)
    print(f"\n{'pair':24} {'teacher, of a step':>20} {'left, none removed':>20} {'newest removed':>16}")
    for pair in PAIRS:
        share = teacher_share(*pair)
        left = [1 - share * found[removed, True] for removed in ("none", "newest")]
        print(f"{' to '.join(pair):24} {share:20.0%} {left[0]:20.2f} {left[1]:16.2f}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
