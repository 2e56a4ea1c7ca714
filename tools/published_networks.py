"""Networks for CIFAR-10 that others trained; run --model tools.published_networks:NAME takes them.

Inputs of all of them are normalised with mean .485, .456, .406 and standard deviation .229, .224,
.225.
"""

import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


class Residual(nn.Module):
    """Two 3x3 convolutions; a strided shortcut takes every second pixel and pads channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *2 * [self.added]))


def _stages(block: type[Residual], blocks: int, width: int) -> list[nn.Sequential]:
    """Three stages, each of twice the channels and half the side of the one before."""
    made, inputs = [], width
    for outputs in (width, 2 * width, 4 * width):
        first = block(inputs, outputs, 1 if outputs == width else 2)
        rest = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
        made.append(nn.Sequential(first, *rest))
        inputs = outputs
    return made


class CifarResNet(nn.Module):
    """He et al.'s networks for CIFAR, with shortcuts without weights: 6 blocks + 2 layers deep.

    The names are those of github.com/akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, blocks: int = 1, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3 = _stages(Residual, blocks, width)
        self.linear = nn.Linear(4 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def akamaster_resnet20() -> nn.Module:
    """ResNet-20 of github.com/akamaster/pytorch_resnet_cifar10."""
    return CifarResNet(3).eval()


def akamaster_resnet32() -> nn.Module:
    """ResNet-32 of the same repository."""
    return CifarResNet(5).eval()


def akamaster_resnet56() -> nn.Module:
    """ResNet-56 of the same repository."""
    return CifarResNet(9).eval()


class ProjectedResidual(Residual):
    """A strided shortcut has a 1x1 convolution of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, stride)
        self.downsample = nn.Sequential()
        if stride > 1:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def shortcut(self, x: Tensor) -> Tensor:
        return self.downsample(x)


class CrossSimResNet(nn.Module):
    """ResNet-20 with 1x1 convolutions as shortcuts; the names are those of CrossSim's example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.res1, self.res2, self.res3 = _stages(ProjectedResidual, blocks=3, width=16)
        pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classifier = nn.Sequential(pool, flatten, nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.classifier(self.res3(self.res2(self.res1(x))))


def crosssim_resnet20() -> nn.Module:
    """ResNet-20 of github.com/sandialabs/cross-sim (applications/dnn/torch/cifar10_resnet)."""
    return CrossSimResNet().eval()
