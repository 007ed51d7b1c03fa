"""Samples as pictures: single ones, sheets of them by class, and folders of all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from datafree.repository import SampleRepository

SHEET_CLASSES = 20  # rows of a contact sheet at most
SHEET_SAMPLES = 16  # images in a row at most


def folder_names(classes: Sequence[str]) -> list[str]:
    """Class names as names of folders. Classes that would share one, also where capitals make no difference,
    have their number at the end."""
    names = ["".join(c if c.isalnum() or c in " ._-" else "_" for c in name).strip(". ") for name in classes]
    names = [name or "_" for name in names]
    folded = [name.casefold() for name in names]
    return [
        name if folded.count(name.casefold()) == 1 else f"{name}-class{label}"
        for label, name in enumerate(names)
    ]


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (3, H, W), or (1, H, W) for grey, on the CPU as a PIL image in RGB."""
    image = image.expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(rearrange(image, "c h w -> h w c").numpy()))


def contact_sheet(repository: SampleRepository, classes: Sequence[str]) -> Image.Image:
    """The newest samples of each class, a class a row with its name at the left."""
    rows = min(len(classes), SHEET_CLASSES)
    _, height, width = repository.images(torch.arange(0, device=repository.device)).shape[1:]
    zoom = max(1, 64 // height)
    cell_h, cell_w, gap, margin = height * zoom, width * zoom, 2, 96
    sheet = Image.new("RGB", (margin + SHEET_SAMPLES * (cell_w + gap), rows * (cell_h + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    labels = repository.labels
    for row in range(rows):
        top = gap + row * (cell_h + gap)
        draw.text((6, top + cell_h // 2 - 6), classes[row][:14], fill="black")
        newest = (labels == row).nonzero().squeeze(1).flip(0)[:SHEET_SAMPLES]
        for column, image in enumerate(repository.images(newest).cpu()):
            cell = to_pil(image).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(cell, (margin + column * (cell_w + gap), top))
    return sheet


def export_repository(repository: SampleRepository, classes: Sequence[str], folder: Path) -> Path:
    """Every sample as `{class}/{number}.png` in a folder made anew, numbered in the order stored."""
    shutil.rmtree(folder, ignore_errors=True)
    labels = repository.labels
    for label, name in enumerate(folder_names(classes)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        of_class = (labels == label).nonzero().squeeze(1)
        for indices in of_class.split(1024):
            images = repository.images(indices).cpu()
            for index, image in zip(indices.tolist(), images, strict=True):
                to_pil(image).save(folder / name / f"{index:06d}.png")
    return folder
