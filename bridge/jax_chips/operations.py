"""How a product runs on tiles: column by column of them, each over its inputs."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bridge.jax_chips.jaxprs import Product
from bridge.jax_chips.maxima import largest


@dataclass(frozen=True)
class Linear:
    """A `dot_general` of activations and a weight.

    Attributes:
      weight: which operand is the weight, 0 or 1.
      contracted: the axes that are summed over: those of the activations, and those of the weight.
      shapes: shapes of the activations and of the weight.
      settings: precision of the product.
    """

    weight: int
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    settings: tuple[tuple[str, Any], ...]

    @property
    def _kept(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The other axes of both."""
        (x, w), (of_x, of_w) = self.shapes, self.contracted
        return (
            tuple(i for i in range(len(x)) if i not in of_x),
            tuple(i for i in range(len(w)) if i not in of_w),
        )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        shape = self.shapes[1]
        inputs = math.prod(shape[i] for i in self.contracted[1])
        return math.prod(shape) // inputs, inputs

    def matrix(self, weight: Array) -> Float[Array, "outputs inputs"]:
        """The weight as a matrix."""
        return weight.transpose(*self._kept[1], *self.contracted[1]).reshape(self.matrix_shape)

    def inputs(self, x: Array) -> Float[Array, "*rows inputs"]:
        """The activations with what is summed over last."""
        kept = [self.shapes[0][i] for i in self._kept[0]]
        return x.transpose(*self._kept[0], *self.contracted[0]).reshape(*kept, -1)

    def result(self, y: Float[Array, "*rows outputs"]) -> Array:
        """The product's own layout of outputs."""
        rows = y.ndim - 1
        y = y.reshape(*y.shape[:-1], *(self.shapes[1][i] for i in self._kept[1]))
        return y if self.weight == 1 else y.transpose(*range(rows, y.ndim), *range(rows))

    def product(
        self, x: Float[Array, "*rows inputs"], matrix: Array, columns: tuple[int, int]
    ) -> Float[Array, "*rows outputs"]:
        """The product of some inputs with their columns of the matrix."""
        dimensions = (((x.ndim - 1,), (1,)), ((), ()))
        part = matrix[:, slice(*columns)]
        return lax.dot_general(x[..., slice(*columns)], part, dimensions, **dict(self.settings))

    def largest(self, x: Float[Array, "*rows inputs"], columns: tuple[int, int]) -> Array:
        """Largest magnitude of each input vector, `[*rows, 1]`."""
        return largest(jnp.abs(x[..., slice(*columns)]), -1)

    def sum_of_squares(self, x: Float[Array, "*rows inputs"], columns: tuple[int, int]) -> Array:
        """Sum of squares of each input vector, `[*rows, 1]`."""
        return jnp.square(x[..., slice(*columns)]).sum(-1, keepdims=True)

    def along_outputs(self, values: Float[Array, " outputs"], like: Array) -> Array:
        """Values for each output, as they stand beside outputs."""
        return values

    def output_axis(self, like: Array) -> int:
        """Where outputs stand."""
        return like.ndim - 1

    def by_vector(
        self, x: Array, matrix: Array, columns: tuple[int, int]
    ) -> tuple["Linear", Array, Array, tuple[int, int]]:
        """The same product with each input vector by itself, which it is."""
        return self, x, matrix, columns

    def from_vectors(self, y: Array) -> Array:
        """What `by_vector`'s product gives, as this one's."""
        return y


