"""What several test files share: small networks, samples, runs, files to read, and the golden numbers."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from datafree import models
from datafree.assemble import make_distiller
from datafree.cli.bsr import build_parser
from datafree.data.augment import Augment, Normalize, OnlyNormalize
from datafree.data.image_set import to_uint8
from datafree.distiller import Distiller
from datafree.evaluation import Evaluation
from datafree.networks.names import NetworkName
from datafree.networks.penultimate import PenultimateFeatures
from datafree.runs.measure import MeasuredDistiller
from datafree.samples import Samples
from datafree.settings import Settings, resolve
from datafree.synthesis.base import Synthesis, SynthesisInputs, Synthesizer
from datafree.synthesis.create import create_synthesizer
from datafree.torch_utils.distributed import SINGLE_PROCESS

CPU = torch.device("cpu")

# Settings and samples


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


# Networks of one layer for 8 x 8 images, and distillers with them

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
NORMALIZE = Normalize(MEAN, STD)
CLASSES, N = 4, 6
TARGETS = torch.arange(N) % CLASSES
SHORT = ("--epochs", 9, "--warmup", 0, "--kd_steps", 2, "--ep_steps", 4, "--batch_size", 8, "--g_steps", 2)
SHORT += ("--synthesis_batch_size", 8)


def classifier(seed: int) -> nn.Sequential:
    """BatchNorm, then logits of all pixels: easy to compute by hand."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, CLASSES))
    network[0].running_mean.normal_()
    network[0].running_var.uniform_(0.5, 2)
    return network.eval()


class TinyGenerator(nn.Module):
    nz, img_size = 5, 8

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(self.nz, 3 * 64)

    def forward(self, z):
        return self.linear(z).sigmoid().view(-1, 3, 8, 8)


