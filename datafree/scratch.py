"""Training a classifier on real images, against their labels or against a teacher."""

from __future__ import annotations

import argparse
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

from datafree import checkpoint, data, losses, networks, prepare
from datafree.errors import UserError
from datafree.evaluate import Evaluation, evaluate
from datafree.record import RunFolder, environment, refuse_existing
from datafree.repository import to_float

Criterion = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, inputs and labels to a loss


def fit(
    network: nn.Module,
    criterion: Criterion,
    images: data.ImageSet,
    facts: prepare.DataFacts,
    score: Callable[[nn.Module], Evaluation],
    args: argparse.Namespace,
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
        args: `epochs`, `batch_size`, `lr`, `momentum`, `weight_decay`, `seed`.

    Raises:
        UserError: the loss is no longer finite.
    """
    optimizer = torch.optim.SGD(
        network.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, args.epochs))
    rng = torch.Generator(device).manual_seed(args.seed)
    augment = facts.augment
    # Full batches only: a small last one would ruin the BatchNorm statistics.
    batch_size = min(args.batch_size, len(images))
    steps = len(images) // batch_size
    with tqdm(total=args.epochs * steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        for epoch in range(args.epochs):
            start, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
            network.train()
            total = torch.zeros((), device=device)
            order = torch.randperm(len(images), generator=rng, device=device).cpu()
            for batch, labels in images.batches(batch_size, order[: steps * batch_size]):
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


def train(args: argparse.Namespace, output: Path) -> None:
    """Train for the flags of `train_scratch.py`; writes the checkpoint of the last epoch and, beside it, a
    JSON file that says how accurate it is.

    Raises:
        UserError: the device or the data cannot be had, or the loss is no longer finite.
    """
    prepare.require_one_process()
    device = prepare.choose_device(args.device, args.gpu)
    facts = prepare.data_facts(
        args.dataset, args.data_root, "train", args.mean, args.std, args.img_size, args.flip
    )
    train_images, test_images = (
        data.load(args.dataset, split, args.data_root, facts.img_size, args.download, args.workers)
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
    torch.manual_seed(args.seed)
    arguments = networks.parse_arguments(args.model_args, "--model_args")
    network = networks.build(
        args.model, "--model", facts.num_classes, arguments=arguments, pretrained=args.pretrained
    ).to(device)
    source = networks.source_of(args.model)
    with torch.random.fork_rng(devices=[]):
        channels, _ = networks.probe_input(network.eval(), None, facts.img_size, device)
        found = networks.examine(network, args.model, channels, facts.img_size, device, trained=True)
    if found.num_classes != facts.num_classes:
        raise UserError(f"{args.model} gives {found.num_classes} classes, not {facts.num_classes}")
    facts = replace(facts, classes=tuple(train_images.classes)).for_channels(channels)
    train_images, test_images = (images.for_channels(channels) for images in (train_images, test_images))

    def criterion(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(inputs), labels)

    def score(network: nn.Module) -> Evaluation:
        return evaluate(network, test_images, facts.normalize, device)

    for row in fit(network, criterion, train_images, facts, score, args, device):
        tqdm.write(progress_line(row, args.epochs), file=sys.stdout)
    scores = score(network)
    checkpoint.save(facts.describe(args.model, network, args.model_args, source), output)
    record = {
        "model": args.model,
        "dataset": args.dataset,
        "seed": args.seed,
        "epochs": args.epochs,
        "test_top1": scores.top1,
        **environment(device),
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{args.model} on {args.dataset}, last epoch: {scores}; written to {output}")


def distill(args: argparse.Namespace) -> None:
    """Distil for the flags of `vanilla_kd.py` into a run folder: KD with real images, the training split's or
    those of a folder, which need no labels.

    Raises:
        UserError: the device, the data or the teacher cannot be had, the run folder is taken, or the loss is
            no longer finite.
    """
    prepare.require_one_process()
    folder = Path(args.save_dir)
    refuse_existing(folder, None, args.overwrite)
    device = prepare.choose_device(args.device, args.gpu)
    file, content = prepare.read_teacher(args.dataset, args.teacher, args.teacher_ckpt)
    facts = prepare.data_facts(
        args.dataset,
        args.data_root,
        "test",
        args.mean,
        args.std,
        args.img_size,
        args.flip,
        prepare.recorded_facts(content),
    )
    torch.manual_seed(args.seed)
    student = networks.build(args.student, "--student", facts.num_classes).to(device)
    teacher = prepare.load_teacher(args.teacher, facts.num_classes, file, content, device, channels=3)
    common = args.data_root, facts.img_size, args.download, args.workers
    test_images = data.load(args.dataset, "test", *common)
    if args.images:
        images = data.load_folder(Path(args.images), facts.img_size, args.workers)
    else:
        images = data.load(args.dataset, "train", *common)
    facts = replace(facts, classes=tuple(test_images.classes))

    def criterion(network: nn.Module, inputs: Tensor, _labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        return losses.kldiv(network(inputs), teacher_logits, args.T)

    def score(network: nn.Module) -> Evaluation:
        return evaluate(network, test_images, facts.normalize, device)

    taught = score(teacher)
    run = RunFolder(folder, args.overwrite)
    flags = {name: value for name, value in vars(args).items() if name != "given"}
    run.write_json(
        "config.json", {**flags, "teacher_ckpt": str(file), **facts.record(), **environment(device)}
    )
    run.log(f"teacher {args.teacher}: {taught}")
    run.log(f"{args.method}: {args.teacher} to {args.student}, {len(images):,} images; see {folder}")
    rows, start = [], time.perf_counter()
    for row in fit(student, criterion, images, facts, score, args, device):
        rows.append(row)
        run.append_metrics(row)
        run.log(progress_line(row, args.epochs))
    best = max(rows, key=lambda row: row["test_top1"])
    run.save_student(facts.describe(args.student, student))
    run.write_json(
        "summary.json",
        {
            "teacher_top1": taught.top1,
            "last_top1": rows[-1]["test_top1"],
            "best_top1_chosen_on_test_data": best["test_top1"],
            "best_epoch": best["epoch"],
            "epochs": args.epochs,
            "seconds": time.perf_counter() - start,
        },
    )
    run.log(f"student, last epoch  {rows[-1]['test_top1']:.2f} %", "green")
    run.log(f"student, best (chosen on test data)  {best['test_top1']:.2f} %")
