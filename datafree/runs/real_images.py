"""Training a classifier on real images, against their labels or against a teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.data.datasets import SPECS
from datafree.data.image_folders import load_folder
from datafree.data.image_set import ImageSet
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.errors import UserError, did_you_mean
from datafree.networks.build import arguments_of, build, input_channels, source_of
from datafree.networks.check import check_network
from datafree.networks.names import parse_arguments
from datafree.networks.student_file import describe, require_storable
from datafree.networks.teacher import load_teacher, other_classes, read_teacher
from datafree.runs.environment import environment
from datafree.runs.files import CHECKPOINT, CONFIG, METRICS, SUMMARY, TRAINING
from datafree.runs.folder import RunFolder
from datafree.runs.resume import state_of
from datafree.runs.schema import read_json
from datafree.runs.training import Forward, Trainer, TrainingRun
from datafree.settings import KDSettings, TrainSettings
from datafree.torch_utils import checkpoint
from datafree.torch_utils.precision import at_least_single
from datafree.torch_utils.state import fingerprint

NOISE = "noise"  # as `--transfer_set`


def training_folder(output: Path) -> Path:
    """Where a training says how far it has come: beside the checkpoint that it is to write."""
    return output.with_name(f"{output.name}.training")


def train(settings: TrainSettings, output: Path) -> None:
    """Train for the settings of `train_scratch.py`; writes the checkpoint of the last epoch and, beside it, a
    JSON file that says how accurate it is, and a folder with the metrics of each epoch.

    Raises:
        UserError: the device or the data cannot be had, the training cannot be continued, or the loss is no
            longer finite.
        Stopped: by a signal.
    """
    folder = training_folder(output)
    _refuse_output(settings, output, folder)
    run = TrainingRun(settings, folder, "--output")
    s = run.settings
    facts = image_spec(s, "train")
    train_images, test_images = (
        run.load_split(s.dataset, split, facts.img_size) for split in ("train", "test")
    )
    if list(train_images.classes) != list(test_images.classes):
        raise UserError("the train and test folders have different classes: give both the same ones")
    torch.manual_seed(s.seed)
    arguments = parse_arguments(s.model_args, "--model_args")
    network = build(s.model, "--model", facts.num_classes, None, arguments, s.pretrained).to(run.device)
    source = source_of(s.model)
    channels = input_channels(network) or 3
    found = check_network(network, f"--model {s.model}", channels, facts.img_size, run.device, trained=True)
    if found.num_classes != facts.num_classes:
        raise UserError(other_classes("model", s.model, found.num_classes, facts.num_classes))
    require_storable(network, f"--model {s.model}")
    run.processes.freeze_unused(network, found.unused)
    facts = replace(facts, classes=tuple(train_images.classes)).for_channels(channels)
    train_images, test_images = (images.for_channels(channels) for images in (train_images, test_images))

    def criterion(forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(at_least_single(forward(inputs)), labels)

    score = run.judge(test_images, facts)
    if s.epochs:
        trainer = Trainer(network, criterion, train_images, facts, score, s, run.device, run.processes)
        run.train(trainer, facts, TRAINING, {})
    elif folder.exists() and run.processes.is_main:  # what it tells is of another training
        RunFolder(folder, overwrite=True, lock=run.lock)
    if not run.processes.is_main:
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error}): name another --output") from error
    scores = score(network)
    checkpoint.save(describe(network, s.model, s.model_args, source, facts), output)
    figures = {
        "checkpoint": output.name,
        "model": str(s.model),
        "model_args": s.model_args,
        "dataset": s.dataset,
        "seed": s.seed,
        "epochs": s.epochs,
        "test_top1": scores.top1,
        **environment(run.device),
    }
    output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if run.run:
        run.run.remove_checkpoints()  # it is written: there is nothing to continue
    print(f"{s.model} on {s.dataset}, last epoch: {scores}; written to {output}")


def _refuse_output(settings: TrainSettings, output: Path, folder: Path) -> None:
    """Raises:
    UserError: there is something else, and what is asked for would replace it or leave it as it is.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file with --output")
    figures = output.with_suffix(".json")
    if figures == output or (figures.exists() and not _is_of(figures, output)):
        raise UserError(f"{figures} is for the accuracy, and would be replaced: name another --output")
    if settings.resume is not None and not settings.epochs:
        raise UserError("--epochs 0 leaves nothing to continue: leave out --resume")
    own = folder / CHECKPOINT
    begun = settings.resume is not None and (own.exists() or checkpoint.previous(own).exists())
    if not output.exists() or settings.overwrite or begun:
        return
    metrics = folder / METRICS
    if settings.resume != "":
        raise UserError(f"{output} is there: replace it with --overwrite, or name another --output")
    if metrics.exists() and metrics.stat().st_size:
        raise UserError(f"{output} is trained to its end: there is nothing to continue")


def _is_of(figures: Path, output: Path) -> bool:
    """Whether a JSON file is what the training of a checkpoint has written."""
    try:
        content = read_json(figures)
        named = content.get("checkpoint", output.name)  # an earlier version did not say
        return {"model", "test_top1"} <= content.keys() and named == output.name
    except (OSError, ValueError):
        return False


