"""The tiles of one product: converters, noise drawn at each operation, and what both may err."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bridge.chips.profiles import Profile, WeightNoise
from bridge.jax_chips.converters import converted
from bridge.jax_chips.normals import normal
from bridge.jax_chips.operations import Operation


def is_linear(profile: Profile) -> bool:
    """Whether a programmed chip computes what the function does with the programmed weights."""
    converters = profile.adc is not None or profile.dac is not None
    return not converters and not draws(profile)


def draws(profile: Profile) -> bool:
    """Whether noise is drawn at each operation."""
    return profile.noise_of_operations is not None or profile.out_noise is not None


def exact_sums(operation: Operation, x: Array, weight: Array) -> Array:
    """The product without errors, its outputs as `Tiles` has them."""
    inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
    return operation.product(inputs, matrix, (0, matrix.shape[1]))


class Column(NamedTuple):
    """One column of tiles, its inputs as the DAC gives them."""

    operation: Operation
    """The product's, or one of its patches."""
    inputs: Array
    matrix: Array
    part: tuple[int, int]
    """Which of the inputs are the column's."""
    exact: Array
    """Its outputs ahead of noise and ADC."""
    input_unit: Array
    """The unit of inputs, as it stands beside outputs; 0 for zeros without a fixed one."""
    unit: Array
    """The unit of outputs, to divide by."""

    @property
    def axis(self) -> int:
        """Where outputs stand."""
        return self.operation.output_axis(self.exact)


