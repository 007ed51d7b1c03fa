"""Networks that cannot be distilled are told apart before the first epoch, and odd ones that can are."""

import copy
import warnings

import pytest
import torch
from conftest import run_here
from helpers import FEW, assert_refused, small, write_teacher
from torch import nn

import datafree
from datafree.errors import UserError


class Around(nn.Module):
    """A network with something around its forward."""

    def __init__(self, inner=None, forward=lambda inner, x: inner(x)):
        super().__init__()
        self.inner, self.called = inner or small(0), forward

    def forward(self, x):
        return self.called(self.inner, x)


def write_to_input(inner, x):
    x.mul_(2)
    return inner(x)


def write_unseen(inner, x):
    x.data.mul_(2)  # which autograd is not told of
    return inner(x)


def without_gradient(inner, x):
    with torch.no_grad():
        return inner(x)


def under_inference(inner, x):
    with torch.inference_mode():
        return inner(x)


def frozen_network():
    return small(1).requires_grad_(False)


def damaged_network():
    network = small(0)
    network[6].weight.data[0, 0] = float("nan")
    return network


def made_under_inference():
    with torch.inference_mode():
        return small(1)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(small(1))


def lazy_network():
    torch.manual_seed(1)
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


def with_a_spare(seed=1):
    network = Around(small(seed))
    network.spare = nn.Linear(3, 3)
    return network


NO_STUDENTS = [
    (frozen_network, "the student: has no parameters to train: all are frozen"),
    (lambda: nn.Flatten(), "the student has no parameters to train"),
    (lambda: Around(small(1), without_gradient), "student: passes no gradient to its parameters"),
    (lambda: Around(small(1), under_inference), "student: passes no gradient to its parameters"),
    (made_under_inference, "student was created under torch.inference_mode"),
    (scripted, "student is a TorchScript module"),
    (lambda: small(1).bfloat16(), "student: .*bfloat16: call .float"),
]
NO_TEACHERS = [
    (lambda: Around(small(0), without_gradient), "teacher: passes no gradient to its images"),
    (
        lambda: Around(small(0), lambda inner, x: inner(x.detach())),
        "teacher: passes no gradient to its images",
    ),
    (
        lambda: Around(small(0), lambda inner, x: inner(x).detach()),
        "teacher: passes no gradient to its images",
    ),
    (
        lambda: Around(small(0), lambda inner, x: inner(x).round()),
        "teacher: passes no gradient to its images.*or rounds",
    ),
    (made_under_inference, "teacher was created under torch.inference_mode"),
    (scripted, "teacher is a TorchScript module"),
    (damaged_network, "teacher has values in 6.weight that are not finite: it is damaged"),
    (lambda: small(0).bfloat16(), "teacher: .*bfloat16: call .float"),
]


@pytest.mark.parametrize(("student", "message"), NO_STUDENTS)
def test_a_student_that_cannot_be_trained_is_refused(student, message):
    with pytest.raises(UserError, match=message.replace("the student: ", "student: ")):
        datafree.distill(small(0), student(), **FEW)


@pytest.mark.parametrize(("teacher", "message"), NO_TEACHERS)
def test_a_teacher_that_cannot_be_learned_from_is_refused(teacher, message):
    with pytest.raises(UserError, match=message):
        datafree.distill(teacher(), small(1), **FEW)


def test_networks_that_share_layers_are_refused():
    teacher, student = small(0), small(1)
    student[0] = teacher[0]
    for one in (student, teacher):
        with pytest.raises(UserError, match="teacher and student share layers"):
            datafree.distill(teacher, one, **FEW)


@pytest.mark.parametrize("share", ["assigned", "one weight", "a buffer"])
def test_networks_that_share_memory_are_refused(share):
    teacher, student = small(0), small(1)
    if share == "assigned":
        student.load_state_dict(teacher.state_dict(), assign=True)
    elif share == "one weight":
        student[0].weight.data = teacher[0].weight.data
    else:
        student.register_buffer("view", teacher[0].weight.detach()[0])
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(UserError, match="teacher and student share layers"):
        datafree.distill(teacher, student, **FEW)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_buffer_may_be_infinite_as_a_mask_of_attention_is():
    for teaches in (False, True):
        networks = [small(0), small(1)]
        networks[teaches].register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        datafree.distill(*networks, **FEW)