def evaluate_only(settings: TrainSettings, output: Path) -> None:
    """Report the accuracy of the network in a checkpoint: the one that is to be continued from, else the one
    that a training has written.

    Raises:
        UserError: it cannot be read, or is of another network.
    """
    s = settings
    run = TrainingRun(s, None, "--output")
    file = Path(s.resume or output)
    if s.resume == "" and not output.exists():  # of the training that is to be continued
        own = training_folder(output) / CHECKPOINT
        file = own if own.exists() else checkpoint.previous(own)
    content = checkpoint.read(file)
    facts = image_spec(s, "test", recorded_spec(content))
    state = state_of(content, file)
    arguments = {**arguments_of(s.model, state), **parse_arguments(s.model_args, "--model_args")}
    network = build(s.model, "--model", facts.num_classes, None, arguments).to(run.device)
    channels = input_channels(network) or 3
    facts = facts.for_channels(channels)
    checkpoint.load_network(network, state, file, f"{s.model} with {facts.num_classes} classes")
    images = run.load_split(s.dataset, "test", facts.img_size).for_channels(channels)
    if run.processes.is_main:
        print(f"{s.model} on {s.dataset}: {run.judge(images, facts)(network)}")


def distill(settings: KDSettings) -> None:
    """Distil for the settings of `vanilla_kd.py` into a run folder: KD with real images, the training
    split's, those of another dataset, or those of a folder.

    Raises:
        UserError: the device, the data or the teacher cannot be had, the run folder is taken, the run cannot
            be continued, or the loss is no longer finite.
        Stopped: by a signal.
    """
    run = TrainingRun(settings, Path(settings.save_dir), "--save_dir")
    s = run.settings
    file, content = read_teacher(s.dataset, s.teacher, s.teacher_ckpt)
    facts = image_spec(s, "test", recorded_spec(content))
    torch.manual_seed(s.seed)
    student = build(s.student, "--student", facts.num_classes).to(run.device)
    teacher = load_teacher(s.teacher, facts.num_classes, file, content, run.device, channels=3)
    test_images = run.load_split(s.dataset, "test", facts.img_size)
    images = transfer_set(s, run, facts)
    facts = replace(facts, classes=tuple(test_images.classes))

    def criterion(forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = at_least_single(teacher(inputs))
        logits = at_least_single(forward(inputs))
        loss = s.kd_weight * losses.kldiv(logits, teacher_logits, s.T)
        return loss + s.ce_weight * F.cross_entropy(logits, labels) if s.ce_weight else loss

    score = run.judge(test_images, facts, teacher)
    trainer = Trainer(student, criterion, images, facts, score, s, run.device, run.processes)
    if run.processes.is_main:
        run.say(f"teacher {s.teacher}: {score(teacher)}")
    run.say(f"{s.method}: {s.teacher} to {s.student}, {len(images):,} images; see {s.save_dir}")
    more = {"method": s.method, "teacher_ckpt": str(file), "teacher_weights": fingerprint(teacher)}
    described = partial(describe, student, s.student, None, None, facts)
    progress = run.train(trainer, facts, CONFIG, more, described)
    if not run.run:
        return
    last = progress.row["test_top1"]
    run.run.save_student(described())
    run.run.write_json(
        SUMMARY,
        {
            "teacher_top1": score(teacher).top1,
            "last_top1": last,
            "best_top1_chosen_on_test_data": progress.best_top1,
            "best_epoch": progress.best_epoch,
            "last_test_agreement": progress.row["test_agreement"],
            "epochs": s.epochs,
            "seconds": progress.seconds,
        },
    )
    run.say(f"student, last epoch  {last:.2f} %", "green")
    run.say(f"student, best (chosen on test data)  {progress.best_top1:.2f} %")


def transfer_set(settings: KDSettings, run: TrainingRun, facts: ImageSpec) -> ImageSet:
    """The images to distil with.

    Raises:
        UserError: they cannot be had, or have no labels where some are needed.
    """
    s = settings
    name = s.dataset if s.transfer_set is None else s.transfer_set
    if s.ce_weight and name != s.dataset:
        raise UserError("--ce_weight needs labels of the teacher's classes: leave out it or --transfer_set")
    if name == NOISE:
        return noise(facts.img_size)
    if name in SPECS:
        return run.load_split(name, "train", facts.img_size)
    if name and Path(name).is_dir():
        return load_folder(Path(name), facts.img_size, s.workers)
    raise UserError(
        f"--transfer_set {name} is neither a folder nor a dataset{did_you_mean(name, [*SPECS, NOISE])}"
    )


def noise(img_size: int) -> ImageSet:
    """50,000 images of independent uniform pixels; each is made when it is read, always the same."""

    def image(index: int) -> Tensor:
        rng = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, img_size, img_size), generator=rng, dtype=torch.uint8)

    labels = torch.zeros(50_000, dtype=torch.long)
    return ImageSet(lambda indices: torch.stack([image(i) for i in indices.tolist()]), labels, ("noise",))
