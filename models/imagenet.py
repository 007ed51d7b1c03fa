"""torchvision's ResNets for 224 x 224 images."""

import torchvision
from torch import nn


def _resnet(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    if not pretrained:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    network = torchvision.models.get_model(name, weights="DEFAULT")
    if num_classes != network.fc.out_features:
        network.fc = nn.Linear(network.fc.in_features, num_classes)
    return network


def resnet18_imagenet(num_classes: int, pretrained: bool = False) -> nn.Module:
    return _resnet("resnet18", num_classes, pretrained)


def resnet34_imagenet(num_classes: int, pretrained: bool = False) -> nn.Module:
    return _resnet("resnet34", num_classes, pretrained)


def resnet50_imagenet(num_classes: int, pretrained: bool = False) -> nn.Module:
    return _resnet("resnet50", num_classes, pretrained)
