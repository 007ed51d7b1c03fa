"""THE definition of every setting: its name, type, default, meaning and traits, once. The flags of the
scripts, the keyword arguments of `datafree.distill`, what a resumed run must repeat, what splits the rows
of a table, and docs/flags.md follow from it. Imports nothing heavy.

What is declared with `setting` is a part of a run's identity: a run can only be resumed with the same value.
What is declared with `option` may change on resuming. Either says otherwise with `identity=`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from datafree.data.datasets import SPECS
from datafree.dlw import MODES as DLW_MODES
from datafree.errors import UserError
from datafree.kinds import (
    COUNT,
    COUNT_OR_NONE,
    FOLDER,
    FRACTION,
    NON_NEGATIVE,
    ON_OR_OFF,
    POSITIVE,
    SIZE,
    SWITCH,
    TEXT,
    WHOLE,
    Kind,
    choice,
    few,
    option,
    setting,
    settings_of,
    weight,
)
from datafree.methods import METHODS, synthesis_settings
from datafree.models import NAMES
from datafree.networks.names import AND, NetworkName


def _network(value: Any) -> NetworkName:
    return value if isinstance(value, NetworkName) else NetworkName.parse(value)


def _single(name: NetworkName) -> NetworkName:
    if name.parts:
        raise ValueError(f"{name}: one network is wanted here")
    return name


def _milestones(value: Any) -> str:
    epochs = [part.strip() for part in TEXT.check(value).split(",")]
    numbers = [int(epoch) for epoch in epochs if epoch.isdecimal()]
    if len(numbers) < len(epochs) or sorted({0, *numbers}) != [0, *numbers]:
        raise ValueError(f"{value} is no list of epochs such as 120,150,180")
    return ",".join(epochs)


OWN_NETWORKS = ", ".join(NAMES)
BY_TEACHER = tuple(name for name in METHODS if name not in ("zskt", "dfad"))  # which need no student
ANY_NETWORK = f"timm:NAME, torchvision:NAME, path/to/file.py:factory, or one of {OWN_NETWORKS}"
DATASETS = ", ".join(SPECS)
NETWORK = Kind(lambda value: _single(_network(value)))
TEACHER = Kind(_network, joined=AND)
FILES = Kind(TEXT.check, joined=AND)
OWN_NETWORK = Kind(lambda value: _network(choice("network", NAMES).check(str(value))))
ARGUMENTS = Kind(TEXT.check, metavar="KEY=VALUE,...")
TEACHER_ARGUMENTS = Kind(TEXT.check, metavar="KEY=VALUE,...", joined=AND)
REPORT = Kind(lambda value: max(0, WHOLE.check(value)), WHOLE.read)  # published commands have -1 for never
RESUME = Kind(TEXT.check, metavar="CHECKPOINT", alone="")
MILESTONES = Kind(_milestones, metavar="EPOCH,...")
RUN_FOLDER = "run/{method}-{dataset}-{teacher}-{student}-seed{seed}{-log_tag}"


@dataclass(frozen=True, kw_only=True)
class TeacherNetwork:
    title: ClassVar[str] = "networks"
    teacher: NetworkName = setting(
        NetworkName.parse("resnet34"),
        TEACHER,
        f"{ANY_NETWORK}; or several, which teach by the mean of their logits",
        table=False,
        library=False,
    )
    teacher_ckpt: str | None = option(
        None,
        FILES,
        "its checkpoint: a state dict, bare or under `state_dict`; of several teachers one each",
        default_text="checkpoints/pretrained/{dataset}_{teacher}.pth",
    )
    teacher_args: str | None = setting(
        None,
        TEACHER_ARGUMENTS,
        "keyword arguments of the teacher; of several, one for all or one each",
        library=False,
    )
    feature_layer: str | None = setting(
        None,
        TEXT,
        "layer of the teacher whose input is its penultimate features",
        default_text="the linear layer that gives its logits",
    )
    channels: int | None = setting(
        None,
        few(1, 3),
        "channels of the images",
        table=False,
        library=False,
        default_text="those that the teacher takes",
    )


@dataclass(frozen=True, kw_only=True)
class Networks(TeacherNetwork):
    title: ClassVar[str] = TeacherNetwork.title
    student: NetworkName = setting(
        NetworkName.parse("resnet18"),
        NETWORK,
        "the network that is trained; named like the teacher",
        table=False,
        library=False,
    )
    student_args: str | None = setting(None, ARGUMENTS, "keyword arguments of the student", library=False)
    pretrained: bool = setting(
        False,
        SWITCH,
        "start the student from torchvision's ImageNet weights (*_imagenet only)",
        library=False,
    )
    student_ckpt: str | None = option(
        None,
        TEXT,
        "a checkpoint that the student starts from, such as a pruned copy of the teacher's",
        table=True,
    )
    keep_zeros: bool = setting(
        False,
        SWITCH,
        "weights that are zero in --student_ckpt stay zero, so that a pruned student stays pruned",
        library=False,
    )
    test_teacher: bool = option(False, SWITCH, "report the teacher's accuracy before starting")


@dataclass(frozen=True, kw_only=True)
class Data:
    title: ClassVar[str] = "data"
    dataset: str = setting(
        "cifar10", choice("dataset", tuple(SPECS)), f"one of {DATASETS}", table=False, library=False
    )
    data_root: str = option("data", FOLDER, "folder with the data; torchdata/ below it is searched too")
    download: bool = option(False, SWITCH, "fetch a dataset that torchvision can fetch if it is not there")
    # Of mean, std, img_size and flip it is the values found in the end that identify a run, see `ImageSpec`.
    mean: str | None = option(
        None,
        TEXT,
        "mean with which the teacher's input is normalised: three numbers 0.49,0.48,0.45, or a dataset's "
        "name, which sets --std too",
        default_text="the teacher's checkpoint tells, else the dataset's",
    )
    std: str | None = option(
        None,
        TEXT,
        "standard deviation, likewise",
        default_text="the teacher's checkpoint tells, else the dataset's",
    )
    img_size: int | None = option(
        None,
        COUNT,
        "height and width of the images in pixels, 8 or more",
        table=True,
        default_text="the dataset's",
    )
    flip: bool | None = option(
        None,
        ON_OR_OFF,
        "mirror images at random",
        table=True,
        default_text="on, except for digits, mnist and svhn",
    )


@dataclass(frozen=True, kw_only=True)
class TestData(Data):
    title: ClassVar[str] = "data (test images only; training images are never opened)"
    dataset: str = setting(
        "cifar10", choice("dataset", (*SPECS, "none")), f"one of {DATASETS}, none", table=False, library=False
    )
    eval_folder: str | None = setting(
        None,
        FOLDER,
        "with --dataset none: labelled images to test the student on, a folder for each class",
        table=False,
        library=False,
    )


@dataclass(frozen=True, kw_only=True)
class MethodGroup:
    title: ClassVar[str] = "method"
    method: str = setting(
        "bsr",
        choice("method", tuple(METHODS)),
        f"one of {', '.join(METHODS)}, each with its published settings (see the end); bsr is fast_meta with "
        "DLW, BLG and IHO, which can be switched on for every method",
        table=False,
    )


@dataclass(frozen=True, kw_only=True)
class Components(MethodGroup):
    title: ClassVar[str] = MethodGroup.title
    dlw: bool = setting(
        None, ON_OR_OFF, "dynamic pseudo-supervised loss weight", table=False, default_text="on for bsr"
    )
    blg: bool = setting(None, ON_OR_OFF, "biased label generator", table=False, default_text="on for bsr")
    iho: bool = setting(
        None, ON_OR_OFF, "intra-class homogeneity operator", table=False, default_text="on for bsr"
    )
    store_samples: bool = setting(
        False,
        SWITCH,
        "teach the student from stored samples, which DLW, BLG and IHO need, where the method teaches it "
        "from fresh ones (dafl, zskt, dfad, dfq)",
        table=False,
    )
    max_samples: int | None = setting(
        None,
        COUNT,
        "largest number of samples in the repository; the oldest go first",
        default_text="no limit",
    )
    dlw_mode: str = setting(
        "dynamic", choice("DLW mode", DLW_MODES), f"how DLW sets alpha: {', '.join(DLW_MODES)}", table=False
    )
    oh_min: float = setting(0.5, POSITIVE, "alpha during the warm-up, and where DLW starts after it")
    oh_max: float = setting(
        1.0, POSITIVE, "alpha in con_max, and at the end of line and curve; no bound for dynamic"
    )
    oh_step: float = setting(0.1, NON_NEGATIVE, "amount added to alpha when DLW raises it")
    oh_memory_size: int = setting(
        8,
        COUNT,
        "window of DLW, which raises alpha when the adversarial and the BatchNorm loss of the newest "
        "synthesis are both the lowest of so many",
    )


@dataclass(frozen=True, kw_only=True)
class SynthesisByTeacher:
    title: ClassVar[str] = "synthesis"
    synthesis_batch_size: int = setting(
        None,
        COUNT,
        "images made in one synthesis; by nayer, in each of its batches",
        default_text="--batch_size",
    )
    g_steps: int = setting(10, COUNT, "generator steps in one synthesis")
    lr_g: float = setting(2e-3, POSITIVE, "learning rate of the generator")
    lr_z: float = setting(0.01, POSITIVE, "learning rate of the latent codes")
    bn: float = weight(10.0, "weight of the distance to the teacher's BatchNorm statistics")
    oh: float = weight(0.5, "alpha, the weight of the pseudo-supervised loss, where DLW is off")
    bn_mmt: float = setting(0.9, FRACTION, "momentum of the batch's BatchNorm statistics")
    is_maml: int = setting(1, few(0, 1), "meta gradient: 1 for FOMAML, 0 for Reptile")
    reset_l0: int = setting(
        1, few(0, 1), "1: draw the generator's first layers anew 120 calls after the warm-up"
    )
    reset_bn: int = setting(0, few(0, 1), "1: draw all its BatchNorm layers anew at that call")


@dataclass(frozen=True, kw_only=True)
class SynthesisGroup(SynthesisByTeacher):
    title: ClassVar[str] = SynthesisByTeacher.title
    adv: float = weight(1.33, "weight of the adversarial loss")


@dataclass(frozen=True, kw_only=True)
class OtherSynthesisGroup:
    title: ClassVar[str] = "synthesis, of methods other than bsr, fast_meta and fast"
    act: float = weight(0.0, "weight of the activation loss (dafl)")
    balance: float = weight(0.0, "weight of the class balance loss (dafl, dfq)")
    cr: float = weight(0.8, "weight of the contrastive loss (cmi)")
    cr_T: float = setting(0.2, POSITIVE, "temperature of the contrastive loss (cmi)")
    cmi_init: str | None = setting(
        None,
        FOLDER,
        "folder of images with which the repository is filled at first (cmi, fast_meta, fast)",
        library=False,
    )
    g_loops: int = setting(2, COUNT, "batches made in one synthesis (nayer)")
    gwp_loops: int = setting(10, COUNT, "the same during the warm-up (nayer)")
    g_life: int = setting(10, COUNT, "syntheses after which the generator is drawn anew (nayer)")
    label_embedding: str = setting(
        "classifier",
        TEXT,
        "what the generator is told of a class (nayer): onehot, classifier for the rows of the teacher's "
        "last layer, or a .npy file with a row for each class",
    )
    ema_generator: float = setting(
        0.0,
        FRACTION,
        "momentum with which a second generator follows the first one and makes half of the fresh samples "
        "(dafl, zskt, dfad, dfq), such as 0.95; 0 for none",
    )
    tv: float = weight(2.5e-5, "weight of total variation (deepinv)")
    l2: float = weight(3e-8, "weight of the Euclidean norm (deepinv)")


@dataclass(frozen=True, kw_only=True)
class SGD:
    title: ClassVar[str] = "SGD"
    momentum: float = setting(0.9, FRACTION, "momentum of SGD")
    weight_decay: float = setting(1e-4, NON_NEGATIVE, "weight decay of SGD", also=("--wd",))


@dataclass(frozen=True, kw_only=True)
class KD:
    title: ClassVar[str] = "distillation"
    epochs: int = setting(420, COUNT_OR_NONE, "number of epochs, the warm-up included; 0 distils nothing")
    warmup: int = setting(20, COUNT_OR_NONE, "number of first epochs, which only fill the repository")
    kd_steps: int = setting(400, COUNT, "student steps after each synthesis")
    ep_steps: int = setting(400, COUNT, "student steps in an epoch, with ep_steps // kd_steps syntheses")
    batch_size: int = setting(256, COUNT, "images in a student step", also=("-b",))
    lr: float = setting(
        0.2, POSITIVE, "learning rate of the student (SGD, cosine to 2e-4)", also=("--learning_rate",)
    )
    T: float = setting(20.0, POSITIVE, "temperature of distillation")
    mixup: bool = setting(
        False, SWITCH, "blend each image that the student and the teacher see with another of its batch"
    )
    compile: bool = setting(
        False,
        SWITCH,
        "torch.compile the student's steps; rounds differently, and starts slowly",
        identity=False,
    )


@dataclass(frozen=True, kw_only=True)
class Precision:
    title: ClassVar[str] = "precision"
    amp: str = setting(
        "off",
        choice("precision", ("off", "bf16", "fp16", "auto")),
        "half precision: bf16 in all networks, fp16 (with scaled losses) in the steps of what is trained; "
        "auto is bf16 where the device computes with it, else off",
    )
    fp16: bool = option(False, SWITCH, "the same as --amp fp16")


@dataclass(frozen=True, kw_only=True)
class Machine:
    title: ClassVar[str] = "random seed and device"
    seed: int = setting(0, COUNT_OR_NONE, "seed of all random numbers", table=False)
    gpu: int | None = option(None, COUNT_OR_NONE, "number of the GPU to use")
    device: str | None = option(None, TEXT, "cpu, cuda or cuda:N", default_text="the GPU if there is one")
    workers: int = option(4, COUNT_OR_NONE, "threads that decode image files", also=("-j",))


@dataclass(frozen=True, kw_only=True)
class SaveDir:
    title: ClassVar[str] = "the run"
    save_dir: str = option(None, FOLDER, "the run folder", default_text=RUN_FOLDER)
    log_tag: str = option("", TEXT, "a word of yours in the run folder's name")
    overwrite: bool = option(False, SWITCH, "replace the run in --save_dir")


@dataclass(frozen=True, kw_only=True)
class Running:
    title: ClassVar[str] = "the run"
    resume: str | None = option(
        None, RESUME, "continue the run in --save_dir, or continue from this checkpoint"
    )
    save_every: int = option(
        1,
        COUNT,
        "number of epochs between two checkpoints; a run that is stopped saves its last whole epoch anyway",
    )
    start_epoch: int = option(0, COUNT_OR_NONE, "first epoch to run, without a checkpoint", table=True)
    evaluate_only: bool = option(False, SWITCH, "score the student of --resume or --save_dir, and stop")
    eval_every: int = option(
        1, COUNT, "number of epochs between two evaluations; the last epoch is always evaluated", library=True
    )
    tensorboard: bool = option(False, SWITCH, "write metrics and contact sheets as TensorBoard events too")
    export_repository: bool = option(
        False, SWITCH, "write the samples as PNG files in class folders at the end"
    )
    print_freq: int = option(
        0, REPORT, "also report the loss after every N student steps; 0 reports once an epoch", also=("-p",)
    )
    repository_memory: int | None = option(
        None,
        SIZE,
        "memory for images in each process, such as 4GB; the other images are read from the run folder, with "
        "the same results",
        default_text="no limit",
    )
    reuse_teacher: int | None = option(
        None,
        SIZE,
        "memory for the teacher's logits in each process, such as 1GB (bytes, in Python): it is asked once "
        "for each view of a stored image of up to 64 pixels, with the same results",
        default_text="it is asked each time",
        library=True,
    )
    deterministic: bool = setting(
        False,
        SWITCH,
        "on CUDA: the same bits every time (images of up to 64 pixels), without TF32; a CPU always gives "
        "them",
        table=False,
        library=False,
    )


# Its groups, from the last to the first: in this order a dataclass takes the fields of its bases.
@dataclass(frozen=True, kw_only=True)
class Settings(
    OtherSynthesisGroup,
    Machine,
    Running,
    SaveDir,
    Precision,
    SGD,
    KD,
    SynthesisGroup,
    Components,
    TestData,
    Networks,
):
    """The settings of a run of data-free distillation (`bsr_main.py`, `datafree.distill`), as the published
    ones where nothing else was asked for. Make one with `resolve`, which fills in what depends on other
    settings."""

    @property
    def synthesis_samples(self) -> int:
        """Samples that one synthesis makes, after the warm-up."""
        return self.synthesis_batch_size * (self.g_loops if self.method == "nayer" else 1)

    @property
    def rounds(self) -> int:
        """Rounds of synthesis, pruning and distillation in an epoch."""
        return self.ep_steps // self.kd_steps


@dataclass(frozen=True, kw_only=True)
class Training:
    title: ClassVar[str] = "network and training"
    model: NetworkName = setting(NetworkName.parse("wrn40_2"), NETWORK, ANY_NETWORK)
    model_args: str | None = setting(None, ARGUMENTS, "keyword arguments of the network")
    pretrained: bool = setting(False, SWITCH, "start from torchvision's ImageNet weights (*_imagenet only)")
    epochs: int = setting(
        200, COUNT_OR_NONE, "passes over the training images; 0 writes the network as initialised"
    )
    batch_size: int = setting(128, COUNT, "images in a step", also=("-b",))


@dataclass(frozen=True, kw_only=True)
class Output:
    title: ClassVar[str] = "the checkpoint"
    output: str = option(
        None, TEXT, "the checkpoint to write", default_text="checkpoints/pretrained/{dataset}_{model}.pth"
    )
    overwrite: bool = option(False, SWITCH, "replace it if it is there")
    evaluate_only: bool = option(
        False, SWITCH, "score the checkpoint that is there, or the one that --resume names, and stop"
    )


@dataclass(frozen=True, kw_only=True)
class RealImageSGD(SGD):
    title: ClassVar[str] = "SGD"
    lr: float = setting(0.1, POSITIVE, "learning rate of SGD, at first", also=("--learning_rate",))
    lr_decay_milestones: str | None = setting(
        None,
        MILESTONES,
        "numbers of epochs after which the learning rate falls to a tenth, such as 120,150,180",
        default_text="it falls to 0 as a cosine",
    )


@dataclass(frozen=True, kw_only=True)
class Continuing:
    title: ClassVar[str] = "continuing"
    resume: str | None = option(None, RESUME, "continue where it stopped, or from this checkpoint")
    print_freq: int = option(
        0, REPORT, "also report the loss after every N steps; 0 reports once an epoch", also=("-p",)
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Machine, Continuing, Output, Precision, RealImageSGD, Training, Data):
    """The settings of `train_scratch.py`."""


@dataclass(frozen=True, kw_only=True)
class RealImageKD:
    title: ClassVar[str] = "networks and distillation"
    teacher: NetworkName = setting(
        NetworkName.parse("resnet34"), OWN_NETWORK, f"one of {OWN_NETWORKS}", table=False
    )
    teacher_ckpt: str | None = option(
        None, TEXT, "its checkpoint", default_text="checkpoints/pretrained/{dataset}_{teacher}.pth"
    )
    student: NetworkName = setting(
        NetworkName.parse("resnet18"),
        OWN_NETWORK,
        "the network that is trained; named like the teacher",
        table=False,
    )
    transfer_set: str | None = setting(
        None,
        Kind(TEXT.check, metavar="DATASET|DIR|noise"),
        "images to distil with: another dataset's training split, a folder of images without labels, or "
        "50,000 images of noise",
        default_text="the dataset's training split",
    )
    epochs: int = setting(200, COUNT, "passes over the images")
    batch_size: int = setting(256, COUNT, "images in a step", also=("-b",))
    alpha: float = setting(1.0, NON_NEGATIVE, "weight of the divergence from the teacher (soft targets)")
    beta: float = setting(0.0, NON_NEGATIVE, "weight of the cross entropy with the labels (hard targets)")
    T: float = setting(20.0, POSITIVE, "temperature of distillation")


@dataclass(frozen=True, kw_only=True)
class KDSettings(Machine, Continuing, SaveDir, Precision, RealImageSGD, RealImageKD, Data):
    """The settings of `vanilla_kd.py`."""

    @property
    def method(self) -> str:
        """What stands for the method in tables and folder names."""
        return "vanilla_kd" if self.transfer_set in (None, self.dataset) else "vanilla_kd_transfer"


@dataclass(frozen=True, kw_only=True)
class Calibrating:
    title: ClassVar[str] = "quantisation"
    calibration: int = setting(64, COUNT, "number of images that are made to calibrate with")
    keep_float: int = setting(
        0, COUNT_OR_NONE, "number of layers that stay in float: those that lose most in int8"
    )
    real_calibration: int = setting(
        0, COUNT_OR_NONE, "also calibrate with so many of the real images, for comparison"
    )
    output: str = option(None, FOLDER, "folder to write to", default_text="run/int8-{dataset}-{teacher}")
    overwrite: bool = option(False, SWITCH, "replace the files that are there")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings(
    OtherSynthesisGroup,
    Machine,
    Precision,
    SynthesisByTeacher,
    MethodGroup,
    TestData,
    TeacherNetwork,
    Calibrating,
):
    """The settings of `scripts/quantize.py`."""

    dataset: str = setting(
        "none", choice("dataset", (*SPECS, "none")), f"whose test images judge: one of {DATASETS}, none"
    )
    method: str = setting(
        "deepinv", choice("method", BY_TEACHER), f"that makes the images: one of {', '.join(BY_TEACHER)}"
    )
    g_steps: int = setting(150, COUNT, "steps in one synthesis")
    synthesis_batch_size: int = setting(32, COUNT, "images made in one synthesis")
    bn: float = setting(
        None,
        NON_NEGATIVE,
        "weight of the distance to the teacher's BatchNorm statistics",
        default_text="chosen by the network: on noise it weighs 25 times as much as the class term",
    )


RealSettings = TypeVar("RealSettings", TrainSettings, KDSettings)
FIELDS = settings_of(Settings)
TABLE = tuple(
    dict.fromkeys(
        one.name for owner in (Settings, KDSettings) for one in settings_of(owner) if one.traits.table
    )
)
LIBRARY = tuple(one.name for one in FIELDS if one.traits.library)


def as_dict(settings: Settings | TrainSettings | KDSettings) -> dict[str, Any]:
    """The settings by name, as plain data for JSON files and checkpoints."""
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    return {name: str(value) if isinstance(value, NetworkName) else value for name, value in values.items()}


def identity(settings: Settings | TrainSettings | KDSettings) -> dict[str, Any]:
    """The settings that must be the same for one run to continue another, as plain data. A run compares more
    than these: see `runs.distillation.Distillation.identity`."""
    values = as_dict(settings)
    return {one.name: values[one.name] for one in settings_of(type(settings)) if one.traits.identity}


def resolve(given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings of a run from those that are given, by name: the method's published ones where nothing
    is given; and warnings about those that have no effect.

    Raises:
        UserError: values that contradict each other.
    """
    values = {one.name: one.default for one in FIELDS}
    method = METHODS[given.get("method", values["method"])]
    values |= {**method.settings(given), **given}
    v = values
    v["store_samples"] = v["store_samples"] or method.stores
    for component in ("dlw", "blg", "iho"):
        if v[component] is None:
            v[component] = v["method"] == "bsr"
        if v[component] and not v["store_samples"]:
            raise UserError(f"--{component} needs stored samples: add --store_samples")
    if v["export_repository"] and not v["store_samples"]:
        raise UserError("--export_repository needs stored samples: add --store_samples")
    if v["reuse_teacher"] is not None and not v["store_samples"]:
        raise UserError(
            "--reuse_teacher needs stored samples, of which views come again: add --store_samples"
        )
    if v["mixup"] and v["reuse_teacher"] is not None:
        raise UserError("--mixup and --reuse_teacher cannot be combined: blended images never repeat")
    if v["eval_folder"] and v["dataset"] != "none":
        raise UserError("--eval_folder is for --dataset none: leave one of them out")
    if v["dataset"] == "none" and not v["eval_folder"] and (v["evaluate_only"] or v["test_teacher"]):
        raise UserError("--dataset none has no images to score on: add --eval_folder")
    weights = [one.name for one in FIELDS if one.traits.weighs and one.name in method.takes]
    if not v["dlw"] and weights and not any(v[name] for name in weights):
        names = ", ".join(f"--{name}" for name in weights)
        raise UserError(f"{v['method']} has nothing to optimise: give one of {names} a weight")
    if v["student_ckpt"] and v["pretrained"]:
        raise UserError("--student_ckpt and --pretrained contradict each other: choose one")
    if v["keep_zeros"] and not v["student_ckpt"]:
        raise UserError("--keep_zeros needs weights that are zero: add --student_ckpt")
    v["amp"] = precision(v["amp"], v["fp16"])
    v["synthesis_batch_size"] = v["synthesis_batch_size"] or v["batch_size"]
    if v["epochs"] and v["warmup"] > v["epochs"]:
        raise UserError(f"--warmup {v['warmup']} is beyond --epochs {v['epochs']}: lower it")
    if v["oh_memory_size"] < 2:
        raise UserError("--oh_memory_size 1 leaves nothing to compare the newest loss with: use 2 or more")
    if v["kd_steps"] > v["ep_steps"]:
        raise UserError(f"--kd_steps {v['kd_steps']} is more than --ep_steps {v['ep_steps']}: lower it")
    require_batches(v["batch_size"], v["synthesis_batch_size"])
    if v["start_epoch"] and v["start_epoch"] >= v["epochs"]:
        raise UserError(f"--start_epoch {v['start_epoch']} leaves none of {v['epochs']} epochs to run")
    if v["resume"] is not None and v["overwrite"]:
        raise UserError("--resume and --overwrite contradict each other: choose one")
    v["T"] = v["T"] if method.T is None else method.T
    v["save_dir"] = v["save_dir"] or run_folder(v["method"], v)
    settings = Settings(**v)
    return settings, warnings(settings, given)


