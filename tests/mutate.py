"""Change one line of the code at a time, and see that a test notices.

python tests/mutate.py [--only N] [--jobs 2]

Each mutant is applied to a copy of the project, in which the tests that are to notice it run. A mutant that
survives is a line that could be wrong without anybody noticing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
LARGE = {".git", ".venv", "run", "data", "build", "checkpoints"}  # at the top
SECONDS = 200


class Mutant(NamedTuple):
    file: str  # below datafree/, or models/
    old: str  # occurs once
    new: str
    tests: str  # pytest's arguments


PRINT = "tests/test_small_print.py"
GOLDEN = "tests/test_golden.py"
PARTS = "tests/test_components.py"
EPOCH = "tests/test_epoch.py"
STRANGERS = "tests/test_strangers.py"
CHECKPOINT, NETWORKS = "tests/test_checkpoint.py", "tests/test_networks.py"
ODD = "tests/test_odd_networks.py"
REUSE = "tests/test_reuse.py"
SETTINGS = "tests/test_settings.py"
METHODS, NAYER = "tests/test_methods.py", "tests/test_nayer.py"
INT8, SEVERAL = "tests/test_int8.py", "tests/test_several_teachers.py"
MUTANTS = [
    # The teacher's answers, remembered
    Mutant("reuse.py", "self._known.view(self.rows, self.views)[taken] = False", "pass", REUSE),
    Mutant(
        "reuse.py",
        "new, free = (rows < 0).nonzero().squeeze(1), (~held)",
        "new, free = (rows < 0).nonzero().squeeze(1).flip(0), (~held)",
        REUSE,
    ),
    Mutant("reuse.py", "self._known[cells] = True", "pass", REUSE),
    Mutant(
        "reuse.py",
        "whole = torch.cat([part, part[:1].expand(self.batch_size - len(part))])",
        "whole = part",
        REUSE,
    ),
    Mutant("reuse.py", "        self._serials.fill_(-1)", "        pass", REUSE),
    Mutant("data/augment.py", "if type(self) is not Augment or", "if", REUSE),
    Mutant(
        "distiller.py",
        "due = (epoch + 1) % s.eval_every == 0 or last",
        "due = (epoch + 1) % s.eval_every == 0",
        EPOCH,
    ),
    Mutant(
        "distiller.py",
        "with nullcontext() if last else self.kd.autocast():",
        "with self.kd.autocast():",
        EPOCH,
    ),
    Mutant("runs/progress.py", 'better and row.get("evaluated", True) if', "better if", EPOCH),
    # Headline figures
    Mutant("evaluation.py", ".argmax(1)\n\n", ".argmax(1) * 0\n\n", PRINT),
    Mutant("evaluation.py", "logits.topk(min(5, ", "logits.topk(min(4, ", PRINT),
    Mutant("evaluation.py", "100 * correct / count,", "100 * correct5 / count,", PRINT),
    Mutant("evaluation.py", "[-self.most :]", "[: self.most]", PRINT),
    Mutant("evaluation.py", "EVERY == EVERY - 1", "EVERY == 0", PRINT),
    Mutant("evaluation.py", "return samples[~held]", "return samples", PRINT),
    Mutant("results/tables.py", "t.ppf(0.975,", "t.ppf(0.95,", PRINT),
    Mutant("results/tables.py", "[a[seed] - b[seed]", "[sorted(a.values())[0] - b[seed]", PRINT),
    Mutant("results/tables.py", "math.sqrt(len(differences))\n", "len(differences)\n", PRINT),
    Mutant(
        "results/tables.py", "t.ppf(0.975, len(differences) - 1)", "t.ppf(0.975, len(differences))", PRINT
    ),
    Mutant(
        "results/tables.py",
        "{stdev(values):.{digits}f}",
        "{stdev(values) / len(values) ** 0.5:.{digits}f}",
        "tests/test_tables.py -k deviations",
    ),
    Mutant(
        "results/published.py",
        'else f"{number(figure)}*"',
        "else number(figure)",
        "tests/test_tables.py -k star",
    ),
    Mutant("runs/read.py", 'found["seconds"] / 3600', 'found["seconds"] / 60', PRINT),
    Mutant("runs/read.py", '- found["last_top1"]', '- found["best_top1_chosen_on_test_data"]', PRINT),
    Mutant(
        "runs/read.py",
        "rows[-math.ceil(len(rows) / 5) :]",
        "rows[: math.ceil(len(rows) / 5)]",
        "tests/test_tables.py -k fifth",
    ),
    Mutant(
        "runs/export.py",
        "ours, theirs = shipped(images), exported(images)",
        "ours, theirs = shipped(images), shipped(images)",
        PRINT,
    ),
    Mutant(
        "results/model_card.py",
        "milliseconds(network, images) / len(images)",
        "milliseconds(network, images)",
        PRINT,
    ),
    Mutant(
        "results/report_samples.py",
        ".norm(dim=1).argsort()]",
        ".norm(dim=1).argsort(descending=True)]",
        PRINT,
    ),
    Mutant("runs/contact_sheet.py", ".squeeze(1).flip(0)[", ".squeeze(1)[", PRINT),
    # Safety
    Mutant("runs/sample_log.py", "        self.checksum = found\n", "", PRINT),
    Mutant("runs/sample_log.py", "if found != checksum:", "if False:", PRINT),
    Mutant(
        "runs/sample_log.py",
        "if self.writable and self.path.exists() and self.path.stat().st_nlink > 1:",
        "if False:",
        "tests/test_faults.py -k links",
    ),
    Mutant(
        "runs/sample_log.py",
        "torch.from_numpy(records[name].copy())",
        "torch.from_numpy(records[name])",
        "tests/test_faults.py -k single",
    ),
    Mutant("runs/lock.py", "if path.is_symlink() or", "if", PRINT),
    Mutant("runs/lock.py", "or (path.exists() and not kind_fits)", "", PRINT),
    Mutant("runs/lock.py", "if found and not (is_run or bare):", "if False:", STRANGERS + " -k someone"),
    Mutant("runs/lock.py", "        if not same:\n", "        if False:\n", STRANGERS + " -k goes"),
    Mutant(
        "runs/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/test_faults.py -k two_commands",
    ),
    Mutant("torch_utils/checkpoint.py", "            os.fsync(file.fileno())\n", "", CHECKPOINT),
    Mutant("torch_utils/checkpoint.py", "and zipfile.ZipFile(file).testzip()", "and False", CHECKPOINT),
    Mutant("torch_utils/checkpoint.py", "weights_only=True", "weights_only=False", CHECKPOINT),
    Mutant(
        "networks/student_file.py",
        "arguments = without_weights(arguments)",
        "pass",
        NETWORKS + " -k connection",
    ),
    Mutant(
        "runs/resume.py",
        "if before.get(name, value) != value]",
        "if False]",
        "tests/test_scripts.py -k other_settings",
    ),
    Mutant("runs/schema.py", "opened.read(longest + 1)", "opened.read()", STRANGERS + " -k huge"),
    Mutant("runs/stored.py", "if not known or", "if", STRANGERS + " -k cannot_be_are"),
    Mutant("networks/check.py", "            _require_gradient(network, images)\n", "", ODD),
    Mutant("networks/check.py", "    if not torch.equal(own, images):", "    if False:", ODD),
    Mutant("networks/check.py", "gradient is None or not gradient.any()", "gradient is None", ODD),
    Mutant("api.py", "if parts(teacher) & parts(student):", "if False:", ODD),
    # Published settings and wiring
    Mutant("methods.py", '"g_steps": 200', '"g_steps": 100', SETTINGS),
    Mutant("methods.py", '"lr_g": 0.1,', '"lr_g": 0.01,', SETTINGS),
    Mutant("methods.py", '"act": 0.001', '"act": 0.01', SETTINGS),
    Mutant("methods.py", "nz=512", "nz=256", SETTINGS),
    Mutant("methods.py", 'divergence="l1"', 'divergence="kl"', SETTINGS),
    Mutant("methods.py", '5): {"lr_g": 3e-3', '5): {"lr_g": 2e-3', SETTINGS),
    Mutant(
        "synthesis/generative.py",
        '"act": s.act, "balance": s.balance',
        '"act": s.balance, "balance": s.act',
        PRINT,
    ),
    Mutant("synthesis/generative.py", "generator.train()(", "generator.eval()(", PRINT),
    Mutant("synthesis/deepinv.py", '"tv": s.tv, "l2": s.l2', '"tv": s.l2, "l2": s.tv', PRINT),
    Mutant("synthesis/deepinv.py", "ADAM_BETAS = (0.5, 0.99)", "ADAM_BETAS = (0.5, 0.999)", PRINT),
    Mutant("synthesis/deepinv.py", "torch.randint(-reach, reach + 1", "torch.randint(-reach, reach", PRINT),
    Mutant("synthesis/fast_meta.py", "if self.settings.reset_l0:", "if self.settings.reset_bn:", PRINT),
    Mutant(
        "synthesis/fast_meta.py", "self.calls == RESET_CALL + s.warmup", "self.calls == RESET_CALL", PRINT
    ),
    Mutant("synthesis/fast_meta.py", "value.normal_(0, 0.02", "value.normal_(0, 0.2", PRINT),
    Mutant("synthesis/fast_meta.py", "lr=settings.lr_g * settings.g_steps", "lr=settings.lr_g", PRINT),
    Mutant(
        "synthesis/fast_meta.py", "self.calls >= s.warmup", "self.calls > s.warmup", GOLDEN + " -k synthesis"
    ),
    Mutant("synthesis/fast_meta.py", "REPTILE_SCALE = 67", "REPTILE_SCALE = 66", GOLDEN + " -k synthesis"),
    Mutant("synthesis/cmi.py", "[-BANK_SIZE:]", "[:BANK_SIZE]", PRINT),
    Mutant(
        "synthesis/cmi.py",
        "Adam(self.head.parameters(), settings.lr_g)",
        "Adam(self.head.parameters(), settings.lr_z)",
        PRINT,
    ),
    Mutant(
        "synthesis/base.py",
        "better = total < self._lowest",
        "better = total > self._lowest",
        GOLDEN + " -k synthesis",
    ),
    Mutant("synthesis/base.py", "parameter.requires_grad_(flag)", "parameter.requires_grad_(True)", PRINT),
    Mutant(
        "synthesis/base.py", "1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02", "0.0, 0.02", PRINT
    ),
    Mutant(
        "losses.py",
        "return F.l1_loss(student_logits, teacher_logits) / temperature",
        "return F.l1_loss(student_logits, teacher_logits) * temperature",
        PRINT,
    ),
    Mutant("losses.py", "log_target=True) * temperature**2", "log_target=True)", PRINT),
    Mutant(
        "losses.py",
        "return -(divergence * agree).mean()",
        "return -divergence.mean()",
        GOLDEN + " -k loss_terms",
    ),
    Mutant("losses.py", "candidates.detach().T", "candidates.T", PRINT),
    # BSR
    Mutant(
        "dlw.py",
        "if _new_minimum(self.adversarial_losses) and _new",
        "if _new_minimum(self.adversarial_losses) or _new",
        PARTS + " -k dlw",
    ),
    Mutant(
        "dlw.py", "self.alpha += self.oh_step", "self.alpha = self.oh_min + self.oh_step", GOLDEN + " -k dlw"
    ),
    Mutant("blg.py", "        shortage = torch.ones_like(shortage)\n", "        pass\n", PARTS + " -k blg"),
    Mutant(
        "iho.py", "(factors < low) | (factors > high)", "(factors > high)", GOLDEN + " " + PARTS + " -k iho"
    ),
    Mutant(
        "iho.py",
        "math.ceil(batch_size / num_classes) + 1",
        "math.ceil(batch_size / num_classes)",
        GOLDEN + " " + PARTS + " -k iho",
    ),
    Mutant(
        "iho.py", "counts[labels] > self.k).nonzero", "counts[labels] >= self.k).nonzero", PARTS + " -k iho"
    ),
    # The loop
    Mutant("distiller.py", "LAST_UNPRUNED = 5", "LAST_UNPRUNED = 4", EPOCH),
    Mutant(
        "distiller.py",
        "            if s.blg:\n                self.blg.update(",
        "            if s.blg:\n                len(",
        EPOCH,
    ),
    Mutant(
        "distiller.py",
        "                if s.blg:\n                    self.blg.update(",
        "                if s.blg:\n                    len(",
        EPOCH,
    ),
    Mutant("distiller.py", "min(missing, len(new))", "len(new)", EPOCH),
    Mutant("data/augment.py", "torch.lerp(images[others], images, share)", "images", EPOCH),
    Mutant(
        "distiller.py",
        "inputs = self.augment.normalize(to_float(images.to(self.streams.device)))",
        "inputs = to_float(images.to(self.streams.device))",
        PRINT,
    ),
    Mutant("distiller.py", "(first or (due and epoch >= s.warmup))", "first", PRINT),
    Mutant("distiller.py", "            self.kd.scheduler.step()", "            pass", EPOCH),
    Mutant("kd.py", "FINAL_LR = 2e-4", "FINAL_LR = 0.0", GOLDEN + " " + EPOCH),
    Mutant(
        "torch_utils/processes.py",
        "        flat /= self.world_size\n",
        "",
        "tests/test_parallel.py -k same_student",
    ),
    Mutant(
        "torch_utils/processes.py",
        'if "TORCHELASTIC_RUN_ID" not in os.environ:',
        "if False:",
        STRANGERS + " -k environment",
    ),
    Mutant(
        "torch_utils/streams.py",
        "common[0], *(own if rank else common)[1:]",
        "common[0], *common[1:]",
        PRINT + " -k processes_draw",
    ),
    Mutant("settings.py", "(s.synthesis_batch_size < 2,", "(s.batch_size < 2,", SETTINGS),
    Mutant("data/augment.py", "PADDING + 1, (2, n)", "PADDING, (2, n)", PRINT),
    Mutant("data/augment.py", "ASPECT = (3 / 4, 4 / 3)", "ASPECT = (3 / 4, 1)", PRINT),
    Mutant(
        "data/augment.py",
        "self.flip, self.scale, TRAINING_SCALE)",
        "self.flip, self.scale, self.large_scale)",
        PRINT,
    ),
    Mutant(
        "repository.py",
        "return serials % self.world_size == self.rank",
        "return serials >= 0",
        PARTS + " -k processes",
    ),
    Mutant(
        "repository.py",
        "self._order = self._order[keep]",
        "self._order = self._order[keep].flip(0)",
        PARTS + " -k repository",
    ),
    Mutant("api.py", "            torch.set_default_dtype(dtype)", "            pass", ODD),
    # Networks and training
    Mutant("../models/mobilenetv2.py", "nn.Dropout(0.5)", "nn.Dropout(0.2)", PRINT),
    Mutant(
        "../models/mobilenetv2.py",
        "nn.init.normal_(layer.weight, 0, 0.01)",
        "nn.init.normal_(layer.weight, 0, 0.02)",
        PRINT,
    ),
    Mutant("../models/wide_resnet.py", 'mode="fan_out")', 'mode="fan_in")', PRINT),
    Mutant(
        "../models/vgg.py",
        "nn.init.normal_(module.weight, 0, 0.01)",
        "nn.init.normal_(module.weight, 0, 0.1)",
        PRINT,
    ),
    Mutant(
        "runs/training.py",
        "T_max=max(1, s.epochs))",
        "T_max=max(1, s.epochs - 1))",
        "tests/test_training.py -k schedule",
    ),
    Mutant(
        "runs/training.py",
        "loss, overflows = self.descend_all",
        "lr = 0.0; loss, overflows = self.descend_all",
        "tests/test_training.py -k schedule",
    ),
    Mutant(
        "runs/real_images.py",
        "teacher_logits, s.T)",
        "teacher_logits, 4.0)",
        "tests/test_training.py -k temperature",
    ),
    # The peers of today, and repositories of bounded size
    Mutant("distiller.py", '"hit_rate": hits if', '"hit_rate": 0.5 if', f"{METHODS} -k hit_rate"),
    Mutant("synthesis/nayer.py", "layers = occurrences(targets)", "layers = None", NAYER),
    Mutant("synthesis/nayer.py", "layer.bias.zero_()", "pass", NAYER),
    Mutant("synthesis/nayer.py", "with frozen(self.student):", "if True:", NAYER),
    Mutant(
        "synthesis/nayer.py",
        "self.processes.broadcast(list(self._lasting().values()))",
        "pass",
        "tests/test_parallel.py -k every_method",
    ),
    Mutant("synthesis/fast_meta.py", "LABEL_SHARE = 0.02", "LABEL_SHARE = 0.5", f"{METHODS} -k latent"),
    # What a fresh reader of the speed work found
    Mutant("reuse.py", "exact = exact and not difference", "exact = True", REUSE),
    Mutant(
        "api.py",
        "usual = torch.autocast(device.type, enabled=False)",
        "usual = ExitStack()",
        "tests/test_networks.py -k takes_methods",
    ),
    # int8, several teachers, pruned students
    Mutant(
        "runs/int8.py",
        "return order[occurrences(labels[order]).argsort(stable=True)][:count]",
        "return order[:count]",
        INT8,
    ),
    Mutant("runs/int8.py", "kept = tuple(lost)[:keep_float]", "kept = tuple(lost)[-keep_float:]", INT8),
    Mutant("runs/int8.py", "per_channel=True", "per_channel=False", INT8),
    Mutant("networks/pruned.py", "gradient * mask", "gradient", f"{INT8} -k zeros"),
    Mutant("extras/several_teachers.py", "]).mean(0)", "]).sum(0)", SEVERAL),
    Mutant("networks/bn_statistics.py", "return max(torch.stack", "return min(torch.stack", INT8),
    Mutant(
        "runs/distillation.py", '"student_start": self.session.student_start', '"student_start": None', INT8
    ),
    Mutant("results/tables.py", "t.ppf(0.975,", "t.ppf(0.95,", "tests/test_tables.py -k differences"),
    Mutant("results/tables.py", '-mean(row.values("last_top1"))', "0", "tests/test_tables.py -k differences"),
    Mutant(
        "results/tables.py",
        "for row in (first, second))",
        "for row in (second, first))",
        "tests/test_tables.py",
    ),
    Mutant("results/style.py", "- below) + below", ")", "tests/test_results.py -k labels"),
    Mutant(
        "runs/real_images.py",
        "manual_seed(index)",
        "manual_seed(0)",
        "tests/test_training.py -k images_of_noise",
    ),
]


def left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy does not need."""
    return CACHES(folder, names) | (LARGE & set(names) if Path(folder) == ROOT else set())


