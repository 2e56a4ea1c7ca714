"""Logits of a chip whose tiles are not linear: converters, and noise drawn at each operation."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, Int

from bridge.chips.profiles import Profile, WeightNoise
from bridge.jax_chips import jaxprs
from bridge.jax_chips.converters import converted
from bridge.jax_chips.layers import Plan
from bridge.jax_chips.operations import Operation, on_tiles
from bridge.jax_chips.programming import layer_key

Units = Sequence[Float[Array, "columns outputs"]]
"""For each layer what a tile's unit of outputs amounts to."""

Observe = Callable[[int, int, Float[Array, "outputs positions"]], None]
"""Called with a layer, a column of its tiles and its outputs for one sample, in the tiles' unit,
ahead of the converter."""


def is_linear(profile: Profile) -> bool:
    """Whether a programmed chip computes what the function does with the programmed weights."""
    return profile.adc is None and not _noise_of_operations(profile)


def _noise_of_operations(profile: Profile) -> WeightNoise | None:
    noise = profile.wnoise
    return noise if noise is not None and noise.drawn == "per_mvm" else None


def logits(
    program: ClosedJaxpr,
    plan: Plan,
    profile: Profile,
    limits: Units | None,
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Float[Array, "batch ..."],
    indices: Int[Array, " batch"],
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
    """

    def one(image: Array, index: Array) -> Array:
        calls: Counter[int] = Counter()

        def tiles_outputs(
            layer: int, operation: Operation, weight: Array
        ) -> Callable[[int, Array, Array], Array]:
            name = plan.layers[layer].name
            call_key = jax.random.fold_in(layer_key(key, name), calls[layer])
            calls[layer] += 1

            def convert(column: int, inputs: Array, exact: Array) -> Array:
                part = plan.layers[layer].grid.columns[column]
                unit = operation.along_outputs(units[layer][column], exact)
                found = exact
                if (noise := _noise_of_operations(profile)) is not None:
                    sample = jax.random.fold_in(jax.random.fold_in(call_key, index), column)
                    variance = unit**2 * operation.sum_of_squares(inputs, part)
                    if noise.kind == "pcm_read":
                        magnitudes = jnp.abs(operation.matrix(weight))
                        variance = unit * operation.product(jnp.square(inputs), magnitudes, part)
                    normals = jax.random.normal(sample, exact.shape, exact.dtype)
                    found = found + noise.sigma * _root(variance) * normals
                if profile.adc is not None and limits is not None:
                    step = unit * _unit(operation, inputs, part)
                    limit = operation.along_outputs(limits[layer][column], exact)
                    found = converted(found / step, limit, profile.adc.bits) * step
                return found

            return convert

        return _run(program, plan, leaves, image, tiles_outputs)

    return jax.vmap(one)(images, indices)


def observed(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    units: Units,
    images: Float[Array, "batch ..."],
    reduce: Callable[[Array], Array],
) -> list[list[list[Array]]]:
    """What the tiles' outputs are ahead of converters, in the tiles' unit, by magnitude.

    Returns:
      For each layer and column of its tiles, `reduce` of `[outputs, positions]` for each call,
      `[batch, outputs, ...]`.
    """

    def one(image: Array) -> Any:
        seen: list[list[list[Array]]] = [[[] for _ in layer.grid.columns] for layer in plan.layers]

        def tiles_outputs(
            layer: int, operation: Operation, weight: Array
        ) -> Callable[[int, Array, Array], Array]:
            def keep(column: int, inputs: Array, exact: Array) -> Array:
                part = plan.layers[layer].grid.columns[column]
                unit = operation.along_outputs(units[layer][column], exact)
                values = jnp.abs(exact / (unit * _unit(operation, inputs, part)))
                axis = operation.output_axis(exact)
                by_output = jnp.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
                seen[layer][column].append(reduce(by_output))
                return exact

            return keep

        _run(program, plan, leaves, image, tiles_outputs)
        return seen

    found: list[list[list[Array]]] = jax.vmap(one)(images)
    return found


def _run(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Array],
    image: Array,
    tiles_outputs: Callable[[int, Operation, Array], Callable[[int, Array, Array], Array]],
) -> Array:
    """The program's first result for one sample, what tiles compute given by `tiles_outputs`."""
    met = iter(plan.products)

    def on_product(product: jaxprs.Product, x: Array, weight: Array) -> Array | None:
        one = next(met)
        if one.layer is None or one.operation is None:
            return None
        columns = plan.layers[one.layer].grid.columns
        convert = tiles_outputs(one.layer, one.operation, weight)
        return on_tiles(one.operation, x, weight, columns, convert)

    found: Array = jaxprs.run(program, leaves, image[None], on_product)[0][0]
    return found


def _unit(operation: Operation, inputs: Array, part: tuple[int, int]) -> Array:
    """The unit of inputs: the largest magnitude of each vector or patch, 1 for zeros."""
    largest = operation.largest(inputs, part)
    return jnp.where(largest > 0, largest, 1.0)


def _root(variance: Array) -> Array:
    """Square roots, with derivative 0 at 0."""
    there = variance > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, variance, 1.0)), 0.0)
