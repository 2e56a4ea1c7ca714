"""Normalisation over a batch's running statistics, over features, groups or instances."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Normalised = tuple[Array, None, None]
"""The value, and nothing in the place of the statistics that PyTorch keeps for its gradient."""


def _by_channel(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1 for _ in x.shape[2:]))


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    variance: Array,
    momentum: float,
    eps: float,
) -> Normalised:
    """(x - mean) / sqrt(variance + eps) * weight + bias, by channel, which is the second axis."""
    scale = lax.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    return x * _by_channel(scale, x) + _by_channel(shift, x), None, None


def unkept_batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Normalised:
    """With the statistics of the batch itself, as InstanceNorm takes those of each instance."""
    axes = (0, *range(2, x.ndim))
    value = _standardised(x, axes, eps)
    if weight is not None:
        value = value * _by_channel(weight, x)
    if bias is not None:
        value = value + _by_channel(bias, x)
    return value, None, None


def layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float
) -> Normalised:
    value = _standardised(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    if weight is not None:
        value = value * weight
    if bias is not None:
        value = value + bias
    return value, None, None


def group_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    batch: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> Normalised:
    parts = x.reshape(x.shape[0], groups, -1)
    value = _standardised(parts, (2,), eps).reshape(x.shape)
    if weight is not None:
        value = value * _by_channel(weight, x)
    if bias is not None:
        value = value + _by_channel(bias, x)
    return value, None, None


def _standardised(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
    return centred * lax.rsqrt(variance + eps)


TABLE: dict[str, Callable[..., Any]] = {
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten._native_batch_norm_legit.no_stats": unkept_batch_norm,
    "aten.native_layer_norm.default": layer_norm,
    "aten.native_group_norm.default": group_norm,
}
