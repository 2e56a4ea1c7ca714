"""Convolutions of one, two and three dimensions, grouped, dilated or transposed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_SPACE = "DHW"


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    """PyTorch's cross-correlation of `[batch, channel, ...]`, or its transpose."""
    space = weight.ndim - 2
    stride, padding, dilation = (each_axis(value, space) for value in (stride, padding, dilation))
    letters = _SPACE[-space:]
    layout = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    if transposed:
        # The gradient of a convolution: zeros between the inputs, kernels turned around.
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        extra = each_axis(output_padding, space)
        pads = [(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)]
        inputs, outputs = weight.shape[:2]
        kernel = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:])
        kernel = jnp.swapaxes(kernel, 1, 2).reshape(-1, inputs // groups, *weight.shape[2:])
        kernel = jnp.flip(kernel, tuple(range(2, kernel.ndim)))
        strides, spread = [1] * space, stride
    else:
        pads, kernel = [(p, p) for p in padding], weight
        strides, spread = stride, [1] * space
    out = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        lhs_dilation=spread,
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=groups,
    )
    if bias is not None:
        out = out + bias.reshape(1, -1, *(1 for _ in range(space)))
    return out


def each_axis(values: Sequence[int], space: int) -> list[int]:
    """One number an axis; PyTorch lets one stand for all."""
    return list(values) * space if len(values) == 1 else list(values)


TABLE: dict[str, Callable[..., Any]] = {"aten.convolution.default": convolution}
