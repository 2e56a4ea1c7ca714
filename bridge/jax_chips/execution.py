"""Walks over a function's program with tiles in place of its products: logits, and what is asked of
them."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Bool, Float, Int, Shaped

from bridge.chips.profiles import Profile
from bridge.jax_chips import jaxprs
from bridge.jax_chips.layers import Plan
from bridge.jax_chips.operations import Operation
from bridge.jax_chips.programming import layer_key
from bridge.jax_chips.tiles import Tiles, exact_sums

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


class Network(NamedTuple):
    """A function's program with tiles in place of its products."""

    program: ClosedJaxpr
    """The program of one sample."""
    plan: Plan
    """Its products."""
    profile: Profile
    """Converters and noise of operations."""
    ranges: Ranges

    def tiles(
        self, layer: int, operation: Operation, units: Float[Array, "columns outputs"]
    ) -> Tiles:
        """Those of a product with a layer."""
        columns = self.plan.layers[layer].grid.columns
        return Tiles(operation, columns, units, self.profile, *self.ranges.of(layer))


Outputs = Callable[[int, Operation, Array, Array], Array]
"""What stands in for a product on tiles: layer, operation, activations and weight to its result."""


def logits(
    network: Network,
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Shaped[Array, "batch ..."],
    indices: Int[Array, " batch"],
    chosen: Bool[Array, " layers"] | None = None,
) -> Float[Array, "batch classes"]:
    """Logits of each sample, which depend on no other sample of the batch.

    Args:
      network: the function.
      leaves: programmed parameters.
      units: see `Units`.
      key: of the noise of operations.
      images: a batch.
      indices: which samples they are.
      chosen: the layers that are on tiles, None for all; the others are exact products.
    """

    def one(image: Array, index: Array) -> Array:
        on_tiles = _on_tiles(network, units, key, index)

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            found = on_tiles(layer, operation, x, weight)
            if chosen is None:
                return found
            exact = operation.result(exact_sums(operation, x, weight))
            return jnp.where(chosen[layer], found, exact)

        return _run(network, leaves, image, outputs)

    return jax.vmap(one)(images, indices)


def _on_tiles(network: Network, units: Units, key: Array, index: Array) -> Outputs:
    """What the tiles compute for one sample, each call of a layer with noise of its own."""
    calls: Counter[int] = Counter()

    def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
        call = layer_key(key, network.plan.layers[layer].name)
        call = jax.random.fold_in(call, calls[layer])
        calls[layer] += 1
        tiles = network.tiles(layer, operation, units[layer])
        return tiles.outputs(x, weight, jax.random.fold_in(call, index))

    return outputs


