"""int8 without data, of any network and of a run's student: calibrated on synthesised images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from termcolor import colored
from torch import Tensor, nn
from tqdm import tqdm

from datafree.data.image_folders import load_labelled
from datafree.data.image_set import ImageSet, in_memory, noise_like, to_float
from datafree.data.load import load_split
from datafree.deploy.export import NormalizedNetwork, export, write_files
from datafree.deploy.int8 import QuantizedNetwork, quantize_and_score
from datafree.deploy.model_card import TEMPLATES, int8_report
from datafree.errors import UserError
from datafree.extras.several_teachers import prepare_teacher
from datafree.networks.bn_statistics import BNStatistics, check_bn_statistics
from datafree.networks.check import NO_STATISTICS
from datafree.networks.teacher import Teacher
from datafree.results.read import FinishedRun
from datafree.results.stored import read_samples
from datafree.samples import occurrences
from datafree.settings import QuantizeSettings, Settings
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.create import create_synthesizer
from datafree.torch_utils.device import choose_device
from datafree.torch_utils.precision import autocast, found_precision
from datafree.torch_utils.random import RandomGenerators, random_state_kept

FLOAT, INT8, CARD = FILES = "float.onnx", "int8.onnx", "int8.md"
NOISE = 16  # images of noise, with which synthesised ones are compared
TESTED, MOST_TESTED = 64, 2_000  # without real images: synthesised ones to test a network, or a run's student
# Without --bn, the BatchNorm loss weighs this much relative to the class loss on noise. Their scales depend
# on the network, whose statistics may be of any size.
BN_SHARE = 25.0


def quantize_network(own: QuantizeSettings, settings: Settings, choose_bn: bool) -> None:
    """Write a network as ONNX in float and in int8, with a card that compares them.

    Args:
        own: what to quantise and how.
        settings: of the synthesis, see `resolve_quantization`.
        choose_bn: choose the weight of the BatchNorm loss, see `BN_SHARE`.

    Raises:
        UserError: something is missing, the network cannot be exported or quantised, or the files exist.
    """
    folder = Path(own.output or f"run/int8-{own.dataset}-{own.teacher.stem}")
    for file in (folder / name for name in FILES):
        if file.exists() and not own.overwrite:
            raise UserError(f"{file} is there already: add --overwrite, or name another --output")
    device = choose_device(own.device, own.gpu)
    settings = replace(settings, amp=found_precision(settings.amp, device))
    teacher = prepare_teacher(settings, device)
    print(f"{own.teacher}: {teacher.found}")
    _warn(*teacher.warnings, "" if teacher.found.bn_layers else NO_STATISTICS)
    spec = teacher.data
    test = _test_images({**vars(own), **spec.as_dict()})
    if test and own.real_calibration > len(test):
        raise UserError(f"--real_calibration {own.real_calibration}: there are {len(test)} real images")
    folder.mkdir(parents=True, exist_ok=True)
    # Exported first: a network that cannot be exported is refused before minutes of synthesis.
    noise = noise_like(NOISE, (spec.channels, spec.img_size, spec.img_size))
    network = NormalizedNetwork(copy.deepcopy(teacher.network).cpu().float(), spec.mean, spec.std).eval()
    model = export(network, to_float(noise[:2]), "onnx")
    count = own.calibration + (0 if test else TESTED)
    synthesised, hit_rate = synthesize_images(settings, teacher, device, count, choose_bn)
    images, others = synthesised[: own.calibration], synthesised[own.calibration :]
    print(f"{len(images)} images, {100 * hit_rate:.0f} % of those synthesised have the requested class")
    normalized = (spec.normalize(to_float(some[:NOISE].to(device))) for some in (noise, images))
    _warn(check_bn_statistics(teacher.network, *normalized))
    real = None
    if test and own.real_calibration:
        rng = torch.Generator().manual_seed(own.seed)
        real = test.read(balanced(test.labels, own.real_calibration, rng))
    quantized = quantize_and_score(
        model,
        images,
        test or in_memory(others, torch.zeros(len(others), dtype=torch.long), spec.classes),
        f"{len(test):,} real images" if test else f"{len(others)} other images",
        labelled=test is not None,
        keep_float=own.keep_float,
        real=real,
    )
    card = TEMPLATES.get_template("int8_card.md.j2").render(
        own=own,
        settings=settings,
        teacher=teacher,
        files=FILES,
        count=len(images),
        hit_rate=hit_rate,
        threads=torch.get_num_threads(),
        quantized=quantized,
    )
    write_files(folder, {FLOAT: model, INT8: quantized.file, CARD: card.encode(errors="backslashreplace")})
    print(f"{int8_report(quantized)}\n{folder / INT8}, {folder / FLOAT}, {folder / CARD}")


def quantize_student(
    run: FinishedRun, network: NormalizedNetwork, model: bytes, count: int, data_root: str | None = None
) -> QuantizedNetwork:
    """The student of a run in int8, calibrated on its samples and tested on the run's test images, or else on
    samples that it was not calibrated on.

    Args:
        run, network, model: the run, its student, and the student as ONNX.
        count: samples to calibrate on, or all where there are fewer.
        data_root: folder of the test images, if not the run's.

    Raises:
        NoSamples: the run has stored none.
        UserError: the student cannot be quantised.
    """
    samples, config = read_samples(run), run.config
    kept = samples.kept.nonzero().squeeze(1)
    order = kept[balanced(samples.labels[kept], len(kept), torch.Generator().manual_seed(0))]
    chosen, others = order[:count], order[count:][:MOST_TESTED]
    tested_on = f"{len(others):,} other samples" if len(others) else "these samples"
    others = others if len(others) else chosen
    test, labelled = ImageSet(lambda rows: samples.images(others[rows]), samples.labels[others], ()), False
    try:
        root = data_root or config.get("data_root", "data")
        real = _test_images({**config, "data_root": root, "download": False})
        if real:
            test, labelled, tested_on = real, True, f"{len(real):,} test images"
    except UserError as error:
        print(f"no test images for --int8 ({error}): tested on samples")
    return quantize_and_score(model, samples.images(chosen), test, tested_on, labelled, in_pytorch=network)


def _test_images(config: Mapping[str, Any]) -> ImageSet | None:
    """Labelled images that the settings name, None for `--dataset none` without a folder.

    Raises:
        UserError: they are absent or unreadable.
    """
    size, workers = config["img_size"], config.get("workers", 4)
    if config.get("eval_folder"):
        images = load_labelled(Path(config["eval_folder"]), size, len(config["classes"]), workers)
    elif config["dataset"] != "none":
        root, download = config["data_root"], config["download"]
        images = load_split(config["dataset"], "test", root, size, download, workers)
    else:
        return None
    return images.for_channels(len(config["mean"]))


def synthesize_images(
    settings: Settings, teacher: Teacher, device: torch.device, count: int, choose_bn: bool = False
) -> tuple[Tensor, float]:
    """Images for calibration, classes in turn, with a progress bar.

    Args:
        settings: resolved, with `adv` 0.
        teacher, device: the network that the images are for, and where it is.
        count: number of images.
        choose_bn: see `quantize_network`.

    Returns:
        Images, uint8 (count, C, H, W) on the CPU, and the share of them that have the requested class.
    """
    spec = teacher.data
    generators = RandomGenerators(settings.seed, device)
    shape = (spec.channels, spec.img_size, spec.img_size)
    amp = settings.amp if settings.amp != "fp16" else "off"
    if choose_bn:
        noise = torch.rand(NOISE, *shape, generator=generators.labels, device=device)
        settings = replace(settings, bn=_bn_weight(teacher.network, spec.normalize(noise)))
    inputs = SynthesisInputs(
        teacher.network,
        NoStudent(spec.num_classes).to(device),
        spec.augment,
        shape,
        generators.synthesis,
        autocast=autocast(amp, device),
        num_classes=spec.num_classes,
    )
    classes = cycle(torch.randperm(spec.num_classes, generator=generators.labels, device=device).tolist())
    images: list[Tensor] = []
    hits = total = 0
    per_call = settings.g_steps * (settings.synthesis_samples // settings.synthesis_batch_size)
    steps = -(-count // settings.synthesis_samples) * per_call
    with random_state_kept(device), tqdm(desc="images", total=steps, unit="step") as bar:
        torch.manual_seed(settings.seed)  # initialises a generator
        synthesizer = create_synthesizer(inputs, settings)
        while total < count:
            targets = synthesizer.targets(
                settings.synthesis_batch_size,
                lambda n: torch.tensor([next(classes) for _ in range(n)], device=device),
            )
            samples = synthesizer.synthesize(targets, settings.oh, lambda *_: bar.update()).samples
            images.append(samples.images.cpu())
            hits += int((samples.labels == targets).sum())
            total += len(targets)
    return torch.cat(images)[:count], hits / total


class NoStudent(nn.Module):
    """Constant logits in place of a student's: without adversarial loss none is needed."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(len(inputs), self.num_classes)


@torch.no_grad()
def _bn_weight(teacher: nn.Module, noise: Tensor) -> float:
    """See `BN_SHARE`."""
    statistics = BNStatistics(teacher)
    with statistics.capture():
        logits = teacher(noise)
    loss_oh = -logits.log_softmax(1).mean()  # of the average class
    return BN_SHARE * (loss_oh / statistics.distance().clamp_min(1e-6)).item()


def balanced(labels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices of `count` samples, or of all where there are fewer, spread evenly over the classes: in turn a
    random one of each class.

    Args:
        labels: int64 (N,).
        count: how many are wanted.
        rng: on the CPU.
    """
    order = torch.randperm(len(labels), generator=rng)
    # Each turn is in random order, so that a last, incomplete one favours no class.
    return order[occurrences(labels[order]).argsort(stable=True)][:count]


def _warn(*texts: str | None) -> None:
    for text in filter(None, texts):
        print(colored(f"warning: {text}", "yellow"))
