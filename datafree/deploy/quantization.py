"""int8 for any network without distilling: images are made to calibrate with, and it is quantised."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from termcolor import colored
from torch import Tensor
from tqdm import tqdm

from datafree.data.image_folders import load_labelled
from datafree.data.image_set import ImageSet
from datafree.data.load import load_split
from datafree.data.pixels import noise_like, to_float
from datafree.deploy import int8
from datafree.deploy.calibration import make_images
from datafree.deploy.export import Shipped, export, require_folder, write_files
from datafree.errors import UserError
from datafree.extras.several_teachers import prepare_teacher
from datafree.networks.bn_statistics import check_bn_statistics
from datafree.networks.check import NO_STATISTICS
from datafree.networks.teacher import Teacher
from datafree.results.read import FinishedRun
from datafree.results.stored import read_samples
from datafree.settings import QuantizeSettings, Settings
from datafree.torch_utils.device import choose_device
from datafree.torch_utils.precision import found_precision

NOISE, JUDGED = 16, 64  # images of noise; images that are made to judge by, where there are no real ones
MOST_JUDGED = 2_000  # samples, where there are no test images
FLOAT, INT8, CARD = FILES = "float.onnx", "int8.onnx", "int8.md"


def quantize_network(own: QuantizeSettings, settings: Settings, weigh_bn: bool) -> None:
    """Write a network as ONNX in float and in int8, and a card that compares them.

    Args:
        own: what to quantise and how.
        settings: by which images are made, see `resolve_quantization`.
        weigh_bn: see `make_images`.

    Raises:
        UserError: the network or the images to judge on cannot be had, the network cannot be exported or
            quantised, or the files are there already.
    """
    folder = Path(own.output or f"run/int8-{own.dataset}-{own.teacher.stem}")
    for file in (folder / name for name in FILES):
        if file.exists() and not own.overwrite:
            raise UserError(f"{file} is there already: add --overwrite, or name another --output")
    device = choose_device(own.device, own.gpu)
    settings = replace(settings, amp=found_precision(settings.amp, device))
    teacher = prepare_teacher(settings, device)
    print(f"{own.teacher}: {teacher.found}")
    for warning in (*teacher.warnings, *([] if teacher.found.bn_layers else [NO_STATISTICS])):
        _warn(warning)
    real = _real_images(own, teacher)
    facts = teacher.data
    require_folder(folder)
    # First, so that a network which cannot be exported is told before images are made of it.
    noise = noise_like(NOISE, (facts.channels, facts.img_size, facts.img_size))
    shipped = Shipped(copy.deepcopy(teacher.network).cpu().float(), facts.mean, facts.std).eval()
    model = _as_onnx(shipped, noise)
    images, hit_rate = _make_images(own, settings, teacher, device, weigh_bn, 0 if real else JUDGED)
    images, others = images[: own.calibration], images[own.calibration :]
    made = f"{len(images)} images, {100 * hit_rate:.0f} % of those made of the class asked for"
    print(made)
    seen = (facts.normalize(to_float(some[:NOISE].to(device))) for some in (noise, images))
    doubt = check_bn_statistics(teacher.network, *seen)
    if doubt:
        _warn(doubt)

    def judged() -> Iterator[Tensor]:
        if real is None:
            yield from others.split(int8.BATCH)
        else:
            yield from (batch for batch, _ in real.batches(int8.BATCH))

    compared = None
    if real and own.real_calibration:
        rng = torch.Generator().manual_seed(own.seed)
        compared = real.read(int8.balanced(real.labels, own.real_calibration, rng))
    with tqdm(desc="layers", total=int8.count_layers(model), unit="layer") as bar:
        quantized = int8.quantize_and_judge(
            model,
            images,
            judged,
            real.labels if real else None,
            own.keep_float,
            compared,
            on_layer=lambda _: bar.update(),
        )
    report = quantized.report(f"{len(real):,} real images" if real else f"{len(others)} other images")
    card = _card(own, settings, teacher, made, report)
    write_files(folder, {FLOAT: model, INT8: quantized.file, CARD: card.encode(errors="backslashreplace")})
    print(f"{report}\n\n{folder / INT8}, {folder / FLOAT}, {folder / CARD}")


def quantize_student(
    run: FinishedRun, shipped: Shipped, model: bytes, count: int, data_root: str | None = None
) -> tuple[bytes, str]:
    """The student of a run in int8, calibrated on its samples, as ONNX; and how it does, as Markdown: on the
    run's test images where they are there, else on samples that it was not calibrated on.

    Args:
        run: has left samples.
        shipped: its student.
        model: the student as ONNX.
        count: samples to calibrate on, or fewer where there are fewer.
        data_root: where the test images are, if not where the run had them.

    Raises:
        NoSamples: the run has left none.
        UserError: the student cannot be quantised.
    """
    samples, rng = read_samples(run), torch.Generator().manual_seed(0)
    kept = samples.kept.nonzero().squeeze(1)
    order = kept[int8.balanced(samples.labels[kept], len(kept), rng)]
    chosen, others = order[:count], order[count:][:MOST_JUDGED]
    others = others if len(others) else chosen
    real = None
    try:
        real = _test_images(run, data_root)
        judged_on = f"{len(real):,} test images"
    except UserError as error:
        judged_on = "these samples" if others is chosen else f"{len(others):,} other samples"
        print(f"--int8 is judged on samples alone: {error}")

    def judged() -> Iterator[Tensor]:
        if real is None:
            yield from (samples.images(rows) for rows in others.split(int8.BATCH))
        else:
            yield from (batch for batch, _ in real.batches(int8.BATCH))

    labels = real.labels if real else None
    with tqdm(desc="layers", total=int8.count_layers(model), unit="layer") as bar:
        quantized = int8.quantize_and_judge(
            model, samples.images(chosen), judged, labels, in_pytorch=shipped, on_layer=lambda _: bar.update()
        )
    return quantized.file, quantized.report(judged_on)


def _test_images(run: FinishedRun, data_root: str | None) -> ImageSet:
    """Raises:
    UserError: there are none.
    """
    config = run.config
    size, classes = config["img_size"], len(config["classes"])
    if config.get("eval_folder"):
        images = load_labelled(Path(config["eval_folder"]), size, classes)
    elif config["dataset"] == "none":
        raise UserError("the run had no test images")
    else:
        images = load_split(config["dataset"], "test", data_root or config.get("data_root", "data"), size)
    return images.for_channels(len(config["mean"]))


def _real_images(own: QuantizeSettings, teacher: Teacher) -> ImageSet | None:
    """The images to judge on, if there are any."""
    facts = teacher.data
    if own.eval_folder:
        images = load_labelled(Path(own.eval_folder), facts.img_size, facts.num_classes, own.workers)
    elif own.dataset != "none":
        images = load_split(own.dataset, "test", own.data_root, facts.img_size, own.download, own.workers)
    else:
        return None
    if own.real_calibration > len(images):
        raise UserError(f"--real_calibration {own.real_calibration}: there are {len(images)} real images")
    return images.for_channels(facts.channels)


def _warn(text: str) -> None:
    print(colored(f"warning: {text}", "yellow"))


def _make_images(
    own: QuantizeSettings,
    settings: Settings,
    teacher: Teacher,
    device: torch.device,
    weigh_bn: bool,
    more: int,
) -> tuple[Tensor, float]:
    """See `make_images`; `more` than there are to calibrate with. With a progress bar."""
    count = own.calibration + more
    calls = -(-count // settings.synthesis_samples)
    per_call = settings.g_steps * (settings.synthesis_samples // settings.synthesis_batch_size)
    with tqdm(desc="images", total=calls * per_call, unit="step") as bar:
        return make_images(
            settings,
            teacher.network,
            teacher.data.augment,
            teacher.data.img_size,
            teacher.data.num_classes,
            device,
            count,
            weigh_bn,
            bar.update,
        )


def _as_onnx(shipped: Shipped, images: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FLOAT)
        export(shipped, to_float(images[:2]), file, "onnx", {})
        return file.read_bytes()


def _card(own: QuantizeSettings, settings: Settings, teacher: Teacher, images: str, report: str) -> str:
    facts, weights = teacher.data, teacher.file or "those that it is made with"
    shape = f"(N, {facts.channels}, {facts.img_size}, {facts.img_size})"
    made = f"{settings.method}, {settings.g_steps} steps, seed {settings.seed}"
    return f"""# {own.teacher} in int8, calibrated without data

- File: `{INT8}` (`{FLOAT}` is the same network in float). Weights: {weights}.
- Input: images {shape} in [0, 1], which it normalises itself. Output: logits (N, {facts.num_classes}).
- Calibrated on images that were made from the network alone ({made}): {images}.
- Milliseconds: ONNX Runtime on a CPU, {torch.get_num_threads()} threads, batches of {int8.BATCH}.

{report}
"""
