"""The network of a `Student`: how large a budget lets it be, and what it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxcurv.training.steps import convolve_in_pieces

_LARGEST, _SMALLEST = 32, 8
"""Channels of a first convolution. Where the smallest does not fit, pixels are averaged first."""

_LEAST = 4
"""Channels, or hidden units, below which a logistic regression takes their place."""

_SIDE = 4
"""Convolutions halve the image until its sides are at most this long."""

_WIDEST = 4
"""A later convolution has at most so many times the channels of the first."""


@dataclass(frozen=True)
class Architecture:
    """The size of a student's network.

    An image is averaged over squares of pixels, then each convolution (3x3, stride 2) is followed
    by a ReLU, and the mean over what positions are left by a linear layer with one output. A vector
    has one hidden layer with a ReLU instead. Without either it is a logistic regression.

    Attributes:
      shape: shape of one input: (height, width, channel) of an image, (features,) of a vector.
      pooling: side of the squares of pixels that are averaged first; 1 for none.
      widths: channels after each convolution, or the units of the hidden layer; () is a logistic
        regression.
    """

    shape: tuple[int, ...]
    pooling: int = 1
    widths: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one input once it is averaged."""
        *sides, last = self.shape
        return (*(-(-side // self.pooling) for side in sides), last)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input, those of its matrix products and convolutions.

        A convolution has one for each output, input channel and place in its kernel, as
        `bridge.coverage` counts them.
        """
        if not self.widths or len(self.shape) == 1:
            sizes = [math.prod(self.inputs), *self.widths, 1]
            return sum(left * right for left, right in pairwise(sizes))
        height, width, channels = self.inputs
        total = self.widths[-1]
        for outputs in self.widths:
            height, width = -(-height // 2), -(-width // 2)
            total += height * width * 9 * channels * outputs
            channels = outputs
        return total


def architecture_for(shape: Sequence[int], budget_macs: int) -> Architecture:
    """The largest network that costs at most `budget_macs`.

    Images get convolutions, with at most 32 channels in the first and on averaged pixels where the
    budget is small; else a logistic regression of as many averaged pixels as fit. Vectors get at
    most 32 hidden units, else a logistic regression.

    Args:
      shape: shape of one input, (height, width, channel) or (features,).
      budget_macs: multiply-accumulates for one input.

    Raises:
      ValueError: not even a logistic regression fits.
    """
    plain = Architecture(tuple(shape))
    for candidate in _candidates(plain):
        if candidate.macs <= budget_macs:
            return candidate
    raise ValueError(
        f"a budget of {budget_macs:,} multiply-accumulates is too small for a student of inputs "
        f"{plain.shape}: a logistic regression takes {_smallest(plain).macs:,}; give more"
    )


def _candidates(plain: Architecture) -> list[Architecture]:
    """Networks to try in turn."""
    if len(plain.shape) == 1:
        hidden = range(_LARGEST, _LEAST - 1, -1)
        return [*(replace(plain, widths=(units,)) for units in hidden), plain]
    longest = max(plain.shape[:2])
    found, pooling = [], 1
    while pooling == 1 or longest // pooling >= _SIDE:
        averaged = replace(plain, pooling=pooling)
        found += [_convolutional(averaged, first) for first in range(_LARGEST, _SMALLEST - 1, -1)]
        pooling *= 2
    least = replace(plain, pooling=pooling // 2)
    found += [_convolutional(least, first) for first in range(_SMALLEST - 1, _LEAST - 1, -1)]
    return found + [replace(plain, pooling=side) for side in range(1, longest + 1)]


def _convolutional(averaged: Architecture, first: int) -> Architecture:
    side, widths = max(averaged.inputs[:2]), list[int]()
    while not widths or side > _SIDE:
        widths.append(first * min(2 ** len(widths), _WIDEST))
        side = -(-side // 2)
    return replace(averaged, widths=tuple(widths))


def _smallest(plain: Architecture) -> Architecture:
    return plain if len(plain.shape) == 1 else replace(plain, pooling=max(plain.shape[:2]))


class StudentNetwork(nnx.Module):
    """A student's network on standardised inputs; see `Architecture`.

    Args:
      architecture: its size.
      rngs: draws its weights.
    """

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        self.pooling = architecture.pooling
        images = len(architecture.shape) == 3
        self.convolutions, self.hidden = nnx.List[nnx.Conv](), nnx.List[nnx.Linear]()
        inputs = math.prod(architecture.inputs)
        if images and architecture.widths:
            inputs = architecture.shape[-1]
        for outputs in architecture.widths:
            start = nnx.initializers.he_normal()
            if images:
                conv = nnx.Conv(
                    inputs,
                    outputs,
                    (3, 3),
                    strides=2,
                    padding=((1, 1), (1, 1)),
                    kernel_init=start,
                    rngs=rngs,
                )
                if jax.default_backend() == "cpu":
                    conv.conv_general_dilated = convolve_in_pieces
                self.convolutions.append(conv)
            else:
                self.hidden.append(nnx.Linear(inputs, outputs, kernel_init=start, rngs=rngs))
            inputs = outputs
        self.readout = nnx.Linear(inputs, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        """Log odds of failing."""
        if self.pooling > 1:
            window = (self.pooling, self.pooling)
            x = nnx.avg_pool(x, window, window, padding="SAME", count_include_pad=False)
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        if self.convolutions:
            x = x.mean(axis=(1, 2))
        x = x.reshape(len(x), -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.readout(x)[:, 0]


@lru_cache
def abstract_network(architecture: Architecture) -> tuple[Any, Any]:
    """Graph and shapes of the weights: no weight is drawn."""
    return nnx.split(nnx.eval_shape(lambda: StudentNetwork(architecture, rngs=nnx.Rngs(0))))


def initial_weights(architecture: Architecture, seed: int, constant: float) -> Any:
    """Weights as they are before training, an NNX state.

    Args:
      architecture: its size.
      seed: seed of the weights that are drawn.
      constant: the bias of the last layer, log odds.
    """
    network = StudentNetwork(architecture, rngs=nnx.Rngs(seed))
    assert network.readout.bias is not None
    network.readout.bias[...] = jnp.full(1, constant)
    return nnx.state(network)


def log_odds(
    architecture: Architecture, weights: Any, inputs: Float[Array, "batch ..."]
) -> Float[Array, " batch"]:
    """What the network gives for standardised inputs.

    Args:
      architecture: its size.
      weights: an NNX state.
      inputs: float32, of the architecture's shape.
    """
    graph, _ = abstract_network(architecture)
    given: Array = nnx.merge(graph, weights)(jnp.asarray(inputs))
    return given