def resolve_quantization(given: Mapping[str, Any]) -> tuple[QuantizeSettings, Settings, list[str]]:
    """The settings of a quantisation from those that are given; those by which its images are made; and
    warnings.

    Raises:
        UserError: values that contradict each other.
    """
    own = QuantizeSettings(**given)
    if own.real_calibration and own.dataset == "none" and not own.eval_folder:
        raise UserError("--real_calibration needs real images: add --eval_folder or --dataset")
    if own.synthesis_batch_size < 2:
        raise UserError("--synthesis_batch_size 1: give 2 or more, BatchNorm has no statistics of one image")
    whole = {"adv": 0.0, "epochs": 1, "warmup": 0, "kd_steps": 1, "ep_steps": 1}
    whole |= {"dlw": False, "blg": False, "iho": False, "overwrite": own.overwrite}
    for name in ("dataset", "method", "g_steps", "synthesis_batch_size"):
        whole[name] = getattr(own, name)
    names = {one.name for one in FIELDS}
    settings, remarks = resolve({**{k: v for k, v in given.items() if k in names}, **whole})
    return own, settings, remarks


def precision(amp: str, fp16: bool) -> str:
    """`amp` as it is meant beside `fp16`.

    Raises:
        UserError: they contradict each other.
    """
    if fp16 and amp in ("bf16", "auto"):
        raise UserError(f"--fp16 and --amp {amp} contradict each other: choose one")
    return "fp16" if fp16 else amp


