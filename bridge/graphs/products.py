"""The matrix products of a forward pass: where they are, what they cost, and their weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bridge.graphs.graph import Graph, Node, Ref, references, run
from bridge.graphs.operators import OPERATORS
from bridge.graphs.scaled_weights import Operand, Scaled, are_ids, scaled_weights

_FACTORS = {
    "aten.addmm.default": (1, 2),
    "aten.baddbmm.default": (1, 2),
    "aten.scaled_dot_product_attention.default": (0, 1, 2),
    "aten._trilinear.default": (0, 1, 2),
} | dict.fromkeys(
    [
        *("aten.convolution.default", "aten.linear.default", "aten.matmul.default"),
        *("aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default"),
    ],
    (0, 1),
)
"""Which arguments of an operator are the factors of a product; others are added."""
_OF_LAYERS = ("aten.convolution.default", "aten.linear.default")


@dataclass(frozen=True)
class Product:
    """One matrix product, or convolution.

    Attributes:
      layer: path of the innermost module that computes it, "" for the root.
      operator: PyTorch's name of it.
      weights: names of the parameters and floating buffers that one of its factors is made of, or
        is but for scales that depend on the input, or of which the input picks a part.
      macs: multiply-accumulates for one sample.
      groups: groups of a convolution, 1 otherwise.
      transposed: whether it is a transposed convolution.
      activations: whether all its factors depend on the input, and none is such scaled weights.
      scaled: whether its weights are scaled by what depends on the input, or picked.
      picked: whether what depends on the input picks a part of its weights.
      filters: whether it is a product of complex values, number by number, as of a filter in the
        Fourier domain; its multiply-accumulates are those numbers.
    """

    layer: str
    operator: str
    weights: tuple[str, ...]
    macs: int
    groups: int = 1
    transposed: bool = False
    activations: bool = False
    scaled: bool = False
    picked: bool = False
    filters: bool = False


def products(
    graph: Graph, params: Mapping[str, Array], images: Any, on_tiles: Callable[[str], bool]
) -> list[Product]:
    """The products in the order in which they run; nothing is computed.

    What depends on parameters alone, such as a weight that is made of others, is no product, unless
    a tile computes it, as of learned queries.

    Args:
      graph: of a network.
      params: its weights.
      images: as the module takes them, or their shape; several samples.
      on_tiles: whether the layer at a path is on tiles.
    """
    found: list[Product] = []
    by_tiles = _by_tiles(graph, on_tiles)
    made_of, each, samples = _made_of(graph, by_tiles), {graph.image}, images.shape[0]
    shapes = {graph.image: images.shape}
    shapes |= {name: params[path].shape for name, path in graph.tensors}
    shapes |= {name: one.shape for name, one in graph.constants}
    known = {name: _operand(shape, made_of[name]) for name, shape in shapes.items()}
    tokens = jnp.issubdtype(images.dtype, jnp.integer)
    known[graph.image] = known[graph.image]._replace(ids=tokens)

    def see(node: Node, arguments: Sequence[Any], value: Any) -> None:
        known[node.name] = _result(node, value, made_of[node.name], known)
        if _is_of_each_sample(node, known[node.name].shape, known, each, samples):
            each.add(node.name)
        if by := _filter(node, value, made_of, known):
            macs = math.prod(value.shape) // samples
            found.append(Product(node.layer, "mul", tuple(sorted(by)), macs, filters=True))
        if node.operator not in _FACTORS or made_of[node.name] is not None:
            return
        factors = [node.arguments[i] for i in _FACTORS[node.operator]]
        names = [one.name for one in factors if isinstance(one, Ref)]
        weights = [made_of[name] for name in names]
        if node.name in by_tiles:
            weights = [None, frozenset([by_tiles[node.name]])]
        activations = all(one is None for one in weights)
        of_input = [known[name].scaled for name in names]
        scaled = [one.parameters for one in of_input]
        is_scaled = activations and any(scaled) and not all(scaled)
        convolution = node.operator == "aten.convolution.default"
        found.append(
            Product(
                node.layer,
                node.operator.split(".")[1],
                tuple(sorted(frozenset().union(*(scaled if is_scaled else filter(None, weights))))),
                _macs(node.operator, arguments, value) // (samples if node.name in each else 1),
                arguments[8] if convolution else 1,
                bool(arguments[6]) if convolution else False,
                activations and not is_scaled,
                is_scaled,
                is_scaled and any(one.picked for one in of_input),
            )
        )

    jax.eval_shape(partial(run, graph, OPERATORS, see=see), dict(params), images)
    return found


def _filter(
    node: Node,
    value: Any,
    made_of: Mapping[str, frozenset[str] | None],
    known: Mapping[str, Operand],
) -> frozenset[str]:
    """The parameters that complex values of the input are multiplied by, number by number; none
    where it is one number for all of them."""
    if node.operator != "aten.mul.Tensor" or made_of[node.name] is not None:
        return frozenset()
    if not jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        return frozenset()
    names = [one.name for one in node.arguments if isinstance(one, Ref)]
    alone = [made_of[name] for name in names if known[name].numbers > 1]
    return frozenset().union(*filter(None, alone))


def _operand(shape: tuple[int, ...], made_of: frozenset[str] | None) -> Operand:
    return Operand(made_of is None, made_of or frozenset(), shape, math.prod(shape), Scaled())


def _result(
    node: Node, value: Any, made_of: frozenset[str] | None, known: Mapping[str, Operand]
) -> Operand:
    """What a node gives; of several arrays the first."""
    operation = node.operator.removeprefix("aten.").split(".")[0]
    value = value[0] if isinstance(value, tuple | list) else value
    shape = np.shape(value)
    taken = [known[name] for name in references(node.arguments)]
    numbers = taken[0].numbers if operation == "expand" else math.prod(shape)
    scaled = scaled_weights(operation, taken, numbers)
    floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
    ids = are_ids(floating, [(one.input, one.ids) for one in taken])
    return _operand(shape, made_of)._replace(numbers=numbers, scaled=scaled, ids=ids)


def _made_of(graph: Graph, by_tiles: Mapping[str, str]) -> dict[str, frozenset[str] | None]:
    """The parameters that each value is made of; None where it depends on the input, or on what
    tiles give."""
    known: dict[str, frozenset[str] | None] = {graph.image: None}
    known |= {name: frozenset([path]) for name, path in graph.tensors}
    known |= {name: frozenset() for name, _ in graph.constants}
    for node in graph.nodes:
        if node.operator == "aten.sym_size.int":
            known[node.name] = frozenset()  # a size is no value of the input
            continue
        of = [known[name] for name in references([*node.arguments, *dict(node.options).values()])]
        names = [one for one in of if one is not None]
        alone = len(names) == len(of) and node.name not in by_tiles
        known[node.name] = frozenset().union(*names) if alone else None
    return known


def _by_tiles(graph: Graph, on_tiles: Callable[[str], bool]) -> dict[str, str]:
    """The values that a layer on tiles makes of what it is given, each with the layer's weight."""
    names, found = dict(graph.tensors), {}
    for node in graph.nodes:
        if node.operator in _OF_LAYERS and isinstance(node.arguments[1], Ref):
            weight = names.get(node.arguments[1].name)
            own = weight == f"{node.layer}.weight".removeprefix(".")
            if weight is not None and own and on_tiles(node.layer):
                found[node.name] = weight
    return found


