"""Settings: one definition, from which flags, keyword arguments, identity, tables and pages follow."""

import inspect
import json
import re
import runpy
import time
from dataclasses import replace

import pytest
from conftest import ROOT, run_script

import datafree
from datafree.cli import bsr, kd, train
from datafree.cli import parser as cli
from datafree.cli.bsr import build_parser
from datafree.errors import UserError
from datafree.methods import METHODS
from datafree.settings import (
    FIELDS,
    LIBRARY,
    TABLE,
    KDSettings,
    QuantizeSettings,
    Settings,
    TrainSettings,
    check,
    identity,
    resolve,
    resolve_quantization,
    settings_of,
)
from datafree.synthesis import cmi, fast_meta


def resolved(words: str) -> tuple[Settings, list[str]]:
    return resolve(build_parser().given(words.split()))


def refusal(words: str, capsys, command=bsr) -> str:
    """The line on which a command refuses flags."""
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: resolve(command.build_parser().given(words.split())))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# One definition


@pytest.mark.parametrize("owner", [Settings, TrainSettings, KDSettings, QuantizeSettings])
def test_every_setting_has_a_group_a_help_text_and_a_default_of_its_type(owner):
    for one in settings_of(owner):
        assert one.group, one.name
        assert re.search(r"[a-z]{2,}", one.help), one.name
        assert one.default is None or one.check(one.default) == one.default, one.name


def test_flags_and_keyword_arguments_follow_from_the_settings():
    text = build_parser().format_help()
    assert not [one.name for one in FIELDS if f"--{one.name}" not in text]
    parameters = inspect.signature(datafree.distill).parameters
    assert list(parameters)[-len(LIBRARY) :] == list(LIBRARY)
    assert (parameters["oh_step"].default, parameters["oh_step"].annotation) == (0.1, float)
    assert {"oh_step", "student_args", "transfer_set"} <= set(TABLE)
    assert not {"save_dir", "seed", "device"} & set(TABLE)


def test_the_page_of_flags_is_up_to_date():
    page = runpy.run_path(str(ROOT / "scripts/derive.py"))["flags_page"]()
    assert (ROOT / "docs/flags.md").read_text() == page, "run `make derive`"


def test_python_and_the_command_line_resolve_alike():
    given = {"method": "fast_meta", "g_steps": 5, "oh": 0.4, "dlw": False, "T": 4, "reset_bn": True}
    given |= {"lr": None, "reuse_teacher": "1.5GB"}
    words = "--method fast_meta --g_steps 5 --oh 0.4 --no-dlw --T 4 --reset_bn 1 --reuse_teacher 1500MB"
    assert resolve(check(given))[0] == resolved(words)[0]
    for given, message in (
        ({"T": "7"}, "T: '7' is not a number above 0"),
        ({"reset_bn": 2}, "reset_bn: 2 is not one of 0, 1"),
        ({"label_embedding": 7}, "label_embedding: 7 is not a string"),
    ):
        with pytest.raises(UserError) as error:
            check(given)
        assert str(error.value) == message


def test_settings_of_machine_and_folder_are_no_part_of_a_runs_identity():
    one = resolve({})[0]
    moved = {"save_dir": "x", "device": "cpu", "workers": 0, "repository_memory": 7, "save_every": 3}
    assert identity(replace(one, **moved)) == identity(one)
    for name, value in {"lr": 0.3, "seed": 4, "student_args": "width=2", "max_samples": 9}.items():
        assert identity(replace(one, **{name: value})) != identity(one), name
    json.dumps(identity(one))  # plain data


# Published settings

