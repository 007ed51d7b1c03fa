"""Distil a small network from a larger one without any data, in a program of one's own."""

import torch
from torch import nn

import datafree


def network(width: int) -> nn.Module:
    body = [nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    body += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def show(row: dict) -> None:
    print(f"epoch {row['epoch'] + 1}: agreement {row['holdout_agreement']:.1f} %")


torch.manual_seed(0)
teacher, student = network(32), network(8)  # your teacher has been trained
images = {"img_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # what the networks take
budget = {"epochs": 6, "warmup": 2, "kd_steps": 10, "ep_steps": 10, "batch_size": 32, "g_steps": 3}
student, metrics = datafree.distill(teacher, student, **images, **budget, on_epoch=show)
torch.save(student.state_dict(), "student.pth")
