"""Reading real images: splits, formats, sizes, and files that cannot be read."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, golden, named, write_folder
from PIL import Image
from scipy.io import savemat

from datafree.data.augment import Normalize
from datafree.data.datasets import NORMALIZATIONS
from datafree.data.image_folders import load_labelled
from datafree.data.image_set import to_float
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.data.load import load_split
from datafree.errors import UserError
from datafree.evaluation import Evaluator
from datafree.networks.teacher import load_teacher, read_teacher
from datafree.settings import Data

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def images(split):
    return split.read(torch.arange(len(split)))


def test_digits_are_split_once_and_for_all_by_class():
    train, test = (load_split("digits", split, "nowhere") for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert images(test).shape == (360, 3, 32, 32)
    assert set(test.labels.bincount().tolist()) <= {35, 36, 37}
    mean, std = to_float(images(train)).mean(), to_float(images(train)).std()
    assert (mean.item(), std.item()) == pytest.approx(
        (NORMALIZATIONS["digits"][0][0], NORMALIZATIONS["digits"][1][0]), abs=1e-3
    )


def test_cifar100_is_read_from_its_own_files_below_torchdata(tmp_path):
    folder = tmp_path / "torchdata/cifar-100-python"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072) % 256
    content = {"data": pixels.astype(np.uint8), "fine_labels": [7, 99]}
    (folder / "test").write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))
    test = load_split("cifar100", "test", tmp_path)
    assert test.labels.tolist() == [7, 99]
    assert images(test).flatten(1).tolist() == pixels.tolist()
    assert test.classes[99] == "c99"


def test_svhn_is_read_from_its_own_file(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3, 2), dtype=np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[10], [3]])})
    test = load_split("svhn", "test", tmp_path)
    assert test.labels.tolist() == [0, 3]
    assert np.array_equal(images(test).numpy(), pixels.transpose(3, 2, 0, 1))


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_read_from_its_own_files_of_one_split(dataset, folder, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (2, 28, 28), dtype=np.uint8)
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 28, 28) + pixels.tobytes())
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes([9, 0]))
    test = load_split(dataset, "test", tmp_path)
    assert test.labels.tolist() == [9, 0]
    assert len(test.classes) == 10
    assert np.array_equal(images(test), pixels[:, None].repeat(3, 1))
    with pytest.raises(UserError, match=f"no {dataset} in .*{folder}/raw/"):
        load_split(dataset, "train", tmp_path)
    # At another size, as a teacher may want it.
    facts = image_spec(Data(dataset=dataset), "test", {"img_size": 32})
    assert images(load_split(dataset, "test", tmp_path, facts.img_size)).shape == (2, 3, 32, 32)


def test_tiny_imagenet_is_read_as_published_or_sorted_by_class(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    colors = {"n01": "red", "n02": "blue"}
    for name, color in colors.items():
        write_image(folder / f"train/{name}/images/{name}_0.JPEG", (64, 64), color)
        write_image(folder / f"sorted/val/{name}/images/val_{name}.JPEG", (64, 64), color)
        write_image(folder / f"val/images/val_{name}.JPEG", (64, 64), color)
    write_image(folder / "test/images/test_0.JPEG", (64, 64), "green")  # without a label: never read
    rows = [f"val_{name}.JPEG\t{name}\t0\t32\t44\t62" for name in ("n02", "n01")]
    (folder / "val/val_annotations.txt").write_text("\n".join(rows) + "\n")
    for split, root in (("train", tmp_path), ("test", tmp_path), ("test", folder / "sorted")):
        found = load_split("tiny_imagenet", split, root)
        assert (found.classes, found.labels.tolist()) == (["n01", "n02"], [0, 1])
        assert images(found).shape == (2, 3, 64, 64)
        assert images(found)[:, 0, 5, 5].tolist() == [254, 0]
    # Where a class has images of its own, a folder `images` in it is none of its business.
    write_image(folder / "train/n01/n01_1.JPEG", (64, 64), "red")
    assert load_split("tiny_imagenet", "train", tmp_path).labels.tolist() == [0, 1]
    facts = image_spec(Data(dataset="tiny_imagenet", data_root=str(tmp_path)), "test")
    assert (facts.num_classes, facts.img_size) == (2, 64)
    (folder / "val/val_annotations.txt").write_text("nothing\n")
    with pytest.raises(UserError, match="no class beside each file"):
        load_split("tiny_imagenet", "test", tmp_path)


def write_image(path, size, color, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def test_large_image_folders_are_cut_from_the_middle_and_read_as_asked_for(tmp_path):
    write_image(tmp_path / "imagenette2/val/a/1.png", (500, 300), "red")
    write_image(tmp_path / "imagenette2/val/b/1.png", (200, 900), "blue")
    test = load_split("imagenette2", "test", tmp_path)
    batches = list(test.batches(1, order=torch.tensor([1, 0])))
    assert [batch.shape for batch, _ in batches] == [(1, 3, 224, 224)] * 2
    assert [labels.tolist() for _, labels in batches] == [[1], [0]]
    assert batches[0][0][0, :, 100, 100].tolist() == [0, 0, 255]


def test_an_image_folders_size_is_that_of_its_images(tmp_path):
    write_image(tmp_path / "small/test/a/1.png", (30, 30), "red")
    write_image(tmp_path / "small/test/b/1.png", (30, 30), "red")
    write_image(tmp_path / "large/test/a/1.jpg", (400, 300), "red")
    write_image(tmp_path / "large/test/b/1.jpg", (400, 300), "red")
    (tmp_path / "small/test/.hidden").mkdir()
    for name, size in (("small", 28), ("large", 224)):
        facts = image_spec(Data(dataset="folder", data_root=str(tmp_path / name), mean="half"), "test")
        assert facts.img_size == size
        assert facts.classes == ("a", "b")


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_an_image_that_cannot_be_read_is_named(damage, tmp_path):
    for name in "ab":
        write_image(tmp_path / f"test/{name}/1.png", (32, 32), "red")
    broken = tmp_path / "test/b/1.png"
    broken.write_bytes(broken.read_bytes()[:60] if damage is None else damage)
    with pytest.raises(UserError, match=r"cannot read the image .*b/1\.png"):
        load_split("folder", "test", tmp_path)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ("imagenet", None, NORMALIZATIONS["imagenet"]),
        ("0.1,0.2,0.3", "0.4,0.5,0.6", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        (None, None, NORMALIZATIONS["digits"]),
    ],
)
def test_normalisation_by_name_by_numbers_or_by_default(mean, std, expected):
    facts = image_spec(Data(dataset="digits", mean=mean, std=std), "test")
    assert (facts.mean, facts.std) == expected


@pytest.mark.parametrize(
    ("mean", "std"), [("imagnet", None), ("1,2", None), ("a,b,c", None), (None, "0,1,1"), ("nan,0,0", None)]
)
def test_a_normalisation_that_makes_no_sense_is_refused(mean, std):
    with pytest.raises(UserError):
        image_spec(Data(dataset="digits", mean=mean, std=std), "test")


def test_normalisation_and_flips_recorded_with_a_teacher_are_used_unless_flags_say_otherwise():
    content = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "img_size": 32, "flip": True, "other": 1}
    recorded = recorded_spec(content)
    assert recorded_spec({"facts": content}) == recorded
    facts = image_spec(Data(dataset="digits"), "test", recorded)
    assert (facts.mean, facts.std, facts.flip) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), True)
    facts = image_spec(Data(dataset="digits", mean="half", flip=False), "test", recorded)
    assert (facts.mean, facts.flip) == ((0.5, 0.5, 0.5), False)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs public ResNets and the original CIFAR-10 beside us")
def test_public_resnets_classify_the_original_cifar10_as_published(tmp_path):
    unpack = [sys.executable, SHARED / "data/unpack.py", "cifar10", tmp_path, "--only", "test"]
    subprocess.run(unpack, check=True, capture_output=True)
    test = load_split("cifar10", "test", tmp_path)
    normalize = Normalize(*NORMALIZATIONS["imagenet"])
    for arch, golden_numbers in golden("he_resnet.json").items():
        expected = golden_numbers["original"]
        assert test.labels[:8].tolist() == expected["labels_first8"]
        file = SHARED / "teachers" / golden_numbers["file"]
        content = read_teacher("cifar10", named(arch), str(file))[1]
        teacher = load_teacher(named(arch), 10, file, content, CPU)
        with torch.no_grad():
            logits = teacher(normalize(to_float(images(test)[:8])))
        np.testing.assert_allclose(logits, expected["logits_first8"], atol=1e-3)
        if arch == "resnet20":  # the others take minutes
            assert Evaluator(test, normalize, CPU)(teacher).correct == expected["correct"]


def test_teachers_are_trained_on_crops_of_whole_images(tmp_path):
    """The image is red at its left edge, which the central square that is tested on does not show."""
    pixels = np.zeros((240, 720, 3), np.uint8)
    pixels[:, :120, 0] = 255
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / f"train/{name}/1.png")
    train = load_split("folder", "train", tmp_path, img_size=224)
    assert images(train).max() == 0
    order, rng = torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0)
    crops = torch.cat([batch for batch, _ in train.batches(50, order, rng)])
    assert crops.shape == (200, 3, 224, 224)
    red = (crops[:, 0] > 127).float().mean((1, 2))
    assert 0.1 < (red > 0).float().mean() < 0.9  # some crops show the edge
    # A window of share s of the area is as wide as it is high, give or take a third.
    assert torch.equal(images(train), images(load_split("folder", "train", tmp_path, img_size=224)))
    grey = next(iter(train.for_channels(1).batches(2, order[:2], rng)))[0]
    assert grey.shape == (2, 1, 224, 224)


def test_normalisation_by_channel():
    spec = ImageSpec("none", (), 32, (0.3,), (0.1, 0.2, 0.3), False)
    assert (spec.for_channels(3).mean, spec.for_channels(3).std) == ((0.3, 0.3, 0.3), (0.1, 0.2, 0.3))
    assert spec.for_channels(1).std == (pytest.approx(0.2),)


def test_folders_named_by_numbers_are_the_classes_of_these_numbers(tmp_path):
    write_folder(tmp_path, splits=("x",), classes=("10", "2"), count=1)
    found = load_labelled(tmp_path / "x", 32, num_classes=11)
    assert found.labels.tolist() == [10, 2]
    assert list(found.classes) == [str(label) for label in range(11)]
