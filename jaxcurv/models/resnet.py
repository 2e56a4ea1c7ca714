"""Residual networks (He et al., 2016) in Flax NNX, laid out like torchvision's.

Attribute names, strides and paddings are torchvision's ("v1.5": the bottleneck strides in its 3x3
convolution), so that a state path such as `layer1/0/conv1/kernel` names the same weight as
torchvision's `layer1.0.conv1.weight`. Padding is explicit: Flax's "SAME" pads a stride-2
convolution on one side only and would differ from PyTorch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Stem = Literal["cifar", "imagenet"]

_kaiming_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(
    inputs: int, outputs: int, size: int, *, stride: int = 1, dtype: Any, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=_kaiming_fan_out,
        dtype=dtype,
        rngs=rngs,
    )


def _norm(features: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # Flax's default momentum of 0.99 lags behind on short runs; 0.9 is PyTorch's default.
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


class _Block(nnx.Module):
    """What both residual blocks share: the shortcut."""

    expansion: int

    def _make_shortcut(
        self, inputs: int, outputs: int, *, stride: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        layers: list[nnx.Module] = []
        if stride != 1 or inputs != outputs:
            layers = [
                _conv(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs),
                _norm(outputs, dtype=dtype, rngs=rngs),
            ]
        self.downsample = nnx.List(layers)

    def _shortcut(self, x: Array) -> Array:
        for layer in self.downsample:
            x = layer(x)
        return x


class BasicBlock(_Block):
    """Two 3x3 convolutions around a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, features: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        conv, norm = partial(_conv, dtype=dtype, rngs=rngs), partial(_norm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, features, 3, stride=stride)
        self.bn1 = norm(features)
        self.conv2 = conv(features, features, 3)
        self.bn2 = norm(features)
        self._make_shortcut(inputs, features, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Features after the block, float `[batch, height, width, channel]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + self._shortcut(x))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, features: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        conv, norm = partial(_conv, dtype=dtype, rngs=rngs), partial(_norm, dtype=dtype, rngs=rngs)
        outputs = features * self.expansion
        self.conv1 = conv(inputs, features, 1)
        self.bn1 = norm(features)
        self.conv2 = conv(features, features, 3, stride=stride)
        self.bn2 = norm(features)
        self.conv3 = conv(features, outputs, 1)
        self.bn3 = norm(outputs)
        self._make_shortcut(inputs, outputs, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Features after the block, float `[batch, height, width, channel]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(y + self._shortcut(x))


class ResNet(nnx.Module):
    """A residual network on images `[batch, height, width, channel]`.

    Args:
      block: `BasicBlock` or `Bottleneck`.
      depths: blocks in each of the four stages.
      num_classes: width of the logits.
      stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no pool), for images of
        about 32x32 or less.
      width: channels of the first stage; the others have 2, 4 and 8 times as many. 64 is standard.
      in_channels: channels of the images.
      dtype: computation type; parameters are always float32. `jnp.bfloat16` suits training on an
        accelerator, curvature wants float32.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        num_classes: int,
        stem: Stem,
        width: int,
        in_channels: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"unknown stem {stem!r}; use 'cifar' or 'imagenet'")
        if num_classes < 2 or width < 1 or in_channels < 1:
            raise ValueError(
                "a ResNet needs at least two classes, a width and in_channels of at least 1; got "
                f"num_classes={num_classes}, width={width}, in_channels={in_channels}"
            )
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.max_pool = stem == "imagenet"
        self.conv1 = _conv(in_channels, width, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(width, dtype=dtype, rngs=rngs)
        channels = width

        def stage(features: int, depth: int, stride: int) -> nnx.List:
            nonlocal channels
            blocks = []
            for position in range(depth):
                first = stride if position == 0 else 1
                blocks.append(block(channels, features, stride=first, dtype=dtype, rngs=rngs))
                channels = features * block.expansion
            return nnx.List(blocks)

        self.layer1 = stage(width, depths[0], 1)
        self.layer2 = stage(2 * width, depths[1], 2)
        self.layer3 = stage(4 * width, depths[2], 2)
        self.layer4 = stage(8 * width, depths[3], 2)
        self.fc = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch classes"]:
        """Logits of normalised images."""
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        if self.max_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))


def ResNet18(
    num_classes: int = 1000,
    *,
    stem: Stem = "imagenet",
    width: int = 64,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-18; the arguments are `ResNet`'s."""
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        stem=stem,
        width=width,
        in_channels=in_channels,
        dtype=dtype,
        rngs=rngs,
    )


def ResNet50(
    num_classes: int = 1000,
    *,
    stem: Stem = "imagenet",
    width: int = 64,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-50; the arguments are `ResNet`'s."""
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        num_classes=num_classes,
        stem=stem,
        width=width,
        in_channels=in_channels,
        dtype=dtype,
        rngs=rngs,
    )
