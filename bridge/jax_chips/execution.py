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


def is_linear(profile: Profile) -> bool:
    """Whether a programmed chip computes what the function does with the programmed weights."""
    return profile.adc is None and not _noise_of_operations(profile)


def _noise_of_operations(profile: Profile) -> WeightNoise | None:
    noise = profile.wnoise
    return noise if noise is not None and noise.drawn == "per_mvm" else None


Outputs = Callable[[int, Operation, Array, Array], Array]
"""What stands in for a product on tiles: layer, operation, activations and weight to its result."""


def logits(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    limits: Units | None,
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
      profile: converter and noise.
      limits: for each layer the ranges of the converters, by column and output, in the tiles' unit.
      leaves: programmed parameters.
      units: see `Units`.
      key: of the noise of operations.
      images: a batch.
      indices: which samples they are.
      chosen: the layers that are on tiles, None for all; the others are exact products.
    """

    def one(image: Array, index: Array) -> Array:
        on_tiles = _on_tiles(plan, profile, limits, units, key, index)

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            found = on_tiles(layer, operation, x, weight)
            if chosen is None:
                return found
            return jnp.where(chosen[layer], found, _exact(operation, x, weight))

        return _run(program, plan, leaves, image, outputs)

    return jax.vmap(one)(images, indices)


def _on_tiles(
    plan: Plan, profile: Profile, limits: Units | None, units: Units, key: Array, index: Array
) -> Outputs:
    """What the tiles compute for one sample, each call of a layer with noise of its own."""
    calls: Counter[int] = Counter()

    def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
        on_tiles = plan.layers[layer]
        call = jax.random.fold_in(layer_key(key, on_tiles.name), calls[layer])
        calls[layer] += 1
        tiles = _Tiles(operation, on_tiles.grid.columns, units[layer], profile)
        sample = jax.random.fold_in(call, index)
        return tiles.outputs(x, weight, None if limits is None else limits[layer], sample)

    return outputs


def _exact(operation: Operation, x: Array, weight: Array) -> Array:
    """The product itself."""
    inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
    return operation.result(operation.product(inputs, matrix, (0, matrix.shape[1])))


def energies(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    limits: Units | None,
    targets: Sequence[Array],
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Shaped[Array, "batch ..."],
    indices: Int[Array, " batch"],
) -> tuple[Float[Array, " layers"], Float[Array, " layers"], Float[Array, " layers"]]:
    """Of each layer's outputs the sum of squares, that of their errors on the running chip, and
    that of their errors on digital activations, over all samples and calls.

    Args: as for `logits`; targets are the digital parameters.
    """

    def one(image: Array, index: Array) -> tuple[Array, Array, Array]:
        signal, error, own = ([jnp.zeros(()) for _ in plan.layers] for _ in range(3))
        expected: list[Array] = []
        apart = _on_tiles(plan, profile, limits, units, key, index)

        def digital(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            place = plan.layers[layer].weight
            y = _exact(operation, x, weight)
            signal[layer] += jnp.square(y).sum()
            alone = apart(layer, operation, x, place(leaves[place.leaf]))
            own[layer] += jnp.square(alone - y).sum()
            expected.append(y)
            return y

        _run(program, plan, targets, image, digital)
        met, running = iter(expected), _on_tiles(plan, profile, limits, units, key, index)

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
    limits: Units | None,
    leaves: Sequence[Array],
    units: Units,
    images: Shaped[Array, "batch ..."],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Each sample's margin m without errors, and the variance that those of the tiles' outputs y
    give it: to first order `sum_y (dm/dy)^2 var(y)`, m the largest minus the second largest logit.

    Args: as for `logits`; the weights are exact.
    """

    def one(image: Array) -> tuple[Array, Array]:
        shapes: list[tuple[int, ...]] = []

        def shape_of(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            exact, _ = tiles(layer, operation).moments(x, weight, limit(layer))
            shapes.append(exact.shape)
            return operation.result(exact)

        def tiles(layer: int, operation: Operation) -> _Tiles:
            return _Tiles(operation, plan.layers[layer].grid.columns, units[layer], profile)

        def limit(layer: int) -> Float[Array, "columns outputs"] | None:
            return None if limits is None else limits[layer]

        def margin(probes: list[Array]) -> tuple[Array, list[Array]]:
            met, variances = iter(probes), list[Array]()

            def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
                exact, variance = tiles(layer, operation).moments(x, weight, limit(layer))
                variances.append(variance)
                return operation.result(exact + next(met))

            first, second = jax.lax.top_k(_run(program, plan, leaves, image, outputs), 2)[0]
            return first - second, variances

        jax.eval_shape(lambda x: _run(program, plan, leaves, x, shape_of), image)
        probes = [jnp.zeros(shape) for shape in shapes]
        (value, variances), gradients = jax.value_and_grad(margin, has_aux=True)(probes)
        parts = [
            (jnp.square(slope) * variance).sum()
            for slope, variance in zip(gradients, variances, strict=True)
        ]
        return value, sum(parts, jnp.zeros(()))

    found: tuple[Array, Array] = jax.vmap(one)(images)
    return found


def observed(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    units: Units,
    images: Shaped[Array, "batch ..."],
    reduce: Callable[[Array], Array],
    adc: tuple[int, Units] | None = None,
) -> list[list[list[Array]]]:
    """What the tiles' outputs are ahead of converters, in the tiles' unit, by magnitude.

    Args:
      reduce: what is kept of `[outputs, positions]`.
      adc: bits and ranges of the converters behind them; None for none. Noise of operations there
        is none.

    Returns:
      For each layer and column of its tiles what `reduce` gives for each call, `[batch, ...]`.
    """

    def one(image: Array) -> Any:
        seen: list[list[list[Array]]] = [[[] for _ in layer.grid.columns] for layer in plan.layers]

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
            found = []
            for number, part in enumerate(plan.layers[layer].grid.columns):
                exact = operation.product(inputs, matrix, part)
                unit = operation.along_outputs(units[layer][number], exact)
                unit = unit * _unit(operation, inputs, part)
                values, axis = exact / unit, operation.output_axis(exact)
                rows = jnp.moveaxis(jnp.abs(values), axis, 0).reshape(exact.shape[axis], -1)
                seen[layer][number].append(reduce(rows))
                if adc is not None:
                    limit = operation.along_outputs(adc[1][layer][number], exact)
                    exact = converted(values, limit, adc[0]) * unit
                found.append(exact)
            return operation.result(sum(found[1:], found[0]))

        _run(program, plan, leaves, image, outputs)
        return seen

    found: list[list[list[Array]]] = jax.vmap(one)(images)
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


class _Tiles(NamedTuple):
    """The tiles of one product."""

    operation: Operation
    columns: Sequence[tuple[int, int]]
    """Inputs of each column of tiles."""
    units: Float[Array, "columns outputs"]
    profile: Profile

    def outputs(
        self, x: Array, weight: Array, limits: Float[Array, "columns outputs"] | None, key: Array
    ) -> Array:
        """The product's result: partial sums of the columns, each through its converters."""
        inputs, matrix = self.operation.inputs(x), self.operation.matrix(weight.astype(jnp.float32))
        noise = _noise_of_operations(self.profile)
        adc = self.profile.adc
        if adc is None or limits is None:
            exact = self.operation.product(inputs, matrix, (0, matrix.shape[1]))
            if noise is not None:  # the sum of independent noises is one
                spread = noise.sigma * _root(self._variance(noise, inputs, matrix, exact))
                exact = exact + spread * normal(key, exact.shape)
            return self.operation.result(exact)
        total: Array | None = None
        for number, part in enumerate(self.columns):
            found = self.operation.product(inputs, matrix, part)
            if noise is not None:
                variance = self._variance_of(number, noise, inputs, matrix, found)
                # That of one column of tiles is the same with converters and without.
                own = key if number == 0 else jax.random.fold_in(key, number)
                normals = normal(own, found.shape)
                found = found + noise.sigma * _root(variance) * normals
            unit = self._along(self.units[number], found) * _unit(self.operation, inputs, part)
            limit = self._along(limits[number], found)
            found = converted(found / unit, limit, adc.bits) * unit
            total = found if total is None else total + found
        assert total is not None
        return self.operation.result(total)

    def moments(
        self, x: Array, weight: Array, limits: Float[Array, "columns outputs"] | None
    ) -> tuple[Array, Array]:
        """The exact sums of all columns, and the variance of their errors, which broadcasts to it.

        A converter's rounding has step^2 / 12, its saturation is left out.
        """
        inputs, matrix = self.operation.inputs(x), self.operation.matrix(weight.astype(jnp.float32))
        exact = self.operation.product(inputs, matrix, (0, matrix.shape[1]))
        variance, noise = jnp.zeros(()), _noise_of_operations(self.profile)
        if noise is not None:
            variance = noise.sigma**2 * self._variance(noise, inputs, matrix, exact)
        if self.profile.adc is not None and limits is not None:
            for number, part in enumerate(self.columns):
                unit = self._along(self.units[number], exact) * _unit(self.operation, inputs, part)
                step = self._along(limits[number], exact) / (2 ** (self.profile.adc.bits - 1) - 1)
                variance = variance + jnp.square(step * unit) / 12
        return exact, variance

    def _variance(self, noise: WeightNoise, inputs: Array, matrix: Array, like: Array) -> Array:
        """Variance of the noise of all columns, for a sigma of 1."""
        if noise.kind == "pcm_read":
            sizes = [last - first for first, last in self.columns]
            units = jnp.repeat(self.units.T, jnp.asarray(sizes), 1, total_repeat_length=sum(sizes))
            whole = (0, matrix.shape[1])
            return self.operation.product(jnp.square(inputs), units * jnp.abs(matrix), whole)
        numbers = range(len(self.columns))
        found = [self._variance_of(n, noise, inputs, matrix, like) for n in numbers]
        return sum(found[1:], found[0])

    def _variance_of(
        self, number: int, noise: WeightNoise, inputs: Array, matrix: Array, like: Array
    ) -> Array:
        """Variance of one column's noise, for a sigma of 1; broadcasts to its outputs."""
        unit, part = self._along(self.units[number], like), self.columns[number]
        if noise.kind == "pcm_read":
            return unit * self.operation.product(jnp.square(inputs), jnp.abs(matrix), part)
        return unit**2 * self.operation.sum_of_squares(inputs, part)

    def _along(self, values: Float[Array, " outputs"], like: Array) -> Array:
        return self.operation.along_outputs(values, like)


def _unit(operation: Operation, inputs: Array, part: tuple[int, int]) -> Array:
    """The unit of inputs: the largest magnitude of each vector or patch, 1 for zeros."""
    largest = operation.largest(inputs, part)
    return jnp.where(largest > 0, largest, 1.0)


def _root(variance: Array) -> Array:
    """Square roots, with derivative 0 at 0."""
    there = variance > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, variance, 1.0)), 0.0)