def state_after(teacher, student):
    datafree.distill(teacher, student, **FEW)
    return student.state_dict()


def test_a_teacher_that_writes_to_its_images_teaches_as_one_that_does_not():
    def doubled(inner, x):
        return inner(x * 2)

    first, *others = [
        state_after(Around(small(0), forward), small(1)) for forward in (doubled, write_to_input)
    ]
    assert all(torch.equal(value, state[key]) for state in others for key, value in first.items())
    # Unseen by autograd it teaches something else, but what the student sees is left alone.
    seen = []
    student = Around(small(1), lambda inner, x: seen.append(x.detach().abs().max().item()) or inner(x))
    datafree.distill(Around(small(0), write_unseen), student, **FEW)
    assert max(seen) <= 1.0 + 1e-6
    teacher = Around(small(0), write_to_input)
    datafree.distill(teacher, small(1), **FEW)
    images = torch.rand(2, 3, 8, 8)
    before = images.clone()
    teacher(images)
    assert not torch.equal(images, before), "the network is not left as it was"


def test_lazy_students_and_unused_parameters_are_trained():
    state = state_after(small(0), lazy_network())
    assert state["0.weight"].shape == (8, 3, 3, 3)
    student = with_a_spare()
    spare = copy.deepcopy(student.spare.weight)
    state_after(small(0), student)
    assert torch.equal(student.spare.weight, spare)


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta"), "double"]
)
def test_the_library_does_the_same_whatever_the_defaults_are(around):
    teacher, plain, student = small(0), small(1), small(1)
    plain = state_after(teacher, plain)
    if around == "double":
        torch.set_default_dtype(torch.float64)
        try:
            state = state_after(teacher, student)
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with around():
            state = state_after(teacher, student)
    assert all(torch.equal(value, state[key]) for key, value in plain.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": 0.5}, "give 1 or 3 finite numbers each"),
        ({"mean": None}, "give 1 or 3 finite numbers each"),
        ({"std": "0.5"}, "give 1 or 3 finite numbers each"),
        ({"std": (1e-300,) * 3}, "std 1e-06 or more"),
        ({"evaluate": lambda _: None}, "evaluate returned None: return the accuracy in percent"),
        ({"evaluate": lambda _: "good"}, "evaluate returned 'good'"),
    ],
)
def test_values_that_cannot_be_meant_say_what_to_give(changed, message):
    with pytest.raises(UserError, match=message):
        datafree.distill(small(0), small(1), **{**FEW, **changed})


FILE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, num_classes),
        )

    def forward(self, x):
        return self.layers(x)


class Remembers(Net):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def half(num_classes):
    return Net(num_classes).bfloat16()


def damaged(num_classes):
    network = Net(num_classes)
    network.layers[0].weight.data.fill_(float("inf"))
    return network


def frozen(num_classes):
    return Net(num_classes).requires_grad_(False)
"""
TINY = (
    *"--dataset digits --device cpu --epochs 2 --warmup 1 --kd_steps 1 --ep_steps 1 --batch_size 8".split(),
    *"--g_steps 1 --save_dir out".split(),
)


@pytest.fixture
def cwd(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ("wrn16_1", "net.py:Remembers", "_extra_state of its state dict is no tensor"),
        ("wrn16_1", "net.py:frozen", "has no parameters to train: all are frozen"),
        ("net.py:damaged", "net.py:Net", "has values in layers.0.weight that are not finite"),
        ("net.py:half", "net.py:Net", None),
        ("net.py:Remembers", "net.py:half", None),
    ],
)
def test_odd_networks_of_files_run_or_are_refused_before_the_first_epoch(teacher, student, message, cwd):
    ckpt = ["--teacher_ckpt", "teacher.pth"] if teacher == "wrn16_1" else []
    done = run_here("bsr_main.py", *TINY, "--teacher", teacher, *ckpt, "--student", student, cwd=cwd)
    if message is None:
        assert done.returncode == 0, done.stderr
        datafree.load_student(cwd / "out/student.pth", f"{cwd}/{student}")
    else:
        assert_refused(done, message)
        assert not (cwd / "out").exists()


def test_training_finds_out_as_well(cwd):
    flags = "--dataset digits --device cpu --model net.py:Remembers --epochs 1 --output t.pth".split()
    assert_refused(
        run_here("train_scratch.py", *flags, cwd=cwd), "_extra_state of its state dict is no tensor"
    )
