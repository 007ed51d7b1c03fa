"""Training a classifier on real images, against their labels or against a teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.data.augment import OnlyFlip
from datafree.data.datasets import SPECS
from datafree.data.image_folders import load_folder
from datafree.data.image_set import ImageSet, to_float
from datafree.data.image_spec import ImageSpec, image_spec, recorded_spec
from datafree.errors import UserError, did_you_mean
from datafree.evaluation import Evaluator
from datafree.networks.build import build, build_with_weights, input_channels, source_of
from datafree.networks.check import check_network
from datafree.networks.names import parse_arguments
from datafree.networks.student_file import describe, require_storable
from datafree.networks.teacher import load_teacher, read_teacher
from datafree.runs.checkpoint import start_or_resume, state_of
from datafree.runs.environment import choose_processes, load_images
from datafree.runs.files import CHECKPOINT, PREVIOUS, SUMMARY
from datafree.runs.folder import RunFolder
from datafree.runs.loop import Progress, Row, run_in_folder
from datafree.settings import KDSettings, TrainSettings
from datafree.synthesis.base import OnStep, ignore_step
from datafree.torch_utils import checkpoint
from datafree.torch_utils.distributed import Processes
from datafree.torch_utils.precision import at_least_single
from datafree.torch_utils.random import global_state, set_global_state
from datafree.torch_utils.sgd import SGDTrainer

Forward = Callable[[Tensor], Tensor]  # inputs to logits
Criterion = Callable[[Forward, Tensor, Tensor], Tensor]  # of the network, inputs and labels to a loss
DECAY = 0.1  # of the learning rate at a milestone
NOISE = "noise"  # as `--transfer_set`


class RealImageEpochs:
    """Epochs of SGD over augmented real images.

    Args:
        network: on the device.
        criterion: the loss of a batch as the networks see it; called under autocast.
        images: to train on.
        spec: how to augment.
        evaluate: scores the network on test images, in the first process.
        settings: of the training.
        device: of the network.
        processes: among which the batches are divided.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion,
        images: ImageSet,
        spec: ImageSpec,
        evaluate: Evaluator,
        settings: TrainSettings | KDSettings,
        device: torch.device,
        processes: Processes,
    ):
        s, schedules = settings, torch.optim.lr_scheduler
        if s.lr_decay_milestones:
            milestones = [int(epoch) for epoch in s.lr_decay_milestones.split(",")]
            schedule: Any = partial(schedules.MultiStepLR, milestones=milestones, gamma=DECAY)
        else:
            schedule = partial(schedules.CosineAnnealingLR, T_max=max(1, s.epochs))
        self.trainer = SGDTrainer(
            network, s.lr, s.momentum, s.weight_decay, schedule, s.amp, device, processes
        )
        self.criterion, self.images, self.evaluate = criterion, images, evaluate
        self.device, self.processes = device, processes
        # The first process draws the order of the images for all.
        self.rng = torch.Generator(device).manual_seed(s.seed + processes.rank)
        # Images that are read as random crops are only flipped.
        self.augment = (
            OnlyFlip(spec.normalize, spec.flip) if images.read_crops else spec.augment.for_training()
        )
        # Full batches only: a small last one would ruin the BatchNorm statistics.
        self.batch_size = min(s.batch_size, len(images) - len(images) % processes.world_size)
        self.steps = len(images) // self.batch_size

    def run_epoch(self, epoch: int, on_step: OnStep = ignore_step) -> Row:
        """Epoch `epoch`, counted from 0; returns its line of `metrics.jsonl`.

        Raises:
            UserError: the loss is no longer finite.
        """
        start, lr, trainer, processes = time.perf_counter(), self.trainer.lr, self.trainer, self.processes
        loss, overflows = trainer.descend_all(self._losses(), partial(on_step, "train"))
        trainer.scheduler.step()
        if not loss < float("inf"):
            raise UserError(f"the loss is {loss} in epoch {epoch + 1}: try a lower --lr")
        scores = processes.broadcast_object(self.evaluate(trainer.network) if processes.is_main else None)
        return {
            "epoch": epoch,
            "lr": lr,
            "loss": loss,
            "overflows": overflows,
            **scores.row(),
            "seconds": {"epoch": time.perf_counter() - start},
        }

    def _losses(self) -> Iterator[Tensor]:
        p, device, order = self.processes, self.device, None
        if p.is_main:
            order = torch.randperm(len(self.images), generator=self.rng, device=device).cpu()
        own = p.shard(p.broadcast_object(order)[: self.steps * self.batch_size])
        for batch, labels in self.images.batches(self.batch_size // p.world_size, own, self.rng):
            inputs = self.augment(to_float(batch.to(device, non_blocking=True)), self.rng)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self.trainer.autocast():
                loss = self.criterion(self.trainer.forward, inputs, labels.to(device, non_blocking=True))
            yield loss

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        own = {"images": self.rng.get_state(), **global_state(self.device)}
        return {**self.trainer.state_dict(), "generators": self.processes.all_gather_object(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state is from a run with other settings.
        """
        own = state["generators"][self.processes.rank]
        self.trainer.load_state_dict(state)
        self.rng.set_state(own["images"])
        set_global_state(own, self.device)


def _train(
    epochs: RealImageEpochs,
    folder: RunFolder,
    settings: TrainSettings | KDSettings,
    spec: ImageSpec,
    same: dict[str, Any],
    also: dict[str, Any],
    student: Callable[[], dict[str, Any]] | None = None,
) -> Progress:
    """Start or continue a run, and run its epochs; returns how far it has come. See `start_or_resume` and
    `run_in_folder`."""
    s, device = settings, epochs.device
    same = {**same, "images": len(epochs.images)}
    progress, known = start_or_resume(epochs, folder, s, spec, device, same, also)

    def show(row: Row) -> tuple[str, str]:
        score = f"test {row['test_top1']:.2f} %"
        return f"epoch {row['epoch'] + 1}/{s.epochs}  loss {row['loss']:.4f}  {score}", score

    run_in_folder(
        epochs,
        folder,
        progress,
        s.epochs,
        known,
        phase="train",
        steps=(s.epochs - progress.epoch) * epochs.steps,
        print_freq=s.print_freq,
        show=show,
        student=student,
    )
    epochs.trainer.leave()
    return progress


# A teacher


def train(settings: TrainSettings, output: Path) -> None:
    """Train as `train_scratch.py` does. Writes the checkpoint of the last epoch, and a run folder beside it.

    Raises:
        UserError: the device or the data are missing, the training cannot be continued, or the loss is no
            longer finite.
        Stopped: by a signal.
    """
    path = training_folder(settings, output)
    s, device, processes = choose_processes(settings)
    with RunFolder(path, s.resume is not None, s.overwrite, "--output", processes.is_main) as folder:
        processes.require_divisible("--batch_size", s.batch_size)
        folder.check()
        spec = image_spec(s, "train")
        train_images, test_images = (
            load_images(s, processes, s.dataset, split, spec.img_size) for split in ("train", "test")
        )
        if list(train_images.classes) != list(test_images.classes):
            raise UserError("the train and test folders have different classes: make them equal")
        torch.manual_seed(s.seed)
        arguments = parse_arguments(s.model_args, "--model_args")
        network = build(s.model, "--model", spec.num_classes, None, arguments, s.pretrained).to(device)
        source = source_of(s.model)
        channels = input_channels(network) or 3
        name, size, classes = f"--model {s.model}", spec.img_size, spec.num_classes
        found = check_network(network, name, channels, size, device, trained=True, num_classes=classes)
        require_storable(network, name)
        processes.freeze_unused(network, found.unused)
        spec = replace(spec, classes=tuple(train_images.classes)).for_channels(channels)
        evaluate = Evaluator(test_images.for_channels(channels), spec.normalize, device)

        def criterion(forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(at_least_single(forward(inputs)), labels)

        images = train_images.for_channels(channels)
        epochs = RealImageEpochs(network, criterion, images, spec, evaluate, s, device, processes)
        progress = _train(epochs, folder, s, spec, {}, {})
        if processes.is_main:
            scores = evaluate(network)
            checkpoint.save(describe(network, s.model, s.model_args, source, spec), output)
            summary = {"last_top1": scores.top1, "epochs": s.epochs, "seconds": progress.seconds}
            folder.write_json(SUMMARY, summary)
            for name in (CHECKPOINT, PREVIOUS):  # there is nothing left to continue
                (path / name).unlink(missing_ok=True)
            folder.log(f"{s.model} on {s.dataset}, last epoch: {scores}; written to {output}")


def training_folder(settings: TrainSettings, output: Path) -> Path:
    """The run folder of a training, beside the checkpoint that it writes.

    Raises:
        UserError: the training would replace a file, or has nothing to do.
    """
    s, folder = settings, output.with_name(f"{output.name}.training")
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file with --output")
    if s.resume is not None and (folder / SUMMARY).exists():
        raise UserError(f"the training of {output} is finished: there is nothing to continue")
    if output.exists() and not s.overwrite and (s.resume is None or not folder.exists()):
        raise UserError(f"{output} exists: replace it with --overwrite, or name another --output")
    return folder


def evaluate_only(settings: TrainSettings, output: Path) -> None:
    """Show the accuracy of the network in `--output`, or in the checkpoint that `--resume` names or finds.

    Raises:
        UserError: it cannot be read, or is of another network.
    """
    s, device, processes = choose_processes(settings)
    file = Path(s.resume or output)
    if s.resume == "" and not output.exists():
        file = training_folder(s, output) / CHECKPOINT
    content = checkpoint.read(file)
    spec = image_spec(s, "test", recorded_spec(content))
    state, arguments = state_of(content, file), parse_arguments(s.model_args, "--model_args")
    network = build_with_weights(state, file, s.model, "--model", spec.num_classes, None, arguments)
    channels = input_channels(network) or 3
    spec = spec.for_channels(channels)
    images = load_images(s, processes, s.dataset, "test", spec.img_size).for_channels(channels)
    if processes.is_main:
        print(f"{s.model} on {s.dataset}: {Evaluator(images, spec.normalize, device)(network.to(device))}")


# Knowledge distillation


def distill(settings: KDSettings) -> None:
    """Distil as `vanilla_kd.py` does, into a run folder: with the real images of the training split, of
    another dataset, or of a folder.

    Raises:
        UserError: the device, the data or the teacher are missing, the run folder is taken, the run cannot be
            continued, or the loss is no longer finite.
        Stopped: by a signal.
    """
    s, device, processes = choose_processes(settings)
    path = Path(str(s.save_dir))
    with RunFolder(path, s.resume is not None, s.overwrite, is_main=processes.is_main) as folder:
        processes.require_divisible("--batch_size", s.batch_size)
        folder.check()
        file, content = read_teacher(s.dataset, s.teacher, s.teacher_ckpt)
        spec = image_spec(s, "test", recorded_spec(content))
        torch.manual_seed(s.seed)
        student = build(s.student, "--student", spec.num_classes).to(device)
        teacher = load_teacher(s.teacher, spec.num_classes, file, content, device, channels=3)
        test_images = load_images(s, processes, s.dataset, "test", spec.img_size)
        images = transfer_set(s, processes, spec)
        spec = replace(spec, classes=tuple(test_images.classes))

        def criterion(forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = at_least_single(teacher(inputs))
            logits = at_least_single(forward(inputs))
            loss = s.kd_weight * losses.kldiv(logits, teacher_logits, s.T)
            return loss + s.ce_weight * F.cross_entropy(logits, labels) if s.ce_weight else loss

        evaluate = Evaluator(test_images, spec.normalize, device, teacher)
        epochs = RealImageEpochs(student, criterion, images, spec, evaluate, s, device, processes)
        if processes.is_main:
            folder.log(f"teacher {s.teacher}: {evaluate(teacher)}")
        folder.log(f"{s.method}: {s.teacher} to {s.student}, {len(images):,} images; see {path}")
        described = partial(describe, student, s.student, None, None, spec)
        same = {"teacher_weights": checkpoint.fingerprint(teacher)}
        also = {"method": s.method, "teacher_ckpt": str(file), "judged_by": "test_top1"}
        progress = _train(epochs, folder, s, spec, same, also, described)
        if not processes.is_main:
            return
        row = progress.row
        folder.save_student(described())
        summary = {
            "teacher_top1": evaluate(teacher).top1,
            "last_top1": row["test_top1"],
            "best_top1_chosen_on_test_data": progress.best,
            "best_epoch": progress.best_epoch,
            "last_test_agreement": row["test_agreement"],
            "epochs": s.epochs,
            "seconds": progress.seconds,
        }
        folder.write_json(SUMMARY, summary)
        folder.log(f"student, last epoch  {row['test_top1']:.2f} %", "green")
        folder.log(f"student, best (chosen on test data)  {progress.best:.2f} %")


def transfer_set(settings: KDSettings, processes: Processes, spec: ImageSpec) -> ImageSet:
    """The images to distil with.

    Raises:
        UserError: there are none, or they have no labels where some are needed.
    """
    s = settings
    name = s.dataset if s.transfer_set is None else s.transfer_set
    if s.ce_weight and name != s.dataset:
        raise UserError("--ce_weight needs labels of the teacher's classes: leave out it or --transfer_set")
    if name == NOISE:
        return noise(spec.img_size)
    if name in SPECS:
        return load_images(s, processes, name, "train", spec.img_size)
    if name and Path(name).is_dir():
        return load_folder(Path(name), spec.img_size, s.workers)
    hint = did_you_mean(name, [*SPECS, NOISE])
    raise UserError(f"--transfer_set {name} is neither a folder nor a dataset{hint}")


def noise(img_size: int) -> ImageSet:
    """50,000 images of independent uniform pixels, generated when they are read, and equal every time."""

    def image(index: int) -> Tensor:
        rng = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, img_size, img_size), generator=rng, dtype=torch.uint8)

    labels = torch.zeros(50_000, dtype=torch.long)
    return ImageSet(lambda indices: torch.stack([image(i) for i in indices.tolist()]), labels, ("noise",))
