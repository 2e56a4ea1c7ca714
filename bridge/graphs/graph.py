"""A network as data: its operators in order, and a JAX function that runs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Argument: TypeAlias = Any
"""A number, text, None, a `Ref`, or a tuple of such."""


@dataclass(frozen=True)
class Ref:
    """The value of an earlier node, an input or a tensor, by name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """An array that is fixed, such as a table of positions; equal where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, array: np.ndarray) -> "Constant":
        return cls(str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())

    def array(self) -> np.ndarray:
        return np.frombuffer(self.content, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
      name: name of its value in the graph.
      operator: as in `bridge.graphs.operators`, such as "aten.relu.default".
      arguments: positional arguments.
      options: named arguments.
      dtype: dtype of its value; None where that is no single array.
      layer: path of the innermost module that calls it, "" for the root.
      line: source line that calls it, for messages.
    """

    name: str
    operator: str
    arguments: tuple[Argument, ...]
    options: tuple[tuple[str, Argument], ...]
    dtype: str | None
    layer: str
    line: str = field(compare=False)


@dataclass(frozen=True)
class Graph:
    """A network in evaluation mode, without its weights.

    Equal graphs are equal keys, so that what JAX compiled for one serves the other: networks of one
    architecture share their programs, whatever files they come from.

    Attributes:
      nodes: operators in the order in which they run.
      image: name of the input.
      tensors: name of each parameter or buffer by its name in the graph.
      constants: arrays that are fixed, by name in the graph.
      output: the value that is returned.
      batch: smallest and largest batch size for which it holds; None for no bound.
    """

    nodes: tuple[Node, ...]
    image: str
    tensors: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    output: Ref
    batch: tuple[int | None, int | None]

    @cached_property
    def _hash(self) -> int:
        return hash((self.nodes, self.image, self.tensors, self.constants, self.output, self.batch))

    def __hash__(self) -> int:
        return self._hash  # each dispatch asks for it

    def holds(self, batch: int) -> bool:
        """Whether the graph is that of a batch of so many samples."""
        least, most = self.batch
        return (least is None or batch >= least) and (most is None or batch <= most)


def run(
    graph: Graph,
    operators: Mapping[str, Callable[..., Any]],
    params: Mapping[str, Array],
    images: Array,
    see: Callable[[Node, Sequence[Any], Any], None] | None = None,
) -> Array:
    """The value that a graph returns.

    Args:
      graph: of a network.
      operators: a function for each operator that is in it.
      params: weights by their names in the module.
      images: as the module takes them.
      see: is shown each node, its positional arguments and its value.
    """
    known: dict[str, Any] = {graph.image: images}
    known |= {name: params[path] for name, path in graph.tensors}
    known |= {name: constant.array() for name, constant in graph.constants}
    for node in graph.nodes:
        arguments = [_value(argument, known) for argument in node.arguments]
        options = {name: _value(argument, known) for name, argument in node.options}
        try:
            value = operators[node.operator](*arguments, **options)
        except (TypeError, ValueError) as error:
            error.add_note(f"in {node.operator} of {node.layer or 'the module'} ({node.line})")
            raise
        if node.dtype is not None:
            if value is None:
                raise ValueError(_without_value(graph, node))
            value = jnp.asarray(value, jax.dtypes.canonicalize_dtype(node.dtype))
        if see is not None:
            see(node, arguments, value)
        known[node.name] = value
    return known[graph.output.name]


def _without_value(graph: Graph, node: Node) -> str:
    """What to say of a node whose value the functions here leave out."""
    operators = {one.name: one.operator for one in graph.nodes}
    taken = [operators[name] for name in references(node.arguments) if name in operators]
    name, cure = " of ".join([node.operator, *taken]), ""
    if "max_pool" in name:
        cure = (
            ": these are the places of the maxima (return_indices=True), which max_unpool puts "
            "values back to; take interpolate or a transposed convolution there"
        )
    return (
        f"{name} in {node.layer or 'the module'} ({node.line}) has no counterpart in JAX here{cure}"
    )


def _value(argument: Argument, known: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return known[argument.name]
    if isinstance(argument, tuple):
        return [_value(one, known) for one in argument]
    return argument


def references(arguments: Sequence[Argument]) -> list[str]:
    """Names of the values that arguments take."""
    found: list[str] = []
    for argument in arguments:
        if isinstance(argument, Ref):
            found.append(argument.name)
        elif isinstance(argument, tuple):
            found += references(argument)
    return found