def _is_of_each_sample(
    node: Node, shape: tuple[int, ...], known: Mapping[str, Operand], each: set[str], samples: int
) -> bool:
    """Whether a value is made of such, or of one for all samples that is repeated for each."""
    of = references([*node.arguments, *dict(node.options).values()])
    if not each.isdisjoint(of):
        return True
    repeats = node.operator in ("aten.expand.default", "aten.repeat.default")
    return repeats and math.prod(shape) == math.prod(known[of[0]].shape) * samples


def _macs(operator: str, arguments: Sequence[Any], value: Any) -> int:
    if operator == "aten.convolution.default":
        inputs, weight, transposed = arguments[0], arguments[1], arguments[6]
        positions = inputs if transposed else value
        return math.prod(positions.shape) * math.prod(weight.shape[1:])
    if operator == "aten.scaled_dot_product_attention.default":
        query, key, values = arguments[:3]
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        return pairs * (query.shape[-1] + values.shape[-1])
    if operator == "aten._trilinear.default":
        return trilinear_products([one.shape for one in arguments[:3]], arguments[3:6])
    first = arguments[_FACTORS[operator][0]]
    return math.prod(value.shape) * first.shape[-1]


def trilinear_products(shapes: Sequence[Sequence[int]], lacking: Sequence[Sequence[int]]) -> int:
    """Products of three numbers in `aten._trilinear`, as many as its factors have broadcast.

    For `torch.nn.Bilinear` these are batch x outputs x inputs1 x inputs2.

    Args:
      shapes: of the three factors.
      lacking: the axes of the product that each lacks.
    """
    sizes = [1] * (len(shapes[0]) + len(lacking[0]))
    for shape, axes in zip(shapes, lacking, strict=True):
        present = [axis for axis in range(len(sizes)) if axis not in axes]
        for axis, size in zip(present, shape, strict=True):
            sizes[axis] = max(sizes[axis], size)
    return math.prod(sizes)
