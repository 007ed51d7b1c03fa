"""From flags to the things they name: device, data facts, networks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree import checkpoint, data, networks
from datafree.augment import Augment, Normalize
from datafree.datasets import NORMALIZATIONS, SPECS
from datafree.errors import UserError, did_you_mean
from datafree.flags import is_foreign

MAX_SIZE = 2048  # pixels a side, of a recorded image size
PRETRAINED = Path("checkpoints/pretrained")


def choose_device(device: str | None, gpu: int | None) -> torch.device:
    """`--device` if given, else GPU number `--gpu` if given, else a GPU if there is one, else the CPU; under
    `torchrun` each process its own GPU.

    Raises:
        UserError: there is no such device, or several processes would share it.
    """
    name = device or (f"cuda:{gpu}" if gpu is not None else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name}: use cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return chosen
    if chosen.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise UserError(f"{name} would be shared by all processes: leave out --gpu, or give --device cuda")
    # The number as written: torch.device keeps it in eight bits.
    index = int(os.environ.get("LOCAL_RANK", 0)) if chosen.index is None else int(name.partition(":")[2])
    if not 0 <= index < torch.cuda.device_count():
        raise UserError(
            f"no device cuda:{index}: {torch.cuda.device_count()} GPUs are visible; try --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def require_one_process() -> None:
    """Raises:
    UserError: `torchrun` has started several.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("this script runs in one process: start it without torchrun")


@dataclass(frozen=True)
class DataFacts:
    """What must be known of the data to distil: nothing of it is an image."""

    dataset: str
    classes: tuple[str, ...]
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def for_channels(self, channels: int) -> DataFacts:
        """The same for images of so many channels: a single number is meant for each, and one grey channel
        has the mean of three."""

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        return replace(self, mean=fit(self.mean), std=fit(self.std))

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std)

    @property
    def augment(self) -> Augment:
        return Augment(self.normalize, self.flip)

    def record(self) -> dict[str, Any]:
        """The facts as plain data, for checkpoints and `config.json`."""
        return {
            "dataset": self.dataset,
            "classes": list(self.classes),
            "img_size": self.img_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "flip": self.flip,
        }

    def describe(
        self, arch: str, network: nn.Module, arguments: str | None = None, source: str | None = None
    ) -> dict[str, Any]:
        """A checkpoint that says how it is rebuilt and used; `source` is the text of its file, if any."""
        state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
        made = {"arch": arch, "arch_args": arguments, "arch_source": source}
        return {"state_dict": state, **made, **self.record()}


def data_facts(
    dataset: str,
    data_root: str,
    split: str,
    mean: str | None,
    std: str | None,
    img_size: int | None,
    flip: bool | None,
    recorded: Mapping[str, Any] | None = None,
) -> DataFacts:
    """Classes, image size and normalisation: from the flags, else from what the teacher's checkpoint
    records (as those of this project do), else the dataset's own.

    Raises:
        UserError: data that should tell are absent, or a value makes no sense.
    """
    spec = SPECS[dataset]
    recorded = recorded or {}
    if dataset in ("imagenette2", "imagenet100", "folder"):
        folder = data.find_split(dataset, split, Path(data_root))
        classes = tuple(data.image_classes(folder))
        img_size = img_size or recorded.get("img_size") or spec.img_size or data.probe_img_size(folder)
    else:
        classes = tuple(str(label) for label in range(spec.num_classes or 0))
        if img_size not in (None, spec.img_size):
            raise UserError(f"{dataset} has images of {spec.img_size} pixels: leave out --img_size")
        img_size = spec.img_size
    if img_size % 4 or img_size < 8:
        raise UserError(f"images of {img_size} pixels: --img_size must be a multiple of 4, 8 or more")
    own_mean, own_std = NORMALIZATIONS[spec.normalization]
    if mean in NORMALIZATIONS and std is None:
        std = mean
    chosen_mean = _channels("--mean", mean, 0) or tuple(recorded.get("mean") or own_mean)
    chosen_std = _channels("--std", std, 1) or tuple(recorded.get("std") or own_std)
    if min(chosen_std) <= 0:
        raise UserError(f"--std {std} has a value that is not above 0")
    if flip is None:
        flip = recorded.get("flip", spec.flip)
    return DataFacts(dataset, classes, img_size, chosen_mean, chosen_std, flip)


