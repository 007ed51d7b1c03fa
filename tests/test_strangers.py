"""Files, folders and surroundings that are not ours: nothing is fetched, filled, replaced or believed."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, run_script
from safetensors import safe_open
from test_scripts import TINY, assert_refused, metrics, write_teacher
from torch import nn
from torch.torch_version import TorchVersion

import datafree
from datafree import models
from datafree.errors import Damaged, UserError
from datafree.results.read import read_run
from datafree.results.stored import read_samples
from datafree.runs.folder import RunFolder
from datafree.runs.lock import RunLock, is_of_run
from datafree.runs.sample_log import SampleLog
from datafree.torch_utils import checkpoint

VIT = "timm:vit_tiny_patch16_224"
DIGITS = "--dataset digits --teacher wrn16_1 --teacher_ckpt teacher.pth --student wrn16_1".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which a run `out` was made."""
    cwd = tmp_path_factory.mktemp("strangers")
    write_teacher(cwd / "teacher.pth")
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def cwd(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


# A student's checkpoint


def described(**changed):
    return {
        "arch": "torchvision:mobilenet_v2",
        "arch_args": None,
        "arch_source": None,
        "classes": list("ab"),
        "img_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "flip": True,
        "state_dict": {"a": torch.zeros(2)},
        **changed,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (described(arch_args="width_mult=20"), "larger network than its weights"),
        (described(arch=VIT, arch_args="embed_dim=6000"), "larger network than its"),
        (described(arch=VIT, arch_args="depth=100000"), "larger network than its"),
        (described(arch=VIT, arch_args="depth=3000,embed_dim=3,num_heads=1"), "larger network than its"),
        (described(arch="resnet18", classes=["a"] * 1_000_000), "larger network than its weights"),
        (described(arch_args="width_mult=" + "(" * 5000), "raised TypeError"),
        (described(arch_args="a=" * 100_000), "does not say how to rebuild"),
        (described(arch_args=7), "does not say how to rebuild"),
        (described(arch_args="width_mult"), "is not name=value"),
        (described(arch=["resnet18"]), "does not say how to rebuild"),
        (described(classes=3), "does not say how to rebuild"),
        (described(mean=None), "does not say how to rebuild"),
        (described(state_dict=None), "holds no state dict"),
        (torch.zeros(2), "does not say how to rebuild"),
        ([1, 2], "does not say how to rebuild"),
        (None, "does not say how to rebuild"),
    ],
)
def test_a_description_that_cannot_be_true_takes_no_memory(content, message, tmp_path):
    torch.save(content, tmp_path / "s.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as raised:
        datafree.load_student(tmp_path / "s.pth")
    assert "\n" not in str(raised.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 < 300


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def nested(levels):
    """A list whose text is eight times as long with every level, in a few bytes."""
    value = ["x"]
    for _ in range(levels):
        value = [value] * 8
    return value


MANY = list(range(20_000))
COUNTED, PAIRS = dict.fromkeys(MANY, 1), [(number, 0) for number in MANY]
# Nested tuples, each twice in the next: to hash the last one would take longer than anybody lives.
KEY = b"K\x01" + b"2\x86" * 60
PICKLES = {
    "dict": b"\x80\x02}" + KEY + b"K\x02s.",
    "dicts": b"\x80\x02}(" + KEY + b"K\x02u.",
    "old dict": b"\x80\x02(" + KEY + b"K\x02d.",
    "set": b"\x80\x04\x8f(" + KEY + b"\x90.",
    "frozen set": b"\x80\x04(" + KEY + b"\x91.",
    "storage": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    + KEY
    + b"X\x03\x00\x00\x00cpuK\x01tQ.",
}
BOMBS = {
    "text": Call(TorchVersion, nested(12)),
    "size": [Call(torch.Size, nested(12))] * 3,
    "device": Call(torch.device, nested(12)),
    "sizes": [Call(torch.Size, MANY) for _ in range(2_000)],
    "sets": [Call(set, MANY) for _ in range(2_000)],
    "counters": [Call(Counter, COUNTED) for _ in range(2_000)],
    "ordered dicts": [Call(OrderedDict, PAIRS) for _ in range(2_000)],
    "kind": Call(np.dtype, nested(12)),
}


@pytest.mark.parametrize("name", [*BOMBS, *PICKLES])
def test_a_few_bytes_are_never_made_into_much(name, tmp_path):
    path = tmp_path / "s.pth"
    if name in BOMBS:
        torch.save(BOMBS[name], path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("s/data.pkl", PICKLES[name])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError):
        checkpoint.read(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 < 300
    assert time.monotonic() - start < 20


def test_what_torch_saves_of_tensors_is_read_as_torch_reads_it(tmp_path):
    weight = nn.Parameter(torch.randn(2, 3))
    weight.no_weight_decay = True
    content = {
        "weight": weight,
        "negative": torch._neg_view(torch.ones(2)),
        "slice": torch.arange(12).view(3, 4)[1:, ::2],
        "dtype": [torch.float8_e4m3fn, torch.complex64, torch.float32],
        "sizes": torch.Size([1, 2]),
        "set": {1, 2},
        "ordered": OrderedDict(a=OrderedDict(b=1)),
        "counter": Counter({30: 1}),
        "version": torch.__version__,
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
        read = checkpoint.read(tmp_path / "c.pth")
        for name in ("weight", "negative", "slice"):
            assert torch.equal(read[name], content[name]), name
        for name in content.keys() - {"weight", "negative", "slice"}:
            assert read[name] == content[name], name
    for odd in (torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to(torch.float8_e4m3fn)):
        torch.save({"odd": odd}, tmp_path / "c.pth")
        with pytest.raises(UserError, match="a tensor of an odd kind"):
            checkpoint.read(tmp_path / "c.pth")


def test_students_are_loaded_in_threads_and_the_process_stays_as_it_was(finished):
    limits, loaded = resource.getrlimit(resource.RLIMIT_AS), []
    threads = [
        threading.Thread(target=lambda: loaded.append(datafree.load_student(finished / "out/student.pth")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(resource.getrlimit(resource.RLIMIT_AS))
    assert len(loaded) == 6
    assert seen <= {limits}
    images = torch.rand(2, 3, 32, 32)
    assert len({network(images).sum().item() for network in loaded}) == 1


def test_both_formats_of_pytorch_are_read_as_pytorch_reads_them(tmp_path):
    network = models.create("wrn16_1", 10)
    weight = network.state_dict()["fc.weight"]
    content = {
        "state_dict": network.state_dict(),
        "shared": [weight, weight.t(), weight[1:, ::2], weight.double().half(), weight > 0],
        "empty": torch.empty(0, 3),
        "plain": {"a": (1, 2.5, None, "é", b"x", True), 3: {4, 5}, "size": weight.shape},
        "parameter": nn.Parameter(torch.ones(2)),
        "long": list(range(2000)),
    }

    def same(one, other):
        if isinstance(one, torch.Tensor):
            return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        return one == other

    for new in (True, False):
        torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=new)
        assert same(torch.load(tmp_path / "t.pth", weights_only=False), checkpoint.read(tmp_path / "t.pth"))
        read = checkpoint.read(tmp_path / "t.pth")
        assert read["shared"][0].data_ptr() == read["shared"][1].data_ptr()


class Call:
    """Pickled, a call."""

    def __init__(self, function, *args):
        self.made_by = function, args

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize(
    "call",
    [
        Call(torch.FloatStorage, 10**10),
        Call(bytearray, 10**10),
        Call(torch.zeros, 10**10),
        Call(torch.empty, (10**5, 10**5)),
        Call(os.system, "touch ran"),
        Call(eval, "open('ran', 'w')"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_a_file_asks_to_be_called_is_not(call, old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": call}, "t.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"cannot load t\.pth"):
        checkpoint.read(tmp_path.relative_to(tmp_path) / "t.pth")
    assert not os.path.exists("ran")


def test_lengths_and_places_that_a_pickle_only_claims_take_no_memory(tmp_path):
    claims = {
        "bytearray8": b"\x80\x05\x96" + (2 * 10**9).to_bytes(8, "little") + b".",
        "binbytes8": b"\x80\x04\x8e" + (10**11).to_bytes(8, "little") + b".",
        "a place of four bytes": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "frame": b"\x80\x04\x95" + (10**11).to_bytes(8, "little") + b"N.",
    }
    torch.save({}, tmp_path / "t.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for claim in claims.values():
        with zipfile.ZipFile(tmp_path / "t.pth") as one, zipfile.ZipFile(tmp_path / "x.pth", "w") as other:
            for entry in one.namelist():
                other.writestr(entry, claim if entry.endswith("data.pkl") else one.read(entry))
        (tmp_path / "y.pth").write_bytes(claim)
        for name in ("x.pth", "y.pth"):
            with suppress(Damaged):
                assert checkpoint.read(tmp_path / name) in (1, None)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 < 100


def test_a_storage_shared_by_tensors_of_two_kinds_is_no_way_around_the_bounds(tmp_path):
    content = {"w": torch.zeros(4).as_strided((10**6, 10**6), (0, 0))}
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(UserError, match="larger than the file"):
        checkpoint.read(tmp_path / "t.pth")


@pytest.mark.parametrize(("field", "value"), [("label", 10), ("label", -1), ("features", np.nan)])
def test_samples_that_cannot_be_are_found_out(field, value, cwd):
    state = checkpoint.read(cwd / "out/checkpoint.pth")["distiller"]["repository"]
    log = SampleLog(cwd / "out/samples.bin", (3, 32, 32), state["feature_dim"])
    records = np.memmap(log.path, log.record, "r+")
    records[field][3] = value
    records.flush()
    with pytest.raises(UserError, match=r"samples\.bin is damaged"):
        read_samples(read_run(cwd / "out"))


def test_no_connection_is_opened_by_what_reads_a_run(cwd, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for arch in ("torchvision:fcn_resnet50", "torchvision:fasterrcnn_resnet50_fpn", "timm:resnet18"):
        torch.save(described(arch=arch, arch_args="pretrained=True,weights=DEFAULT"), cwd / "s.pth")
        with pytest.raises(UserError, match=r"larger network|not a checkpoint"):
            datafree.load_student(cwd / "s.pth")
    for script, *more in (
        ("scripts/export.py", "out", "--format", "safetensors"),
        ("show_result/report.py", "out"),
        ("scripts/table.py", "out"),
    ):
        done = run_here(script, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr


# Folders


@pytest.mark.parametrize("name", ["config.json", "training.json", "metrics.jsonl", "checkpoint.pth"])
@pytest.mark.parametrize("flag", ["--overwrite", "--resume", None])
def test_a_file_of_someone_else_makes_no_run_of_a_folder(name, flag, cwd):
    folder = cwd / "theirs"
    (folder / "images").mkdir(parents=True)
    (folder / "images/mine.txt").write_text("mine")
    (folder / "log.txt").write_text("mine")
    (folder / name).write_text('{"name": "an application", "dataset": "digits"}')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    more = [flag] if flag else []
    done = run_here("bsr_main.py", *DIGITS, *TINY, *more, "--save_dir", "theirs", cwd=cwd)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} in (
        before,
        {**before, folder / ".lock": b""},  # which is no mark
    )


def test_a_folder_is_known_by_its_mark_or_its_settings_and_overwritten_whole(cwd):
    (cwd / "out/export").mkdir()
    (cwd / "out/export/student.onnx").write_text("old")
    (cwd / "out/notes.txt").write_text("mine")
    (cwd / "out/.lock").unlink()  # as in a copy
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--overwrite", "--save_dir", "out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert not (cwd / "out/export").exists()
    assert (cwd / "out/notes.txt").read_text() == "mine"
    (cwd / "out/config.json").write_text("{")  # the mark is there again
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--overwrite", "--save_dir", "out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    # The mark is still there when what it marked has gone, and someone else has moved in.
    (cwd / "out/config.json").write_text('{"a": 1}')
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--overwrite", "--save_dir", "out", cwd=cwd)
    assert_refused(done, "config.json, which is not a run's")
    assert (cwd / "out/log.txt").exists()


def test_a_lock_of_any_bytes_is_no_mark(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe\xff")
    RunLock(tmp_path).mark()
    assert (tmp_path / ".lock").read_bytes() == b"\xff\xfe\xff"


def test_a_folder_is_marked_once(tmp_path):
    lock = RunLock(tmp_path / "out")
    assert not is_of_run(tmp_path / "out")
    for _ in range(2):
        lock.mark()
        assert is_of_run(tmp_path / "out")


def test_a_folder_that_goes_while_a_run_writes_to_it_is_what_is_told(tmp_path):
    run = RunFolder(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    writes = [
        lambda: run.append_metrics({}),
        lambda: run.write_json("config.json", {}),
        lambda: run.save_checkpoint({}),
        lambda: run.save_student({}),
        lambda: run.save_samples(1, None, ()),
    ]
    for write in writes:
        with pytest.raises(UserError, match="was removed or replaced while the run was going on"):
            write()


# What is told, and believed


def exported(file):
    with safe_open(file, "pt") as content:
        return {key: content.get_tensor(key) for key in list(content.keys())}, content.metadata()


def test_an_export_believes_the_student_and_not_the_settings_beside_it(cwd):
    done = run_here("scripts/export.py", "out", "--format", "safetensors", cwd=cwd)
    assert done.returncode == 0, done.stderr
    before = exported(cwd / "out/export/student.safetensors")
    config = json.loads((cwd / "out/config.json").read_text())
    config |= {"mean": [0.1] * 3, "std": [9.0] * 3, "img_size": 64, "classes": ["x", "y"]}
    (cwd / "out/config.json").write_text(json.dumps(config))
    done = run_here("scripts/export.py", "out", "--format", "safetensors", cwd=cwd)
    assert done.returncode == 0, done.stderr
    after = exported(cwd / "out/export/student.safetensors")
    assert after[1] == before[1]
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())


def test_another_number_of_threads_is_warned_of_on_resuming(cwd):
    more = [*DIGITS, *TINY, "--epochs", 5, "--save_dir", "two"]
    state = checkpoint.read(cwd / "out/checkpoint.pth")
    assert state["rounding"]["threads"] == torch.get_num_threads()
    os.remove(cwd / "out/summary.json")
    state["rounding"]["threads"] += 3
    checkpoint.save(state, cwd / "out/checkpoint.pth")
    more[-1] = "out"
    more[more.index("--epochs", 12) + 1] = 4
    done = run_here("bsr_main.py", *more, "--resume", cwd=cwd)
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    assert f"was stopped with threads {threads + 3} and goes on with {threads}: its numbers" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1e9", "--warmup", "0"], "try a lower --lr\n"),
        (["--std", "1e-300"], "--std 1e-300 has a value that is not 1e-06 or more"),
        (["--save_dir", ""], "--save_dir: a folder without a name"),
    ],
)
def test_messages_blame_what_is_to_blame(flags, message, cwd):
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "new", *flags, cwd=cwd)
    assert_refused(done, message)


# Surroundings


def test_what_other_programs_leave_in_the_environment_starts_no_processes(cwd, monkeypatch):
    for name, value in {"RANK": "one", "WORLD_SIZE": "4", "LOCAL_RANK": "x", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "new", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert metrics(cwd / "new") == metrics(cwd / "out")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    done = run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "x", cwd=cwd)
    assert_refused(done, "RANK is 'one' in the environment")


def test_names_and_terminals_that_know_no_unicode_stop_nothing(cwd):
    odd = os.fsdecode(b"caf\xe9-\xff")
    more = [*DIGITS, *TINY, "--save_dir", odd]
    done = run_script("bsr_main.py", *more, cwd=cwd, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    done = run_script("scripts/table.py", odd, cwd=cwd, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    for script, *more in (("show_result/report.py",), ("scripts/export.py", "--format", "safetensors")):
        done = run_here(script, odd, *more, cwd=cwd)
        assert done.returncode == 0, done.stderr


def test_closed_streams_stop_nothing_and_no_file_takes_their_place(cwd):
    words = [sys.executable, str(ROOT / "bsr_main.py"), *DIGITS, *TINY, "--save_dir", "new"]
    line = " ".join(words) + " <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=300).returncode == 0
    assert metrics(cwd / "new") == metrics(cwd / "out")
    line = " ".join([sys.executable, str(ROOT / "scripts/table.py"), "nowhere", ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], cwd=cwd, timeout=60).returncode == 2


def test_an_export_makes_no_images_before_it_knows_that_the_samples_fit(cwd):
    content = torch.load(cwd / "out/student.pth")
    torch.save({**content, "img_size": 2048}, cwd / "out/student.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run_here("scripts/export.py", "out", "--format", "torch_export", cwd=cwd)
    assert_refused(done, "samples.bin holds 0 of the 64 samples")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 < 300


def test_a_log_that_a_copy_shares_is_not_added_to(cwd):
    subprocess.run(["cp", "-al", "out", "copy"], cwd=cwd, check=True)
    before = (cwd / "out/log.txt").read_text()
    run = RunFolder(cwd / "copy")
    run.log("more")
    assert (cwd / "out/log.txt").read_text() == before
    assert (cwd / "copy/log.txt").read_text() == before + "more\n"


def test_a_folder_made_anew_while_a_checkpoint_is_written_stays_empty(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "out")
    save = torch.save

    def while_it_is_written(*args):
        save(*args)
        os.rename(tmp_path / "out", tmp_path / "moved")
        (tmp_path / "out").mkdir()

    monkeypatch.setattr(torch, "save", while_it_is_written)
    with pytest.raises(UserError, match="was removed or replaced while the run was going on"):
        run.save_checkpoint({"a": torch.zeros(3)})
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "abc"}, "cannot join"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "cannot join the other processes"),
        ({"RANK": "3", "WORLD_SIZE": "1"}, "RANK 3 is beyond WORLD_SIZE 1"),
    ],
)
def test_processes_that_cannot_be_are_told_apart(environment, words, cwd, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **environment}.items():
        monkeypatch.setenv(name, value)
    assert_refused(run_here("bsr_main.py", *DIGITS, *TINY, "--save_dir", "new", cwd=cwd), words)


def test_matplotlib_is_asked_for_no_window_whatever_the_environment_says(cwd):
    done = run_script("show_result/report.py", "out", "--output", "r.html", cwd=cwd, MPLBACKEND="nonsense")
    assert done.returncode == 0, done.stderr