def resolve_training(settings: RealSettings) -> RealSettings:
    """The settings of a training on real images, with what depends on others filled in.

    Raises:
        UserError: values that contradict each other.
    """
    require_batches(settings.batch_size)
    if settings.resume is not None and settings.overwrite:
        raise UserError("--resume and --overwrite contradict each other: choose one")
    return dataclasses.replace(settings, amp=precision(settings.amp, settings.fp16))


def require_batches(*sizes: int) -> None:
    """Raises:
    UserError: a batch of one image.
    """
    if min(sizes) < 2:
        raise UserError("--batch_size 1: a batch needs 2 images or more, BatchNorm has no statistics of one")


def run_folder(method: str, values: Mapping[str, Any]) -> str:
    """Where a run goes that was given no `save_dir`."""
    tag = f"-{values['log_tag']}" if values["log_tag"] else ""
    networks = f"{values['teacher'].stem}-{values['student'].stem}"
    return f"run/{method}-{values['dataset']}-{networks}-seed{values['seed']}{tag}"


def warnings(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """What to say of settings that were given and have no effect."""
    s, method = settings, METHODS[settings.method]
    found = []
    ignored = [name for name in synthesis_settings() if name in given and name not in method.takes]
    if ignored:
        those = " ".join(f"--{name}" for name in method.takes)
        names = ", ".join(f"--{name}" for name in ignored)
        found.append(f"{s.method} ignores {names}; of such flags it takes {those}")
    on = [name for name in ("dlw", "blg", "iho") if given.get(name)]
    rest = [name for name in ("dlw", "blg", "iho") if name not in given]
    if s.method == "bsr" and on and rest:
        off = " ".join(f"--no-{name}" for name in rest)
        found.append(
            f"bsr has {' and '.join(name.upper() for name in rest)} on too: add {off} for "
            f"{' and '.join(name.upper() for name in on)} alone, as the published ablation means it"
        )
    if "T" in given and method.T is not None:
        found.append(f"--T has no effect: {s.method} teaches at temperature {method.T:g}, as published")
    if "repository_memory" in given and not s.store_samples:
        found.append(f"--repository_memory has no effect: {s.method} keeps no samples")
    if s.ema_generator and s.store_samples and not method.stores:
        found.append("--ema_generator has no effect with --store_samples: the student sees no fresh samples")
    if s.max_samples is not None and not s.store_samples:
        found.append(f"--max_samples has no effect: {s.method} keeps no samples without --store_samples")
    if given.get("store_samples") and method.stores:
        found.append(f"--store_samples has no effect: {s.method} always stores its samples")
    if s.dlw and "oh" in given:
        found.append("--oh has no effect while DLW sets alpha: use --oh_min or --no-dlw")
    of_dlw = ("dlw_mode", "oh_min", "oh_max", "oh_step", "oh_memory_size")
    unused = [f"--{name}" for name in of_dlw if name in given]
    if not s.dlw and unused:
        found.append(f"{', '.join(unused)} has no effect without DLW")
    if s.dlw and s.dlw_mode in ("dynamic", "con_min") and "oh_max" in given:
        found.append(f"--oh_max has no effect with --dlw_mode {s.dlw_mode}")
    if s.dlw and s.dlw_mode == "dynamic" and s.adv == 0:
        found.append("with --adv 0 there is no adversarial loss whose minima could raise alpha")
    if s.device and s.gpu is not None:
        found.append("--gpu has no effect beside --device")
    return found


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings given from Python, as `resolve` takes them; None stands for the default.

    Raises:
        UserError: a value is not of its setting's kind.
    """
    by_name = {one.name: one for one in FIELDS}
    checked = {}
    for name, value in given.items():
        if value is None:
            continue
        try:
            checked[name] = by_name[name].traits.kind.check(value)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    return checked
