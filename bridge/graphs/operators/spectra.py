"""Fourier transforms, and complex numbers as they come from them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def _factor(shape: Sequence[int], dim: Sequence[int], normalization: int) -> float:
    """PyTorch's numbers: 0 for none, 1 for 1/sqrt(n), 2 for 1/n."""
    count = math.prod(shape[axis] for axis in dim)
    return {0: 1.0, 1: 1 / math.sqrt(count), 2: 1 / count}[normalization]


def of_real(x: Array, dim: Sequence[int], normalization: int, onesided: bool) -> Array:
    """Transform of real numbers; of the last axis in `dim` the first half where one-sided."""
    transform = jnp.fft.rfftn if onesided else jnp.fft.fftn
    return transform(x, axes=tuple(dim)) * _factor(x.shape, dim, normalization)


def of_complex(x: Array, dim: Sequence[int], normalization: int, forward: bool) -> Array:
    norm = "backward" if forward else "forward"  # none by itself, either way
    transform = jnp.fft.fftn if forward else jnp.fft.ifftn
    return transform(x, axes=tuple(dim), norm=norm) * _factor(x.shape, dim, normalization)


def to_real(x: Array, dim: Sequence[int], normalization: int, last: int) -> Array:
    """Back from half a spectrum, whose last axis in `dim` becomes `last` numbers."""
    sizes = [*(x.shape[axis] for axis in dim[:-1]), last]
    back = jnp.fft.irfftn(x, sizes, axes=tuple(dim), norm="forward")
    return back * _factor(back.shape, dim, normalization)


def parts(x: Array) -> Array:
    """Real and imaginary part along a new last axis."""
    return jnp.stack([jnp.real(x), jnp.imag(x)], -1)


def from_parts(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1]


def joined(real: Array, imaginary: Array) -> Array:
    return real + 1j * imaginary


def of_angle(length: Array, angle: Array) -> Array:
    return joined(length * jnp.cos(angle), length * jnp.sin(angle))


TABLE: dict[str, Callable[..., Any]] = {
    "aten._fft_r2c.default": of_real,
    "aten._fft_c2c.default": of_complex,
    "aten._fft_c2r.default": to_real,
    "aten.view_as_real.default": parts,
    "aten.view_as_complex.default": from_parts,
    "aten.complex.default": joined,
    "aten.polar.default": of_angle,
    "aten._conj.default": jnp.conj,
    "aten.angle.default": jnp.angle,
}
