"""Resident memory of a filled repository over an empty one, in a process of its own; prints JSON.

python benchmarks/memory.py {small,large}
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.common import AUGMENT, CLASSES
from datafree.iho import HomogeneityOperator
from datafree.repository import SampleRepository
from datafree.runs.sample_log import SampleLog
from datafree.samples import Samples


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak(threading.Thread):
    """Watches the resident memory from a thread, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes())
            time.sleep(0.1)


def images_of(serials: torch.Tensor, size: int) -> torch.Tensor:
    """Images that tell which sample they are: the same noise, plus the sample's number."""
    noise = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0))
    return ((noise + serials.view(-1, 1, 1, 1) * 7919) % 256).to(torch.uint8)


def fill(repository: SampleRepository, operator: HomogeneityOperator, count: int, batch: int) -> None:
    """Add samples, follow them, and draw from them as a run does."""
    rng = torch.Generator().manual_seed(0)
    size, dim = repository.images(torch.arange(0)).shape[-1], repository.features.shape[1]
    for start in range(0, count, batch):
        serials = torch.arange(start, start + batch)
        images, features = images_of(serials, size), torch.randn(batch, dim)
        repository.add(Samples(images, serials % CLASSES, features, *torch.rand(2, batch)))
        operator.measure(repository.table())
    for number, drawn in enumerate(repository.batches(batch, 20, rng)):
        if number == 0:  # what a repository all in memory would draw
            first = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:batch]
            assert torch.equal(drawn, images_of(first, size)), "images differ"
        AUGMENT(drawn, rng)


def main() -> None:
    large = sys.argv[1] == "large"
    count, size, batch = (20_000, 224, 250) if large else (107_520, 32, 256)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:

        def fresh(name: str) -> tuple[SampleRepository, HomogeneityOperator]:
            log = SampleLog(Path(folder) / name, (3, size, size), 512) if large else None
            limit = 500 * 10**6 if large else None
            repository = SampleRepository((3, size, size), 512, CLASSES, log=log, resident_bytes=limit)
            return repository, HomogeneityOperator(CLASSES, batch, epochs=1000)

        fill(*fresh("other"), 2 * batch, batch)  # what the libraries need for themselves
        repository, operator = fresh("samples")
        empty, peak = resident_bytes(), Peak()
        peak.start()
        fill(repository, operator, count, batch)
        filled = resident_bytes()
        figures = {"resident_gb": (filled - empty) / 1e9, "peak_gb": (peak.bytes - empty) / 1e9}
        print(json.dumps({**figures, "samples": len(repository)}))


if __name__ == "__main__":
    main()