class ConstantLogits(nn.Module):
    """Returns the same logits for every image."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def synthesis_inputs(networks, rng, side=8) -> SynthesisInputs:
    """A teacher and a student, without augmentation."""
    return SynthesisInputs(*networks, OnlyNormalize(NORMALIZE), (3, side, side), rng)


def make_synthesizer(method, networks, rng, *words, side=8):
    """The synthesizer of a method, without augmentation."""
    return create_synthesizer(
        synthesis_inputs(networks, rng, side), flags("--method", method, *SHORT, *words)
    )


def unmeasured(settings, teacher, student, num_classes=CLASSES, processes=SINGLE_PROCESS) -> Distiller:
    return make_distiller(
        settings,
        teacher,
        student,
        features=PenultimateFeatures(teacher),
        img_size=8,
        num_classes=num_classes,
        augment=Augment(NORMALIZE, flip=True),
        device=CPU,
        processes=processes,
    )


def measured(parts: Distiller, settings) -> MeasuredDistiller:
    return MeasuredDistiller(parts, settings, lambda network: Evaluation(50.0, 100.0, 1.0, 1, 2))


def distiller(settings, processes=SINGLE_PROCESS) -> MeasuredDistiller:
    """The method of the settings on 8 x 8 images, with networks of one layer."""
    networks = classifier(0).requires_grad_(False), classifier(1)
    return measured(unmeasured(settings, *networks, processes=processes), settings)


class Noise(Synthesizer):
    """Samples of class 0 mostly, a few of them far from the rest; losses as given."""

    def __init__(self, rng, losses):
        self.rng, self.losses, self.requested, self.alphas = rng, losses, [], []
        self.augment = OnlyNormalize(NORMALIZE)

    def synthesize(self, targets, alpha, on_step=None):
        adv, bn = self.losses[self.calls]
        self.calls += 1
        self.requested.append(targets)
        self.alphas.append(alpha)
        count = len(targets)
        features = torch.randn(count, 192, generator=self.rng)
        features[:4] *= 100
        images = torch.rand(count, 3, 8, 8, generator=self.rng)
        labels = torch.arange(count) % 3 // 2  # 0 0 1 0 0 1 ...
        new = samples(images, labels, features, torch.full((count,), 0.5))
        terms = {"total": 1.0, "oh": 1.0, "bn": bn, "adv": adv}
        return Synthesis(new, images, terms, {name: [value] for name, value in terms.items()})


def noise_distiller(losses=((1.0, 1.0),) * 99, **changes) -> MeasuredDistiller:
    """Ten epochs of 24 samples of noise, the first two of them warm-up; adversarial and BatchNorm losses of
    each synthesis as given."""
    given = {"epochs": 10, "warmup": 2, "kd_steps": 2, "ep_steps": 2, "batch_size": 8, "oh": 0.7}
    given |= {"synthesis_batch_size": 24, "weight_decay": 0.0, **changes}
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    settings = resolve(given)[0]
    parts = unmeasured(settings, teacher, student, num_classes=3)
    parts.synthesizer = Noise(parts.generators.synthesis, losses)
    return measured(parts, settings)


def run(made: MeasuredDistiller, epochs: int = 10) -> list[dict]:
    return [made.run_epoch(epoch) for epoch in range(epochs)]


def untimed(rows):
    """Lines of metrics without what differs between equal runs."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_weights(network: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def assert_same_files(file: Path, other: Path) -> None:
    """Two checkpoints of a network have the same weights."""
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (file, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# Formulas in NumPy


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def normalized(images):
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return (images.numpy().astype(np.float64) - mean) / std


def outputs(network, inputs):
    """Logits, penultimate features and distance to the BatchNorm statistics of a `classifier`."""
    layer, linear = network[0], network[2]
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    scaled = (inputs - mean[:, None, None]) / np.sqrt(var + layer.eps)[:, None, None]
    features = scaled.reshape(len(inputs), -1)
    logits = features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    distance = np.linalg.norm(var - inputs.var((0, 2, 3))) + np.linalg.norm(mean - inputs.mean((0, 2, 3)))
    return logits, features, distance


# Networks of the library's users


def small(seed, width=8, classes=4):
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


FEW = {"img_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "epochs": 3, "warmup": 1, "kd_steps": 2}
FEW |= {"ep_steps": 2, "batch_size": 16, "g_steps": 2, "lr": 0.01}


# Runs and files

TINY = "--epochs 4 --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 2 --device cpu"
# A run of four short epochs, beside the teacher that `write_teacher` writes to teacher.pth
DIGITS = "bsr_main.py --dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1 " + TINY


def write_teacher(path: Path, arch="wrn16_1", num_classes=10, seed=0, **content):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    network = models.create(arch, num_classes)
    torch.save({"state_dict": network.state_dict(), **content} if content else network.state_dict(), path)
    return path


def write_folder(root: Path, splits=("test",), classes=("ant", "bee", "cat"), count=6):
    """An image folder of noise."""
    random = np.random.RandomState(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def metrics(run: Path):
    return untimed(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def assert_refused(done, message):
    """A finished process ended with one line of error."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran_code"),))


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


def write_training(folder, top1, **config):
    """What `train_scratch.py` leaves beside its checkpoint."""
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"last_top1": top1}))


def write_metrics(folder, rows):
    lines = [{"epoch": epoch, "seconds": {}, **row} for epoch, row in enumerate(rows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# The golden numbers, and the fill rule of `tests/golden/README.md`

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


def golden(name: str):
    return json.loads((GOLDEN / name).read_text())


META = golden("meta.json")


def random_state(offset: int) -> np.random.RandomState:
    return np.random.RandomState(META["seed_base"] + offset)


def fill(network: nn.Module, prefix: str) -> nn.Module:
    """Set every entry of the state dict by the fill rule; in float64, eval mode."""
    network = network.double()
    filled = {}
    for key, value in network.state_dict().items():
        name = (META["salt"] + prefix + key).encode()
        r = np.random.RandomState(zlib.crc32(name) % 2**31)
        shape = tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            filled[key] = value
            continue
        if key.endswith("running_mean"):
            entry = 0.1 * r.standard_normal(shape)
        elif key.endswith("running_var"):
            entry = np.exp(0.1 * r.standard_normal(shape))
        elif len(shape) >= 2:
            entry = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("weight"):
            entry = 1 + 0.1 * r.standard_normal(shape)
        else:
            entry = 0.1 * r.standard_normal(shape)
        filled[key] = torch.from_numpy(np.asarray(entry))
    network.load_state_dict(filled)
    return network.eval()
