"""Training a classifier on real images."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from datafree import checkpoint, data, prepare
from datafree.errors import UserError
from datafree.evaluate import evaluate
from datafree.repository import to_float


def train(args: argparse.Namespace, output: Path) -> None:
    """Train for the flags of `train_scratch.py` and write the checkpoint of the last epoch.

    Raises:
        UserError: the device or the data cannot be had, or the loss is no longer finite.
    """
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
    network = prepare.create_network(args.model, facts.num_classes, args.pretrained).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    rng = torch.Generator(device).manual_seed(args.seed)
    facts = replace(facts, classes=tuple(train_images.classes))
    augment, normalize = facts.augment, facts.normalize

    # Full batches only: a small last one would ruin the BatchNorm statistics.
    batch_size = min(args.batch_size, len(train_images))
    steps = len(train_images) // batch_size
    with tqdm(total=args.epochs * steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        for epoch in range(args.epochs):
            network.train()
            total = torch.zeros((), device=device)
            order = torch.randperm(len(train_images), generator=rng, device=device).cpu()
            for images, labels in train_images.batches(batch_size, order[: steps * batch_size]):
                inputs = augment(to_float(images.to(device, non_blocking=True)), rng)
                logits = network(inputs.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels.to(device, non_blocking=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                bar.update()
            scheduler.step()
            mean_loss = total.item() / steps
            if not mean_loss < float("inf"):
                raise UserError(f"the loss is {mean_loss} in epoch {epoch}: try a lower --lr")
            scores = evaluate(network, test_images, normalize, device)
            bar.set_postfix_str(f"test {scores.top1:.2f} %")
            tqdm.write(f"epoch {epoch + 1}/{args.epochs}  loss {mean_loss:.4f}  test {scores.top1:.2f} %",
                       file=sys.stdout)
    checkpoint.save(facts.describe(args.model, network), output)
    print(f"{args.model} on {args.dataset}, last epoch: {scores}; written to {output}")
