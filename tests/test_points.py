"""The figures of runs' samples: points by t-SNE, the ablation, the sweep, and what IHO removed."""

import csv
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, succeed
from helpers import DIGITS, assert_refused, metrics, write_run, write_teacher
from PIL import Image

from datafree import models
from datafree.data.augment import Normalize
from datafree.results.read import read_run
from datafree.results.stored import read_samples
from datafree.runs.files import SAMPLES
from datafree.torch_utils import checkpoint
from show_result import ablation, show_points_ablation
from show_result.show_points_ablation import embed

POINTS = "show_result/show_points_ablation.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of two real runs with 64 samples each, `bsr` and `Basic`, and their points."""
    cwd = tmp_path_factory.mktemp("figures")
    write_teacher(cwd / "teacher.pth")
    for name, method in (("bsr", "bsr"), ("Basic", "fast_meta")):
        succeed(f"{DIGITS} --method {method} --save_dir {name}", cwd=cwd)
    succeed(f"{POINTS} bsr Basic --output points", cwd=cwd)
    return cwd


def read_csv(path):
    lines = path.read_text().splitlines()
    rows = [[float(value) for value in line.split(",")] for line in lines[1:]]
    return lines[0], np.array(rows)


def test_points_and_targets_are_written_as_published(runs):
    points = runs / "points"
    samples = read_samples(read_run(runs / "bsr"))
    header, xy = read_csv(points / "bsr_points.csv")
    assert header == ",0,1"
    assert xy[:, 0].tolist() == list(range(64))
    header, labels = read_csv(points / "bsr_targets.csv")
    assert header == ",0"
    assert labels[:, 1].tolist() == samples.labels[samples.kept].tolist()
    _, counts = read_csv(points / "bsr_counts.csv")
    assert counts[:, 1].tolist() == metrics(runs / "bsr")[-1]["counts"]


def test_features_come_from_the_chosen_network_and_layer(runs, tmp_path, monkeypatch):
    embedded = []

    def embed(features, *_):
        embedded.append(features)
        return features[:, :2]

    monkeypatch.setattr(show_points_ablation, "embed", embed)
    for more in ([], ["--features", "teacher"], ["--feature_layer", "fc"], ["--feature_layer", "block3"]):
        words = ["x", str(runs / "bsr"), *more, "--output", str(tmp_path), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        show_points_ablation.run()
    of_student, of_teacher, of_classifier, of_block = embedded
    run = read_run(runs / "bsr")
    samples = read_samples(run)
    student = models.create("wrn16_1", 10).eval()
    student.load_state_dict(torch.load(runs / "bsr/student.pth", weights_only=True)["state_dict"])
    inputs = Normalize(run.config["mean"], run.config["std"])(samples.images(torch.arange(64)) / 255)
    logits = student.fc(torch.from_numpy(of_student))
    torch.testing.assert_close(logits, student(inputs), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(of_teacher, samples.features)
    np.testing.assert_array_equal(of_classifier, of_student)
    assert of_block.shape == (64, 32 * 16 * 16)  # the last block's input, a row for each image


@pytest.mark.parametrize("engine", ["openTSNE", "scikit-learn"])
def test_the_embedding_keeps_neighbours_and_repeats_itself(engine):
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 16)) * 4
    labels = np.arange(200) % 5
    features = (centres[labels] + random.normal(size=(200, 16))).astype(np.float32)
    steps = []
    xy = embed(features, 0, engine, steps.append)
    assert sum(steps) == 750
    distances = ((xy[:, None] - xy) ** 2).sum(2) + np.diag(np.full(200, np.inf))
    assert (labels[distances.argmin(1)] == labels).mean() > 0.97
    np.testing.assert_allclose(xy, embed(features, 0, engine), rtol=1e-3, atol=1e-3)


PUBLISHED = ("basic", "blg", "dlw", "iho", "dlw-blg", "dlw-iho", "iho-blg", "omz8")  # as their tags end


def write_published(folder):
    """Files as the authors published them: without counts, a tag for each variant."""
    random = np.random.RandomState(0)
    for name in PUBLISHED:
        for kind, header, values in (
            ("points", ",0,1", random.standard_normal((50, 2)).tolist()),
            ("targets", ",0", (np.arange(50) % 10)[:, None].tolist()),
        ):
            rows = [",".join(map(str, [place, *row])) for place, row in enumerate(values)]
            path = folder / f"bsr-r34r18c10-{name}_{kind}.csv"
            path.write_text("\n".join([header, *rows]) + "\n")


