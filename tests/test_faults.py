"""What must not lose a run: kills, signals, full disks, damaged and hostile files."""

import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import soak
import torch
from conftest import ROOT, run_here, run_script
from making import flags, samples
from PIL import Image
from test_methods import distiller
from test_scripts import Malicious, assert_refused, metrics, write_folder, write_teacher

from datafree import models
from datafree.data.image_folders import load_folder
from datafree.errors import UserError
from datafree.runs.contact_sheet import folder_names
from datafree.runs.folder import RunFolder
from datafree.runs.lock import MARK
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint

COMMON = [
    *"--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1".split(),
    *"--device cpu --warmup 1 --kd_steps 2 --ep_steps 2 --batch_size 16 --g_steps 2".split(),
    *"--save_dir out".split(),
]


SHORT = (
    *"--epochs 2000 --warmup 0 --kd_steps 1 --ep_steps 1 --batch_size 8 --g_steps 1".split(),
    *"--lr 1e-3".split(),
)


@pytest.fixture
def cwd(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    return tmp_path


def bsr(cwd, *more, **environment):
    return run_script("bsr_main.py", *COMMON, *more, cwd=cwd, **environment)


def started(cwd, *more):
    words = [sys.executable, str(ROOT / "bsr_main.py"), *map(str, [*COMMON, *more])]
    return subprocess.Popen(
        words, cwd=cwd, env=soak.environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def students_equal(a, b):
    states = [torch.load(folder / "student.pth", weights_only=True)["state_dict"] for folder in (a, b)]
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_run_killed_three_times_ends_as_one_that_was_not(cwd):
    soak.soak(cwd / "teacher.pth", cwd, epochs=12, kills=3, seed=1)


def test_signals_end_a_run_after_its_step_and_it_continues_exactly(cwd):
    written = cwd / "out/metrics.jsonl"
    for number, epochs, more in ((signal.SIGTERM, 3, []), (signal.SIGINT, 7, ["--resume"])):
        process = started(cwd, "--epochs", 12, "--save_every", 50, *more)
        while process.poll() is None and not (written.exists() and written.read_text().count("\n") >= epochs):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert len(said.strip().splitlines()) == 1
        assert f"stopped by {number.name}; continue with: python" in said
        assert said.strip().endswith("--resume")
        assert (cwd / "out/checkpoint.pth").is_file()  # though no epoch was due to be saved
        assert not (cwd / "out/summary.json").exists()
    resumed = bsr(cwd, "--epochs", 12, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    os.rename(cwd / "out", cwd / "continued")
    assert bsr(cwd, "--epochs", 12).returncode == 0
    assert metrics(cwd / "out") == metrics(cwd / "continued")
    assert students_equal(cwd / "out", cwd / "continued")


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(cwd):
    assert bsr(cwd, "--epochs", 5).returncode == 0
    whole = metrics(cwd / "out")
    newest = cwd / "out/checkpoint.pth"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    resumed = bsr(cwd, "--epochs", 5, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint.pth: it is damaged" in resumed.stdout
    assert "continuing from the one before it, out/checkpoint.previous.pth" in resumed.stdout
    assert metrics(cwd / "out") == whole
    (cwd / "out/checkpoint.previous.pth").write_bytes(b"")
    newest.write_bytes(damaged)
    assert_refused(bsr(cwd, "--epochs", 5, "--resume"), "is damaged")


def test_a_newest_checkpoint_that_makes_no_sense_is_passed_over_too(cwd):
    assert bsr(cwd, "--epochs", 3).returncode == 0
    whole, newest = metrics(cwd / "out"), cwd / "out/checkpoint.pth"
    content = checkpoint.read(newest)
    content["distiller"]["streams"] = []
    checkpoint.save(content, newest)
    resumed = run_here("bsr_main.py", *COMMON, "--epochs", 3, "--resume", cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from the one before it" in resumed.stdout
    assert metrics(cwd / "out") == whole


def test_a_run_does_not_write_to_a_folder_that_was_removed_and_made_anew(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write_json("config.json", {})
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").touch()
    for write in (
        lambda: run.append_metrics({"epoch": 0}),
        lambda: run.save_checkpoint({}),
        lambda: run.save_student({}),
        lambda: run.write_json("summary.json", {}),
    ):
        with pytest.raises(UserError, match="was removed or replaced"):
            write()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_samples_are_not_appended_to_a_file_of_another_run(tmp_path):
    log = SampleLog(tmp_path / "samples.bin", (3, 4, 4), 5)
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    one = samples(images, torch.tensor([1]), torch.randn(1, 5), torch.rand(1))
    log.append(one)
    log.path.unlink()
    with pytest.raises(UserError, match="was removed or replaced"):
        log.append(one)
    log.path.write_bytes(b"of another run")
    with pytest.raises(UserError, match="was removed or replaced"):
        log.append(one)
    assert log.path.read_bytes() == b"of another run"


def test_a_single_sample_is_read_back(tmp_path):
    log = SampleLog(tmp_path / "samples.bin", (3, 4, 4), 5)
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    log.append(samples(images, torch.tensor([1, 2, 3]), torch.randn(3, 5), torch.rand(3)))
    (part,) = log.read(torch.tensor([2]))
    assert torch.equal(part.images, images[2:])
    assert part.labels.tolist() == [3]
    assert part.confidences.shape == (1,)


def test_a_copy_by_hard_links_is_not_changed_by_what_happens_to_the_other(tmp_path):
    log = SampleLog(tmp_path / "samples.bin", (3, 4, 4), 5)
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    log.append(samples(images, torch.tensor([1, 2, 3]), torch.randn(3, 5), torch.rand(3)))
    copy = tmp_path / "copy.bin"
    os.link(log.path, copy)
    before = copy.read_bytes()
    log.truncate(1)
    assert copy.read_bytes() == before
    assert len(log.path.read_bytes()) == len(before) // 3


def test_a_checkpoint_is_not_continued_in_the_folder_of_another_run_that_was_begun(cwd):
    assert bsr(cwd, "--epochs", 2).returncode == 0
    for left in (
        ["config.json"],
        ["checkpoint.previous.pth", "config.json"],
        ["metrics.jsonl", "samples.bin"],
    ):
        begun = cwd / left[0].split(".")[1]
        begun.mkdir()
        (begun / ".lock").write_text(MARK)
        for name in left:
            (begun / name).write_bytes(b"of another run")
        flags = [*COMMON, "--epochs", 2, "--resume", "out/checkpoint.pth", "--save_dir", begun]
        assert_refused(run_here("bsr_main.py", *flags, cwd=cwd), "holds another run than")
        assert sorted(path.name for path in begun.iterdir() if path.name != ".lock") == left
        assert {(begun / name).read_bytes() for name in left} == {b"of another run"}


def test_classes_that_would_share_a_folder_do_not():
    names = folder_names(["C++", "C##", "a", "A", "b/c", "..", ""])
    assert names == ["C__-class0", "C__-class1", "a-class2", "A-class3", "b_c", "_-class5", "_-class6"]


def test_a_full_disk_costs_no_checkpoint(cwd):
    """No file of the process may grow beyond a limit, as on a disk that is full."""
    assert bsr(cwd, "--epochs", 6).returncode == 0
    whole = metrics(cwd / "out")
    os.rename(cwd / "out", cwd / "whole")
    size = (cwd / "whole/checkpoint.pth").stat().st_size

    def limited(limit, *more):
        words = [sys.executable, str(ROOT / "bsr_main.py"), *map(str, [*COMMON, "--epochs", 6, *more])]
        return subprocess.run(
            words,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=200,
            env=soak.environment(),
            preexec_fn=lambda: (
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            ),
        )

    samples = 16 * (3 * 32 * 32 + 64 * 4 + 12)  # bytes that an epoch adds
    assert size > 4 * samples
    assert_refused(limited(size - 1), "cannot write out/checkpoint.pth")
    assert not list((cwd / "out").glob("*.tmp"))
    os.rename(cwd / "out", cwd / "nothing")
    # Room for the checkpoint and not for more samples: the log fails, some epochs on.
    stopper = cwd / "large.py"
    stopper.write_text(
        "import runpy, sys\n"
        "from datafree.runs import sample_log\n"
        "append = sample_log.SampleLog.append\n"
        "def full(self, samples):\n"
        "    if self.path.exists() and self.path.stat().st_size > 3 * " + str(samples) + ":\n"
        "        with open(self.path, 'ab') as file:\n"
        "            file.write(b'x' * 100)\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return append(self, samples)\n"
        "sample_log.SampleLog.append = full\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [ROOT / "bsr_main.py", *COMMON, "--epochs", 6]
    full = run_script(str(stopper), *words, cwd=cwd, PYTHONPATH=str(ROOT))
    assert_refused(full, "No space left on device")
    resumed = bsr(cwd, "--epochs", 6, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(cwd / "out") == whole
    assert students_equal(cwd / "out", cwd / "whole")


def test_two_commands_do_not_write_to_one_folder(cwd):
    first = started(cwd, "--epochs", 500)
    try:
        while not (cwd / "out/checkpoint.pth").exists():
            time.sleep(0.05)
        for more in (["--resume"], ["--overwrite"]):
            assert_refused(bsr(cwd, "--epochs", 500, *more), "another command writes to out")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_a_loss_that_is_not_finite_stops_with_its_term_and_saves_what_was_before(cwd):
    poison = cwd / "poison.py"
    poison.write_text(
        "import runpy, sys\n"
        "from datafree.synthesis.fast_meta import FastMetaSynthesizer\n"
        "original = FastMetaSynthesizer._inversion_loss\n"
        "def poisoned(self, *args):\n"
        "    total, terms = original(self, *args)\n"
        "    factor = float('nan') if self.calls == 4 else 1.0\n"
        "    return total * factor, {**terms, 'bn': terms['bn'] * factor}\n"
        "FastMetaSynthesizer._inversion_loss = poisoned\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [ROOT / "bsr_main.py", *COMMON, "--epochs", 8, "--save_every", 100]
    done = run_script(str(poison), *words, cwd=cwd, PYTHONPATH=str(ROOT))
    assert_refused(done, "in the synthesis of epoch 4 the loss term bn is nan: try a lower --lr_g")
    assert checkpoint.read(cwd / "out/checkpoint.pth")["progress"]["epoch"] == 3
    resumed = bsr(cwd, "--epochs", 8, "--resume")
    assert resumed.returncode == 0, resumed.stderr


def test_the_number_of_workers_changes_nothing(cwd):
    write_folder(cwd / "images", classes=tuple("0123456789"))
    more = ["--dataset", "folder", "--data_root", "images", "--mean", "half", "--epochs", 2]
    for workers in (0, 3):
        done = bsr(cwd, *more, "-j", workers, "--save_dir", f"workers{workers}")
        assert done.returncode == 0, done.stderr
    assert metrics(cwd / "workers0") == metrics(cwd / "workers3")
    assert students_equal(cwd / "workers0", cwd / "workers3")


def test_the_oldest_samples_go_first_where_their_number_is_bounded():
    made = distiller(flags("--method", "fast_meta", *SHORT, "--max_samples", 20))
    for epoch in range(5):
        row = made.run_epoch(epoch)
    assert (row["repository"], row["removed"]) == (20, 8)
    assert made.repository.table().serials[made.repository.table().slots].tolist() == list(range(20, 40))


def test_memory_and_file_handles_stay_as_they_are_over_2000_epochs(tmp_path):
    made = distiller(flags(*SHORT, "--max_samples", 200))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd"))

    for epoch in range(2000):
        made.run_epoch(epoch)
        if epoch % 50 == 0:
            checkpoint.save(made.state_dict(), tmp_path / "checkpoint.pth", keep_previous=True)
        if epoch == 600:
            before, handles = resident()
    torch.set_num_threads(threads)
    after, handles_after = resident()
    assert len(made.repository) <= 200
    assert after - before < 10
    assert handles_after <= handles


# Hostile files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run of three epochs, whose files are then spoilt."""
    cwd = tmp_path_factory.mktemp("good")
    write_teacher(cwd / "teacher.pth")
    done = bsr(cwd, "--epochs", 3)
    assert done.returncode == 0, done.stderr
    return cwd


class Grow:
    """Asks for memory when it is unpickled."""

    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        return (bytearray, (self.size,))


class Run:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def spoilt_teachers(folder):
    """Hundreds of files that claim to be a wrn16_1's checkpoint, with what each is."""
    rng = random.Random(0)
    original = folder / "original.pth"
    state = models.create("wrn16_1", 10).state_dict()
    checkpoint.save({"state_dict": state}, original)
    sealed = original.read_bytes()
    bare = sealed[: -checkpoint.SEAL_LENGTH]

    def write(name, content):
        path = folder / f"{name}.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return name, path

    for k in range(60):
        flipped = bytearray(sealed)
        for _ in range(rng.choice([1, 1, 3, 50])):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield write(f"sealed, bits flipped {k}", bytes(flipped))
    for k in range(40):
        flipped = bytearray(bare)
        for _ in range(rng.choice([1, 5, 200])):
            # Where the structure is: the pickle near the start, the directory at the end.
            place = rng.choice([rng.randrange(4000), len(bare) - 1 - rng.randrange(6000)])
            flipped[place] ^= 1 << rng.randrange(8)
        yield write(f"unsealed, structure flipped {k}", bytes(flipped))
    for k in range(30):
        yield write(f"truncated {k}", sealed[: rng.randrange(len(sealed))])
    for k in range(20):
        yield write(f"noise {k}", rng.randbytes(rng.randrange(1, 5000)))
    keys = list(state)
    for k in range(20):
        one, other = rng.sample(keys, 2)
        yield write(f"keys swapped {k}", {**state, one: state[other], other: state[one]})
    for k in range(10):
        huge = torch.zeros(1).expand(10 ** rng.randint(8, 15))
        yield write(f"huge shape {k}", {**state, rng.choice(keys): huge})
    odd = [
        None,
        3,
        "x",
        [1],
        b"x",
        {},
        1.5,
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(2).to_sparse(),
        torch.zeros(3, dtype=torch.bool),
        float("nan"),
    ]
    for k, value in enumerate(odd):
        yield write(f"wrong type {k}", {**state, rng.choice(keys): value})
        yield write(f"wrong kind {k}", value)
    touch = "open('ran_code', 'w')"
    calls = [
        Run(Path.touch, Path("ran_code")),
        Run(os.system, "touch ran_code"),
        Run(eval, touch),
        Run(exec, touch),
        Run(OrderedDict, [("a", Malicious())]),
        Malicious(),
    ]
    for k, call in enumerate(calls):
        yield write(f"code {k}", {"state_dict": call})
        yield write(f"code in a plain pickle {k}", pickle.dumps({"state_dict": call}))
        yield write(f"code in an old pickle {k}", pickle.dumps(call, protocol=0))
    for k in range(4):
        yield write(f"memory {k}", {"state_dict": Grow(10 ** (10 + k))})
        yield write(f"memory, plain pickle {k}", pickle.dumps([Grow(10 ** (10 + k))], protocol=2))
    bomb = folder / "bomb.pth"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("original/data/999", b"\0" * (64 << 20))
    yield "bomb", bomb
    nested: list = []
    for _ in range(200_000):
        nested = [nested]
    yield write("too deep", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
    yield write("endless", b"\x80\x02" + b"(" * 10**6)
    yield write("a length that is none", b"\x80\x02X" + struct.pack("<I", 2**31) + b"x.")


def test_spoilt_checkpoints_are_refused_in_a_line_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = models.create("wrn16_1", 10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count, loaded, messages = 0, [], []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, path in spoilt_teachers(tmp_path):
        count += 1
        try:
            state = checkpoint.state_dict_of(checkpoint.read(path), path)
            checkpoint.load_network(network, state, path, "wrn16_1 with 10 classes")
            loaded.append(name)
            network.load_state_dict(before)
        except UserError as error:
            messages.append(str(error))
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key]), f"half loaded: {name}"
        path.unlink()
    assert count >= 200
    assert not any("\n" in message for message in messages)
    # Without a checksum a flipped bit may fall where it is only another number, or on nothing.
    assert all(name.startswith(("unsealed", "keys swapped")) for name in loaded), loaded
    assert not (tmp_path / "ran_code").exists()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1e3 < 600


def spoil(content, rng):
    """Replace one value somewhere in a checkpoint's content by something else."""
    path, here = [], content
    while isinstance(here, (dict, list)) and len(here) and (not path or rng.random() < 0.85):
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        path.append((here, key))
        here = here[key]
    container, key = path[-1]
    others = [None, -1, 10**9, "x", [], {}, torch.zeros(2), torch.tensor(10**9), float("nan")]
    container[key] = rng.choice(others)
    return ".".join(str(step) for _, step in path)


def test_spoilt_run_checkpoints_are_refused_and_lose_no_samples(good):
    """Many kinds of damage to the state that a run continues from, all in one process for speed."""
    script = good / "resume_all.py"
    script.write_text(
        "import pathlib, random, shutil, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import torch\n"
        "from datafree.torch_utils import checkpoint\n"
        "from datafree.errors import UserError\n"
        "from datafree.runs.distillation import Distillation\n"
        "from datafree.runs.session import Session\n"
        "from making import flags\n"
        "from test_faults import COMMON, spoil\n"
        "samples = pathlib.Path('out/samples.bin').read_bytes()\n"
        "outcomes = []\n"
        "for k in range(60):\n"
        "    content = checkpoint.read(pathlib.Path('out/checkpoint.pth'))\n"
        "    where = spoil(content['distiller'] if k % 3 else content, random.Random(k))\n"
        "    shutil.rmtree('new', ignore_errors=True)\n"
        "    shutil.copytree('out', 'new', ignore=shutil.ignore_patterns('.lock', '*previous*'))\n"
        "    checkpoint.save(content, pathlib.Path('new/checkpoint.pth'))\n"
        "    run = Distillation(Session(flags(*COMMON, '--epochs', 3, '--save_dir', 'new', '--resume')))\n"
        "    try:\n"
        "        made = run.build_distiller()\n"
        "        progress = run.start_or_resume(made)\n"
        "        outcomes.append('loaded')\n"
        "    except UserError as error:\n"
        "        assert '\\n' not in str(error)\n"
        "        outcomes.append('refused')\n"
        "    kept = pathlib.Path('new/samples.bin').read_bytes()\n"
        "    assert kept == samples or outcomes[-1] == 'loaded', where\n"
        "    if outcomes[-1] == 'loaded' and k % 3:\n"  # what was taken can be gone on with
        "        try:\n"
        "            made.run_epoch(2)\n"
        "        except UserError:\n"
        "            pass\n"
        "print(outcomes.count('refused'), outcomes.count('loaded'))\n"
    )
    done = run_script(str(script), "-", ROOT / "tests", cwd=good, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    refused, loaded = map(int, done.stdout.split()[-2:])
    assert refused + loaded == 60
    assert refused >= 30


def test_an_unsealed_checkpoint_of_an_earlier_version_still_loads(good):
    path = good / "out/checkpoint.pth"
    content = checkpoint.read(path)
    torch.save(content, good / "unsealed.pth")
    assert checkpoint.read(good / "unsealed.pth")["progress"] == content["progress"]


# Images


def write_odd_images(folder):
    """One image of each odd kind, and what its first pixel is."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    palette = Image.fromarray(ramp, "P")
    palette.putpalette([value for k in range(256) for value in (k, 0, 255 - k)])
    images = {
        "grey.png": (Image.fromarray(ramp), (192, 192, 192)),
        "deep.png": (Image.fromarray(ramp[::-1].astype(np.uint16) * 257), None),
        "cmyk.jpg": (Image.fromarray(np.dstack([ramp] * 4), "CMYK"), None),
        "palette.png": (palette, None),
        "alpha.png": (Image.fromarray(np.dstack([ramp] * 4), "RGBA"), None),
        "pixel.png": (Image.fromarray(np.full((1, 1, 3), 77, np.uint8)), (77, 77, 77)),
        "bilevel.png": (Image.fromarray(ramp > 90), None),
    }
    folder.mkdir(parents=True)
    for name, (image, _) in images.items():
        image.save(folder / name)


def test_images_of_odd_kinds_become_rgb_with_eight_bits(tmp_path):
    write_odd_images(tmp_path / "odd")
    images = load_folder(tmp_path / "odd", 8)
    assert len(images) == 7
    names = sorted(path.name for path in (tmp_path / "odd").iterdir())
    pixels = dict(zip(names, images.read(torch.arange(7)), strict=True))
    ramp = torch.arange(64).view(8, 8) * 3
    assert torch.equal(pixels["grey.png"], ramp.to(torch.uint8).expand(3, 8, 8))
    assert torch.equal(pixels["deep.png"], ramp.flip(0).to(torch.uint8).expand(3, 8, 8))  # not cut off at 255
    assert torch.equal(pixels["palette.png"][0], ramp.to(torch.uint8))
    assert torch.equal(pixels["palette.png"][2], 255 - ramp.to(torch.uint8))
    assert pixels["pixel.png"].unique().tolist() == [77]
    assert set(pixels["bilevel.png"].unique().tolist()) == {0, 255}
    assert torch.equal(pixels["alpha.png"], ramp.to(torch.uint8).expand(3, 8, 8))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"x" * 50, "truncated", "bomb"])
def test_broken_images_are_named_and_nothing_is_left_out_silently(content, cwd):
    write_folder(cwd / "images", classes=("a", "b"))
    path = cwd / "images/test/b/9.png"
    if content == "truncated":
        content = (cwd / "images/test/a/0.png").read_bytes()[:-500]
    elif content == "bomb":
        Image.fromarray(np.zeros((20_000, 20_000), bool)).save(path)
        content = path.read_bytes()
    path.write_bytes(content)
    write_teacher(cwd / "two.pth", num_classes=2)
    more = ["--dataset", "folder", "--data_root", "images", "--teacher_ckpt", "two.pth", "--img_size", 32]
    done = run_here("bsr_main.py", *COMMON, *more, cwd=cwd)
    assert_refused(done, "cannot read the image images/test/b/9.png")
    assert not (cwd / "out").exists()


# Configurations
