"""`bsr_main.py` and `train_scratch.py` as users run them: whole jobs on tiny budgets, and bad input."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, run_script, succeed
from helpers import TINY, Malicious, assert_refused, metrics, write_folder, write_teacher
from PIL import Image

import datafree
from datafree import models
from datafree.data.augment import Normalize
from datafree.data.datasets import NORMALIZATIONS
from datafree.data.image_set import to_float
from datafree.data.load import load_split

DIGITS = f"bsr_main.py --dataset digits --teacher wrn16_1 {TINY}"
NO_DATA = "--data_root nowhere --teacher wrn16_1 --student wrn16_1 --teacher_ckpt teacher.pth"
STUDENT = "--student mobilenetv2"  # it has dropout, which draws from torch's global generator


def write_cifar10(root: Path, images_per_file: int = 20):
    """CIFAR-10 in its original format, with random images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = random.randint(0, 256, (images_per_file, 3072), dtype=np.uint8)
        labels = random.randint(0, 10, images_per_file).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": labels}))
    names = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A whole BSR run on digits; the folder it ran in and what it printed."""
    cwd = tmp_path_factory.mktemp("digits")
    write_teacher(cwd / "checkpoints/pretrained/digits_wrn16_1.pth")
    words = f"{DIGITS} {STUDENT} --test-teacher --export_repository --save_dir out"
    return cwd, succeed(words, cwd=cwd)


def test_a_run_leaves_everything_in_its_folder(digits_run):
    cwd, printed = digits_run
    run = cwd / "out"
    config = json.loads((run / "config.json").read_text())
    assert config["batch_size"] == config["synthesis_batch_size"] == 16
    assert (config["dlw"], config["blg"], config["iho"]) == (True, True, True)
    assert {"torch", "git_commit", "device", "seed"} <= config.keys()
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["repository"] == sum(row["counts"]) == 16 * (row["epoch"] + 1)
        assert row["made"] == 16
        assert 0 <= row["margin"] <= 1
        assert row["alpha"] >= 0.5
    assert rows[0]["loss_kd"] is None
    assert rows[-1]["loss_kd"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last_top1"] == rows[-1]["test_top1"]
    assert summary["last_test_agreement"] == rows[-1]["test_agreement"]
    assert "chosen on test data" in printed
    assert (run / "log.txt").read_text().splitlines() == [line for line in printed.splitlines() if line]
    assert Image.open(run / "images/epoch-0004.png").width > 500
    student = torch.load(run / "student.pth", weights_only=True)
    models.create(student["arch"], len(student["classes"])).load_state_dict(student["state_dict"])
    assert student["img_size"] == 32
    assert len(student["mean"]) == len(student["std"]) == 3
    exported = {path.name: len(list(path.glob("*.png"))) for path in (run / "repository").iterdir()}
    assert exported == {str(label): count for label, count in enumerate(rows[-1]["counts"])}


def test_the_student_of_the_best_epoch_is_kept_and_called_what_it_is(digits_run):
    cwd, _ = digits_run
    out = cwd / "out"
    summary = json.loads((out / "summary.json").read_text())
    best = torch.load(out / "student_best.pth", weights_only=True)
    assert best["best_epoch"] == summary["best_epoch"]
    rows = metrics(out)
    trained = [row for row in rows if row["loss_kd"] is not None]
    assert rows[best["best_epoch"]] in trained  # the warm-up leaves the student as it was
    assert summary["best_top1_chosen_on_test_data"] == max(row["test_top1"] for row in trained)
    succeed("scripts/export.py out --best --format torch_export", cwd=cwd)
    card = (out / "export_best/model_card_torch_export.md").read_text()
    assert "which was chosen on these test data" in card
    assert f"{summary['best_top1_chosen_on_test_data']:.2f} % in epoch {best['best_epoch'] + 1}" in card
    shutil.copytree(out, cwd / "other")
    torch.save({**best, "best_epoch": best["best_epoch"] + 1}, cwd / "other/student_best.pth")
    assert_refused(run_here("scripts/export.py other --best", cwd=cwd), "not from the best epoch")
    score = f"bsr_main.py --dataset digits {STUDENT} --evaluate_only"
    assert f"{summary['best_top1_chosen_on_test_data']:.2f} %" in succeed(
        score, "--resume", out / "student_best.pth", cwd=cwd
    )
    assert f"{summary['last_top1']:.2f} %" in succeed(score, "--save_dir", "out", cwd=cwd)


def test_recall_and_agreement_on_test_images(digits_run):
    cwd, _ = digits_run
    row = metrics(cwd / "out")[-1]
    test = load_split("digits", "test", "nowhere")
    inputs = Normalize(*NORMALIZATIONS["digits"])(to_float(test.read(torch.arange(360))))
    teacher = models.create("wrn16_1", 10)
    teacher.load_state_dict(torch.load(cwd / "checkpoints/pretrained/digits_wrn16_1.pth", weights_only=True))
    with torch.no_grad():
        given = datafree.load_student(cwd / "out/student.pth")(inputs).argmax(1)
        taught = teacher.eval()(inputs).argmax(1)
    assert row["test_agreement"] == pytest.approx(100 * (given == taught).double().mean().item(), abs=0.3)
    for label, recall in enumerate(row["test_recall"]):
        of_class = test.labels == label
        assert recall == pytest.approx(100 * (given[of_class] == label).double().mean().item(), abs=3)


def test_a_run_is_neither_erased_nor_mixed_with_another(digits_run, tmp_path):
    cwd, _ = digits_run

    def refused(words, message):
        assert_refused(run_here(f"{DIGITS} {STUDENT} {words}", cwd=cwd), message)

    before = {path: path.stat().st_mtime_ns for path in (cwd / "out").rglob("*") if path.name != ".lock"}
    refused("--save_dir out", "--resume")
    refused("--save_dir out --resume --lr 0.01", "lr was 0.2 and is 0.01")
    other_teacher = write_teacher(tmp_path / "teacher.pth", seed=1)
    refused(f"--save_dir out --resume --teacher_ckpt {other_teacher}", "teacher_weights was")
    (tmp_path / "mine").mkdir()
    torch.save({"distiller": 1}, tmp_path / "mine/checkpoint.pth")
    foreign = f"--resume {tmp_path}/mine/checkpoint.pth"
    refused(f"--save_dir out {foreign}", "contains another run")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    refused(f"--save_dir {tmp_path}/new {foreign}", "is not a checkpoint of a run")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.txt").write_text("mine")
    refused(f"--save_dir {tmp_path} --overwrite", "which no run of this project wrote")
    assert (tmp_path / "images/mine.txt").read_text() == "mine"


def test_components_switch_off_one_by_one(digits_run):
    cwd, _ = digits_run
    more = "--student wrn16_1 --no-dlw --no_iho --oh 0.7 --adv 0 --cr 1 --is_maml 0 --save-dir off"
    printed = succeed(f"{DIGITS} {more}", cwd=cwd)
    config = json.loads((cwd / "off/config.json").read_text())
    assert (config["dlw"], config["blg"], config["iho"]) == (False, True, False)
    rows = metrics(cwd / "off")
    assert {row["alpha"] for row in rows} == {0.7}
    assert {row["removed"] for row in rows} == {0}
    assert "--cr has no effect" in printed


def test_published_commands_word_for_word_with_a_few_steps(tmp_path):
    """Train a teacher, then perform BSR; the training images are gone by then, and are not missed."""
    write_cifar10(tmp_path / "data")
    train = "train_scratch.py --model resnet34 --dataset cifar10 --batch-size 64 --lr 0.1 --data_root data"
    succeed(f"{train} --epochs 1 --batch-size 8 --lr 0.001 --device cpu", cwd=tmp_path)
    assert (tmp_path / "checkpoints/pretrained/cifar10_resnet34.pth").is_file()
    for path in (tmp_path / "data").rglob("data_batch_*"):
        path.unlink()
    published = (
        "bsr_main.py --warmup 20 --epochs 420 --batch_size 256 --dataset cifar10 --method bsr "
        "--teacher resnet34 --student resnet18"
    )
    few = "--warmup 1 --epochs 2 --batch_size 8 --kd_steps 1 --ep_steps 1 --g_steps 2 --device cpu"
    succeed(f"{published} {few}", cwd=tmp_path)
    assert (tmp_path / "run/bsr-cifar10-resnet34-resnet18-seed0/summary.json").is_file()


def test_training_images_are_never_opened(tmp_path):
    """An audit hook of the interpreter lists every file that the process opens."""
    write_folder(tmp_path / "images", splits=("train", "test"))
    teacher = write_teacher(tmp_path / "teacher.pth", num_classes=3)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import os, sys\n"
        "log = os.open(os.environ['OPENED'], os.O_CREAT | os.O_APPEND | os.O_WRONLY)\n"
        "def hook(event, args):\n"
        "    if event in ('open', 'os.listdir', 'os.scandir') and isinstance(args[0], (str, bytes)):\n"
        "        os.write(log, os.fsencode(os.path.abspath(args[0])) + b'\\n')\n"
        "sys.addaudithook(hook)\n"
    )
    done = run_script(
        f"bsr_main.py --dataset folder --data_root images --mean half --teacher wrn16_1 --student wrn16_1 "
        f"--teacher_ckpt {teacher} --test_teacher {TINY}",
        cwd=tmp_path,
        OPENED=str(tmp_path / "opened"),
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert done.returncode == 0, done.stderr
    opened = (tmp_path / "opened").read_text()
    assert str(tmp_path / "images/test/ant/0.png") in opened  # the hook works
    assert str(tmp_path / "images/train") not in opened


def test_train_scratch_records_what_bsr_main_then_uses(tmp_path):
    write_folder(tmp_path / "images", splits=("train", "val"))
    train = "train_scratch.py --model resnet20 --dataset folder --data_root images"
    spec = "--mean 0.5,0.4,0.3 --std 0.2,0.2,0.3 --epochs 1 --batch_size 8 --device cpu"
    succeed(f"{train} {spec}", cwd=tmp_path)
    distil = "bsr_main.py --dataset folder --data_root images --teacher resnet20 --student resnet20"
    succeed(f"{distil} {TINY} --epochs 1 --save_dir out", cwd=tmp_path)
    student = torch.load(tmp_path / "out/student.pth", weights_only=True)
    assert (student["mean"], student["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
    assert student["classes"] == ["ant", "bee", "cat"]
    assert_refused(run_here(train, cwd=tmp_path), "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method cmi --cmi_init nowhere", "no teacher"),
        ("--device cuda:200", "no device cuda:200"),
        ("--device tpu", "use cpu, cuda or cuda:N"),
        ("--dataset digits --teacher wrn16_1", "python train_scratch.py --model wrn16_1"),
        ("--teacher_ckpt nowhere.pth", "no checkpoint at nowhere.pth"),
        (f"{NO_DATA} --dataset cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        (f"{NO_DATA} --dataset svhn", "test_32x32.mat"),
        (f"{NO_DATA} --dataset imagenette2", "https://github.com/fastai/imagenette"),
        (f"{NO_DATA} --dataset folder", "test/ or val/"),
    ],
)
def test_bad_flags_and_missing_data_get_one_line_and_leave_no_files(words, message, tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    assert_refused(run_here(f"bsr_main.py {words}", cwd=tmp_path), message)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(write_teacher(path).read_bytes()[:99_000]), "damaged"),
        (lambda path: torch.save({"state_dict": Malicious()}, path), "could run code"),
        (lambda path: torch.save([1, 2, 3], path), "has no state dict"),
        (lambda path: write_teacher(path, "wrn40_1"), "Unexpected key"),
        (lambda path: write_teacher(path, num_classes=100), "mismatch for fc.weight"),
    ],
)
def test_bad_checkpoints_get_one_line_and_run_no_code(write, message, tmp_path):
    write(tmp_path / "teacher.pth")
    words = "bsr_main.py --dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth"
    assert_refused(run_here(words, cwd=tmp_path), message)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.pth"]