_ALL = {"epochs": 420, "warmup": 20, "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "T": 20.0}
_ALL |= {"kd_steps": 400, "ep_steps": 400, "batch_size": 256, "synthesis_batch_size": 256, "g_steps": 10}
_ALL |= {"lr_g": 2e-3, "lr_z": 0.01, "adv": 1.33, "bn": 10.0, "oh": 0.5, "bn_mmt": 0.9, "is_maml": 1}
_ALL |= {"reset_l0": 1, "reset_bn": 0, "act": 0.0, "balance": 0.0, "cr": 0.8, "cr_T": 0.2, "tv": 2.5e-5}
_ALL |= {"l2": 3e-8, "oh_min": 0.5, "oh_max": 1.0, "oh_step": 0.1, "oh_memory_size": 8, "ema_generator": 0.0}
_ALL |= {"g_loops": 2, "gwp_loops": 10, "g_life": 10, "label_embedding": "classifier", "dlw": False}
_OLD = {"epochs": 200, "warmup": 0, "lr": 0.1}
_FRESH = {**_OLD, "kd_steps": 5, "g_steps": 1, "lr_g": 1e-3, "adv": 1.0, "bn": 0.0, "oh": 0.0, "T": 1.0}
_NAYER = {"epochs": 320, "batch_size": 512, "synthesis_batch_size": 400, "g_steps": 30, "lr_g": 4e-3}
_TINY = {"batch_size": 256, "synthesis_batch_size": 200, "g_steps": 60, "g_loops": 4, "gwp_loops": 20}
_TINY |= {"kd_steps": 1000, "ep_steps": 1000, "lr": 0.1}
PUBLISHED = {
    "bsr": {"dlw": True, "blg": True, "iho": True},
    "bsr --g_steps 5": {"dlw": True, "g_steps": 5},
    "fast_meta": {"epochs": 220},
    "fast_meta --g_steps 5": {"epochs": 220, "g_steps": 5, "lr_g": 3e-3},
    "fast_meta --teacher wrn40_2": {"epochs": 220, "oh": 0.4},
    "fast_meta --teacher wrn40_2 --oh 1": {"epochs": 220, "oh": 1.0},
    "fast": {"epochs": 220},
    "fast --g_steps 2 --lr_z 1": {"epochs": 220, "g_steps": 2, "lr_g": 5e-3, "lr_z": 1.0},
    "cmi": {**_OLD, "g_steps": 200, "lr_g": 1e-3, "lr_z": 1e-3, "adv": 0.5, "bn": 1.0, "oh": 1.0},
    "deepinv": {**_OLD, "g_steps": 1000, "lr_g": 0.1, "adv": 1.0, "bn": 10.0, "oh": 1.0},
    "nayer": _NAYER,
    "nayer --dataset cifar100": {**_NAYER, "g_steps": 40},
    "nayer --dataset tiny_imagenet": {**_NAYER, **_TINY},
    "dafl": {**_FRESH, "adv": 0.0, "oh": 1.0, "act": 0.001, "balance": 20.0},
    "zskt": _FRESH,
    "dfad": _FRESH,
    "dfq": {**_FRESH, "kd_steps": 10, "bn": 1.0, "oh": 1.0, "balance": 20.0},
}


@pytest.mark.parametrize("words", PUBLISHED)
def test_each_method_has_its_published_settings_unless_others_are_given(words):
    settings, warnings = resolved(f"--method {words}")
    values = {name: getattr(settings, name) for name in {**_ALL, **PUBLISHED[words]}}
    assert values == {**_ALL, **PUBLISHED[words]}
    assert warnings == []
    assert settings.store_samples == METHODS[settings.method].stores
    assert settings.rounds == settings.ep_steps // settings.kd_steps
    loops = settings.g_loops if settings.method == "nayer" else 1
    assert settings.synthesis_samples == settings.synthesis_batch_size * loops


def test_the_parts_of_each_method_are_the_published_ones():
    parts = {name: (one.nz, one.start, one.stores, one.divergence) for name, one in METHODS.items()}
    storing = dict.fromkeys(("bsr", "fast_meta", "fast", "cmi", "deepinv", "nayer"), (256, 2, True, "kl"))
    fresh = {"dafl": (512, 4, False, "kl"), "zskt": (256, 4, False, "kl"), "dfq": (256, 4, False, "kl")}
    assert parts == {**storing, **fresh, "dfad": (256, 4, False, "l1")}
    assert (cmi.BANK_SIZE, cmi.NEGATIVES, fast_meta.RESET_CALL) == (40_960, 4_096, 120)


# The command line


@pytest.mark.parametrize(
    ("words", "given"),
    [  # as in published commands
        ("--test_teacher True", {"test_teacher": True}),
        ("--test_teacher False --lr 0.1", {"test_teacher": False, "lr": 0.1}),
        ("--dlw False --no_blg --no-iho", {"dlw": False, "blg": False, "iho": False}),
        ("--epoch 200 --oh_mem 4", {"epochs": 200, "oh_memory_size": 4}),
        ("--print_freq -1 -p 7", {"print_freq": 7}),
        ("-b 64 --learning-rate 1 --wd=2", {"batch_size": 64, "lr": 1.0, "weight_decay": 2.0}),
        ("--resume --seed 3", {"resume": "", "seed": 3}),
        ("--teacher_ckpt a.pth b.pth", {"teacher_ckpt": "a.pth + b.pth"}),
        ("--repository_memory 1.5kb", {"repository_memory": 1500}),
    ],
)  # fmt: skip
def test_words_of_published_commands_are_understood(words, given):
    assert build_parser().given(words.split()) == given


def test_weights_of_kd_with_real_images_have_their_published_names_too():
    given = kd.build_parser().given("--alpha 0.5 --beta 2 --lr_decay_milestones 3,7".split())
    assert given == {"kd_weight": 0.5, "ce_weight": 2.0, "lr_decay_milestones": "3,7"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 0", "--batch_size: 0 is not a whole number above 0"),
        ("--lr_g nan", "--lr_g: nan is not a number above 0"),
        ("--bn_mmt 1", "--bn_mmt: 1.0 is not in [0, 1)"),
        ("--reuse_teacher 4XB", "--reuse_teacher: '4XB' is not a size such as 4GB"),
        ("--save_dir=", "--save_dir: the folder name is empty (use . for the current folder)"),
        ("--student vgg8+vgg11", "--student: unknown network vgg8+vgg11, did you mean vgg11?"),
        ("--method bsrr", "dfad, dfq, did you mean bsr?"),
        ("--bath_size 3", "unknown argument --bath_size, did you mean --batch_size?"),
        ("--oh_m 3", "ambiguous option: --oh_m could match --oh_min, --oh_max, --oh_memory_size"),
        ("--world-size=2", "`torchrun --nproc_per_node N`"),
        ("--batch_size 1", "a batch needs 2 images or more"),
        ("--warmup 30 --epochs 20", "--warmup 30 is beyond --epochs 20: lower it"),
        ("--kd_steps 10 --ep_steps 5", "--kd_steps 10 is more than --ep_steps 5: lower it"),
        ("--resume --overwrite", "--resume and --overwrite contradict each other: choose one"),
        ("--method dafl --reuse_teacher 0", "--reuse_teacher needs stored samples: add --store_samples"),
        ("--mixup --reuse_teacher 1GB", "blends never repeat"),
        ("--method zskt --adv 0", "zskt has nothing to optimise: give one of --bn --oh --act"),
        ("--dataset none --test_teacher", "--test_teacher has no test images: add --eval_folder"),
        ("--keep_zeros", "--keep_zeros needs weights that are zero: add --student_ckpt"),
    ],
)  # fmt: skip
def test_impossible_flags_are_refused_on_one_line(words, message, capsys):
    assert message in refusal(words, capsys)


