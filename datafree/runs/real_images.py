"""Training a classifier on real images, against their labels or against a teacher."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from datafree import losses
from datafree.data.augment import OnlyFlip
from datafree.data.facts import DataFacts, data_facts, recorded_facts
from datafree.data.image_folders import load_folder
from datafree.data.image_set import ImageSet
from datafree.data.load import load_split
from datafree.data.pixels import to_float
from datafree.errors import UserError
from datafree.evaluation import BATCH, Evaluation, evaluate
from datafree.networks.build import build, source_of
from datafree.networks.examine import examine, probe_input
from datafree.networks.names import parse_arguments
from datafree.networks.portable import describe
from datafree.networks.teacher import load_teacher, other_classes, read_teacher
from datafree.runs.environment import environment
from datafree.runs.files import CONFIG, SUMMARY
from datafree.runs.folder import RunFolder
from datafree.runs.lock import refuse_existing
from datafree.runs.progress import Progress
from datafree.settings import KDSettings, TrainSettings, as_dict
from datafree.torch_utils import checkpoint
from datafree.torch_utils.device import choose_device, require_one_process

Criterion = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, inputs and labels to a loss


def fit(
    network: nn.Module,
    criterion: Criterion,
    images: ImageSet,
    facts: DataFacts,
    score: Callable[[nn.Module], Evaluation],
    settings: TrainSettings | KDSettings,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Train a network on real images, augmented (SGD, cosine schedule to 0); yields a line of metrics
    an epoch.

    Args:
        network: on the device; trained in place.
        criterion: the loss of a batch as the networks see it.
        images: what to train on.
        facts: how to augment.
        score: measures the network on test images.
        settings: `epochs batch_size lr momentum weight_decay seed`.

    Raises:
        UserError: the loss is no longer finite.
    """
    s = settings
    optimizer = torch.optim.SGD(network.parameters(), s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, s.epochs))
    rng = torch.Generator(device).manual_seed(s.seed)
    # Images that are read as random crops are only flipped.
    augment = OnlyFlip(facts.normalize, facts.flip) if images.read_crops else facts.augment.for_training()
    # Full batches only: a small last one would ruin the BatchNorm statistics.
    batch_size = min(s.batch_size, len(images))
    steps = len(images) // batch_size
    with tqdm(total=s.epochs * steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        for epoch in range(s.epochs):
            start, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
            network.train()
            total = torch.zeros((), device=device)
            order = torch.randperm(len(images), generator=rng, device=device).cpu()
            for batch, labels in images.batches(batch_size, order[: steps * batch_size], rng):
                inputs = augment(to_float(batch.to(device, non_blocking=True)), rng)
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                loss = criterion(network, inputs, labels.to(device, non_blocking=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                bar.update()
            scheduler.step()
            mean_loss = total.item() / steps
            if not mean_loss < float("inf"):
                raise UserError(f"the loss is {mean_loss} in epoch {epoch}: try a lower --lr")
            scores = score(network)
            bar.set_postfix_str(f"test {scores.top1:.2f} %")
            yield {
                "epoch": epoch,
                "lr": lr,
                "loss": mean_loss,
                "test_top1": scores.top1,
                "test_top5": scores.top5,
                "test_loss": scores.loss,
                "seconds": {"epoch": time.perf_counter() - start},
            }


def progress_line(row: dict[str, Any], epochs: int) -> str:
    return f"epoch {row['epoch'] + 1}/{epochs}  loss {row['loss']:.4f}  test {row['test_top1']:.2f} %"


def train(settings: TrainSettings, output: Path) -> None:
    """Train for the settings of `train_scratch.py`; writes the checkpoint of the last epoch and, beside it, a
    JSON file that says how accurate it is.

    Raises:
        UserError: the device or the data cannot be had, or the loss is no longer finite.
    """
    s = settings
    require_one_process()
    device = choose_device(s.device, s.gpu)
    facts = data_facts(s, "train")
    train_images, test_images = (
        load_split(s.dataset, split, s.data_root, facts.img_size, s.download, s.workers)
        for split in ("train", "test")
    )
    if list(train_images.classes) != list(test_images.classes):
        raise UserError("the train and test folders have different classes: give both the same ones")
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file with --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error}): name another --output") from error
    torch.manual_seed(s.seed)
    arguments = parse_arguments(s.model_args, "--model_args")
    network = build(s.model, "--model", facts.num_classes, None, arguments, s.pretrained).to(device)
    source = source_of(s.model)
    channels, _ = probe_input(network.eval(), None, facts.img_size, device)
    found = examine(network, f"--model {s.model}", channels, facts.img_size, device, trained=True)
    if found.num_classes != facts.num_classes:
        raise UserError(other_classes("model", s.model, found.num_classes, facts.num_classes))
    facts = replace(facts, classes=tuple(train_images.classes)).for_channels(channels)
    train_images, test_images = (images.for_channels(channels) for images in (train_images, test_images))

    def criterion(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(inputs), labels)

    score = scorer(test_images, facts, device)
    for row in fit(network, criterion, train_images, facts, score, s, device):
        tqdm.write(progress_line(row, s.epochs), file=sys.stdout)
    scores = score(network)
    checkpoint.save(describe(network, s.model, s.model_args, source, facts), output)
    figures = {
        "model": str(s.model),
        "model_args": s.model_args,
        "dataset": s.dataset,
        "seed": s.seed,
        "epochs": s.epochs,
        "test_top1": scores.top1,
        **environment(device),
    }
    output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"{s.model} on {s.dataset}, last epoch: {scores}; written to {output}")


