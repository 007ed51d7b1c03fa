"""The published figures beside those of runs."""

import pytest
from helpers import named, write_run

from datafree.results.published import Published
from datafree.results.read import read_run
from datafree.settings import as_dict, resolve

STARRED = [  # method, teacher, settings of the run, its cell
    ("bsr", "resnet34", {}, "94.80"),
    ("bsr", "resnet34", {"adv": 1.0}, "94.80*"),
    ("bsr", "resnet34", {"epochs": 100}, "94.80*"),
    ("bsr", "resnet34", {"feature_layer": "fc"}, "94.80*"),
    ("bsr", "resnet34", {"oh_memory_size": 2}, "94.56"),
    ("bsr", "resnet34", {"oh_step": 0.05}, "94.29"),
    ("bsr", "resnet34", {"oh_step": 0.02}, "-"),
    ("bsr", "resnet34", {"iho": False}, "-"),
    ("bsr", "resnet34", {"lr_g": 0.1}, "94.80*"),
    ("bsr", "resnet34", {"g_steps": 5}, "94.80*"),
    ("bsr", "vgg11", {"adv": 1.0}, "91.06"),
    ("bsr", "vgg11", {}, "91.06*"),
    ("fast_meta", "resnet34", {"g_steps": 5, "lr_g": 3e-3, "lr_z": 0.01}, "93.63"),
    ("fast_meta", "resnet34", {"g_steps": 5, "lr_g": 2e-3, "lr_z": 0.01}, "93.63*"),
    ("fast_meta", "resnet34", {"oh": 0.4}, "94.05*"),
    ("deepinv", "resnet34", {"g_steps": 2000}, "93.26"),
    ("deepinv", "resnet34", {"g_steps": 1000}, "93.26*"),
    ("cmi", "resnet34", {"g_steps": 500}, "94.84"),
    ("dafl", "resnet34", {}, "92.22"),
    ("dafl", "resnet34", {"lr": 0.2}, "92.22*"),
]


@pytest.mark.parametrize(("method", "teacher", "changes", "cell"), STARRED, ids=str)
def test_a_star_says_that_a_run_has_other_settings_than_the_published_ones(
    method, teacher, changes, cell, tmp_path
):
    settings = as_dict(resolve({"method": method, "teacher": named(teacher)})[0])
    for name in ("method", "dataset", "teacher", "student", "seed", "mean", "std"):
        del settings[name]
    settings |= {"img_size": 32, "flip": True}  # as the data decide
    pair = teacher, "resnet18"
    write_run(tmp_path / "run", method=method, pair=pair, **{**settings, **changes})
    assert Published().text(read_run(tmp_path / "run")) == cell
