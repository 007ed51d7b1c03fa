"""A network of one's own: one grey channel in, BatchNorm1d in its head."""

from torch import Tensor, nn


class Grey(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 16):
        super().__init__()
        layers, channels = [], 1
        for factor in (1, 2, 4):
            layers += [
                nn.Conv2d(channels, factor * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(factor * width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = factor * width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(channels, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))