class Tiles(NamedTuple):
    """The tiles of one product."""

    operation: Operation
    columns: Sequence[tuple[int, int]]
    """Inputs of each column of tiles."""
    units: Float[Array, "columns outputs"]
    profile: Profile
    input_range: float | None
    limits: Float[Array, "columns outputs"] | None

    def outputs(self, x: Array, weight: Array, key: Array) -> Array:
        """The product's result: partial sums of the columns, each through its converters."""
        inputs, matrix = self.operation.inputs(x), self.operation.matrix(weight.astype(jnp.float32))
        if self.profile.adc is None and self.profile.dac is None:
            exact = exact_sums(self.operation, x, weight)
            if draws(self.profile):  # the sum of independent noises is one
                exact = exact + self._spread(inputs, matrix, exact) * normal(key, exact.shape)
            return self.operation.result(exact)
        total: Array | None = None
        for number in range(len(self.columns)):
            column = self.column(number, inputs, matrix)
            found = column.exact
            if draws(self.profile):
                # That of one column of tiles is the same with converters and without.
                own = key if number == 0 else jax.random.fold_in(key, number)
                found = found + self._spread_of(number, column) * normal(own, found.shape)
            found = self.converted(number, column, found)
            total = found if total is None else total + found
        assert total is not None
        return self.operation.result(total)

    def variance(self, x: Array, weight: Array, slope: Array) -> Array:
        """The variance that the errors give a quantity q, to first order.

        Rounding counts as uniform and independent, of variance step^2 / 12, saturation as none.
        Noise and ADC err by output, `sum_y (dq/dy)^2 var(y)`; a DAC by input, each through all
        outputs of its column. Inputs of 0 are exact, and the largest where it is the unit.

        Args:
          slope: dq/dy, as `exact_sums` gives y.
        """
        if is_linear(self.profile):
            return jnp.zeros(())
        inputs, matrix = self.operation.inputs(x), self.operation.matrix(weight.astype(jnp.float32))
        if self.profile.adc is None and self.profile.dac is None:
            return jnp.square(slope * self._spread(inputs, matrix, slope)).sum()
        total = jnp.zeros(())
        for number in range(len(self.columns)):
            column = self.column(number, inputs, matrix)
            spread = jnp.zeros(column.exact.shape)
            if draws(self.profile):
                spread = spread + self._spread_of(number, column)
            variance = jnp.square(spread)
            if self.profile.adc is not None and self.limits is not None:
                limit = column.operation.along_outputs(self.limits[number], column.exact)
                step = limit / (2 ** (self.profile.adc.bits - 1) - 1) * column.unit
                there = column.operation.largest(column.inputs, column.part) > 0
                variance = variance + there * jnp.square(step) / 12
            if column.operation is not self.operation:
                variance = self.operation.from_vectors(variance)
            total = total + (jnp.square(slope) * variance).sum()
            if self.profile.dac is not None:
                total = total + self._input_part(number, inputs, matrix, slope)
        return total

    def _input_part(self, number: int, inputs: Array, matrix: Array, slope: Array) -> Array:
        """The DAC's part of `variance` in one column."""
        dac, operation, part = self.profile.dac, self.operation, self.columns[number]
        assert dac is not None
        unit: Any = self.input_range
        if unit is None:
            operation, inputs, matrix, part = operation.by_vector(inputs, matrix, part)
            unit = operation.largest(inputs, part)

        def outputs(inputs: Array) -> Array:
            found = operation.product(inputs, matrix, part)
            return found if operation is self.operation else self.operation.from_vectors(found)

        (own,) = jax.vjp(outputs, inputs)[1](slope)
        inexact = (inputs != 0) & (jnp.abs(inputs) < unit)
        step = unit / (2 ** (dac.bits - 1) - 1)
        return (inexact * jnp.square(own * step)).sum() / 12

    def column(self, number: int, inputs: Array, matrix: Array) -> Column:
        """One column of tiles, and what it computes exactly of the inputs that its DAC gives."""
        operation, part, dac = self.operation, self.columns[number], self.profile.dac
        fixed = self.input_range
        if fixed is None and dac is not None:
            operation, inputs, matrix, part = operation.by_vector(inputs, matrix, part)
        largest = operation.largest(inputs, part)
        if fixed is None and dac is not None:
            # As AIHWKit divides, for equal values lie on the edge between two codes.
            unit = _or_1(largest)
            inputs = converted(inputs * (1 / unit), jnp.ones(()), dac.bits) * unit
        elif fixed is not None and dac is not None:
            inputs = converted(inputs / fixed, jnp.ones(()), dac.bits) * fixed
        elif fixed is not None:
            inputs = jnp.clip(inputs, -fixed, fixed)
        exact = operation.product(inputs, matrix, part)
        input_unit = largest if fixed is None else jnp.full((1,) * exact.ndim, fixed)
        unit = _or_1(operation.along_outputs(self.units[number], exact)) * _or_1(input_unit)
        return Column(operation, inputs, matrix, part, exact, input_unit, unit)

    def converted(self, number: int, column: Column, outputs: Array) -> Array:
        """A column's outputs through its ADCs, where the product has its outputs."""
        adc = self.profile.adc
        if adc is not None:
            assert self.limits is not None
            limit = column.operation.along_outputs(self.limits[number], outputs)
            outputs = converted(outputs / column.unit, limit, adc.bits) * column.unit
        if column.operation is self.operation:
            return outputs
        return self.operation.from_vectors(outputs)

    def _spread(self, inputs: Array, matrix: Array, like: Array) -> Array:
        """Standard deviation of the noise of all columns without converters."""
        noise, out_noise = self.profile.noise_of_operations, self.profile.out_noise
        numbers = range(len(self.columns))
        if out_noise is None:
            assert noise is not None
            return noise.sigma * _root(self._variance(noise, inputs, matrix, like))
        units = [
            self._along(self.units[n], like) * self.operation.largest(inputs, self.columns[n])
            for n in numbers
        ]
        variance = sum(((out_noise.sigma * unit) ** 2 for unit in units), jnp.zeros(()))
        if noise is not None:
            variance += noise.sigma**2 * self._variance(noise, inputs, matrix, like)
        return _root(variance)

    def _spread_of(self, number: int, column: Column) -> Array:
        """Standard deviation of the noise of one column."""
        noise, out_noise = self.profile.noise_of_operations, self.profile.out_noise
        operation, inputs, matrix, part, exact, input_unit, _ = column
        weights = jnp.zeros(())
        if noise is not None:
            weights = self._variance_of(number, noise, operation, inputs, matrix, part, exact)
        if out_noise is None:
            assert noise is not None
            return noise.sigma * _root(weights)
        unit = operation.along_outputs(self.units[number], exact) * input_unit
        variance = (out_noise.sigma * unit) ** 2
        return _root(variance if noise is None else variance + noise.sigma**2 * weights)

    def _variance(self, noise: WeightNoise, inputs: Array, matrix: Array, like: Array) -> Array:
        """Variance of the weight noise of all columns, for a sigma of 1."""
        if noise.kind == "pcm_read":
            sizes = [last - first for first, last in self.columns]
            units = jnp.repeat(self.units.T, jnp.asarray(sizes), 1, total_repeat_length=sum(sizes))
            whole = (0, matrix.shape[1])
            return self.operation.product(jnp.square(inputs), units * jnp.abs(matrix), whole)
        found = [
            self._variance_of(n, noise, self.operation, inputs, matrix, part, like)
            for n, part in enumerate(self.columns)
        ]
        return sum(found[1:], found[0])

    def _variance_of(
        self,
        number: int,
        noise: WeightNoise,
        operation: Operation,
        inputs: Array,
        matrix: Array,
        part: tuple[int, int],
        like: Array,
    ) -> Array:
        """Variance of one column's weight noise, for a sigma of 1; broadcasts to its outputs."""
        unit = operation.along_outputs(self.units[number], like)
        if noise.kind == "pcm_read":
            return unit * operation.product(jnp.square(inputs), jnp.abs(matrix), part)
        return unit**2 * operation.sum_of_squares(inputs, part)

    def _along(self, values: Float[Array, " outputs"], like: Array) -> Array:
        return self.operation.along_outputs(values, like)


def _or_1(unit: Array) -> Array:
    """Units to divide by."""
    return jnp.where(unit > 0, unit, 1.0)


def _root(variance: Array) -> Array:
    """Square roots, with derivative 0 at 0."""
    there = variance > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, variance, 1.0)), 0.0)
