"""Figures and reports from run folders, as files that other programs read."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, run_script
from PIL import Image
from test_scripts import TINY, assert_refused, metrics, write_folder, write_teacher
from test_tables import write_run

from datafree import models
from datafree.data.augment import Normalize
from datafree.data.pixels import to_uint8
from datafree.errors import UserError
from datafree.repository import SampleRepository
from datafree.results.read import read_run
from datafree.results.report_figures import outlier_factors, quartiles_by_class
from datafree.results.report_runs import ReportRun
from datafree.results.stored import read_samples
from datafree.runs.files import SAMPLES
from datafree.runs.sample_log import SampleLog
from datafree.samples import Samples
from datafree.torch_utils import checkpoint
from show_result import ablation, show_points_ablation
from show_result.show_points_ablation import embed

POINTS = "show_result/show_points_ablation.py"
AGREEMENT = "agreement with the teacher on samples held out"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two real runs with 64 samples each, `bsr` and `Basic`; the folder they are in."""
    cwd = tmp_path_factory.mktemp("figures")
    write_teacher(cwd / "checkpoints/pretrained/digits_wrn16_1.pth")
    flags_of = {"bsr": ["--tensorboard", "--export_repository"], "Basic": ["--method", "fast_meta"]}
    for name, flags in flags_of.items():
        done = run_script(
            *"bsr_main.py --dataset digits --teacher wrn16_1 --student wrn16_1".split(),
            *TINY,
            *flags,
            "--save_dir",
            name,
            cwd=cwd,
        )
        assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture(scope="module")
def points(runs):
    done = run_script(POINTS, "bsr", "Basic", "--output", "points", cwd=runs)
    assert done.returncode == 0, done.stderr
    return runs / "points"


def read_csv(path):
    lines = path.read_text().splitlines()
    rows = [[float(value) for value in line.split(",")] for line in lines[1:]]
    return lines[0], np.array(rows)


def test_points_and_targets_are_written_as_published(runs, points):
    samples = read_samples(read_run(runs / "bsr"))
    header, xy = read_csv(points / "bsr_points.csv")
    assert header == ",0,1"
    assert xy[:, 0].tolist() == list(range(64))
    header, labels = read_csv(points / "bsr_targets.csv")
    assert header == ",0"
    assert labels[:, 1].tolist() == samples.labels[samples.kept].tolist()
    _, counts = read_csv(points / "bsr_counts.csv")
    assert counts[:, 1].tolist() == metrics(runs / "bsr")[-1]["counts"]


def test_samples_are_read_from_checkpoints_and_from_exported_images_alike(runs, tmp_path):
    whole = read_samples(read_run(runs / "bsr"))
    shutil.copytree(runs / "bsr", tmp_path / "exported", ignore=shutil.ignore_patterns("*.pth", "*.bin"))
    exported = read_samples(read_run(tmp_path / "exported"))
    order = whole.labels.argsort(stable=True)  # exported by class, in the order stored
    assert torch.equal(exported.labels, whole.labels[order])
    rows = torch.tensor([3, 60, 17])
    assert torch.equal(exported.images(rows), whole.images(order[rows]))
    assert whole.features.shape == (64, 64)
    assert exported.features is None


