"""What of a function runs on tiles: its layers, and the products that read them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float

from bridge.chips.product_table import ProductRow, product_table
from bridge.jax_chips import jaxprs
from bridge.jax_chips.grids import Grid
from bridge.jax_chips.operations import Operation, operation_of


@dataclass(frozen=True)
class Layer:
    """A weight on tiles.

    Attributes:
      name: path of its parameter, and `[n]` behind it where several layers share one.
      weight: which parameter, and the layout in which the product takes it.
      operation: gives it as a matrix.
    """

    name: str
    weight: jaxprs.Weight
    operation: Operation

    @property
    def grid(self) -> Grid:
        """Its tiles."""
        return Grid(*self.operation.matrix_shape)

    def matrix(self, parameter: Array) -> Float[Array, "outputs inputs"]:
        """The weight matrix, float32."""
        return self.operation.matrix(self.weight(parameter)).astype(jnp.float32)

    def places(self, shape: Sequence[int]) -> np.ndarray:
        """Where each weight of the matrix stands in its parameter of a shape, int32 `[outputs,
        inputs]`."""
        with jax.ensure_compile_time_eval():
            numbers = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
            return np.asarray(self.operation.matrix(self.weight(numbers)))


def put(
    layers: Sequence[Layer], parameter: Array, matrices: Sequence[Float[Array, "outputs inputs"]]
) -> Array:
    """A parameter with weight matrices in the places of layers that are parts of it."""

    def parts(parameter: Array) -> list[Array]:
        return [one.matrix(parameter) for one in layers]

    shape = jax.ShapeDtypeStruct(parameter.shape, parameter.dtype)
    back = jax.linear_transpose(parts, shape)
    changed: Array = parameter - back(parts(parameter))[0] + back(list(matrices))[0]
    return changed


@dataclass(frozen=True)
class Met:
    """A product as the program meets it.

    Attributes:
      layer: position of its layer; None where it stays digital.
      operation: how it runs on tiles.
      weight: the parameter, in the layout in which this product takes it.
    """

    layer: int | None
    operation: Operation | None
    weight: jaxprs.Weight | None


@dataclass(frozen=True)
class Plan:
    """Which products of a program run on tiles.

    Attributes:
      layers: in the order in which they are first met.
      products: in the order in which they are met.
      coverage: see `Chip.coverage`.
    """

    layers: tuple[Layer, ...]
    products: tuple[Met, ...]
    coverage: pd.DataFrame


def plan(
    program: ClosedJaxpr,
    names: Sequence[str],
    is_digital: Callable[[str], bool],
) -> Plan:
    """Finds the layers of a program of one sample.

    Args:
      program: of a function `(leaves, image)`.
      names: the parameters' paths.
      is_digital: whether a parameter's products stay digital by the user's wish.

    Raises:
      ValueError: one parameter on tiles in two arrangements.
    """
    *leaves, image = (jaxprs.shape_of(one) for one in program.jaxpr.invars)
    found = _Finder(leaves, names, is_digital)

    def walk(given: Sequence[Array], x: Array) -> list[Any]:
        return jaxprs.run(program, given, x, found.meet, on_sum=found.meet_sum)

    jax.eval_shape(walk, leaves, image)
    return Plan(tuple(found.layers), tuple(found.products), product_table(found.rows))


class _Finder:
    """Collects layers while a program is walked."""

    def __init__(
        self, leaves: Sequence[Any], names: Sequence[str], is_digital: Callable[[str], bool]
    ):
        self.leaves, self.names, self.is_digital = leaves, names, is_digital
        self.layers: list[Layer] = []
        self.products: list[Met] = []
        self.rows: list[ProductRow] = []
        self._owners: dict[int, np.ndarray] = {}
        self._known: dict[int, list[int]] = {}
        self._places: dict[int, np.ndarray] = {}

    def meet(self, product: jaxprs.Product, x: Any, weight: Any) -> None:
        number, operation, reason = self._layer(product)
        on_tiles = number is not None
        self.products.append(
            Met(number, operation if on_tiles else None, product.weight if on_tiles else None)
        )
        leaves = product.picked if product.position is None else product.leaves
        weights = ", ".join(self.names[i] for i in sorted(leaves))
        layer = self.layers[number].name if number is not None else weights
        self.rows.append(
            {
                "layer": layer,
                "operator": product.equation.primitive.name,
                "weights": weights,
                "macs": _macs(product),
                "tiles": 0 if number is None else self.layers[number].grid.count,
                "reason": reason,
            }
        )

    def meet_sum(self, written_out: jaxprs.Sum) -> None:
        names = [self.names[i] for i in sorted(written_out.leaves)]
        weights = ", ".join(names)
        asked = all(map(self.is_digital, names))
        filters = written_out.filters
        reason = "a filter of complex values" if filters else "a sum that is written out"
        self.rows.append(
            {
                "layer": weights,
                "operator": "mul" if filters else "reduce_sum",
                "weights": weights,
                "macs": written_out.macs,
                "tiles": 0,
                "reason": "named in digital_layers" if asked else reason,
            }
        )

    def _layer(self, product: jaxprs.Product) -> tuple[int | None, Operation | None, str]:
        if product.position is None:
            picked = "weights that the images choose or scale"
            return None, None, picked if product.picked else "two activations"
        if not product.images:
            return None, None, "parameters alone"
        if not product.leaves:
            return None, None, "a constant of the function, which is not in params"
        if product.weight is None:
            return None, None, "the weight is computed from parameters"
        leaf = product.weight.leaf
        if self.is_digital(self.names[leaf]):
            return None, None, "named in digital_layers"
        if not jnp.issubdtype(self.leaves[leaf].dtype, jnp.floating):
            return None, None, f"weights of type {self.leaves[leaf].dtype}"
        if 0 in self.leaves[leaf].shape:
            return None, None, "no weights"
        operation = operation_of(product)
        if isinstance(operation, str):
            return None, None, operation
        return self._shared(product.weight, operation), operation, ""

    def _shared(self, weight: jaxprs.Weight, operation: Operation) -> int:
        """The layer of a weight; the one that is there, where it was met before."""
        leaf = self.leaves[weight.leaf]
        here = Layer(self.names[weight.leaf], weight, operation).places(leaf.shape)
        owner = self._owners.setdefault(weight.leaf, np.full(_size(leaf), -1, np.int32))
        owners = np.unique(owner[here])
        known = self._known.setdefault(weight.leaf, [])
        if owners.tolist() != [-1]:
            number = int(owners[-1])
            if len(owners) == 1 and np.array_equal(here, self._places[number]):
                return number
            raise ValueError(
                f"parameter {self.names[weight.leaf]} is multiplied in two arrangements, such as "
                "with its transpose, and can be on tiles in one: leave it digital, "
                f"digital_layers=[{self.names[weight.leaf]!r}]"
            )
        owner[here] = len(self.layers)
        name = self.names[weight.leaf]
        if here.size < _size(leaf):
            name = f"{name}[{len(known)}]"
        if name in {*self.names} - {self.names[weight.leaf]}:
            raise ValueError(f"a parameter is named {name}, as a part of another is: rename it")
        self.layers.append(Layer(name, weight, operation))
        self._places[len(self.layers) - 1] = here
        known.append(len(self.layers) - 1)
        return len(self.layers) - 1


def _size(leaf: Any) -> int:
    return int(np.prod(leaf.shape))


def _macs(product: jaxprs.Product) -> int:
    """Multiply-accumulates of any product."""
    equation = product.equation
    outputs = int(np.prod(jaxprs.shape_of(equation.outvars[0]).shape))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return outputs * int(np.prod([product.operands[0].shape[i] for i in contracted], dtype=int))
    spec = equation.params["dimension_numbers"].rhs_spec
    kernel = product.operands[1].shape
    return outputs * int(np.prod(kernel)) // kernel[spec[0]]
