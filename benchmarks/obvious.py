"""An epoch of BSR written the obvious way, with the libraries alone: what `bench.py` compares with.

Samples are PNG files behind torchvision's ImageFolder and a DataLoader with four workers, outlier factors
are scikit-learn's of all samples every epoch, and BatchNorm statistics are taken by hooks that are
always on and left to autograd. The networks do the same arithmetic, in the layout that PyTorch gives them.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch
from kornia import augmentation as kornia
from PIL import Image
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from datafree.data.datasets import NORMALIZATIONS
from datafree.settings import Settings

MEAN, STD = NORMALIZATIONS["cifar10"]


def png_loader(folder: Path, batch_size: int) -> DataLoader:
    """Shuffled, augmented batches of an image folder."""
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(folder), augment)
    return DataLoader(images, batch_size, shuffle=True, num_workers=4, drop_last=True)


def write_pngs(folder: Path, images: Tensor, labels: Tensor, start: int) -> None:
    """uint8 images (N, 3, H, W) as `folder/{label}/{number}.png`."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    for index, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / f"{label:03d}" / f"{start + index:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def outside_whiskers(features: np.ndarray, labels: np.ndarray, num_classes: int) -> list[int]:
    """Indices of the samples outside the whiskers of their class's outlier factors, scored from scratch."""
    found = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) > 10:
            factors = -LocalOutlierFactor(10).fit(features[members]).negative_outlier_factor_
            q1, q3 = np.percentile(factors, [25, 75])
            low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
            found.append(members[(factors < low) | (factors > high)])
    return np.concatenate(found).tolist()


class ObviousRun:
    """Synthesis, pruning and distillation, an epoch at a time.

    Args:
        folder: an image folder with the samples there are, in the order of `features` and `labels`.
        settings: those of the run that this one is compared with.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        folder: Path,
        features: Tensor,
        labels: Tensor,
        settings: Settings,
    ):
        s = self.settings = settings
        self.teacher, self.student, self.generator, self.folder = teacher, student, generator, folder
        self.features, self.labels = features.numpy(), labels.numpy()
        self.numbers = np.arange(len(labels))
        self.next_number = len(labels)
        self.layers = [layer for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}
        for index, layer in enumerate(self.layers):
            layer.register_forward_hook(self._hook(index))
        linear = [layer for layer in teacher.modules() if isinstance(layer, nn.Linear)][-1]
        linear.register_forward_hook(lambda _layer, inputs, _output: setattr(self, "penultimate", inputs[0]))
        self.meta = torch.optim.Adam(generator.parameters(), s.lr_g * s.g_steps, betas=(0.5, 0.999))
        self.optimizer = torch.optim.SGD(
            student.parameters(), s.lr, momentum=s.momentum, weight_decay=s.weight_decay
        )
        self.augment = nn.Sequential(
            kornia.RandomCrop((32, 32), padding=4),
            kornia.RandomHorizontalFlip(),
            kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        )

    def _hook(self, index: int):
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            variance = inputs[0].permute(1, 0, 2, 3).reshape(inputs[0].shape[1], -1).var(1, unbiased=False)
            self.moments[index] = inputs[0].mean((0, 2, 3)), variance

        return hook

    def synthesize(self) -> None:
        s = self.settings
        targets = torch.randint(0, 10, (s.batch_size,))
        z = torch.randn(s.batch_size, 256, requires_grad=True)
        clone = copy.deepcopy(self.generator).train()
        optimizer = torch.optim.Adam([{"params": clone.parameters()}, {"params": [z], "lr": s.lr_z}], s.lr_g)
        self.student.eval()
        best, best_loss = None, math.inf
        self.meta.zero_grad()
        for _ in range(s.g_steps):
            images = clone(z)
            inputs = self.augment(images)
            logits = self.teacher(inputs)
            loss_bn = 0
            for index, layer in enumerate(self.layers):
                mean, variance = self.moments[index]
                loss_bn += torch.norm(layer.running_var - variance) + torch.norm(layer.running_mean - mean)
            student_logits = self.student(inputs)
            divergence = F.kl_div(student_logits.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
            agree = student_logits.argmax(1) == logits.argmax(1)
            loss = s.bn * loss_bn + s.oh * F.cross_entropy(logits, targets)
            loss = loss - s.adv * (divergence * agree).mean()
            if loss.item() < best_loss:
                best, best_loss = (images.detach(), self.penultimate.detach()), loss.item()
            optimizer.zero_grad()
            loss.backward()
            for mine, theirs in zip(self.generator.parameters(), clone.parameters(), strict=True):
                mine.grad = theirs.grad.clone() if mine.grad is None else mine.grad + theirs.grad
            optimizer.step()
        self.meta.step()
        with torch.no_grad():
            labels = self.teacher(self.augment(best[0])).argmax(1)
        write_pngs(self.folder, (best[0] * 255).to(torch.uint8), labels, self.next_number)
        self.features = np.concatenate([self.features, best[1].numpy()])
        self.labels = np.concatenate([self.labels, labels.numpy()])
        self.numbers = np.concatenate([self.numbers, self.next_number + np.arange(s.batch_size)])
        self.next_number += s.batch_size

    def prune(self) -> None:
        limit, taken, removed = math.ceil(self.settings.batch_size / 10) + 1, [0] * 10, []
        for index in sorted(outside_whiskers(self.features, self.labels, 10)):
            label = self.labels[index]
            if taken[label] < limit:
                taken[label] += 1
                removed.append(index)
        for index in removed:
            (self.folder / f"{self.labels[index]:03d}" / f"{self.numbers[index]:07d}.png").unlink()
        self.features, self.labels, self.numbers = (
            np.delete(rows, removed, 0) for rows in (self.features, self.labels, self.numbers)
        )

    def distill(self) -> None:
        s = self.settings
        self.student.train()
        batches = iter(png_loader(self.folder, s.batch_size))
        for _ in range(s.kd_steps):
            images, _ = next(batches)
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            student_logits = self.student(images)
            given, wanted = (student_logits / s.T).log_softmax(1), (teacher_logits / s.T).softmax(1)
            loss = s.T**2 * F.kl_div(given, wanted, reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()

    def epoch(self) -> None:
        self.synthesize()
        self.prune()
        self.distill()
