"""Residual networks in PyTorch with torchvision's parameter names and architecture ("v1.5")."""

from typing import Literal

import torch
from torch import nn

Stem = Literal["cifar", "imagenet"]


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """What both residual blocks share: the shortcut."""

    expansion: int

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(_Block):
    """Two 3x3 convolutions around a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__(inputs, features, stride)
        self.conv1 = _conv(inputs, features, 3, stride)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = _conv(features, features, 3)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, features: int, stride: int):
        outputs = features * self.expansion
        super().__init__(inputs, outputs, stride)
        self.conv1 = _conv(inputs, features, 1)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = _conv(features, features, 3, stride)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = _conv(features, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network on images `[batch, channel, height, width]`.

    Args:
      block: `BasicBlock` or `Bottleneck`.
      depths: blocks in each of the four stages.
      num_classes: width of the logits.
      stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no pool).
      width: channels of the first stage; the others have 2, 4 and 8 times as many.
      in_channels: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        stem: Stem,
        width: int,
        in_channels: int,
    ):
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"unknown stem {stem!r}; use 'cifar' or 'imagenet'")
        imagenet = stem == "imagenet"
        self.conv1 = _conv(in_channels, width, 7, 2) if imagenet else _conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        channels = width
        for stage, depth in enumerate(depths):
            features = width * 2**stage
            blocks = []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(block(channels, features, stride))
                channels = features * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(
    num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, in_channels: int = 3
) -> ResNet:
    """ResNet-18; the arguments are `ResNet`'s."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, stem, width, in_channels)


def resnet50(
    num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, in_channels: int = 3
) -> ResNet:
    """ResNet-50; the arguments are `ResNet`'s."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, stem, width, in_channels)
