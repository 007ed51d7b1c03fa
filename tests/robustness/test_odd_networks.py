"""Unusual networks: refused before the first epoch, or distilled like any other."""

import copy
import warnings

import pytest
import torch
from helpers import FEW, small
from torch import nn

import datafree
from datafree.errors import UserError


class Around(nn.Module):
    """A network with something around its forward."""

    def __init__(self, inner, forward=lambda inner, x: inner(x)):
        super().__init__()
        self.inner, self.called = inner, forward

    def forward(self, x):
        return self.called(self.inner, x)


def write_to_input(inner, x):
    x.mul_(2)
    return inner(x)


def without_gradient(inner, x):
    with torch.no_grad():
        return inner(x)


def created_in_inference_mode():
    with torch.inference_mode():
        return small(1)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(small(1))


def damaged():
    network = small(0)
    network[6].weight.data[0, 0] = float("nan")
    return network


REFUSED = [  # teacher, student, message
    (None, lambda: small(1).requires_grad_(False), "student: has no parameters to train: all are frozen"),
    (None, nn.Flatten, "the student has no parameters to train"),
    (None, lambda: Around(small(1), without_gradient), "student: passes no gradient to its parameters"),
    (None, created_in_inference_mode, "student was created under torch.inference_mode"),
    (None, scripted, "student is a TorchScript module"),
    (None, lambda: small(1).bfloat16(), "student: .*bfloat16: call .float"),
    (lambda: Around(small(0), without_gradient), None, "teacher: passes no gradient to its images"),
    (
        lambda: Around(small(0), lambda inner, x: inner(x).round()),
        None,
        "teacher: passes no gradient to its images.*or rounds",
    ),
    (scripted, None, "teacher is a TorchScript module"),
    (damaged, None, "teacher has values in 6.weight that are not finite: it is damaged"),
]


@pytest.mark.parametrize(("teacher", "student", "message"), REFUSED)
def test_networks_that_cannot_teach_or_learn_are_refused(teacher, student, message):
    with pytest.raises(UserError, match=message):
        datafree.distill(teacher() if teacher else small(0), student() if student else small(1), **FEW)


@pytest.mark.parametrize("share", ["a layer", "all", "assigned", "one weight", "a buffer"])
def test_networks_that_share_memory_are_refused(share):
    teacher, student = small(0), small(1)
    if share == "a layer":
        student[0] = teacher[0]
    elif share == "all":
        student = teacher
    elif share == "assigned":
        student.load_state_dict(teacher.state_dict(), assign=True)
    elif share == "one weight":
        student[0].weight.data = teacher[0].weight.data
    else:
        student.register_buffer("view", teacher[0].weight.detach()[0])
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(UserError, match="teacher and student share layers"):
        datafree.distill(teacher, student, **FEW)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_buffer_may_be_infinite_like_an_attention_mask():
    networks = [small(0), small(1)]
    for network in networks:
        network.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    datafree.distill(*networks, **FEW)


def state_after(teacher, student):
    datafree.distill(teacher, student, **FEW)
    return student.state_dict()


def test_a_teacher_that_writes_to_its_images_teaches_like_one_that_does_not():
    doubled = state_after(Around(small(0), lambda inner, x: inner(x * 2)), small(1))
    teacher = Around(small(0), write_to_input)
    written = state_after(teacher, small(1))
    assert all(torch.equal(value, written[key]) for key, value in doubled.items())
    images = torch.rand(2, 3, 8, 8)
    before = images.clone()
    teacher(images)
    assert not torch.equal(images, before), "the network is not left as it was"


def test_lazy_students_and_unused_parameters():
    torch.manual_seed(1)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    assert state_after(small(0), lazy)["0.weight"].shape == (8, 3, 3, 3)
    student = Around(small(1))
    student.spare = nn.Linear(3, 3)
    spare = copy.deepcopy(student.spare.weight)
    state_after(small(0), student)
    assert torch.equal(student.spare.weight, spare)


def test_results_do_not_depend_on_torchs_defaults():
    plain = state_after(small(0), small(1))
    for around in (torch.no_grad, torch.inference_mode, lambda: torch.device("meta")):
        teacher, student = small(0), small(1)
        with around():
            state = state_after(teacher, student)
        assert all(torch.equal(value, state[key]) for key, value in plain.items())
    teacher, student = small(0), small(1)
    torch.set_default_dtype(torch.float64)
    try:
        state = state_after(teacher, student)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(value, state[key]) for key, value in plain.items())
