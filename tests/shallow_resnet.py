"""A residual network of one block in place of ResNet-18: it compiles in a moment."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

import bridge
import bridge.weights.resnet
import jaxcurv.models
import jaxcurv.models.resnet

DEPTHS = (1, 0, 0, 0)

resnet18 = bridge.resnet18
"""The whole network, for where it matters."""


def replace_resnet18(patch: pytest.MonkeyPatch) -> None:
    """In both frameworks, in this process."""
    patch.setattr(bridge, "resnet18", _in_torch)
    patch.setattr(jaxcurv.models, "ResNet18", _in_jax)


def _in_torch(
    num_classes: int = 1000, stem: Any = "imagenet", width: int = 64, in_channels: int = 3
) -> bridge.weights.resnet.ResNet:
    block = bridge.weights.resnet.BasicBlock
    return bridge.weights.resnet.ResNet(block, DEPTHS, num_classes, stem, width, in_channels)


def _in_jax(
    num_classes: int = 1000,
    *,
    stem: Any = "imagenet",
    width: int = 64,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> jaxcurv.models.resnet.ResNet:
    return jaxcurv.models.resnet.ResNet(
        jaxcurv.models.resnet.BasicBlock,
        DEPTHS,
        num_classes=num_classes,
        stem=stem,
        width=width,
        in_channels=in_channels,
        dtype=dtype,
        rngs=rngs,
    )
