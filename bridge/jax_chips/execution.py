"""Logits of a chip whose tiles are not linear: converters, and noise drawn at each operation."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Bool, Float, Int, Shaped

from bridge.chips.profiles import Profile, WeightNoise
from bridge.jax_chips import jaxprs
from bridge.jax_chips.converters import converted
from bridge.jax_chips.layers import Plan
from bridge.jax_chips.normals import normal
from bridge.jax_chips.operations import Operation
from bridge.jax_chips.programming import layer_key

Units = Sequence[Float[Array, "columns outputs"]]
"""For each layer what a tile's unit of outputs amounts to."""


class Ranges(NamedTuple):
    """Ranges of the converters."""

    inputs: Sequence[float] | None
    """The DAC's, for each layer in units of its activations; None where each input vector has its
    own."""
    outputs: Units | None
    """The ADC's, for each layer by column and output, in the tiles' unit; None without one."""

    def of(self, layer: int) -> tuple[float | None, Float[Array, "columns outputs"] | None]:
        """Those of one layer."""
        return (
            None if self.inputs is None else self.inputs[layer],
            None if self.outputs is None else self.outputs[layer],
        )


def is_linear(profile: Profile) -> bool:
    """Whether a programmed chip computes what the function does with the programmed weights."""
    converters = profile.adc is not None or profile.dac is not None
    return not converters and not _draws(profile)


def _draws(profile: Profile) -> bool:
    """Whether noise is drawn at each operation."""
    return _noise_of_operations(profile) is not None or profile.out_noise is not None


def _noise_of_operations(profile: Profile) -> WeightNoise | None:
    noise = profile.wnoise
    return noise if noise is not None and noise.drawn == "per_mvm" else None


Outputs = Callable[[int, Operation, Array, Array], Array]
"""What stands in for a product on tiles: layer, operation, activations and weight to its result."""


def logits(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    ranges: Ranges,
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Shaped[Array, "batch ..."],
    indices: Int[Array, " batch"],
    chosen: Bool[Array, " layers"] | None = None,
) -> Float[Array, "batch classes"]:
    """Logits of each sample, which depend on no other sample of the batch.

    Args:
      program: of one sample.
      plan: its products.
      profile: converters and noise.
      ranges: of the converters.
      leaves: programmed parameters.
      units: see `Units`.
      key: of the noise of operations.
      images: a batch.
      indices: which samples they are.
      chosen: the layers that are on tiles, None for all; the others are exact products.
    """

    def one(image: Array, index: Array) -> Array:
        on_tiles = _on_tiles(plan, profile, ranges, units, key, index)

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            found = on_tiles(layer, operation, x, weight)
            if chosen is None:
                return found
            exact = operation.result(_exact(operation, x, weight))
            return jnp.where(chosen[layer], found, exact)

        return _run(program, plan, leaves, image, outputs)

    return jax.vmap(one)(images, indices)


def _on_tiles(
    plan: Plan, profile: Profile, ranges: Ranges, units: Units, key: Array, index: Array
) -> Outputs:
    """What the tiles compute for one sample, each call of a layer with noise of its own."""
    calls: Counter[int] = Counter()

    def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
        on_tiles = plan.layers[layer]
        call = jax.random.fold_in(layer_key(key, on_tiles.name), calls[layer])
        calls[layer] += 1
        tiles = _Tiles(operation, on_tiles.grid.columns, units[layer], profile, *ranges.of(layer))
        return tiles.outputs(x, weight, jax.random.fold_in(call, index))

    return outputs


def _exact(operation: Operation, x: Array, weight: Array) -> Array:
    """The product without errors, its outputs as `_Tiles` has them."""
    inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
    return operation.product(inputs, matrix, (0, matrix.shape[1]))


