"""A small convolutional classifier whose penultimate layer serves as features."""

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64


class Classifier(nn.Module):
    """Maps images (B, C, H, W) in [0, 1] to features (B, 64) and class logits (B, classes)."""

    def __init__(self, channels: int, classes: int, width: int = 32):
        super().__init__()
        self.conv_0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_1 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.conv_2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2)
        self.dense = nn.Linear(2 * width * 4, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.conv_0(2 * x - 1))
        h = F.relu(self.conv_1(h))
        h = F.relu(self.conv_2(h))
        features = F.relu(self.dense(F.adaptive_avg_pool2d(h, 2).flatten(1)))
        return features, self.head(features)