@pytest.mark.parametrize("command", [train, kd])
def test_other_commands_point_to_what_replaces_a_flag(command, capsys):
    assert "torchrun --nproc_per_node" in refusal("--multiprocessing-distributed", capsys, command)
    assert "--resume continues where it stopped" in refusal("--start-epoch 3", capsys, command)


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (
            "--method zskt --cr 1 --lr_z 0.1 --adv 2",
            "--lr_z --cr have no effect with --method zskt (it uses --g_steps --lr_g --adv --bn --oh --act "
            "--balance --ema_generator)",
        ),
        ("--method zskt --T 20", "--T has no effect with --method zskt (it is always 1.0)"),
        ("--method zskt --max_samples 5", "--max_samples has no effect without --store_samples"),
        ("--store_samples", "--store_samples has no effect with --method bsr (it always stores them)"),
        ("--method dfq --store_samples --ema_g 0.9", "--ema_generator has no effect with --store_samples"),
        ("--oh 1", "--oh has no effect while DLW sets alpha (use --oh_min or --no-dlw)"),
        ("--no-dlw --oh_min 1 --oh_step 1", "--oh_min --oh_step have no effect without --dlw"),
        ("--oh_max 2", "--oh_max has no effect with --dlw_mode dynamic"),
        ("--adv 0", "with --adv 0 alpha never rises: there is no adversarial loss"),
        ("--method bsr --dlw", "bsr also has BLG and IHO: add --no-blg --no-iho for DLW alone, as published"),
    ],
)
def test_settings_without_effect_are_named(words, warning):
    assert resolved(words)[1] == [warning]


def test_quantisation_synthesises_with_its_own_defaults():
    own, made, warnings = resolve_quantization({"keep_float": 1, "lr_g": 0.2})
    assert (own.method, own.dataset, own.bn, own.keep_float, own.calibration) == (
        "deepinv",
        "none",
        None,
        1,
        64,
    )
    assert (made.method, made.g_steps, made.synthesis_batch_size, made.adv) == ("deepinv", 150, 32, 0.0)
    assert (made.lr_g, made.bn, warnings) == (0.2, 10.0, [])
    assert not resolve_quantization({"method": "bsr"})[1].dlw


@pytest.mark.parametrize("script", ["bsr_main.py", "train_scratch.py", "vanilla_kd.py"])
def test_help_imports_nothing_heavy(script, tmp_path):
    start = time.monotonic()
    done = run_script(script, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert time.monotonic() - start < 20  # a busy machine; the imports are what is checked
    imported = set(re.findall(r"\|\s+(\w+)$", done.stderr, re.MULTILINE))
    assert not imported & {"torch", "torchvision", "numpy", "sklearn", "PIL", "matplotlib"}