@dataclass(frozen=True)
class Convolution:
    """A `conv_general_dilated` with a weight, without groups and not transposed.

    Attributes:
      layouts: positions of batch, channel and space in activations, kernel (outputs, channels,
        space) and outputs, as in JAX's `ConvDimensionNumbers`.
      strides, padding, dilation: by spatial dimension.
      shapes: shapes of the activations and of the weight.
      settings: precision of the product.
    """

    layouts: Any
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    settings: tuple[tuple[str, Any], ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its size in space."""
        return tuple(self.shapes[1][i] for i in self.layouts.rhs_spec[2:])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs; the inputs are channel by channel, each with its kernel's taps."""
        outputs, channels = (self.shapes[1][i] for i in self.layouts.rhs_spec[:2])
        return outputs, channels * math.prod(self.kernel)

    def matrix(self, weight: Array) -> Float[Array, "outputs inputs"]:
        """The weight as a matrix."""
        return weight.transpose(self.layouts.rhs_spec).reshape(self.matrix_shape)

    def inputs(self, x: Array) -> Array:
        """The activations, as they are."""
        return x

    def result(self, y: Array) -> Array:
        """The product's own layout of outputs, which they have."""
        return y

    def product(self, x: Array, matrix: Array, columns: tuple[int, int]) -> Array:
        """The convolution of some inputs with their columns of the matrix."""
        channels = self._channels(columns)
        taps = math.prod(self.kernel)
        missing = (columns[0] - channels[0] * taps, channels[1] * taps - columns[1])
        part = jnp.pad(matrix[:, slice(*columns)], ((0, 0), missing))
        return self._convolve(self._of(x, channels), part)

    def largest(self, x: Array, columns: tuple[int, int]) -> Array:
        """Largest magnitude of each patch; one number in place of the outputs."""
        return self._over_patches(jnp.abs(x), columns, largest, lax.max)

    def sum_of_squares(self, x: Array, columns: tuple[int, int]) -> Array:
        """Sum of squares of each patch; one number in place of the outputs."""
        summed = functools.partial(jnp.sum, keepdims=True)
        return self._over_patches(jnp.square(x), columns, summed, lax.add)

    def _over_patches(
        self, x: Array, columns: tuple[int, int], over_channels: Any, combine: Any
    ) -> Array:
        """Combines the numbers >= 0 of each patch that are among the columns."""
        first, last = columns
        taps = math.prod(self.kernel)
        whole = (-(-first // taps), last // taps)
        found = []
        if whole[0] < whole[1]:
            channels = self._of(x, whole)
            one = over_channels(channels, self.layouts.lhs_spec[1])
            found += [self._at_tap(one, tap) for tap in range(taps)]
        for channel in sorted({first // taps, (last - 1) // taps} - set(range(*whole))):
            one, start = self._of(x, (channel, channel + 1)), channel * taps
            for tap in range(max(first - start, 0), min(last - start, taps)):
                found.append(self._at_tap(one, tap))
        total = functools.reduce(combine, found)
        moves = np.argsort(self.layouts.out_spec)
        return total.transpose(self.layouts.lhs_spec).transpose(*moves)

    def along_outputs(self, values: Float[Array, " outputs"], like: Array) -> Array:
        """Values for each output, as they stand beside outputs."""
        shape = [1] * like.ndim
        shape[self.output_axis(like)] = len(values)
        return values.reshape(shape)

    def output_axis(self, like: Array) -> int:
        """Where outputs stand."""
        axis: int = self.layouts.out_spec[1]
        return axis

    def by_vector(
        self, x: Array, matrix: Array, columns: tuple[int, int]
    ) -> tuple[Linear, Array, Array, tuple[int, int]]:
        """A product of some columns of each patch, `[*rows, columns]`, with those of the matrix.

        Returns:
          The operation, the patches, their part of the matrix, and all of its columns.
        """
        first, last = columns
        channels, taps = self._channels(columns), math.prod(self.kernel)
        x = self._of(x, channels)
        found = jnp.stack([self._at_tap(x, tap) for tap in range(taps)], axis=-1)
        # Batch, channel, space and, last, tap become batch, space, channel and tap.
        batch, channel, *space = self.layouts.lhs_spec
        found = found.transpose(batch, *space, channel, found.ndim - 1)
        found = found.reshape(*found.shape[:-2], -1)
        start = first - channels[0] * taps
        found = found[..., start : start + last - first]
        part = matrix[:, first:last]
        shapes = (found.shape, part.shape)
        product = Linear(1, ((found.ndim - 1,), (1,)), shapes, self.settings)
        return product, found, part, (0, last - first)

    def from_vectors(self, y: Float[Array, "*rows outputs"]) -> Array:
        """What `by_vector`'s product gives, in the layout of the convolution's outputs."""
        batch, channel, *space = self.layouts.out_spec
        moves = np.argsort([batch, *space, channel])
        return y.transpose(*moves)

    def _channels(self, columns: tuple[int, int]) -> tuple[int, int]:
        taps = math.prod(self.kernel)
        return columns[0] // taps, -(-columns[1] // taps)

    def _of(self, x: Array, channels: tuple[int, int]) -> Array:
        return lax.slice_in_dim(x, *channels, axis=self.layouts.lhs_spec[1])

    def _convolve(self, x: Array, matrix: Array) -> Array:
        moves = np.argsort(self.layouts.rhs_spec)
        weight = matrix.reshape(len(matrix), -1, *self.kernel).transpose(*moves)
        return lax.conv_general_dilated(
            x,
            weight,
            self.strides,
            self.padding,
            rhs_dilation=self.dilation,
            dimension_numbers=self.layouts,
            **dict(self.settings),
        )

    def _over_space(self, values: Sequence[Any], other: Any) -> tuple[Any, ...]:
        """Values for each spatial dimension where it stands in the activations, else `other`."""
        found = [other] * len(self.shapes[0])
        for axis, value in zip(self.layouts.lhs_spec[2:], values, strict=True):
            found[axis] = value
        return tuple(found)

    def _at_tap(self, one: Array, tap: int) -> Array:
        """What one tap of the kernel sees at each of its positions."""
        offsets = np.unravel_index(tap, self.kernel)
        padded = lax.pad(
            one,
            np.zeros((), one.dtype),
            self._over_space([(low, high, 0) for low, high in self.padding], (0, 0, 0)),
        )
        for i, axis in enumerate(self.layouts.lhs_spec[2:]):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            count = (padded.shape[axis] - reach) // self.strides[i] + 1
            start = int(offsets[i]) * self.dilation[i]
            stop = start + (count - 1) * self.strides[i] + 1
            padded = lax.slice_in_dim(padded, start, stop, self.strides[i], axis)
        return padded


Operation = Linear | Convolution


def operation_of(product: Product) -> Operation | str:
    """How a product with a weight runs on tiles, or why none computes it."""
    equation, shapes = product.equation, tuple(one.shape for one in product.operands)
    settings = (("precision", equation.params["precision"]),)
    if equation.primitive.name == "dot_general":
        contracted, batched = equation.params["dimension_numbers"]
        if batched[0]:
            return "a weight of its own for each row"
        assert product.position is not None
        x = 1 - product.position
        if not contracted[x]:
            return "an outer product"
        return Linear(
            product.position,
            (tuple(contracted[x]), tuple(contracted[1 - x])),
            (shapes[x], shapes[1 - x]),
            settings,
        )
    if product.position == 0:
        return "the weight is convolved with activations"
    groups = equation.params["feature_group_count"]
    if groups > 1 or equation.params["batch_group_count"] > 1:
        return f"a convolution of {max(groups, equation.params['batch_group_count'])} groups"
    if any(one > 1 for one in equation.params["lhs_dilation"]):
        return "a transposed convolution"
    layouts = equation.params["dimension_numbers"]
    return Convolution(
        layouts,
        tuple(equation.params["window_strides"]),
        tuple(tuple(pair) for pair in equation.params["padding"]),
        tuple(equation.params["rhs_dilation"]),
        (shapes[0], shapes[1]),
        settings,
    )