def energies(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    ranges: Ranges,
    targets: Sequence[Array],
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Shaped[Array, "batch ..."],
    indices: Int[Array, " batch"],
) -> tuple[Float[Array, " layers"], Float[Array, " layers"], Float[Array, " layers"]]:
    """Sums of squares for each layer, over all samples and calls: its outputs, their errors on the
    running chip, and their errors on digital activations.

    Args:
      targets: the digital parameters. The others are as for `logits`.
    """

    def one(image: Array, index: Array) -> tuple[Array, Array, Array]:
        signal, error, own = ([jnp.zeros(()) for _ in plan.layers] for _ in range(3))
        expected: list[Array] = []
        places = (one.weight for one in plan.products if one.weight is not None)
        apart = _on_tiles(plan, profile, ranges, units, key, index)

        def digital(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            place = next(places)
            y = operation.result(_exact(operation, x, weight))
            signal[layer] += jnp.square(y).sum()
            alone = apart(layer, operation, x, place(leaves[place.leaf]))
            own[layer] += jnp.square(alone - y).sum()
            expected.append(y)
            return y

        _run(program, plan, targets, image, digital)
        met, running = iter(expected), _on_tiles(plan, profile, ranges, units, key, index)

        def analog(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            y = running(layer, operation, x, weight)
            error[layer] += jnp.square(y - next(met)).sum()
            return y

        _run(program, plan, leaves, image, analog)
        return jnp.stack(signal), jnp.stack(error), jnp.stack(own)

    signal, error, own = jax.vmap(one)(images, indices)
    return signal.sum(0), error.sum(0), own.sum(0)


def margins(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    ranges: Ranges,
    leaves: Sequence[Array],
    units: Units,
    images: Shaped[Array, "batch ..."],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Each sample's margin m without errors, and the variance that those of converters and noise
    give it: to first order `sum_y (dm/dy)^2 var(y)`, m the largest minus the second largest logit.

    Args:
      leaves: exact parameters. The others are as for `logits`.
    """

    def one(image: Array) -> tuple[Array, Array]:
        shapes: list[tuple[int, ...]] = []
        at: list[tuple[int, Operation]] = []

        def tiles(layer: int, operation: Operation) -> _Tiles:
            columns = plan.layers[layer].grid.columns
            return _Tiles(operation, columns, units[layer], profile, *ranges.of(layer))

        def look(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            exact = _exact(operation, x, weight)
            shapes.append(exact.shape)
            at.append((layer, operation))
            return operation.result(exact)

        def margin(probes: list[Array]) -> tuple[Array, list[tuple[Array, Array]]]:
            met, given = iter(probes), list[tuple[Array, Array]]()

            def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
                given.append((x, weight))
                return operation.result(_exact(operation, x, weight) + next(met))

            first, second = jax.lax.top_k(_run(program, plan, leaves, image, outputs), 2)[0]
            return first - second, given

        jax.eval_shape(lambda x: _run(program, plan, leaves, x, look), image)
        probes = [jnp.zeros(shape) for shape in shapes]
        (value, given), slopes = jax.value_and_grad(margin, has_aux=True)(probes)
        variances = [
            tiles(layer, operation).variance(x, weight, slope)
            for (layer, operation), (x, weight), slope in zip(at, given, slopes, strict=True)
        ]
        return value, sum(variances, jnp.zeros(()))

    found: tuple[Array, Array] = jax.vmap(one)(images)
    return found


def observed(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    units: Units,
    images: Shaped[Array, "batch ..."],
    reduce: Callable[[Array], Array],
    profile: Profile,
    ranges: Ranges,
) -> list[list[list[Array]]]:
    """What the tiles' outputs are ahead of ADCs, in the tiles' unit, by magnitude.

    Args:
      reduce: what is kept of `[outputs, positions]`.
      profile: converters; noise of operations there is none.
      ranges: of the converters. Inputs saturate beyond theirs without a DAC too.

    Returns:
      For each layer and column of its tiles what `reduce` gives for each call, `[batch, ...]`.
    """

    def one(image: Array) -> Any:
        seen: list[list[list[Array]]] = [[[] for _ in layer.grid.columns] for layer in plan.layers]

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            columns = plan.layers[layer].grid.columns
            tiles = _Tiles(operation, columns, units[layer], profile, *ranges.of(layer))
            inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
            found = []
            for number in range(len(columns)):
                column = tiles.column(number, inputs, matrix)
                rows = jnp.moveaxis(jnp.abs(column.exact / column.unit), column.axis, 0)
                seen[layer][number].append(reduce(rows.reshape(len(rows), -1)))
                found.append(tiles.converted(number, column, column.exact))
            return operation.result(sum(found[1:], found[0]))

        _run(program, plan, leaves, image, outputs)
        return seen

    found: list[list[list[Array]]] = jax.vmap(one)(images)
    return found


def observed_inputs(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    images: Shaped[Array, "batch ..."],
    reduce: Callable[[Array], Array],
) -> list[list[Array]]:
    """What the layers' inputs are without converters, by magnitude.

    Args:
      reduce: what is kept of `[activations]`.

    Returns:
      For each layer what `reduce` gives for each call, `[batch, ...]`.
    """

    def one(image: Array) -> Any:
        seen: list[list[Array]] = [[] for _ in plan.layers]

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            seen[layer].append(reduce(jnp.abs(x).ravel()))
            return operation.result(_exact(operation, x, weight))

        _run(program, plan, leaves, image, outputs)
        return seen

    found: list[list[Array]] = jax.vmap(one)(images)
    return found


def _run(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    image: Array,
    outputs: Outputs,
) -> Array:
    """The program's first result for one sample; `outputs(layer, operation, activations, weight)`
    computes what tiles do."""
    met = iter(plan.products)

    def on_product(product: jaxprs.Product, x: Array, weight: Array) -> Array | None:
        one = next(met)
        if one.layer is None or one.operation is None:
            return None
        # Tiles compute in float32 whatever the network's own type is.
        found = outputs(one.layer, one.operation, x.astype(jnp.float32), weight)
        return found.astype(jaxprs.shape_of(product.equation.outvars[0]).dtype)

    found: Array = jaxprs.run(program, leaves, image[None], on_product)[0][0]
    return found


class _Column(NamedTuple):
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


class _Tiles(NamedTuple):
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
            exact = _exact(self.operation, x, weight)
            if _draws(self.profile):  # the sum of independent noises is one
                exact = exact + self._spread(inputs, matrix, exact) * normal(key, exact.shape)
            return self.operation.result(exact)
        total: Array | None = None
        for number in range(len(self.columns)):
            column = self.column(number, inputs, matrix)
            found = column.exact
            if _draws(self.profile):
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
          slope: dq/dy, as `_exact` gives y.
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
            if _draws(self.profile):
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

    def column(self, number: int, inputs: Array, matrix: Array) -> _Column:
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
        return _Column(operation, inputs, matrix, part, exact, input_unit, unit)

    def converted(self, number: int, column: _Column, outputs: Array) -> Array:
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
        noise, out_noise = _noise_of_operations(self.profile), self.profile.out_noise
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

    def _spread_of(self, number: int, column: _Column) -> Array:
        """Standard deviation of the noise of one column."""
        noise, out_noise = _noise_of_operations(self.profile), self.profile.out_noise
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
