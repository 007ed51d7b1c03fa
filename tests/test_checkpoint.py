"""Checkpoint files: written whole, read without running code, damage noticed."""

import argparse
import os
import pickle
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from datafree.errors import Damaged, UserError
from datafree.torch_utils import checkpoint

CONTENT = {
    "state_dict": {"a": torch.randn(20, 25), "b": torch.arange(7)},
    "best_acc1": np.float64(72.5),
    "opt": argparse.Namespace(lr=0.1),
    "milestones": Counter({30: 1}),
    "version": torch.__version__,
    "parameter": nn.Parameter(torch.ones(2)),
    "plain": {"a": (1, 2.5, None, "é", b"x", True), 3: {4, 5}, "size": torch.Size([1, 2])},
}


class Call:
    """Pickled, a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_published_files_are_read_in_both_formats_of_pytorch(legacy, tmp_path):
    torch.save(CONTENT, tmp_path / "t.pth", _use_new_zipfile_serialization=not legacy)
    read = checkpoint.read(tmp_path / "t.pth")
    assert str(read) == str(CONTENT)
    assert all(torch.equal(value, read["state_dict"][key]) for key, value in CONTENT["state_dict"].items())


def test_a_scalar_that_an_older_numpy_wrote_is_read(tmp_path):
    content = pickle.dumps({"w": [1.0], "best_acc1": np.float64(72.5)}, 2)
    torch.save({}, tmp_path / "t.pth")
    for core in (b"numpy._core", b"numpy.core"):
        with zipfile.ZipFile(tmp_path / "t.pth") as written, zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
            for entry in written.namelist():
                old = content.replace(b"numpy._core", core)
                file.writestr(entry, old if entry.endswith("data.pkl") else written.read(entry))
        assert checkpoint.read(tmp_path / "x.pth") == {"w": [1.0], "best_acc1": 72.5}


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path):
    path, spoilt = tmp_path / "t.pth", tmp_path / "x.pth"
    checkpoint.save(CONTENT, path)
    data, outcomes = path.read_bytes(), Counter()
    with zipfile.ZipFile(path) as archive:
        covered = bytearray(len(data))
        for entry in archive.infolist():
            start = data.index(archive.read(entry), entry.header_offset)
            covered[start : start + entry.file_size] = b"\1" * entry.file_size
    assert sum(covered) > 2500
    for place in range(0, len(data), 11):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        spoilt.write_bytes(flipped)
        try:
            assert str(checkpoint.read(spoilt)) == str(CONTENT)
            outcomes["unchanged"] += 1
            assert not covered[place], place
        except Damaged:
            outcomes["noticed"] += 1
    assert outcomes["noticed"] > outcomes["unchanged"] > 0


def test_files_that_are_no_checkpoints_are_damaged_in_a_line(tmp_path):
    path = tmp_path / "t.pth"
    checkpoint.save(CONTENT, path)
    whole = path.read_bytes()
    rng = np.random.RandomState(0)
    for data in (b"", b"x", whole[:2000], whole[:-30], rng.bytes(5000), b"\x80\x02" + b"(" * 1000, b"{}"):
        path.write_bytes(data)
        with pytest.raises(Damaged, match="damaged or not a PyTorch checkpoint") as raised:
            checkpoint.read(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("call", [Call(os.system, "touch ran"), Call(eval, "open('ran', 'w')")])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(call, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(call, protocol=2))
    else:
        torch.save({"state_dict": call}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"cannot load .*t\.pth") as raised:
        checkpoint.read(path)
    assert kind == "pickle" or "save a plain state dict" in str(raised.value)
    assert not os.path.exists("ran")


def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, f=real, name=name: (done.append(name), f(*given))[1])
    checkpoint.save({"a": 1}, tmp_path / "a.pth")
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    for value in (1, 2):
        checkpoint.save({"a": value}, path, keep_previous=True)
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save({"a": 3}, tmp_path / "absent/a.pth")
    before = sorted(tmp_path.iterdir())

    def no_space(_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="free space"):
        checkpoint.save({"a": 3}, path, keep_previous=True)
    assert sorted(tmp_path.iterdir()) == before
    assert checkpoint.read(path) == {"a": 2}
    assert checkpoint.read(checkpoint.previous(path)) == {"a": 1}


def test_a_state_dict_is_found_bare_or_under_a_known_name(tmp_path):
    state = {"a": torch.zeros(2)}
    wrapped = {"module.a": torch.zeros(2)}
    for content in (state, {"state_dict": state}, {"model": state}, {"net": wrapped, "epoch": 3}):
        assert list(checkpoint.state_dict_of(content, tmp_path)) == ["a"]
    for content in (None, [1], {}, {"state_dict": None}, {"a": 1}, {"a": torch.zeros(2), 3: torch.zeros(2)}):
        with pytest.raises(UserError, match="has no state dict"):
            checkpoint.state_dict_of(content, tmp_path)