def facts_without_data(
    mean: str | None,
    std: str | None,
    img_size: int | None,
    flip: bool | None,
    teacher: nn.Module,
    device: torch.device,
    channels: int | None,
    recorded: Mapping[str, Any],
    feature_layer: str | None = None,
) -> tuple[DataFacts, list[str]]:
    """What `--dataset none` knows: from the flags, else what the teacher's checkpoint records, else what the
    teacher itself says, or takes when it is tried; the class count is that of its logits. With warnings of
    what was assumed.

    Raises:
        UserError: the image size is nowhere to be found, or the teacher does not take such images.
    """
    own = {**networks.own_settings(teacher), **recorded}
    warnings = []
    img_size = img_size or own.get("img_size")
    channels, found = networks.probe_input(teacher, channels, img_size, device)
    if img_size is None:
        if found is None:
            raise UserError("the teacher does not say how large its images are: give --img_size")
        img_size = found
        warnings.append(f"no --img_size: {found} is the only size of those tried that the teacher takes")
    if img_size % 4 or img_size < 8:
        raise UserError(f"images of {img_size} pixels: --img_size must be a multiple of 4, 8 or more")
    if mean in NORMALIZATIONS and std is None:
        std = mean
    chosen_mean = _channels("--mean", mean, 0) or own.get("mean")
    chosen_std = _channels("--std", std, 1) or own.get("std")
    if chosen_mean is None or chosen_std is None:
        warnings.append("no --mean and --std: the teacher's input is taken to be normalised to -1 .. 1")
        chosen_mean, chosen_std = (0.5,) * channels, (0.5,) * channels
    if min(chosen_std) <= 0:
        raise UserError(f"--std {std} has a value that is not above 0")
    count = networks.examine(teacher, "--teacher", channels, img_size, device, feature_layer).num_classes
    facts = DataFacts(
        "none",
        tuple(str(label) for label in range(count)),
        img_size,
        tuple(chosen_mean),
        tuple(chosen_std),
        own.get("flip", True) if flip is None else flip,
    )
    return facts.for_channels(channels), warnings


def _channels(flag: str, text: str | None, index: int) -> tuple[float, ...] | None:
    """One number a channel from `"0.5,0.5,0.5"`, or those of a dataset by its name."""
    if text is None:
        return None
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text][index]
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = did_you_mean(text, NORMALIZATIONS) or f" (names: {' '.join(NORMALIZATIONS)})"
        raise UserError(f"{flag} {text} is neither three numbers nor a known name{hint}") from None
    if len(values) not in (1, 3) or not all(abs(value) < 1e6 for value in values):
        raise UserError(f"{flag} needs three finite numbers separated by commas (one for grey), not {text}")
    return values


def read_teacher(dataset: str, arch: str, path: str | None) -> tuple[Path | None, Any]:
    """Where the teacher's checkpoint lies, and its content: at `path`, by default where
    `train_scratch.py` puts it. A network of a file, or of timm, may have its weights without one.

    Raises:
        UserError: it is missing or damaged.
    """
    if path is None and is_foreign(arch):
        return None, None
    file = Path(path) if path else PRETRAINED / f"{dataset}_{arch}.pth"
    if path is None and not file.is_file():
        raise UserError(
            f"no teacher at {file}: name one with --teacher_ckpt, or train it with "
            f"`python train_scratch.py --model {arch} --dataset {dataset}`"
        )
    return file, checkpoint.read(file)


def recorded_facts(content: Any) -> dict[str, Any]:
    """Image size, normalisation and flips recorded in a checkpoint by `DataFacts.record`, if any;
    whatever is not of the right kind is left out."""
    if not isinstance(content, Mapping):
        return {}
    if isinstance(content.get("facts"), Mapping):
        content = content["facts"]
    facts: dict[str, Any] = {}
    if isinstance(content.get("img_size"), int) and 8 <= content["img_size"] <= MAX_SIZE:
        facts["img_size"] = content["img_size"]
    if isinstance(content.get("flip"), bool):
        facts["flip"] = content["flip"]
    for name in ("mean", "std"):
        values = content.get(name)
        known = isinstance(values, list) and len(values) in (1, 3)
        low = 0.0 if name == "std" else -1e6  # also what is not a number fails
        if known and all(isinstance(v, float) and low < v < 1e6 for v in values):
            facts[name] = tuple(values)
    return facts


def load_teacher(
    arch: str,
    num_classes: int | None,
    file: Path | None,
    content: Any,
    device: torch.device,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The teacher, frozen and in eval mode, on the device.

    Args:
        arch: see `networks.build`.
        num_classes: None where the checkpoint, or the network itself, is to tell.
        file, content: its checkpoint; None for a network that has its weights already.
        channels: of its images; None where the checkpoint, or the network itself, is to tell.
        arguments: for networks that are not this project's.

    Raises:
        UserError: the network cannot be made, or the checkpoint is of another one.
    """
    state = None if file is None else checkpoint.state_dict_of(content, file)
    if state:
        num_classes = num_classes or _classes_in(content, state)
    with torch.random.fork_rng(devices=[]):  # its random start must not move others
        torch.manual_seed(0)  # and be the same in every process, where no checkpoint replaces it
        teacher = networks.build(arch, "--teacher", num_classes, channels, arguments, fresh=bool(state))
        name, convolution = networks.first_convolution(teacher)
        saved = state and state.get(f"{name}.weight")
        known = channels is None and convolution is not None and saved is not None and saved.dim() == 4
        if known and saved.shape[1] != convolution.in_channels:  # the checkpoint's is of other images
            teacher = networks.build(arch, "--teacher", num_classes, saved.shape[1], arguments)
    if state:
        of = "" if num_classes is None else f" with {num_classes} classes"
        checkpoint.load_network(teacher, state, file, arch + of)
    return teacher.to(device).eval().requires_grad_(False)


def _classes_in(content: Any, state: Mapping[str, torch.Tensor]) -> int | None:
    """How many classes a checkpoint is of: what it records, else the rows of its last matrix."""
    if isinstance(content, Mapping) and isinstance(content.get("classes"), list):
        return len(content["classes"])
    matrices = [value for value in state.values() if value.dim() == 2]
    return len(matrices[-1]) if matrices else None


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights, to tell whether two are the same."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
