"""The two scripts as users run them: whole jobs on tiny budgets, and bad input."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, run_script
from helpers import TINY, assert_refused, metrics, write_folder, write_teacher
from PIL import Image
from torch import nn

import datafree
from datafree import models
from datafree.data.augment import Normalize
from datafree.data.datasets import NORMALIZATIONS
from datafree.data.image_set import to_float
from datafree.data.load import load_split

STUDENT = "mobilenetv2"  # it has dropout, which draws from torch's global generator


def write_cifar10(root: Path, images_per_file: int = 20):
    """CIFAR-10 in its original format, with random images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {
            "data": random.randint(0, 256, (images_per_file, 3072), dtype=np.uint8),
            "labels": random.randint(0, 10, images_per_file).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A whole BSR run on digits; the folder it ran in and the finished process."""
    cwd = tmp_path_factory.mktemp("digits")
    write_teacher(cwd / "checkpoints/pretrained/digits_wrn16_1.pth")
    done = run_script(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --student".split(),
        STUDENT,
        *TINY,
        *"--test-teacher --export_repository --save_dir out".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd, done


def test_a_run_leaves_everything_in_its_folder(digits_run):
    cwd, done = digits_run
    run = cwd / "out"
    config = json.loads((run / "config.json").read_text())
    assert config["batch_size"] == 16
    assert config["synthesis_batch_size"] == 16
    assert (config["dlw"], config["blg"], config["iho"]) == (True, True, True)
    assert {"torch", "git_commit", "device", "seed"} <= config.keys()
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["repository"] == sum(row["counts"]) == 16 * (row["epoch"] + 1)
        assert 0 <= row["margin"] <= 1
        assert row["alpha"] >= 0.5
    assert rows[0]["loss_kd"] is None
    assert rows[-1]["loss_kd"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last_top1"] == rows[-1]["test_top1"]
    assert summary["last_test_agreement"] == rows[-1]["test_agreement"]
    assert "chosen on test data" in done.stdout
    said = [line for line in done.stdout.splitlines() if line]
    assert (run / "log.txt").read_text().splitlines() == said
    assert Image.open(run / "images/epoch-0004.png").width > 500


def test_the_student_file_holds_the_network_and_how_to_use_it(digits_run):
    content = torch.load(digits_run[0] / "out/student.pth", weights_only=True)
    models.create(content["arch"], len(content["classes"])).load_state_dict(content["state_dict"])
    assert content["img_size"] == 32
    assert len(content["mean"]) == len(content["std"]) == 3


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
    done = run_here("scripts/export.py", "out", "--best", "--format", "torch_export", cwd=cwd)
    assert done.returncode == 0, done.stderr
    card = (out / "export_best/model_card_torch_export.md").read_text()
    assert "which was chosen on these test data" in card
    assert f"{summary['best_top1_chosen_on_test_data']:.2f} % in epoch {best['best_epoch'] + 1}" in card
    content = {**best, "best_epoch": best["best_epoch"] + 1}  # as a run with other roundings may leave it
    shutil.copytree(out, cwd / "other")
    torch.save(content, cwd / "other/student_best.pth")
    assert_refused(run_here("scripts/export.py", "other", "--best", cwd=cwd), "not from the best epoch")
    scored = run_here(
        *f"bsr_main.py --dataset digits --student {STUDENT} --evaluate_only --resume".split(),
        out / "student_best.pth",
        cwd=cwd,
    )
    assert f"{summary['best_top1_chosen_on_test_data']:.2f} %" in scored.stdout


def test_metrics_tell_recall_agreement_on_test_images_and_images_made(digits_run):
    cwd, _ = digits_run
    out = cwd / "out"
    row = metrics(out)[-1]
    test = load_split("digits", "test", "nowhere")
    inputs = Normalize(*NORMALIZATIONS["digits"])(to_float(test.read(torch.arange(360))))
    teacher = models.create("wrn16_1", 10)
    teacher.load_state_dict(torch.load(cwd / "checkpoints/pretrained/digits_wrn16_1.pth", weights_only=True))
    with torch.no_grad():
        given = datafree.load_student(out / "student.pth")(inputs).argmax(1)
        taught = teacher.eval()(inputs).argmax(1)
    assert row["test_agreement"] == pytest.approx(100 * (given == taught).double().mean().item(), abs=0.3)
    for label, recall in enumerate(row["test_recall"]):
        of_class = test.labels == label
        assert recall == pytest.approx(100 * (given[of_class] == label).double().mean().item(), abs=3)
    assert row["made"] == 16


def test_the_exported_repository_is_an_image_folder_by_class(digits_run):
    run = digits_run[0] / "out"
    exported = {p.name: len(list(p.glob("*.png"))) for p in (run / "repository").iterdir()}
    counts = metrics(run)[-1]["counts"]
    assert exported == {str(label): count for label, count in enumerate(counts)}


def test_an_existing_run_is_neither_erased_nor_mixed(digits_run):
    cwd, _ = digits_run
    before = {p: p.stat().st_mtime_ns for p in (cwd / "out").rglob("*")}
    done = run_script(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --student wrn16_1".split(),
        *TINY,
        "--save_dir",
        "out",
        cwd=cwd,
    )
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in (cwd / "out").rglob("*")} == before


def test_a_resumed_run_continues_as_if_it_had_not_stopped(digits_run, tmp_path):
    """Stop after two epochs by raising an error in the third, resume, and compare all there is."""
    cwd, _ = digits_run
    stopper = tmp_path / "stop.py"
    stopper.write_text(
        "import runpy, sys\n"
        "from datafree.distiller import Distiller\n"
        "original = Distiller.run_epoch\n"
        "def run_epoch(self, epoch, *args):\n"
        "    if epoch == 2:\n"
        "        raise SystemExit(9)\n"
        "    return original(self, epoch, *args)\n"
        "Distiller.run_epoch = run_epoch\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = [
        *"--dataset digits --teacher wrn16_1 --student".split(),
        STUDENT,
        *TINY,
        "--save_dir",
        tmp_path / "out",
    ]
    stopped = run_script(str(stopper), ROOT / "bsr_main.py", *flags, cwd=cwd, PYTHONPATH=str(ROOT))
    assert stopped.returncode == 9, stopped.stderr
    resumed = run_script("bsr_main.py", *flags, "--resume", cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(tmp_path / "out") == metrics(cwd / "out")
    whole, continued = (
        torch.load(folder / "student.pth", weights_only=True)["state_dict"]
        for folder in (cwd / "out", tmp_path / "out")
    )
    for key, value in whole.items():
        assert torch.equal(value, continued[key]), key


def test_a_run_is_not_continued_with_other_settings_or_in_another_runs_folder(digits_run, tmp_path):
    cwd, _ = digits_run
    common = ["--dataset", "digits", "--teacher", "wrn16_1", "--student", STUDENT, *TINY, "--save_dir"]
    before = (cwd / "out/metrics.jsonl").read_bytes()
    other_lr = run_script("bsr_main.py", *common, "out", "--resume", "--lr", 0.01, cwd=cwd)
    assert_refused(other_lr, "lr was 0.2 and is 0.01")
    other_teacher = write_teacher(tmp_path / "teacher.pth", seed=1)
    swapped = ["--resume", "--teacher_ckpt", other_teacher]
    assert_refused(run_script("bsr_main.py", *common, "out", *swapped, cwd=cwd), "teacher_weights was")
    (tmp_path / "mine").mkdir()
    torch.save({"distiller": 1}, tmp_path / "mine/checkpoint.pth")
    foreign = ["--resume", tmp_path / "mine/checkpoint.pth"]
    assert_refused(run_script("bsr_main.py", *common, "out", *foreign, cwd=cwd), "contains another run")
    elsewhere = run_script("bsr_main.py", *common, tmp_path / "new", *foreign, cwd=cwd)
    assert_refused(elsewhere, "is not a checkpoint of a run")
    assert (cwd / "out/metrics.jsonl").read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_files_that_are_not_a_runs_are_never_replaced(digits_run, tmp_path):
    cwd, _ = digits_run
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.txt").write_text("mine")
    done = run_script(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --student wrn16_1".split(),
        *TINY,
        "--save_dir",
        tmp_path,
        "--overwrite",
        cwd=cwd,
    )
    assert_refused(done, "which no run of this project wrote")
    assert (tmp_path / "images/mine.txt").read_text() == "mine"


def test_evaluate_only_scores_the_student_of_a_run(digits_run):
    cwd, _done = digits_run
    scored = run_script(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --student".split(),
        STUDENT,
        "--save_dir",
        "out",
        "--evaluate_only",
        cwd=cwd,
    )
    assert scored.returncode == 0, scored.stderr
    last = json.loads((cwd / "out/summary.json").read_text())["last_top1"]
    assert f"{last:.2f} %" in scored.stdout


def test_components_switch_off_one_by_one(digits_run):
    cwd, _ = digits_run
    done = run_script(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --student wrn16_1".split(),
        *TINY,
        *"--no-dlw --no_iho --oh 0.7 --adv 0 --cr 1 --fp16 --is_maml 0 --save-dir off".split(),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((cwd / "off/config.json").read_text())
    assert (config["dlw"], config["blg"], config["iho"]) == (False, True, False)
    rows = metrics(cwd / "off")
    assert {row["alpha"] for row in rows} == {0.7}
    assert {row["removed"] for row in rows} == {0}
    assert "--cr has no effect" in done.stdout


def test_published_commands_word_for_word_with_a_few_steps(tmp_path):
    """Train a teacher, then perform BSR; the training images are gone by then, and are not missed."""
    write_cifar10(tmp_path / "data")
    trained = run_script(
        "train_scratch.py",
        *"--model resnet34 --dataset cifar10 --batch-size 64 --lr 0.1 --data_root data".split(),
        *"--epochs 1 --batch-size 8 --device cpu".split(),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "checkpoints/pretrained/cifar10_resnet34.pth").is_file()
    for path in (tmp_path / "data").rglob("data_batch_*"):
        path.unlink()
    published = (
        "--warmup 20 --epochs 420 --batch_size 256 --dataset cifar10 --method bsr "
        "--teacher resnet34 --student resnet18"
    )
    distilled = run_script(
        "bsr_main.py",
        *published.split(),
        *"--warmup 1 --epochs 2 --batch_size 8 --kd_steps 1 --ep_steps 1 --g_steps 2 --device cpu".split(),
        cwd=tmp_path,
    )
    assert distilled.returncode == 0, distilled.stderr
    assert (tmp_path / "run/bsr-cifar10-resnet34-resnet18-seed0/summary.json").is_file()


def test_training_images_are_never_opened(tmp_path):
    """Every file that the process opens is listed by an audit hook of the interpreter."""
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
        *"bsr_main.py --dataset folder --data_root images --mean half --teacher wrn16_1".split(),
        "--teacher_ckpt",
        teacher,
        "--student",
        "wrn16_1",
        *TINY,
        "--test_teacher",
        cwd=tmp_path,
        OPENED=str(tmp_path / "opened"),
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert done.returncode == 0, done.stderr
    opened = (tmp_path / "opened").read_text()
    assert str(tmp_path / "images/test/ant/0.png") in opened  # the hook sees what it is there to see
    assert str(tmp_path / "images/train") not in opened


def test_train_scratch_records_what_bsr_main_then_finds(tmp_path):
    write_folder(tmp_path / "images", splits=("train", "val"))
    trained = run_script(
        *"train_scratch.py --model resnet20 --dataset folder --data_root images".split(),
        *"--mean 0.5,0.4,0.3 --std 0.2,0.2,0.3 --epochs 1 --batch_size 8 --device cpu".split(),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    done = run_script(
        *"bsr_main.py --dataset folder --data_root images --teacher resnet20".split(),
        *"--student resnet20".split(),
        *TINY,
        *"--epochs 1 --save_dir out".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    student = torch.load(tmp_path / "out/student.pth", weights_only=True)
    assert student["mean"] == [0.5, 0.4, 0.3]
    assert student["std"] == [0.2, 0.2, 0.3]
    assert student["classes"] == ["ant", "bee", "cat"]
    again = run_script("train_scratch.py", "--model", "resnet20", "--dataset", "folder", cwd=tmp_path)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


BAD_FLAGS = [
    (["--method", "cmi", "--cmi_init", "nowhere"], "no teacher"),
    (["--device", "cuda:200"], "no device cuda:200"),
    (["--save_dir", "x" * 300, "--evaluate_only"], "xxx"),
    (["--device", "tpu"], "use cpu, cuda or cuda:N"),
    (["--gpu", 3], "no device cuda:3"),
    (["--dataset", "digits", "--teacher", "wrn16_1"], "python train_scratch.py --model wrn16_1"),
    (["--teacher_ckpt", "nowhere.pth"], "no checkpoint at nowhere.pth"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=lambda value: str(value)[:40])
def test_bad_flags_get_one_line_and_status_2(flags, message, tmp_path):
    assert_refused(run_here("bsr_main.py", *flags, cwd=tmp_path), message)
    assert list(tmp_path.iterdir()) == []


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("ran_code"),))


def bad_checkpoints():
    def truncated(path):
        whole = write_teacher(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return {
        "truncated": (truncated, "damaged"),
        "random bytes": (lambda path: path.write_bytes(b"\x93random" * 999), "damaged"),
        "empty": (lambda path: path.write_bytes(b""), "damaged"),
        "code": (lambda path: torch.save({"state_dict": Malicious()}, path), "could run code"),
        "whole module": (lambda path: torch.save(nn.Linear(3, 3), path), "could run code"),
        "no state dict": (lambda path: torch.save([1, 2, 3], path), "has no state dict"),
        "other architecture": (lambda path: write_teacher(path, "wrn40_1"), "Unexpected key"),
        "other width": (lambda path: write_teacher(path, "wrn16_2"), "size mismatch for"),
        "other class count": (lambda path: write_teacher(path, num_classes=100), "mismatch for fc.weight"),
    }


@pytest.mark.parametrize("kind", bad_checkpoints())
def test_bad_checkpoints_get_one_line_and_run_no_code(kind, tmp_path):
    write, message = bad_checkpoints()[kind]
    write(tmp_path / "teacher.pth")
    done = run_here(
        *"bsr_main.py --dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth".split(), cwd=tmp_path
    )
    assert_refused(done, message)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        ("svhn", "test_32x32.mat"),
        ("imagenette2", "https://github.com/fastai/imagenette"),
        ("folder", "test/ or val/"),
    ],
)
def test_absent_data_get_one_line_that_says_what_to_put_where(dataset, message, tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    done = run_here(
        "bsr_main.py",
        "--dataset",
        dataset,
        *"--data_root nowhere --teacher wrn16_1 --student wrn16_1".split(),
        *"--teacher_ckpt teacher.pth".split(),
        cwd=tmp_path,
    )
    assert_refused(done, message)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pth"]