def energies(
    network: Network,
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
        signal, error, own = ([jnp.zeros(()) for _ in network.plan.layers] for _ in range(3))
        expected: list[Array] = []
        places = (one.weight for one in network.plan.products if one.weight is not None)
        apart = _on_tiles(network, units, key, index)

        def digital(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            place = next(places)
            y = operation.result(exact_sums(operation, x, weight))
            signal[layer] += jnp.square(y).sum()
            alone = apart(layer, operation, x, place(leaves[place.leaf]))
            own[layer] += jnp.square(alone - y).sum()
            expected.append(y)
            return y

        _run(network, targets, image, digital)
        met, running = iter(expected), _on_tiles(network, units, key, index)

        def analog(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            y = running(layer, operation, x, weight)
            error[layer] += jnp.square(y - next(met)).sum()
            return y

        _run(network, leaves, image, analog)
        return jnp.stack(signal), jnp.stack(error), jnp.stack(own)

    signal, error, own = jax.vmap(one)(images, indices)
    return signal.sum(0), error.sum(0), own.sum(0)


def margins(
    network: Network,
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

        def look(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            exact = exact_sums(operation, x, weight)
            shapes.append(exact.shape)
            at.append((layer, operation))
            return operation.result(exact)

        def margin(probes: list[Array]) -> tuple[Array, list[tuple[Array, Array]]]:
            met, given = iter(probes), list[tuple[Array, Array]]()

            def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
                given.append((x, weight))
                return operation.result(exact_sums(operation, x, weight) + next(met))

            first, second = jax.lax.top_k(_run(network, leaves, image, outputs), 2)[0]
            return first - second, given

        jax.eval_shape(lambda x: _run(network, leaves, x, look), image)
        probes = [jnp.zeros(shape) for shape in shapes]
        (value, given), slopes = jax.value_and_grad(margin, has_aux=True)(probes)
        variances = [
            network.tiles(layer, operation, units[layer]).variance(x, weight, slope)
            for (layer, operation), (x, weight), slope in zip(at, given, slopes, strict=True)
        ]
        return value, sum(variances, jnp.zeros(()))

    found: tuple[Array, Array] = jax.vmap(one)(images)
    return found


def observed(
    network: Network,
    leaves: Sequence[Array],
    units: Units,
    images: Shaped[Array, "batch ..."],
    reduce: Callable[[Array], Array],
) -> list[list[list[Array]]]:
    """What the tiles' outputs are ahead of ADCs, in the tiles' unit, by magnitude.

    Args:
      network: the function; its noise of operations is left out. Inputs saturate beyond the DAC's
        ranges without a DAC too.
      reduce: what is kept of `[outputs, positions]`.

    Returns:
      For each layer and column of its tiles what `reduce` gives for each call, `[batch, ...]`.
    """

    def one(image: Array) -> Any:
        layers = network.plan.layers
        seen: list[list[list[Array]]] = [[[] for _ in layer.grid.columns] for layer in layers]

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            tiles = network.tiles(layer, operation, units[layer])
            inputs, matrix = operation.inputs(x), operation.matrix(weight.astype(jnp.float32))
            found = []
            for number in range(len(tiles.columns)):
                column = tiles.column(number, inputs, matrix)
                rows = jnp.moveaxis(jnp.abs(column.exact / column.unit), column.axis, 0)
                seen[layer][number].append(reduce(rows.reshape(len(rows), -1)))
                found.append(tiles.converted(number, column, column.exact))
            return operation.result(sum(found[1:], found[0]))

        _run(network, leaves, image, outputs)
        return seen

    found: list[list[list[Array]]] = jax.vmap(one)(images)
    return found


def observed_inputs(
    network: Network,
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
        seen: list[list[Array]] = [[] for _ in network.plan.layers]

        def outputs(layer: int, operation: Operation, x: Array, weight: Array) -> Array:
            seen[layer].append(reduce(jnp.abs(x).ravel()))
            return operation.result(exact_sums(operation, x, weight))

        _run(network, leaves, image, outputs)
        return seen

    found: list[list[Array]] = jax.vmap(one)(images)
    return found


def met(
    network: Network,
    leaves: Sequence[Array],
    units: Units,
    key: Array,
    images: Shaped[Array, "batch ..."],
    indices: Int[Array, " batch"],
    reduce: Callable[[int, jaxprs.Meeting], Any],
) -> list[Any]:
    """What is kept of the places where parameters meet what depends on the images.

    Args:
      reduce: from a meeting's number, in the order of the program, and the meeting of one sample
        to what is kept of it; None for nothing. The others are as for `logits`.

    Returns:
      What `reduce` gave, each `[batch, ...]`.
    """

    def one(image: Array, index: Array) -> list[Any]:
        numbers, kept = count(), list[Any]()

        def look(meeting: jaxprs.Meeting) -> None:
            if (found := reduce(next(numbers), meeting)) is not None:
                kept.append(found)

        _run(network, leaves, image, _on_tiles(network, units, key, index), look)
        return kept

    found: list[Any] = jax.vmap(one)(images, indices)
    return found


def _run(
    network: Network,
    leaves: Sequence[Array],
    image: Array,
    outputs: Outputs,
    on_meeting: jaxprs.OnMeeting | None = None,
) -> Array:
    """The program's first result for one sample; `outputs(layer, operation, activations, weight)`
    computes what tiles do, `on_meeting` is shown where parameters meet activations."""
    met = iter(network.plan.products)

    def on_product(product: jaxprs.Product, x: Array, weight: Array) -> Array | None:
        one = next(met)
        if one.layer is None or one.operation is None:
            return None
        # Tiles compute in float32 whatever the network's own type is.
        found = outputs(one.layer, one.operation, x.astype(jnp.float32), weight)
        return found.astype(jaxprs.shape_of(product.equation.outvars[0]).dtype)

    found: Array = jaxprs.run(network.program, leaves, image[None], on_product, on_meeting)[0][0]
    return found
