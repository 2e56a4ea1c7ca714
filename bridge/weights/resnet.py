"""Residual networks in PyTorch with torchvision's parameter names and architecture ("v1.5")."""

from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
import torch
from flax import nnx
from torch import nn

from bridge.weights.comparison import flax_logits, torch_logits
from bridge.weights.state import collect

Stem = Literal["cifar", "imagenet"]

_TOLERANCE = 1e-4  # of the twins' logits, relative to the largest; rounding gives about 1e-6


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
        """Features after the block, float `[batch, channel, height, width]`."""
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
        """Features after the block, float `[batch, channel, height, width]`."""
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
        """Logits `[batch, class]` of images `[batch, channel, height, width]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(
    num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, in_channels: int = 3
) -> ResNet:
    """ResNet-18, with random weights.

    Args:
      num_classes: number of logits.
      stem: "imagenet", a first convolution of 7x7 and pooling, or "cifar", one of 3x3 without.
      width: channels of the first stage; 64 is the standard network.
      in_channels: channels of the images.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, stem, width, in_channels)


def resnet50(
    num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, in_channels: int = 3
) -> ResNet:
    """ResNet-50, with random weights.

    Args:
      num_classes: number of logits.
      stem: "imagenet", a first convolution of 7x7 and pooling, or "cifar", one of 3x3 without.
      width: channels of the first stage; 64 is the standard network.
      in_channels: channels of the images.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, stem, width, in_channels)


def twin(model: nnx.Module) -> ResNet:
    """The PyTorch twin of a Flax NNX ResNet: its structure and its weights, in evaluation mode.

    Kind of block, depths, width, stem and channels are read from the names and shapes of the
    weights, epsilon from each BatchNorm. What these do not show (strides, padding, dilation,
    activations, pooling) is checked by the logits of two random images, of 32x32 pixels, or 96x64
    with the stem "imagenet".

    Args:
      model: any NNX model with torchvision's attribute names, from float32 images
        `[batch, height, width, channel]` to logits; float32, in either mode, not changed.

    Raises:
      ValueError: the model is no such ResNet (what differs is listed), its logits differ from the
        twin's, or its weights are not finite.
    """
    state_dict = collect(model)
    network = _of_shapes({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    network.load_state_dict(state_dict, assign=True)
    network.eval()
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.BatchNorm):
            norm = cast(nn.BatchNorm2d, network.get_submodule(".".join(map(str, path))))
            norm.eps = layer.epsilon

    # Even, so that an asymmetric padding shows; and the last stage has several rows and columns (4
    # and 4 after the stem "cifar", 3 and 2 after "imagenet"), so that pooling and dilation do.
    height, width = (32, 32) if isinstance(network.maxpool, nn.Identity) else (96, 64)
    shape = (2, height, width, network.conv1.in_channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = flax_logits(model, images)
    logits = torch_logits(network, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    if logits.shape != expected.shape:
        raise ValueError(
            f"the model gives {expected.shape} for two images and not logits {logits.shape}"
        )
    error = np.abs(logits - expected).max()
    if not error <= _TOLERANCE * np.abs(expected).max():
        raise ValueError(
            "the model has the weights of a ResNet but other logits than torchvision's ResNet has "
            f"with them (by {error:.1e}, the largest being {np.abs(expected).max():.1e}): strides, "
            "padding, dilation, activations, pooling or the computation type (float32 is needed) "
            "differ"
        )
    return network


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> ResNet:
    """The ResNet whose state dict has these shapes, without values (on the meta device)."""
    stem, head = shapes.get("conv1.weight", ()), shapes.get("fc.weight", ())
    if stem[2:] not in ((7, 7), (3, 3)) or len(head) != 2:
        raise ValueError(
            "not a ResNet with torchvision's names: it has no convolution conv1 of 7x7 or 3x3, or "
            "no linear layer fc; write its PyTorch twin and load to_torch(model) into it"
        )

    def depth(stage: int) -> int:
        return len({name.split(".")[1] for name in shapes if name.startswith(f"layer{stage}.")})

    with torch.device("meta"):
        network = ResNet(
            Bottleneck if any(".conv3." in name for name in shapes) else BasicBlock,
            (depth(1), depth(2), depth(3), depth(4)),
            num_classes=head[0],
            stem="imagenet" if stem[2:] == (7, 7) else "cifar",
            width=stem[0],
            in_channels=stem[1],
        )
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in shapes]
    problems += [f"unexpected {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} has shape {shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if problems:
        raise ValueError("not a ResNet with torchvision's names: " + "; ".join(problems))
    return network
