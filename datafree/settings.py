"""Every setting once: its name, type, default and meaning. The flags of the commands, the keyword arguments
of `datafree.distill`, what a resumed run must repeat, the rows of tables and docs/flags.md follow from it.
Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from datafree.data.datasets import SPECS
from datafree.dlw import MODES
from datafree.errors import UserError, did_you_mean
from datafree.methods import METHODS, synthesis_settings, taken_by
from datafree.models import NAMES
from datafree.networks.names import NetworkName


def _number(kind: type, what: str, fits: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            number = operator.index(value) if kind is int else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, (str, bool)) or not abs(number) < 2**63 or not fits(number):
            raise ValueError(f"{value!r} is not {what}")
        return number

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _one_of(*known: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in known:
            names = list(map(str, known))
            raise ValueError(f"{value} is not one of {', '.join(names)}{did_you_mean(str(value), names)}")
        return known[known.index(value)]

    return check


def _folder(value: Any) -> str:
    if value == "":
        raise ValueError("the folder name is empty (use . for the current folder)")
    return _text(value)


def _memory(value: Any) -> int:
    if isinstance(value, str):
        size = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])B", value.upper())
        if not size:
            raise ValueError(f"{value!r} is not a size such as 4GB")
        value = int(float(size[1]) * 1000 ** " KMG".index(size[2]))
    return _whole(value)


def _milestones(value: Any) -> str:
    epochs = [part.strip() for part in _text(value).split(",")]
    numbers = [int(epoch) for epoch in epochs if epoch.isdecimal()]
    if len(numbers) < len(epochs) or sorted({0, *numbers}) != [0, *numbers]:
        raise ValueError(f"{value} is not a list of epochs such as 120,150,180")
    return ",".join(epochs)


def _networks(value: Any) -> NetworkName:
    return value if isinstance(value, NetworkName) else NetworkName.parse(value)


def _network(value: Any) -> NetworkName:
    if _networks(value).parts:
        raise ValueError(f"{value}: give one network here")
    return _networks(value)


# The types of settings: a Python type, and a check that returns a value as the setting stores it, or raises
# ValueError with one line that says what is wrong.
_whole = _number(int, "a whole number, 0 or more", lambda n: n >= 0)
Text = Annotated[str, _text]
Folder = Annotated[str, _folder]
Milestones = Annotated[str, _milestones]
Precision = Annotated[str, _one_of("off", "bf16", "fp16", "auto")]
MethodName = Annotated[str, _one_of(*METHODS)]
DLWMode = Annotated[str, _one_of(*MODES)]
Dataset = Annotated[str, _one_of(*SPECS)]
DatasetOrNone = Annotated[str, _one_of(*SPECS, "none")]
Network = Annotated[NetworkName, _network]
Networks = Annotated[NetworkName, _networks]  # one, or several teachers joined by " + "
OwnNetwork = Annotated[NetworkName, lambda name: _network(_one_of(*NAMES)(str(name)))]
Switch = Annotated[bool, _one_of(True, False)]
Whole = Annotated[int, _whole]
Count = Annotated[int, _number(int, "a whole number above 0", lambda n: n > 0)]
Bit = Annotated[int, _one_of(0, 1)]
Channels = Annotated[int, _one_of(1, 3)]
Memory = Annotated[int, _memory]  # in bytes, or a string such as 4GB
Interval = Annotated[int, lambda n: max(0, _number(int, "a whole number", math.isfinite)(n))]
Positive = Annotated[float, _number(float, "a number above 0", lambda x: x > 0)]
NonNegative = Annotated[float, _number(float, "a number, 0 or more", lambda x: x >= 0)]
LossWeight = Annotated[float, _number(float, "a weight, 0 or more", lambda x: x >= 0)]  # in the synthesis
Fraction = Annotated[float, _number(float, "in [0, 1)", lambda x: 0 <= x < 1)]


def read(word: str, kind: Any) -> Any:
    """A word of the command line as a value of one of the types above. Raises ValueError with one line."""
    plain, check = kind.__origin__, kind.__metadata__[0]
    value: Any = {"True": True, "False": False}.get(word, word) if plain is bool else word
    with suppress(ValueError):  # the check refuses such a word, or reads it (4GB)
        value = plain(word) if plain in (int, float) else value
    return check(value)


@dataclass(frozen=True)
class Setting:
    """A setting.

    Args:
        default: None for what is found later; `help` then says what.
        help: its meaning, for `--help` and docs/flags.md; methods and default are added to it.
        uses: letters. r: a run can only be resumed with the same value; t: runs with different values are
            different rows of a table; l: `datafree.distill` takes it.
        group: the heading above it in `--help`; by default that of the setting above it.
        also: another name of its flag.
        nargs: as in argparse: "+" takes several words, joined by " + "; "?" makes the value optional.
        kind: one of the types above.
    """

    default: Any
    help: str
    uses: str = "rtl"
    group: str = ""
    also: str = ""
    nargs: str | None = None
    name: str = ""
    kind: Any = None

    def check(self, value: Any) -> Any:
        """A value from Python as it is stored. Raises ValueError with one line."""
        return self.kind.__metadata__[0](value)


def setting(*args: Any, **more: Any) -> Any:
    """A field of the dataclasses below; see `Setting`."""
    return field(default=args[0], metadata={"setting": Setting(*args, **more)})


def settings_of(owner: type) -> list[Setting]:
    """The settings of a command, from its dataclass."""
    found: list[Setting] = []
    hints = get_type_hints(owner, include_extras=True)
    for one in dataclasses.fields(owner):
        own, kind, takers = one.metadata["setting"], hints[one.name], taken_by(one.name)
        kind = kind if hasattr(kind, "__metadata__") else get_args(kind)[0]  # of `X | None`
        some = f" ({', '.join(takers)})" if 0 < len(takers) < len(METHODS) else ""
        plain = one.default is None or one.default is False or one.default == ""
        help = own.help + some + ("" if plain else f" (default: {one.default})")
        found.append(replace(own, name=one.name, kind=kind, help=help, group=own.group or found[-1].group))
    return found


DATASETS, NETWORKS = ", ".join(SPECS), ", ".join(NAMES)
ANY_NETWORK = f"timm:NAME, torchvision:NAME, path/to/file.py:factory, or one of {NETWORKS}"
TEACHER_FILE = "its checkpoint (default: checkpoints/pretrained/{dataset}_{teacher}.pth)"
RESNET18, RESNET34 = NetworkName.parse("resnet18"), NetworkName.parse("resnet34")
RUN_NAME = "run/{method}-{dataset}-{teacher}-{student}-seed{seed}{-log_tag}"
LIKE_TEACHER = "the network to train, named like the teacher"
BN_HELP = "weight of the distance to the teacher's BatchNorm statistics"
IMAGENET = "start from torchvision's ImageNet weights (*_imagenet only)"
FRESH = ", ".join(name for name, method in METHODS.items() if not method.stores)


def _component(help: str, name: str) -> Any:
    users = ", ".join(method for method, one in METHODS.items() if one.defaults.get(name))
    return setting(None, f"{help}; off with --no-{name} (default: on for {users})", "rl")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data. Of mean, std, img_size and flip, the values found in the end identify a run (`ImageSpec`)."""

    dataset: Dataset = setting("cifar10", f"one of {DATASETS}", "r", group="data")
    data_root: Folder = setting("data", "folder with the data; torchdata/ in it is searched too", "")
    download: Switch = setting(False, "download the dataset if it is missing and torchvision can", "")
    mean: Text | None = setting(
        None, "of the input, 0.49,0.48,0.45 or a dataset's (default: the checkpoint's or the dataset's)", ""
    )
    std: Text | None = setting(None, "standard deviation of the input, like --mean", "")
    img_size: Count | None = setting(None, "height and width in pixels (default: the dataset's)", "t")
    flip: Switch | None = setting(
        None, "mirror images at random; off with --no-flip (default: off for digits, mnist and svhn)", "t"
    )


