"""The samples of a run on one sheet."""

from __future__ import annotations

from PIL import Image, ImageDraw

from datafree.results.report_runs import ReportRun
from datafree.runs.contact_sheet import to_pil

CLASSES = 10  # rows of a sheet at most; where there are more classes, some are left out
COLUMNS = 6  # samples nearest to the mean of their class, and as many farthest from it
CAPTION = (
    f"A row a class: at the left the {COLUMNS} samples nearest to the mean of their class in the teacher's "
    f"features, at the right the {COLUMNS} farthest."
)
MARGIN = 84  # pixels at the left, for the name of the class
GAP = 2  # pixels between images


def samples_sheet(one: ReportRun) -> Image.Image | None:
    """The samples nearest to the mean of their class and those farthest from it; None of a run that has left
    no samples with features."""
    samples = one.samples
    if samples is None or samples.features is None or not samples.kept.any():
        return None
    classes = one.run.told("classes")
    step = max(1, -(-len(classes) // CLASSES))
    size = int(one.run.told("img_size"))
    side = max(48, size) if size <= 64 else 96
    resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BILINEAR
    labels = list(range(0, len(classes), step))[:CLASSES]
    width = MARGIN + 2 * COLUMNS * (side + GAP) + 3 * GAP
    sheet = Image.new("RGB", (width, len(labels) * (side + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, label in enumerate(labels):
        top = GAP + place * (side + GAP)
        draw.text((4, top + side // 2 - 6), classes[label][:12], fill="black")
        members = ((samples.labels == label) & samples.kept).nonzero().squeeze(1)
        if not len(members):
            continue
        features = samples.features[members]
        order = members[(features - features.mean(0)).norm(dim=1).argsort()]
        nearest = order[:COLUMNS]
        farthest = order[len(nearest) :][-COLUMNS:].flip(0)
        for chosen, left in ((nearest, MARGIN), (farthest, MARGIN + COLUMNS * (side + GAP) + 3 * GAP)):
            if not len(chosen):
                continue
            for column, image in enumerate(samples.images(chosen)):
                sheet.paste(to_pil(image).resize((side, side), resample), (left + column * (side + GAP), top))
    return sheet