def notice(mutant: Mutant, tree: Path) -> bool:
    """Whether a test fails with the mutant in a copy of the project."""
    file = tree / "datafree" / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} occurs {text.count(mutant.old)} times"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *mutant.tests.split(" -k ")[0].split(),
    ]
    if " -k " in mutant.tests:
        words += ["-k", mutant.tests.split(" -k ")[1]]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode in (0, 1, 2), f"{mutant}: no such test\n{done.stdout}"
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="of all mutants these")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [(number, one) for number, one in enumerate(MUTANTS) if args.only is None or number in args.only]
    survived = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: Queue[Path] = Queue()
        for number in range(args.jobs):
            tree = Path(folder) / str(number)
            shutil.copytree(ROOT, tree, ignore=left_out, symlinks=True)
            trees.put(tree)

        def one(numbered: tuple[int, Mutant]) -> None:
            number, mutant = numbered
            tree = trees.get()
            try:
                noticed = notice(mutant, tree)
            finally:
                trees.put(tree)
            line = f"{number:3} {mutant.file}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}"
            print("killed  " if noticed else "SURVIVED", line, flush=True)
            if not noticed:
                survived.append(line)

        list(pool.map(one, chosen))
    killed = len(chosen) - len(survived)
    print(f"{killed} of {len(chosen)} killed ({100 * killed / len(chosen):.0f} %)")
    for line in sorted(survived):
        print("survived", line)


if __name__ == "__main__":
    main()
