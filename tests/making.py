"""Small things that tests are made of."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from datafree import models
from datafree.cli.bsr import build_parser
from datafree.data.pixels import to_uint8
from datafree.networks.names import NetworkName
from datafree.samples import Samples
from datafree.settings import Settings, resolve


def flags(*words: object) -> Settings:
    """The settings that `bsr_main.py` has with these flags."""
    return resolve(build_parser().given([str(word) for word in words]))[0]


def named(text: str) -> NetworkName:
    return NetworkName.parse(text)


def samples(images, labels, features, margins=None) -> Samples:
    """Samples of images in [0, 1] or uint8."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    margins = torch.zeros(len(labels)) if margins is None else margins
    return Samples(images, labels, features, margins, (1 + margins) / 2)


def small(seed, width=8, classes=4):
    """A network of one convolution, with dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


# The shortest distillation.
FEW = {
    **{"img_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    **{"epochs": 3, "warmup": 1, "kd_steps": 2, "ep_steps": 2, "batch_size": 16, "g_steps": 2, "lr": 0.01},
}


# The flags of a short run.
TINY = [
    *"--epochs 4 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 2".split(),
    *"--device cpu".split(),
]


def write_folder(root: Path, splits=("test",), classes=("ant", "bee", "cat"), count=6):
    random = np.random.RandomState(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def write_teacher(path: Path, arch="wrn16_1", num_classes=10, seed=0, **content):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    network = models.create(arch, num_classes)
    torch.save({"state_dict": network.state_dict(), **content} if content else network.state_dict(), path)
    return path


def metrics(run: Path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_refused(done, message):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr


def write_run(folder, seed=0, last=90.0, method="bsr", pair=("resnet34", "resnet18"), **config):
    """A finished run's configuration and summary."""
    folder.mkdir(parents=True)
    on = method == "bsr"
    networks = {"teacher": pair[0], "student": pair[1]}
    components = {"dlw": on, "blg": on, "iho": on, "dlw_mode": "dynamic", "store_samples": True}
    published = {"adv": 1.33, "oh_memory_size": 8, "oh_step": 0.1, "g_steps": 10}
    settings = {"method": method, "dataset": "cifar10", **networks, "seed": seed, **components, **published}
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    top1 = {"last_top1": last, "best_top1_chosen_on_test_data": last + 1, "teacher_top1": 95.5}
    counts = {"count_variation": 0.25, "count_entropy": 0.99}
    spread = {"lof_relative_iqr": 0.05, "lof_outside_share": 0.01, "margin": 0.9}
    (folder / "summary.json").write_text(json.dumps({**top1, **counts, **spread, "seconds": 120.0}))


def write_metrics(folder, rows):
    lines = [{"epoch": epoch, "seconds": {}, **row} for epoch, row in enumerate(rows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