def distill(settings: KDSettings) -> None:
    """Distil for the settings of `vanilla_kd.py` into a run folder: KD with real images, the training
    split's or those of a folder, which need no labels.

    Raises:
        UserError: the device, the data or the teacher cannot be had, the run folder is taken, or the loss is
            no longer finite.
    """
    s = settings
    require_one_process()
    folder = Path(s.save_dir)
    refuse_existing(folder, None, s.overwrite)
    device = choose_device(s.device, s.gpu)
    file, content = read_teacher(s.dataset, s.teacher, s.teacher_ckpt)
    facts = data_facts(s, "test", recorded_facts(content))
    torch.manual_seed(s.seed)
    student = build(s.student, "--student", facts.num_classes).to(device)
    teacher = load_teacher(s.teacher, facts.num_classes, file, content, device, channels=3)
    common = s.data_root, facts.img_size, s.download, s.workers
    test_images = load_split(s.dataset, "test", *common)
    if s.images:
        images = load_folder(Path(s.images), facts.img_size, s.workers)
    else:
        images = load_split(s.dataset, "train", *common)
    facts = replace(facts, classes=tuple(test_images.classes))

    def criterion(network: nn.Module, inputs: Tensor, _labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        return losses.kldiv(network(inputs), teacher_logits, s.T)

    score = scorer(test_images, facts, device)
    taught = score(teacher)
    run = RunFolder(folder, s.overwrite)
    config = {**as_dict(s), "method": s.method, "teacher_ckpt": str(file)}
    run.write_json(CONFIG, {**config, **facts.as_dict(), **environment(device)})
    run.log(f"teacher {s.teacher}: {taught}")
    run.log(f"{s.method}: {s.teacher} to {s.student}, {len(images):,} images; see {folder}")
    progress, start = Progress(0), time.perf_counter()
    for row in fit(student, criterion, images, facts, score, s, device):
        progress.add(row, time.perf_counter() - start)
        run.append_metrics(row)
        run.log(progress_line(row, s.epochs))
    last = progress.row["test_top1"]
    run.save_student(describe(student, s.student, None, None, facts))
    run.write_json(
        SUMMARY,
        {
            "teacher_top1": taught.top1,
            "last_top1": last,
            "best_top1_chosen_on_test_data": progress.best_top1,
            "best_epoch": progress.best_epoch,
            "epochs": s.epochs,
            "seconds": progress.seconds,
        },
    )
    run.log(f"student, last epoch  {last:.2f} %", "green")
    run.log(f"student, best (chosen on test data)  {progress.best_top1:.2f} %")


def scorer(images: ImageSet, facts: DataFacts, device: torch.device) -> Callable[[nn.Module], Evaluation]:
    """What scores networks on images."""
    return lambda network: evaluate(network, images.batches(BATCH), facts.normalize, device)
