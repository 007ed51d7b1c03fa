"""One command's work: what the flags name is put together here, and the epochs are run."""

from __future__ import annotations

import argparse
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from termcolor import colored
from torch import Tensor, nn
from tqdm import tqdm

from datafree import checkpoint, data, prepare
from datafree.distill import Distiller, DistillSettings
from datafree.errors import UserError
from datafree.evaluate import Evaluation, evaluate
from datafree.penultimate import PenultimateFeatures
from datafree.record import RunFolder, environment, refuse_existing
from datafree.repository import SampleRepository
from datafree.synthesis.fast_meta import FastMetaSettings, FastMetaSynthesizer
from models.generator import Generator

SHEETS = 10  # contact sheets written in the course of a run


class Session:
    """Teacher, student and test images for the flags of `bsr_main.py`.

    Everything that can be wrong with the flags is found here or in `distill` before anything is written.

    Raises:
        UserError: the device, the teacher or the data cannot be had, or the run folder is taken.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.save_dir)
        self.run: RunFolder | None = None
        self.teacher_evaluation: Evaluation | None = None
        if args.epochs and not args.evaluate_only:
            refuse_existing(self.folder, args.resume is not None, args.overwrite)
        self.device = prepare.choose_device(args.device, args.gpu)
        if args.evaluate_only:
            file = Path(args.resume) if args.resume else self.folder / "student.pth"
            content = checkpoint.read(file)
        else:
            file, content = prepare.read_teacher(args.dataset, args.teacher, args.teacher_ckpt)
        self.facts = prepare.data_facts(
            args.dataset, args.data_root, "test", args.mean, args.std, args.img_size, args.flip,
            prepare.recorded_facts(content),
        )
        self.source = file, content
        torch.manual_seed(args.seed)
        student = prepare.create_network(args.student, self.facts.num_classes, args.pretrained)
        self.student = student.to(self.device)
        generator = Generator(nz=256, ngf=64, img_size=self.facts.img_size)
        self.generator = generator.to(self.device, memory_format=torch.channels_last)

    @cached_property
    def teacher(self) -> nn.Module:
        file, content = self.source
        if self.args.evaluate_only:
            file, content = prepare.read_teacher(self.args.dataset, self.args.teacher, self.args.teacher_ckpt)
        return prepare.load_teacher(
            self.args.teacher, self.facts.num_classes, file, content, self.device
        )

    @cached_property
    def test_images(self) -> data.ImageSet:
        a = self.args
        return data.load(a.dataset, "test", a.data_root, self.facts.img_size, a.download, a.workers)

    def say(self, text: str, color: str | None = None) -> None:
        if self.run:
            self.run.log(text, color)
        else:
            print(colored(text, color) if color else text, flush=True)

    def score(self, network: nn.Module) -> Evaluation:
        return evaluate(network, self.test_images, self.facts.normalize, self.device)

    def test_teacher(self) -> None:
        """Report the teacher's accuracy."""
        self.teacher_evaluation = self.score(self.teacher)
        self.say(f"teacher {self.args.teacher}: {self.teacher_evaluation}")

    def evaluate_student(self) -> None:
        """Report the accuracy of the student in a checkpoint.

        Raises:
            UserError: it is of another network.
        """
        path, content = self.source
        if isinstance(content, dict) and "distiller" in content:
            content = {"state_dict": content["distiller"]["student"]}
        name = f"{self.args.student} with {self.facts.num_classes} classes"
        checkpoint.load_network(self.student, checkpoint.state_dict_of(content, path), path, name)
        self.say(f"student {self.args.student}: {self.score(self.student)}")

    def _build_distiller(self) -> Distiller:
        a, size = self.args, self.facts.img_size
        rng = torch.Generator(self.device).manual_seed(a.seed)
        synthesizer = FastMetaSynthesizer(
            self.teacher, self.student, self.generator, self.facts.augment,
            FastMetaSettings(
                a.g_steps, a.lr_g, a.lr_z, a.bn, a.adv, a.warmup, a.bn_mmt, bool(a.reset_l0),
                bool(a.reset_bn), bool(a.is_maml),
            ),
            rng,
        )
        repository = SampleRepository(
            (3, size, size), PenultimateFeatures(self.teacher).dim, self.facts.num_classes, self.device
        )
        settings = DistillSettings(
            a.epochs, a.warmup, a.kd_steps, a.ep_steps, a.batch_size, a.synthesis_batch_size, a.lr,
            a.momentum, a.weight_decay, a.T, a.oh, a.dlw, a.blg, a.iho, a.dlw_mode, a.oh_min, a.oh_max,
            a.oh_step, a.oh_memory_size, a.fp16,
        )
        return Distiller(
            self.teacher, self.student, synthesizer, repository, self.facts.augment, settings, rng, self.score
        )

    def _resume(self, distiller: Distiller) -> tuple[int, dict[str, Any]]:
        """Load the state to continue from; the next epoch, and the best epoch so far."""
        path = Path(self.args.resume or self.folder / "checkpoint.pth")
        content = checkpoint.read(path)
        if not isinstance(content, dict) or "distiller" not in content:
            raise UserError(f"{path} is no checkpoint of a run: name the checkpoint.pth of its folder")
        if content["epoch"] >= self.args.epochs:
            raise UserError(
                f"{path} is from epoch {content['epoch']} of {self.args.epochs}: nothing is left to run"
            )
        try:
            distiller.load_state_dict(content["distiller"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is of a run with other networks or settings ({reason})") from error
        return content["epoch"], content["best"]

    def distill(self) -> None:
        """Run the epochs, recording each; ends with the final figures."""
        a = self.args
        distiller = self._build_distiller()
        classes = self.test_images.classes
        epoch, best = a.start_epoch, {"epoch": None, "top1": 0.0}
        if a.resume is not None:
            epoch, best = self._resume(distiller)
        elif epoch:
            distiller.skip_to(epoch)
        run = self.run = RunFolder(self.folder, a.overwrite)
        flags = {name: value for name, value in vars(a).items() if name != "given"}
        run.write_json("config.json", {**flags, **environment(self.device)})
        run.truncate_metrics(epoch)
        run.log(f"{a.method}: {a.teacher} to {a.student} on {a.dataset}, {self.device}; see {run.path}")

        settings, start = distiller.settings, time.perf_counter()
        with Progress(settings, epoch, a.print_freq, self.say) as progress:
            while epoch < a.epochs:
                row = distiller.run_epoch(epoch, progress.step)
                if row["test_top1"] > best["top1"]:
                    best = {"epoch": epoch, "top1": row["test_top1"]}
                run.append_metrics(row)
                progress.epoch(row)
                epoch += 1
                if epoch == a.epochs or epoch % max(1, a.epochs // SHEETS) == 0:
                    sheet = run.save_samples(f"epoch-{epoch:04d}.png", distiller.repository, classes)
                run.save_checkpoint({"epoch": epoch, "best": best, "distiller": distiller.state_dict()})
        run.save_student(self.facts.describe(a.student, self.student))
        self._finish(run, row, best, sheet, time.perf_counter() - start)
        if a.export_repository:
            run.log(f"repository: {run.export_repository(distiller.repository, classes)}")

    def _finish(
        self, run: RunFolder, row: dict[str, Any], best: dict[str, Any], sheet: Path, seconds: float
    ) -> None:
        teacher, last = self.teacher_evaluation, row["test_top1"]
        run.write_json(
            "summary.json",
            {
                "teacher_top1": teacher.top1 if teacher else None,
                "last_top1": last,
                "best_top1_chosen_on_test_data": best["top1"],
                "best_epoch": best["epoch"],
                "epochs": self.args.epochs,
                "seconds": seconds,
                **{name: row[name] for name in ("repository", "alpha", *BALANCE)},
            },
        )
        if teacher:
            run.log(f"teacher                              {teacher}")
        run.log(f"student, last epoch                  {last:.2f} %", "green")
        when = f"epoch {best['epoch'] + 1}" if best["epoch"] is not None else "no epoch"
        run.log(f"student, best (chosen on test data)  {best['top1']:.2f} % ({when})")
        run.log("balance                              " + balance_text(row))
        run.log(f"samples by class                     {sheet}")


BALANCE = ("count_variation", "count_entropy", "lof_relative_iqr", "lof_outside_share", "margin")


def balance_text(row: dict[str, Any]) -> str:
    """The balance measures of a line of metrics, in words."""

    def show(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.3f}"

    return (
        f"class counts: variation {show('count_variation')}, entropy {show('count_entropy')}; "
        f"LOF: IQR/median {show('lof_relative_iqr')}, outside the whiskers {show('lof_outside_share')}; "
        f"margin {show('margin')}"
    )


class Progress:
    """A bar over the steps of a run, and a line an epoch. The bar is quiet when not on a terminal."""

    def __init__(self, settings: DistillSettings, epoch: int, print_freq: int, say: Any):
        s = settings
        warmup_epochs = max(0, s.warmup - epoch)  # a step of the bar each
        total = warmup_epochs + (s.epochs - epoch - warmup_epochs) * s.rounds * s.kd_steps
        self.settings, self.print_freq, self.say = s, print_freq, say
        self.kd_steps = 0
        self.bar = tqdm(total=total, unit="step", disable=None, dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, phase: str, loss: Tensor) -> None:
        if phase != "kd":
            return
        self.bar.update()
        self.kd_steps += 1
        if self.print_freq and self.kd_steps % self.print_freq == 0:
            self.say(f"  step {self.kd_steps}: KD loss {loss.item():.4f}")

    def epoch(self, row: dict[str, Any]) -> None:
        epochs = self.settings.epochs
        text = (
            f"epoch {row['epoch'] + 1:{len(str(epochs))}}/{epochs}  alpha {row['alpha']:.2f}  "
            f"oh {row['loss_oh']:.3f}  bn {row['loss_bn']:.3f}  adv {row['loss_adv']:+.3f}  "
        )
        if row["loss_kd"] is None:
            self.bar.update()
            text += "warm-up  "
        else:
            text += f"kd {row['loss_kd']:.3f}  test {row['test_top1']:.2f} %  "
        text += f"samples {row['repository']:,}  {sum(row['seconds'].values()):.1f} s"
        self.bar.set_postfix_str(f"test {row['test_top1']:.2f} %")
        self.say(text)
