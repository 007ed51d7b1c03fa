"""Students that start pruned."""

import copy

import torch
from conftest import run_here, succeed
from helpers import DIGITS, assert_refused, write_teacher
from torch import nn

from datafree import models
from datafree.extras.pruned import keep_zeros, zeros_of

BSR = f"{DIGITS} --epochs 3 --batch_size 32 --lr 0.01 --save_dir run"


def test_zeros_stay_zero_through_momentum_and_decay():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*body, nn.Linear(8, 5))
    with torch.no_grad():
        network[0].weight[:, :2] = 0
        network[5].weight[1] = 0
    before = copy.deepcopy(network.state_dict())
    assert zeros_of(network) == (8 * 2 * 9 + 8, 8 * 27 + 40)
    keep_zeros(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.rand(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        if name.endswith("weight") and value.dim() > 1:
            assert torch.equal(value == 0, before[name] == 0), name
            assert not torch.equal(value, before[name])


def test_a_pruned_student_recovers_and_is_continued_only_from_its_own_start(tmp_path):
    write_teacher(tmp_path / "teacher.pth")
    torch.manual_seed(1)
    student = models.create("wrn16_1", 10)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < parameter.abs().median()] = 0
    torch.save(student.state_dict(), tmp_path / "pruned.pth")
    command = f"{BSR} --keep_zeros --student_ckpt"
    succeed(f"{command} pruned.pth", cwd=tmp_path)
    trained = torch.load(tmp_path / "run/student.pth", weights_only=True)["state_dict"]
    for name, value in student.state_dict().items():
        if value.dim() > 1:
            assert (trained[name][value == 0] == 0).all()
            assert not torch.equal(trained[name], value)
    torch.save(models.create("wrn16_1", 10).state_dict(), tmp_path / "other.pth")
    assert_refused(run_here(f"{command} other.pth --resume", cwd=tmp_path), "student_start was")
    vgg = run_here(f"{BSR} --student_ckpt teacher.pth --student vgg8 --save_dir no", cwd=tmp_path)
    assert_refused(vgg, "vgg8 with 10 classes")
