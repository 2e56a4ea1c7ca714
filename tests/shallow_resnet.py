"""A residual network of one block in place of ResNet-18: it compiles in a moment."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest

import bridge
import bridge.weights.resnet
import jaxcurv.models
import jaxcurv.models.resnet

DEFAULTS = {"stem": "imagenet", "width": 64, "in_channels": 3}
"""Those of ResNet-18."""

resnet18 = bridge.weights.resnet18
"""The whole network, for where it matters."""


def replace_resnet18(patch: pytest.MonkeyPatch) -> None:
    """In both frameworks, in this process."""
    in_torch, in_jax = bridge.weights.resnet, jaxcurv.models.resnet
    patch.setattr(bridge.weights, "resnet18", partial(_one_block, in_torch, DEFAULTS))
    with_dtype = {**DEFAULTS, "dtype": jnp.float32}
    patch.setattr(jaxcurv.models, "ResNet18", partial(_one_block, in_jax, with_dtype))


def _one_block(
    framework: Any, defaults: dict[str, Any], num_classes: int = 1000, *given: Any, **named: Any
) -> Any:
    settings = dict(zip(defaults, given, strict=False))
    return framework.ResNet(
        framework.BasicBlock,
        (1, 0, 0, 0),
        num_classes=num_classes,
        **(defaults | settings | named),
    )