def test_published_points_are_drawn_in_the_papers_order_beside_ones_own(tmp_path):
    shutil.copytree(ROOT / "show_result/ablation_points", tmp_path / "points")
    write_published(tmp_path / "points")
    tags = ablation.find_tags(tmp_path / "points")
    assert tags == [*ablation.ORDER, *(f"bsr-r34r18c10-{name}" for name in PUBLISHED)]
    assert ablation.ordered(["x", "run-none-seed0", "run-dlw-iho-seed0", "run-blg-iho-seed0", "a"]) == [
        *("a", "run-none-seed0", "run-dlw-iho-seed0", "run-blg-iho-seed0", "x")
    ]
    one = ablation.read_variant(tmp_path / "points", "bsr-r34r18c10-omz8")
    assert one.counts.tolist() == [5] * 10
    succeed("show_result/ablation.py --points points --output .", cwd=tmp_path)
    for name in ("ablation_points", "ablation_counts"):
        assert Image.open(tmp_path / f"{name}.png").width > 600
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_published_sweep_is_drawn_with_runs_laid_over(tmp_path):
    for seed, size, last in ((0, 2, 94.0), (1, 2, 95.0), (0, 8, 94.5)):
        write_run(tmp_path / f"runs/{size}-{seed}", seed, last, oh_memory_size=size)
    succeed("show_result/hyperparameters/hp.py runs --output out", cwd=tmp_path)
    assert (tmp_path / "out/oh_memory_size_runs.csv").read_text().splitlines() == [
        "value,mean,std,seeds",
        "2,94.5,0.7071067812,2",
        "8,94.5,0,1",
    ]
    assert Image.open(tmp_path / "out/hp.png").width > 1500
    for name in ("oh_memory_size", "oh_step_coarse", "oh_step_fine"):
        kept = ROOT / f"show_result/hyperparameters/{name}.csv"
        assert kept.read_text() == (tmp_path / f"out/{name}.csv").read_text()


def test_losses_on_removed_and_kept_samples_are_those_of_a_student_that_saw_neither(runs, tmp_path):
    for name in ("bsr", "Basic"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "bsr/checkpoint.pth"
    content = checkpoint.read(path)
    state = content["distiller"]["repository"]
    state["serials"] = state["serials"][torch.arange(64) % 3 > 0]  # as if IHO had been at work
    torch.save(content, path)
    teacher_file = runs / "teacher.pth"
    command = f"show_result/removed.py bsr Basic --teacher_ckpt {teacher_file} --output"
    (tmp_path / "other.csv").write_text("hello")
    assert_refused(run_here(f"{command} other.csv", cwd=tmp_path), "other.csv is no file of this script")
    succeed(f"{command} a.csv", cwd=tmp_path)
    assert_refused(run_here(f"{command} a.csv", cwd=tmp_path), "a.csv has lines of bsr already")

    run = read_run(tmp_path / "bsr")
    samples = read_samples(run)
    teacher, student = (models.create("wrn16_1", 10) for _ in range(2))
    for network, file in ((teacher, teacher_file), (student, runs / "Basic/student.pth")):
        network.load_state_dict(checkpoint.state_dict_of(checkpoint.read(file), file))
        network.eval()
    normalize = Normalize(tuple(run.required("mean")), tuple(run.required("std")))
    inputs = normalize(samples.images(torch.arange(64)) / 255)
    with torch.no_grad():
        p, q = ((network(inputs) / 20).softmax(1) for network in (teacher, student))
    loss = (p * (p / q).log()).sum(1) * 400
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {(line["run"], line["judge"]) for line in lines} == {("bsr", "Basic")}
    assert sum(int(line["made"]) for line in lines) == 64
    assert sum(int(line["removed"]) for line in lines) == 22
    for line in lines:
        of_class = samples.labels == run.required("classes").index(line["class"])
        here = of_class & (torch.arange(64) * 5 // 64 == int(line["part"]))
        for name, chosen in (("loss_kept", here & samples.kept), ("loss_removed", here & ~samples.kept)):
            if chosen.any():
                assert float(line[name]) == pytest.approx(loss[chosen].mean().item(), rel=1e-3, abs=1e-4)
            else:
                assert line[name] == ""


def test_bad_input_of_figures_gets_one_line(runs, tmp_path):
    def refused(command, message):
        assert_refused(run_here(command, cwd=tmp_path), message)

    bsr = runs / "bsr"
    shutil.copytree(bsr, tmp_path / "bare", ignore=shutil.ignore_patterns("*.bin"))
    refused(f"{POINTS} bare", "has no samples")
    shutil.copytree(bsr, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / SAMPLES, 1000)
    refused(f"{POINTS} cut", "of the 64 samples of the checkpoint")
    refused(f"{POINTS} {bsr} --features teacher --feature_layer fc", "is for --features student")
    refused(f"{POINTS} {bsr} --feature_layer fx", "has no such layer, did you mean fc?")
    refused(f"{POINTS} {bsr} {bsr}", "as many different --tags")
    refused(f"show_result/removed.py {bsr} {bsr}", "name another run as judge")
    refused(f"show_result/removed.py {runs}/Basic {bsr}", "Basic has no IHO")
    for seed, epochs in ((0, 420), (1, 5)):
        write_run(tmp_path / f"sweep/{seed}", seed, 94.0, epochs=epochs)
    refused("show_result/hyperparameters/hp.py sweep", "differ in epochs too")
    refused("show_result/ablation.py --points .", "no *_points.csv in")
    for text in ("", "index,x,y\n", "index,x,y\n0,nan,1\n", "index\n0\n", "\0"):
        (tmp_path / "a_targets.csv").write_text("i,t\n0,1\n")
        (tmp_path / "a_points.csv").write_text(text)
        refused("show_result/ablation.py --points . --output .", "a_points.csv")
