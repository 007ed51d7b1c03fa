"""Runs whose synthesis starts with images from a folder."""

import pytest
import torch
from conftest import succeed
from helpers import DIGITS, NORMALIZE, SHORT, distiller, flags, metrics, write_folder, write_teacher

from datafree.runs.distil import store_images


def test_images_from_elsewhere_get_the_class_that_the_teacher_gives_them():
    made = distiller(flags("--method", "cmi", *SHORT)).distiller
    images = (torch.rand(5, 3, 8, 8) * 255).byte()
    store_images(made, images)
    logits = made.student.teacher(NORMALIZE(images / 255))
    assert torch.equal(made.repository.labels, logits.argmax(1))
    assert torch.equal(made.repository.images(torch.arange(5)), images)
    top = logits.softmax(1).topk(2).values
    torch.testing.assert_close(made.repository.margins, top[:, 0] - top[:, 1])


@pytest.mark.parametrize(("method", "samples"), [("fast_meta", [18]), ("cmi", [18, 26])])
def test_synthesis_starts_with_the_images_of_a_folder(method, samples, tmp_path):
    write_folder(tmp_path / "first", splits=("any",), classes=("thing",), count=10)
    write_teacher(tmp_path / "teacher.pth")
    steps = "--warmup 0 --kd_steps 1 --ep_steps 1 --batch_size 8 --g_steps 1 --cmi_init first --save_dir out"
    succeed(f"{DIGITS} {steps} --method {method} --epochs {len(samples)}", cwd=tmp_path)
    assert [row["repository"] for row in metrics(tmp_path / "out")] == samples