@dataclass(frozen=True, kw_only=True)
class Synthesis(Data):
    """A teacher, and how images are synthesised from it."""

    dataset: DatasetOrNone = setting(
        "cifar10", f"one of {DATASETS}, none", "r", group="data (test images only, never training images)"
    )
    eval_folder: Folder | None = setting(None, "for --dataset none: test images by class", "r")
    teacher: Networks = setting(
        RESNET34, f"{ANY_NETWORK}; several teach by their mean logits", "r", group="networks", nargs="+"
    )
    teacher_ckpt: Text | None = setting(None, f"{TEACHER_FILE}; of several teachers one each", "", nargs="+")
    teacher_args: Text | None = setting(
        None, "its arguments, as width=2,act=gelu; of several teachers, for all or for each", "rt", nargs="+"
    )
    feature_layer: Text | None = setting(
        None, "layer after the teacher's penultimate features (default: its last linear layer)"
    )
    channels: Channels | None = setting(None, "channels of the images (default: the teacher's)", "r")
    method: MethodName = setting(
        "bsr", f"one of {', '.join(METHODS)}, with its published settings (see the end)", "rl", group="method"
    )
    synthesis_batch_size: Count = setting(
        None, "images in a batch of the synthesis (default: --batch_size)", group="synthesis"
    )
    g_steps: Count = setting(10, "generator steps in one synthesis")
    lr_g: Positive = setting(2e-3, "learning rate of the generator")
    lr_z: Positive = setting(0.01, "learning rate of the latent codes")
    bn: LossWeight = setting(10.0, BN_HELP)
    oh: LossWeight = setting(0.5, "alpha, the weight of the pseudo-supervised loss, when DLW is off")
    bn_mmt: Fraction = setting(0.9, "momentum of the batch's BatchNorm statistics")
    is_maml: Bit = setting(1, "meta gradient: 1 for FOMAML, 0 for Reptile")
    reset_l0: Bit = setting(1, "1: redraw the generator's first layers 120 calls after the warm-up")
    reset_bn: Bit = setting(0, "1: redraw all its BatchNorm layers at that call")
    act: LossWeight = setting(0.0, "weight of the activation loss")
    balance: LossWeight = setting(0.0, "weight of the class balance loss")
    cr: LossWeight = setting(0.8, "weight of the contrastive loss")
    cr_T: Positive = setting(0.2, "temperature of the contrastive loss")
    tv: LossWeight = setting(2.5e-5, "weight of the images' total variation")
    l2: LossWeight = setting(3e-8, "weight of the images' Euclidean norm")
    cmi_init: Folder | None = setting(None, "folder of images that are stored before the first epoch", "rt")
    g_loops: Count = setting(2, "batches in one synthesis after the warm-up")
    gwp_loops: Count = setting(10, "batches in one synthesis during the warm-up")
    g_life: Count = setting(10, "number of syntheses after which the generator is drawn anew")
    label_embedding: Text = setting(
        "classifier", "input for a class: onehot, classifier (rows of the last linear layer) or a .npy file"
    )
    ema_generator: Fraction = setting(
        0.0, "momentum, as 0.95, of an averaged generator for half of the fresh samples; 0: none"
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training with SGD that can be stopped and resumed."""

    epochs: Whole = setting(200, "passes over the images; 0: no training", group="training")
    batch_size: Count = setting(256, "images in a step", also="-b")
    lr: Positive = setting(0.1, "learning rate at the start", also="--learning_rate")
    momentum: Fraction = setting(0.9, "momentum of SGD")
    weight_decay: NonNegative = setting(1e-4, "weight decay of SGD", also="--wd")
    resume: Text | None = setting(
        None, "continue where it was stopped, or from this checkpoint", "", group="the run", nargs="?"
    )
    overwrite: Switch = setting(False, "replace the run or file that is there", "")
    print_freq: Interval = setting(0, "also report the loss after every N steps; 0: never", "", also="-p")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Precision, seed and device."""

    amp: Precision = setting(
        "off",
        "off, bf16 (all networks), fp16 (trained ones), auto (bf16 if possible)",
        group="precision and device",
    )
    fp16: Switch = setting(False, "short for --amp fp16", "")
    seed: Whole = setting(0, "seed of all random numbers", "rl")
    gpu: Whole | None = setting(None, "number of the GPU to use", "")
    device: Text | None = setting(None, "cpu, cuda or cuda:N (default: the GPU if there is one)", "")
    workers: Whole = setting(4, "threads that decode image files", "", also="-j")


@dataclass(frozen=True, kw_only=True)
class Settings(Machine, Training, Synthesis):
    """The settings of data-free distillation (`bsr_main.py`, `datafree.distill`). Make them with `resolve`,
    which fills in what depends on other settings."""

    student: Network = setting(RESNET18, LIKE_TEACHER, "r", group="networks")
    student_args: Text | None = setting(None, "arguments of the student, as width=2,act=gelu", "rt")
    pretrained: Switch = setting(False, IMAGENET, "rt")
    student_ckpt: Text | None = setting(None, "checkpoint that the student starts from, as a pruned one", "t")
    keep_zeros: Switch = setting(False, "keep pruned (zero) weights of --student_ckpt at zero", "rt")
    test_teacher: Switch = setting(False, "report the teacher's accuracy first", "")
    store_samples: Switch = setting(
        False, f"store samples, as DLW, BLG and IHO need, with {FRESH} too", "rl", group="method"
    )
    dlw: Switch = _component("dynamic loss weight", "dlw")
    blg: Switch = _component("biased label generator", "blg")
    iho: Switch = _component("intra-class homogeneity operator", "iho")
    max_samples: Count | None = setting(None, "limit of stored samples; the oldest go first (default: none)")
    dlw_mode: DLWMode = setting("dynamic", f"how DLW sets alpha: {', '.join(MODES)}", "rl")
    oh_min: Positive = setting(0.5, "alpha during the warm-up, and where DLW starts")
    oh_max: Positive = setting(
        1.0, "alpha of con_max, and at the end of line and curve; dynamic has no limit"
    )
    oh_step: NonNegative = setting(0.1, "amount that DLW adds to alpha")
    oh_memory_size: Count = setting(
        8, "window of DLW: alpha rises if both newest losses are the lowest of this many"
    )
    adv: LossWeight = setting(1.33, "weight of the adversarial loss", group="synthesis")
    epochs: Whole = setting(420, "number of epochs with the warm-up; 0: no training", group="training")
    warmup: Whole = setting(20, "epochs at the start that only fill the repository", group="training")
    kd_steps: Count = setting(400, "student steps after each synthesis")
    ep_steps: Count = setting(400, "student steps in an epoch, with ep_steps // kd_steps syntheses")
    lr: Positive = setting(0.2, "learning rate at the start (cosine to 2e-4)", also="--learning_rate")
    T: Positive = setting(20.0, "temperature of distillation")
    mixup: Switch = setting(False, "blend each image of a student step with another of its batch")
    compile: Switch = setting(False, "torch.compile the student's steps: slow start, other rounding", "tl")
    save_dir: Folder = setting(None, f"the run folder (default: {RUN_NAME})", "", group="the run")
    log_tag: Text = setting("", "a word to add to the default name of the run folder", "")
    evaluate_only: Switch = setting(False, "evaluate the student of --resume or --save_dir, and stop", "")
    save_every: Count = setting(
        1, "epochs between checkpoints; a stopped run saves its last epoch anyway", ""
    )
    start_epoch: Whole = setting(0, "first epoch to run, without a checkpoint", "t")
    eval_every: Count = setting(1, "epochs between evaluations; the last one is always evaluated", "l")
    tensorboard: Switch = setting(False, "also write metrics and contact sheets as TensorBoard events", "")
    export_repository: Switch = setting(False, "write the samples as PNG files at the end, by class", "")
    repository_memory: Memory | None = setting(
        None, "memory for images, such as 4GB; others are read from the run folder (default: no limit)", ""
    )
    reuse_teacher: Memory | None = setting(
        None, "memory, such as 1GB, for the teacher's logits of views of images of up to 64 pixels", "l"
    )
    deterministic: Switch = setting(False, "bit-identical results on CUDA too (images up to 64 pixels)", "r")

    @property
    def synthesis_samples(self) -> int:
        """Number of samples of one synthesis, after the warm-up."""
        return self.synthesis_batch_size * (self.g_loops if self.method in taken_by("g_loops") else 1)

    @property
    def rounds(self) -> int:
        """Rounds of synthesis, pruning and distillation in an epoch."""
        return self.ep_steps // self.kd_steps


@dataclass(frozen=True, kw_only=True)
class RealImages(Machine, Training, Data):
    """Training on real images."""

    lr_decay_milestones: Milestones | None = setting(
        None, "epochs that divide --lr by 10, as 120,150,180 (default: cosine to 0)", group="training"
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RealImages):
    """The settings of `train_scratch.py`."""

    model: Network = setting(NetworkName.parse("wrn40_2"), ANY_NETWORK, group="network")
    model_args: Text | None = setting(None, "arguments of the network, as width=2,act=gelu")
    pretrained: Switch = setting(False, IMAGENET)
    batch_size: Count = setting(128, "images in a step", also="-b")
    output: Text = setting(
        None, "file to write (default: checkpoints/pretrained/{dataset}_{model}.pth)", "", group="the run"
    )
    evaluate_only: Switch = setting(False, "evaluate the checkpoint of --resume or --output, and stop", "")


@dataclass(frozen=True, kw_only=True)
class KDSettings(RealImages):
    """The settings of `vanilla_kd.py`."""

    epochs: Count = setting(200, "passes over the images", group="training")
    teacher: OwnNetwork = setting(RESNET34, f"one of {NETWORKS}", "r", group="networks")
    teacher_ckpt: Text | None = setting(None, TEACHER_FILE, "")
    student: OwnNetwork = setting(RESNET18, LIKE_TEACHER, "r")
    transfer_set: Text | None = setting(
        None, "other images: a dataset's, a folder's or noise (default: --dataset's)", group="distillation"
    )
    kd_weight: NonNegative = setting(1.0, "weight of the divergence from the teacher", also="--alpha")
    ce_weight: NonNegative = setting(0.0, "weight of the cross entropy with the labels", also="--beta")
    T: Positive = setting(20.0, "temperature of distillation")
    save_dir: Folder = setting(None, f"the run folder (default: {RUN_NAME})", "", group="the run")
    log_tag: Text = setting("", "a word to add to the default name of the run folder", "")

    @property
    def method(self) -> str:
        """The name that tables and folders show as the method."""
        return "vanilla_kd" if self.transfer_set in (None, self.dataset) else "vanilla_kd_transfer"


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings(Machine, Synthesis):
    """The settings of `scripts/quantize.py`."""

    dataset: DatasetOrNone = setting("none", f"evaluate on test images of {DATASETS}, or none", group="data")
    method: MethodName = setting("deepinv", f"one of {', '.join(METHODS)}", group="method")
    synthesis_batch_size: Count = setting(32, "images in a batch of the synthesis", group="synthesis")
    g_steps: Count = setting(150, "steps in one synthesis")
    bn: LossWeight = setting(None, f"{BN_HELP} (default: 25 times the class term, on noise)")
    calibration: Count = setting(64, "number of synthetic images to calibrate with", group="quantisation")
    keep_float: Whole = setting(0, "number of layers that stay in float: those that lose most in int8")
    real_calibration: Whole = setting(0, "also calibrate with this many real images, for comparison")
    output: Folder = setting(None, "folder to write to (default: run/int8-{dataset}-{teacher})", "")
    overwrite: Switch = setting(False, "replace the files that are there", "")


AnyTraining = TypeVar("AnyTraining", bound=Training)
FIELDS = settings_of(Settings)
TABLE = tuple(dict.fromkeys(one.name for one in (*FIELDS, *settings_of(KDSettings)) if "t" in one.uses))
LIBRARY = tuple(one.name for one in FIELDS if "l" in one.uses)
CONTRADICT = "contradict each other: choose one"
COMPONENTS = ("dlw", "blg", "iho")


def as_dict(settings: Settings | TrainSettings | KDSettings) -> dict[str, Any]:
    """The settings by name, as plain data for JSON files and checkpoints."""
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    return {name: str(value) if isinstance(value, NetworkName) else value for name, value in values.items()}


def identity(settings: Settings | TrainSettings | KDSettings) -> dict[str, Any]:
    """The settings that must be the same for one run to continue another, as plain data."""
    values = as_dict(settings)
    return {one.name: values[one.name] for one in settings_of(type(settings)) if "r" in one.uses}


def run_folder(settings: Settings | KDSettings) -> str:
    """The run folder if there is no `save_dir`."""
    s, tag = settings, f"-{settings.log_tag}" if settings.log_tag else ""
    return f"run/{s.method}-{s.dataset}-{s.teacher.stem}-{s.student.stem}-seed{s.seed}{tag}"


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from Python, as `resolve` takes them; None stands for the default.

    Raises:
        UserError: a setting cannot have this value.
    """
    checked = {}
    for one in FIELDS:
        try:
            if given.get(one.name) is not None:
                checked[one.name] = one.check(given[one.name])
        except ValueError as error:
            raise UserError(f"{one.name}: {error}") from None
    return checked


def _refuse(*cases: tuple[Any, str]) -> None:
    """Raise a UserError with the text of the first case that applies."""
    for applies, text in cases:
        if applies:
            raise UserError(text)


def _flags(names: Iterable[str]) -> str:
    return " ".join(f"--{name}" for name in names)


def resolve_training(settings: AnyTraining) -> AnyTraining:
    """Settings of a training, with what depends on others filled in.

    Raises:
        UserError: settings contradict each other.
    """
    s: Any = settings
    _refuse(
        (s.batch_size < 2, "--batch_size 1: a batch needs 2 images or more, for BatchNorm's statistics"),
        (s.resume is not None and s.overwrite, f"--resume and --overwrite {CONTRADICT}"),
        (s.fp16 and s.amp not in ("off", "fp16"), f"--fp16 and --amp {s.amp} {CONTRADICT}"),
    )
    return replace(s, amp="fp16" if s.fp16 else s.amp)


def resolve(given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings of a run: what is given, by name, else the method's published settings, else the
    defaults; and warnings about given settings that have no effect.

    Raises:
        UserError: settings contradict each other.
    """
    method = METHODS[given.get("method", Settings.method)]
    off = dict.fromkeys(COMPONENTS, False)
    s = resolve_training(Settings(**{**off, **method.settings(given), **given}))
    s = replace(
        s,
        store_samples=s.store_samples or method.stores,
        synthesis_batch_size=s.synthesis_batch_size or s.batch_size,
        T=s.T if method.T is None else method.T,
        save_dir=s.save_dir or run_folder(s),
    )
    no_images = s.dataset == "none" and not s.eval_folder
    losses = [one.name for one in FIELDS if one.kind == LossWeight and one.name in method.takes]
    nothing = not s.dlw and losses and not any(getattr(s, name) for name in losses)
    needy = [name for name in (*COMPONENTS, "export_repository") if getattr(s, name)]
    needy += ["reuse_teacher"] if (reuse := s.reuse_teacher is not None) else []
    last = f"--start_epoch {s.start_epoch} leaves none of {s.epochs} epochs to run"
    _refuse(
        (needy and not s.store_samples, f"{_flags(needy)} needs stored samples: add --store_samples"),
        (s.mixup and reuse, "--mixup and --reuse_teacher cannot be combined: blends never repeat"),
        (s.eval_folder and s.dataset != "none", "--eval_folder needs --dataset none: leave one of them out"),
        (no_images and s.evaluate_only, "--evaluate_only has no test images: add --eval_folder"),
        (no_images and s.test_teacher, "--test_teacher has no test images: add --eval_folder"),
        (nothing, f"{s.method} has nothing to optimise: give one of {_flags(losses)} a weight"),
        (s.student_ckpt and s.pretrained, f"--student_ckpt and --pretrained {CONTRADICT}"),
        (s.keep_zeros and not s.student_ckpt, "--keep_zeros needs weights that are zero: add --student_ckpt"),
        (s.epochs and s.warmup > s.epochs, f"--warmup {s.warmup} is beyond --epochs {s.epochs}: lower it"),
        (s.oh_memory_size < 2, "--oh_memory_size 1 leaves nothing to compare with: use 2 or more"),
        (s.kd_steps > s.ep_steps, f"--kd_steps {s.kd_steps} is more than --ep_steps {s.ep_steps}: lower it"),
        (s.synthesis_batch_size < 2, "--synthesis_batch_size 1: a batch needs 2 images or more"),
        (s.start_epoch and s.start_epoch >= s.epochs, last),
    )
    return s, _warnings(s, given)


def _warnings(s: Settings, given: Mapping[str, Any]) -> list[str]:
    """Which of the given settings have no effect, or another one than it seems."""
    method, found = METHODS[s.method], []
    others = [name for name in synthesis_settings() if name not in method.takes]
    of_dlw = ["dlw_mode", "oh_min", "oh_max", "oh_step", "oh_memory_size"]
    for applies, names, why in (
        (True, others, f"with --method {s.method} (it uses {_flags(method.takes)})"),
        (method.T is not None, ["T"], f"with --method {s.method} (it is always {method.T})"),
        (method.stores, ["store_samples"], f"with --method {s.method} (it always stores them)"),
        (not s.store_samples, ["max_samples", "repository_memory"], "without --store_samples"),
        (s.store_samples and not method.stores, ["ema_generator"], "with --store_samples"),
        (s.dlw, ["oh"], "while DLW sets alpha (use --oh_min or --no-dlw)"),
        (not s.dlw, of_dlw, "without --dlw"),
        (s.dlw and s.dlw_mode in ("dynamic", "con_min"), ["oh_max"], f"with --dlw_mode {s.dlw_mode}"),
        (s.device, ["gpu"], "with --device"),
    ):
        unused = [name for name in names if name in given]
        if applies and unused:
            found.append(f"{_flags(unused)} {'has' if len(unused) == 1 else 'have'} no effect {why}")
    on = [name for name in COMPONENTS if given.get(name)]
    rest = [name for name in COMPONENTS if name not in given and getattr(s, name)]
    if on and rest:
        also, alone = (" and ".join(map(str.upper, names)) for names in (rest, on))
        off = _flags(f"no-{name}" for name in rest)
        found.append(f"{s.method} also has {also}: add {off} for {alone} alone, as published")
    if s.dlw and s.dlw_mode == "dynamic" and s.adv == 0:
        found.append("with --adv 0 alpha never rises: there is no adversarial loss")
    return found


def resolve_quantization(given: Mapping[str, Any]) -> tuple[QuantizeSettings, Settings, list[str]]:
    """The settings of a quantisation; those that synthesise its images; and warnings.

    Raises:
        UserError: settings contradict each other.
    """
    own = QuantizeSettings(**given)
    if own.real_calibration and own.dataset == "none" and not own.eval_folder:
        raise UserError("--real_calibration needs real images: add --eval_folder or --dataset")
    fixed = {"adv": 0.0, "epochs": 1, "warmup": 0, "kd_steps": 1, "ep_steps": 1}
    fixed |= dict.fromkeys(COMPONENTS, False) | {"overwrite": own.overwrite}
    fixed |= {name: getattr(own, name) for name in ("dataset", "method", "g_steps", "synthesis_batch_size")}
    shared = {one.name: given[one.name] for one in FIELDS if one.name in given}
    return own, *resolve({**shared, **fixed})