def test_features_are_those_of_the_network_asked_for(runs, tmp_path, monkeypatch):
    run = read_run(runs / "bsr")
    samples, embedded = read_samples(run), []
    monkeypatch.setattr(
        show_points_ablation, "embed", lambda features, *_: embedded.append(features) or features[:, :2]
    )
    for network in ("student", "teacher"):
        words = ["x", str(runs / "bsr"), "--features", network, "--output", str(tmp_path), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        show_points_ablation.run()
    content = torch.load(runs / "bsr/student.pth", weights_only=True)
    student = models.create("wrn16_1", 10).eval()
    student.load_state_dict(content["state_dict"])
    inputs = Normalize(run.config["mean"], run.config["std"])(samples.images(torch.arange(64)) / 255)
    logits = student.fc(torch.from_numpy(embedded[0]))
    torch.testing.assert_close(logits, student(inputs), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(embedded[1], samples.features)


def test_features_are_those_of_the_layer_asked_for(runs, tmp_path, monkeypatch):
    embedded = []
    monkeypatch.setattr(
        show_points_ablation, "embed", lambda features, *_: embedded.append(features) or features[:, :2]
    )
    for more in ([], ["--feature_layer", "fc"], ["--feature_layer", "block3"]):
        words = ["x", str(runs / "bsr"), *more, "--output", str(tmp_path), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        show_points_ablation.run()
    by_default, of_classifier, of_block = embedded
    np.testing.assert_array_equal(of_classifier, by_default)
    assert of_block.shape == (64, 32 * 16 * 16)  # what goes into the last block, a row an image


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


def test_fewer_points_than_samples_are_drawn_at_random(runs):
    for folder in ("few", "again"):
        done = run_script(
            POINTS,
            *"bsr --max_points 20 --features teacher --output".split(),
            folder,
            "--engine",
            "scikit-learn",
            cwd=runs,
        )
        assert done.returncode == 0, done.stderr
    few, again = (read_csv(runs / folder / "bsr_targets.csv")[1] for folder in ("few", "again"))
    assert len(few) == 20
    assert np.array_equal(few, again)
    assert read_csv(runs / "few/bsr_counts.csv")[1][:, 1].sum() == 64


def test_the_ablation_is_drawn_as_png_and_pdf(points, tmp_path):
    done = run_script("show_result/ablation.py", "--points", points, "--output", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("ablation_points", "ablation_counts"):
        assert Image.open(tmp_path / f"{name}.png").width > 600
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


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


def test_published_points_are_drawn_in_the_papers_order_beside_ones_own(points, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "show_result/ablation_points", tmp_path / "points")
    write_published(tmp_path / "points")
    tags = ablation.find_tags(tmp_path / "points")
    assert tags == [*ablation.ORDER, *(f"bsr-r34r18c10-{name}" for name in PUBLISHED)]
    assert ablation.ordered(["x", "run-none-seed0", "run-dlw-iho-seed0", "run-blg-iho-seed0", "a"]) == [
        *("a", "run-none-seed0", "run-dlw-iho-seed0", "run-blg-iho-seed0", "x")
    ]
    one = ablation.read_variant(tmp_path / "points", "bsr-r34r18c10-omz8")
    assert one.counts.tolist() == [5] * 10
    done = run_script("show_result/ablation.py", "--points", "points", "--output", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_points_without_arguments_are_of_the_finished_runs_in_the_papers_order(runs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"scripts/ablation.sh"):
        show_points_ablation.finished_runs(tmp_path)
    for folder in ("run/ablation/one", "run/ablation/two", "run/other"):
        shutil.copytree(runs / "bsr", tmp_path / folder)
    config = tmp_path / "run/ablation/two/config.json"
    config.write_text(config.read_text().replace('"dlw": true', '"dlw": false'))
    found = show_points_ablation.finished_runs(tmp_path)
    assert list(found) == ["BLG+IHO", "BSR"]
    (tmp_path / "run/ablation/two/summary.json").unlink()
    assert list(show_points_ablation.finished_runs(tmp_path)) == ["BSR"]
    shutil.rmtree(tmp_path / "run/ablation")
    shutil.copytree(runs / "bsr", tmp_path / "run/again")
    assert sorted(show_points_ablation.finished_runs(tmp_path)) == ["again", "other"]


def test_a_run_that_keeps_no_samples_has_no_points(runs):
    words = ["--dataset", "digits", "--teacher", "wrn16_1", "--student", "wrn16_1", *TINY, "--method", "zskt"]
    assert run_script("bsr_main.py", *words, "--save_dir", "zskt", cwd=runs).returncode == 0
    assert_refused(run_script(POINTS, "zskt", cwd=runs), "zskt keeps none without --store_samples")
    text = Text(report(runs, "zskt"))
    assert "Samples" not in text.said
    assert "Accuracy" in text.said


def test_the_sweep_is_drawn_with_runs_laid_over(tmp_path):
    for seed, size, last in ((0, 2, 94.0), (1, 2, 95.0), (0, 8, 94.5)):
        write_run(tmp_path / f"runs/{size}-{seed}", seed, last, oh_memory_size=size)
    done = run_script("show_result/hyperparameters/hp.py", "runs", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/oh_memory_size_runs.csv").read_text().splitlines() == [
        "value,mean,std,seeds",
        "2,94.5,0.7071067812,2",
        "8,94.5,0,1",
    ]
    assert Image.open(tmp_path / "out/hp.png").width > 1500


def test_the_published_points_in_the_repository_are_the_paper_s(tmp_path):
    done = run_script("show_result/hyperparameters/hp.py", "--output", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("oh_memory_size", "oh_step_coarse", "oh_step_fine"):
        own = ROOT / f"show_result/hyperparameters/{name}.csv"
        assert own.read_text() == (tmp_path / f"{name}.csv").read_text()


@pytest.mark.skipif(shutil.which("octave-cli") is None, reason="GNU Octave is not installed")
def test_octave_draws_the_same_figures(points, tmp_path):
    shutil.copytree(ROOT / "show_result/hyperparameters", tmp_path / "hp")
    (tmp_path / "hp/oh_step_fine_runs.csv").write_text("value,mean,std,seeds\n0.1,94.5,0.2,3\n0.12,94,0,1\n")
    shutil.copytree(points, tmp_path / "points")
    write_published(tmp_path / "points")
    environment = {
        **os.environ,
        "ABLATION_POINTS": str(tmp_path / "points"),
        "ABLATION_OUTPUT": str(tmp_path),
        "HP_FOLDER": str(tmp_path / "hp"),
    }
    for script in ("ablation.m", "hyperparameters/hp.m"):
        done = subprocess.run(
            ["octave-cli", str(ROOT / "show_result" / script)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    for name in ("ablation_points_m.png", "ablation_counts_m.png", "hp/hp_m.png"):
        pixels = np.array(Image.open(tmp_path / name).convert("L"))
        assert (pixels < 200).mean() > 0.002  # something is drawn


def report(folder, *args):
    done = run_here("show_result/report.py", *args, "--output", folder / "report.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def judged_by_both(tmp_path_factory):
    """A run without data whose student is scored on labelled images too; the folder it is in."""
    cwd = tmp_path_factory.mktemp("both")
    write_folder(cwd / "real", splits=("any",), classes=("ant", "bee", "cat"))
    write_teacher(cwd / "teacher.pth", num_classes=3)
    networks = ["--teacher", "wrn16_1", "--teacher_ckpt", "teacher.pth", "--student", "wrn16_1"]
    data = ["--dataset", "none", "--img_size", 32, "--eval_folder", "real/any"]
    done = run_script("bsr_main.py", *data, *networks, *TINY, "--save_dir", "run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def test_accuracy_and_agreement_are_shown_beside_each_other(judged_by_both):
    cwd = judged_by_both
    row = metrics(cwd / "run")[-1]
    said = Text(report(cwd, "run")).said
    for text, figure in (("student, last epoch", "test_top1"), (AGREEMENT, "agreement")):
        assert said[said.index(text) + 1] == f"{row[figure]:.2f} %"
    exported = run_here("scripts/export.py", "run", "--format", "safetensors", cwd=cwd)
    assert exported.returncode == 0, exported.stderr
    card = (cwd / "run/export/model_card_safetensors.md").read_text()
    assert f"- Test accuracy on the labelled images in real/any, last epoch: {row['test_top1']:.2f} %" in card
    assert re.search(rf"^- Agreement with the teacher .*: {row['agreement']:.2f} %", card, re.MULTILINE)


def test_agreement_is_left_out_where_there_is_none(runs):
    assert AGREEMENT not in Text(report(runs, "bsr")).said
    exported = run_here("scripts/export.py", "bsr", "--format", "safetensors", cwd=runs)
    assert exported.returncode == 0, exported.stderr
    card = (runs / "bsr/export/model_card_safetensors.md").read_text()
    assert "greement" not in card
    assert "- Test accuracy on digits, last epoch:" in card
    assert card.count("\n| student | wrn16_1 |") == card.count("\n| teacher | wrn16_1 |") == 1


class Text(HTMLParser):
    """What a page says, and what it refers to."""

    def __init__(self, page):
        super().__init__()
        self.said, self.references, self.marked = [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.marked += ("class", "differs") in attrs

    def handle_data(self, data):
        self.said.append(data.strip())


def test_a_report_of_two_runs_shows_figures_samples_and_what_differs(runs, tmp_path):
    text = Text(report(tmp_path, runs / "bsr", runs / "Basic"))
    accuracy = f"{metrics(runs / 'bsr')[-1]['test_top1']:.2f} %"
    assert accuracy in text.said
    headings = {"Accuracy", "Balance over the classes", "Spread within the classes", "Samples", "Settings"}
    assert headings <= set(text.said)
    assert text.marked >= 4  # method, dlw, blg, iho
    assert sum("BSR" not in said and said.startswith("bsr, wrn16_1 to wrn16_1") for said in text.said) >= 4
    assert all(value.startswith(("data:", "#")) for value in text.references)
    assert not re.search(r"url\((?!#)", (tmp_path / "report.html").read_text())
    assert len([value for value in text.references if value.startswith("data:image/png")]) >= 2


def write_shown_run(folder, classes, epochs):
    """A run with samples, as large as asked for."""
    # Names that would be a formula, markup or another alphabet.
    names = [r"$\foo$", "<b>bold</b>", "données", *(f"class {k}" for k in range(3, classes))]
    write_run(
        folder,
        0,
        50.0,
        method="bsr",
        img_size=8,
        epochs=epochs,
        device="cpu",
        classes=names,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    counts = np.random.default_rng(0).integers(0, 30, (epochs, classes))
    rows = [
        {
            "epoch": e,
            "alpha": 0.5 + e / 10,
            "test_top1": 10.0 + e,
            "loss_kd": None,
            "loss_oh": 1.0,
            "loss_bn": 1.0,
            "loss_adv": 0.0,
            "margin": 0.5,
            "counts": counts[e].tolist(),
            "repository": 5,
            "seconds": {"kd": 1.0},
        }
        for e in range(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    log = SampleLog(folder / SAMPLES, (3, 8, 8), 4)
    repository = SampleRepository((3, 8, 8), 4, classes, log=log)
    count = 15 * classes
    labels = torch.arange(count) % classes
    images, features, margins = torch.rand(count, 3, 8, 8), torch.randn(count, 4), torch.rand(count)
    repository.add(Samples(to_uint8(images), labels, features, margins, (1 + margins) / 2))
    repository.remove(torch.arange(0, count, 7))
    checkpoint.save({"distiller": {"repository": repository.state_dict()}}, folder / "checkpoint.pth")


@pytest.mark.parametrize(("classes", "epochs"), [(10, 1), (100, 3), (1000, 2)])
def test_reports_hold_for_few_and_many_classes_and_for_one_epoch(classes, epochs, tmp_path):
    write_shown_run(tmp_path / "run", classes, epochs)
    write_shown_run(tmp_path / r"other\d1/run", classes, epochs)
    (tmp_path / "run/summary.json").unlink()  # not finished
    text = Text(report(tmp_path, tmp_path / "run", tmp_path / r"other\d1/run"))
    assert f"{epochs} of {epochs}" in text.said
    assert "<b>bold" not in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "report.html").read_text()) < 6e6


def test_a_report_is_the_same_every_time(tmp_path):
    write_shown_run(tmp_path / "run", 10, 3)
    assert report(tmp_path, "run") == report(tmp_path, "run")


def test_whiskers_and_sheets_are_of_the_samples_meant(tmp_path):
    write_shown_run(tmp_path / "run", 3, 1)
    one = ReportRun(read_run(tmp_path / "run"), "run", "black")
    labels, features = one.samples.labels.numpy(), one.samples.features
    from sklearn.neighbors import LocalOutlierFactor

    factors = outlier_factors(features, one.samples.labels, 3)
    for label in range(3):
        expected = -LocalOutlierFactor(10).fit(features[labels == label]).negative_outlier_factor_
        np.testing.assert_allclose(factors[labels == label], expected, rtol=1e-4)
    quartiles = quartiles_by_class(factors, labels, 3)
    q1, q3 = np.percentile(factors[labels == 1], [25, 75])
    assert quartiles[:, 1][[0, 4]].tolist() == pytest.approx([q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)])
    assert int(one.samples.kept.sum()) == 45 - 7


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_renders_the_report_without_errors_or_requests(runs, tmp_path):
    report(tmp_path, runs / "bsr")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *"chromium --headless --no-sandbox --disable-gpu --enable-logging=stderr".split(),
            *"--dump-dom --disable-background-networking --disable-component-update".split(),
            *"--no-first-run --net-log-capture-mode=Everything".split(),
            f"--log-net-log={log}",
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stdout.count("<svg") >= 6
    assert "CONSOLE" not in done.stderr
    # Chromium has its own background traffic; what the page itself asks for names the page as initiator.
    events = log.read_text()
    asked = set(re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]*)"', events))
    assert not [url for url in asked if not re.search(r"google|gstatic|gvt1|chromium", url)]
    assert not re.search(r'"initiator":"file', events) or not asked


def test_tensorboard_events_hold_metrics_and_sheets(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "bsr/tensorboard"))
    events.Reload()
    rows = metrics(runs / "bsr")
    accuracy = [(event.step, event.value) for event in events.Scalars("test_top1")]
    assert accuracy == [(row["epoch"], pytest.approx(row["test_top1"])) for row in rows]
    assert {"loss/bn", "loss/kd", "alpha", "seconds/kd"} <= set(events.Tags()["scalars"])
    assert events.Images("samples")[-1].step == 3


def test_bad_input_of_figures_gets_one_line(runs, points, tmp_path):
    report_script = "show_result/report.py"
    for script in (POINTS, report_script):
        assert_refused(run_here(script, tmp_path, cwd=tmp_path), "is no run: it has no config.json")
    shutil.copytree(runs / "bsr", tmp_path / "bare", ignore=shutil.ignore_patterns("*.bin", "repository"))
    assert_refused(run_here(POINTS, "bare", cwd=tmp_path), "has no samples")
    shutil.copytree(runs / "bsr", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / SAMPLES, 1000)
    for script in (POINTS, report_script):
        assert_refused(run_here(script, "cut", cwd=tmp_path), "of the 64 samples of the checkpoint")
    shutil.copytree(runs / "bsr", tmp_path / "other")
    student = torch.load(tmp_path / "other/student.pth")
    student["state_dict"] = models.create("wrn40_1", 10).state_dict()
    torch.save(student, tmp_path / "other/student.pth")
    assert_refused(run_here(POINTS, "other", cwd=tmp_path), "is not a checkpoint of wrn16_1")
    layer = run_here(POINTS, runs / "bsr", "--features", "teacher", "--feature_layer", "fc", cwd=tmp_path)
    assert_refused(layer, "--feature_layer is for --features student")
    unknown = run_here(POINTS, runs / "bsr", "--feature_layer", "fx", cwd=tmp_path)
    assert_refused(unknown, "has no such layer, did you mean fc?")
    twice = run_here(POINTS, runs / "bsr", runs / "bsr", cwd=tmp_path)
    assert_refused(twice, "as many different --tags")
    (tmp_path / "file").write_text("")
    unwritable = run_here(report_script, runs / "bsr", "--output", "file/report.html", cwd=tmp_path)
    assert_refused(unwritable, "cannot write file/report.html")
    nothing = run_here("show_result/ablation.py", "--points", tmp_path, cwd=tmp_path)
    assert_refused(nothing, "no *_points.csv in")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/a_points.csv").write_text(",0,1\n0,x,y\n")
    damaged = run_here("show_result/ablation.py", "--points", "damaged", cwd=tmp_path)
    assert_refused(damaged, "cannot read damaged/a_points.csv")
    (tmp_path / "damaged/a_points.csv").write_text(",0,1\n0,1,2\n")
    for name, last in (("targets", 7), ("counts", 1)):
        (tmp_path / f"damaged/a_{name}.csv").write_text(f",0\n0,{last}\n")
    unlike = run_here("show_result/ablation.py", "--points", "damaged", cwd=tmp_path)
    assert_refused(unlike, "do not belong together")
    sweep = "show_result/hyperparameters/hp.py"
    assert_refused(run_here(sweep, "nowhere", cwd=tmp_path), "no run in")
    for seed, epochs in ((0, 420), (1, 5)):
        write_run(tmp_path / f"sweep/{seed}", seed, 94.0, epochs=epochs)
    assert_refused(run_here(sweep, "sweep", cwd=tmp_path), "differ in epochs too")


def test_losses_on_removed_and_kept_samples_are_those_of_a_student_that_saw_neither(runs, tmp_path):
    for name in ("bsr", "Basic"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "bsr/checkpoint.pth"
    content = checkpoint.read(path)
    state = content["distiller"]["repository"]
    state["serials"] = state["serials"][
        torch.arange(len(state["serials"])) % 3 > 0
    ]  # as if IHO had been at work
    torch.save(content, path)
    teacher_file = runs / "checkpoints/pretrained/digits_wrn16_1.pth"
    command = (
        "show_result/removed.py",
        "bsr",
        "Basic",
        "--teacher_ckpt",
        str(teacher_file),
        "--output",
        "a.csv",
    )
    assert_refused(run_here(*command[:2], "bsr", cwd=tmp_path), "name another run as judge")
    assert_refused(run_here(command[0], "Basic", "bsr", cwd=tmp_path), "Basic has no IHO")
    (tmp_path / "other.csv").write_text("hello")
    refused = run_here(*command[:-1], "other.csv", cwd=tmp_path)
    assert_refused(refused, "other.csv is no file of this script")
    done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_refused(run_here(*command, cwd=tmp_path), "a.csv has lines of bsr already")

    run = read_run(tmp_path / "bsr")
    samples = read_samples(run)
    teacher, student = (models.create("wrn16_1", 10) for _ in range(2))
    for network, file in ((teacher, teacher_file), (student, runs / "Basic/student.pth")):
        network.load_state_dict(checkpoint.state_dict_of(checkpoint.read(file), file))
        network.eval()
    normalize = Normalize(tuple(run.told("mean")), tuple(run.told("std")))
    inputs = normalize(samples.images(torch.arange(64)) / 255)
    with torch.no_grad():
        p, q = ((network(inputs) / 20).softmax(1) for network in (teacher, student))
    loss = (p * (p / q).log()).sum(1) * 400
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {(line["run"], line["judge"]) for line in lines} == {("bsr", "Basic")}
    assert sum(int(line["made"]) for line in lines) == 64
    assert sum(int(line["removed"]) for line in lines) == 22
    for line in lines:
        of_class = samples.labels == run.told("classes").index(line["class"])
        here = of_class & (torch.arange(64) * 5 // 64 == int(line["part"]))
        for name, those in (("loss_kept", here & samples.kept), ("loss_removed", here & ~samples.kept)):
            if those.any():
                assert float(line[name]) == pytest.approx(loss[those].mean().item(), rel=1e-3, abs=1e-4)
            else:
                assert line[name] == ""
