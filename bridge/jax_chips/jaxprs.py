"""Walks a function's program and replaces the products with weights in it.

A weight is a parameter, or what layout operations alone make of one. A product is a `dot_general`
or `conv_general_dilated` of a weight and something that depends on the images; all other operations
are computed as they are. Calls, branches and loops with products in them are gone into: a loop is
unrolled, a branch computed and selected, and a derivative rule of the function's own gives way to
that of its program.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

_CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat2"), "jaxpr"),
    **dict.fromkeys(("closed_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}
"""Operations that call one program on their own operands, and which of their settings it is."""

_PLAIN_CALLS = frozenset(("jit", "pjit", "closed_call"))
"""Those that mean nothing but their program."""

_LAYOUT = frozenset(("reshape", "transpose", "squeeze", "slice", "rev", "copy"))
_PASSING = frozenset(("optimization_barrier", "sharding_constraint", "stop_gradient"))
"""Operations that give each operand as it is."""


class Weight(NamedTuple):
    """What layout operations make of a parameter."""

    leaf: int
    """Position of the parameter among the leaves."""
    layout: tuple[Callable[[Any], Any], ...]
    """The operations in turn."""

    def __call__(self, parameter: Any) -> Any:
        for step in self.layout:
            parameter = step(parameter)
        return parameter


@dataclass(frozen=True)
class Origin:
    """What a value is made of.

    Attributes:
      leaves: parameters that it depends on, by position.
      images: whether it depends on the images.
      weight: what it is of a parameter, where layout operations alone made it.
      picked: parameters of which the images choose or scale the parts, by position.
      repeated: axes along which it is the same, by broadcasting.
      apart: parameters that what depends on the images is subtracted from, or they from it.
      terms: parameters of a product, or of a distance, that is written out and not yet summed.
      factors: parameters that what depends on the images is times, by element, each with an axis
        along which they differ.
    """

    leaves: frozenset[int] = frozenset()
    images: bool = False
    weight: Weight | None = None
    picked: frozenset[int] = frozenset()
    repeated: frozenset[int] = frozenset()
    apart: frozenset[int] = frozenset()
    terms: frozenset[int] = frozenset()
    factors: frozenset[tuple[int, int]] = frozenset()


class Traced(NamedTuple):
    """A value of the program, and what it is made of."""

    value: Any
    origin: Origin


class Product(NamedTuple):
    """One product as it is met in the program.

    Attributes:
      equation: the operation.
      position: which operand is the weight, or depends on no image; None for two activations.
      weight: what it is of a parameter; None where it is not made by layout operations alone.
      leaves: parameters that it depends on.
      operands: shapes and dtypes of both.
      images: whether an operand depends on the images.
      picked: parameters of which the images have chosen or scaled the parts for an operand.
    """

    equation: JaxprEqn
    position: int | None
    weight: Weight | None
    leaves: frozenset[int]
    operands: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
    images: bool
    picked: frozenset[int]


OnProduct = Callable[[Product, Any, Any], Any]
"""Called with a product, the activation and the weight; its result takes the product's place, None
leaves the product as it is."""


class Meeting(NamedTuple):
    """An operation in which parameters alone and what depends on the images come together.

    Products are none.

    Attributes:
      leaves: parameters that the former depends on.
      value: the latter, where the operation is a sum, difference, product or quotient of both by
        element; None for another.
      shape: of the former, as the operation takes it.
    """

    leaves: frozenset[int]
    value: Any
    shape: tuple[int, ...]


OnMeeting = Callable[[Meeting], None]
"""Called with each meeting, in the order of the program."""


class Sum(NamedTuple):
    """A product, or distances, written out by element and summed: `(x[:, :, None] * w).sum(1)`.

    Or a product with a sparse array, or complex values times parameters by element, as a filter in
    the Fourier domain has them.

    Attributes:
      leaves: its parameters.
      macs: how many terms, or complex values, it has.
      filters: whether it is of complex values.
    """

    leaves: frozenset[int]
    macs: int
    filters: bool = False


OnSum = Callable[[Sum], None]
"""Called with each such sum, in the order of the program."""


class Visitor(NamedTuple):
    """What a walk calls."""

    on_product: OnProduct
    on_meeting: OnMeeting | None
    on_sum: OnSum | None


def run(
    program: ClosedJaxpr,
    leaves: Sequence[Any],
    images: Any,
    on_product: OnProduct,
    on_meeting: OnMeeting | None = None,
    on_sum: OnSum | None = None,
) -> list[Any]:
    """A program's results, its products replaced.

    Args:
      program: of a function `(leaves, images)`.
      leaves: parameters.
      images: the last operand.
      on_product: see `OnProduct`.
      on_meeting: see `OnMeeting`.
      on_sum: see `OnSum`; those within loops and branches without other products are not seen.
    """
    given = [
        Traced(leaf, Origin(frozenset([i]), weight=Weight(i, ()))) for i, leaf in enumerate(leaves)
    ]
    arguments = [*given, Traced(images, Origin(images=True))]
    visitor = Visitor(on_product, on_meeting, on_sum)
    return [one.value for one in _closed(program, arguments, visitor)]


def _closed(
    program: ClosedJaxpr | Jaxpr, arguments: Sequence[Traced], visitor: Visitor
) -> list[Traced]:
    if isinstance(program, ClosedJaxpr):
        constants = [Traced(one, Origin()) for one in program.consts]
        return _walk(program.jaxpr, constants, arguments, visitor)
    return _walk(program, [], arguments, visitor)


def _walk(
    jaxpr: Jaxpr,
    constants: Sequence[Traced],
    arguments: Sequence[Traced],
    visitor: Visitor,
) -> list[Traced]:
    known: dict[Any, Traced] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)

    def look_up(variable: Any) -> Traced:
        if isinstance(variable, Literal):
            return Traced(variable.val, Origin())
        return known[variable]

    for equation in jaxpr.eqns:
        operands = [look_up(variable) for variable in equation.invars]
        results = _evaluate(equation, operands, visitor)
        known |= zip(equation.outvars, results, strict=True)
    return [look_up(variable) for variable in jaxpr.outvars]


def _evaluate(equation: JaxprEqn, operands: Sequence[Traced], visitor: Visitor) -> list[Traced]:
    name = equation.primitive.name
    if name in _PRODUCTS:
        return [_product(equation, operands, visitor)]
    known = any(one.origin.leaves or one.origin.images for one in operands)
    if name in _PLAIN_CALLS and known:
        return _closed(equation.params[_CALLS[name]], operands, visitor)
    if known and has_products(equation):
        if name in _CALLS:
            return _closed(equation.params[_CALLS[name]], operands, visitor)
        if name in _INSIDE:
            return _INSIDE[name](equation, operands, visitor)
        raise ValueError(
            f"a product with parameters is inside of {name}, whose program cannot be changed: "
            "write it outside, or as lax.scan or lax.cond"
        )
    if visitor.on_meeting is not None:
        _tell_meeting(equation, operands, visitor.on_meeting)
    if visitor.on_sum is not None and operands:
        _tell_sum(equation, operands, visitor.on_sum)
        if name == "mul":
            _tell_filter(equation, operands, visitor.on_sum)
    return _as_it_is(equation, operands)


_BY_ELEMENT = frozenset(("add", "sub", "mul", "div"))


def _tell_meeting(equation: JaxprEqn, operands: Sequence[Traced], on_meeting: OnMeeting) -> None:
    of_images = [one for one in operands if one.origin.images]
    if not of_images:
        return
    plain = equation.primitive.name in _BY_ELEMENT
    for one, variable in zip(operands, equation.invars, strict=True):
        if one.origin.leaves and not one.origin.images:
            value = of_images[0].value if plain else None
            on_meeting(Meeting(one.origin.leaves, value, shape_of(variable).shape))


def _as_it_is(equation: JaxprEqn, operands: Sequence[Traced]) -> list[Traced]:
    values = _compute(equation, [one.value for one in operands])
    origin = replace(
        _written_out(equation, operands),
        picked=_picked(equation, operands),
        factors=_factors(equation, operands),
    )
    weights = _layouts(equation, operands)
    return [
        Traced(value, origin if weight is None else Origin(origin.leaves, weight=weight))
        for value, weight in zip(values, weights, strict=True)
    ]


_MOVING = _LAYOUT | _PASSING | {"broadcast_in_dim", "convert_element_type", "select_n"}
_SCALING = frozenset(("mul", "div"))


def _picked(equation: JaxprEqn, operands: Sequence[Traced]) -> frozenset[int]:
    """The parameters of which the images choose or scale the parts, in an operation's results."""
    name, origins = equation.primitive.name, [one.origin for one in operands]
    found = frozenset[int]()
    if name in _MOVING | _SCALING:
        found = found.union(*(one.picked for one in origins))
    if name in ("gather", "dynamic_slice"):
        source, *places = origins
        if not source.images and any(one.images for one in places):
            found |= source.leaves
    if name in ("select_n", "cond") and origins[0].images:
        found = found.union(*(one.leaves for one in origins[1:] if not one.images))
    if name in _SCALING and any(one.images for one in origins):
        for one, variable in zip(origins, equation.invars, strict=True):
            # What has one axis is the scale of a normalisation or the like.
            if one.weight is not None and sum(size > 1 for size in shape_of(variable).shape) > 1:
                found |= {one.weight.leaf}
    return found


_SPARSE_PRODUCTS = frozenset(("bcoo_dot_general", "bcsr_dot_general"))
"""Products of a sparse array, whose entries come first, with a plain one, which comes last."""


def _factors(equation: JaxprEqn, operands: Sequence[Traced]) -> frozenset[tuple[int, int]]:
    """The parameters, with axes, that an operation's results are times, by element."""
    name, origins = equation.primitive.name, [one.origin for one in operands]
    found = frozenset[tuple[int, int]]().union(*(one.factors for one in origins))
    if name == "transpose":
        places = {axis: i for i, axis in enumerate(equation.params["permutation"])}
        return frozenset((leaf, places[axis]) for leaf, axis in found)
    if name not in _SCALING | {"neg", "convert_element_type"}:
        return frozenset()
    if any(one.images for one in origins):
        found |= {
            (leaf, axis)
            for one, variable in zip(origins, equation.invars, strict=True)
            if not one.images
            for leaf in one.leaves
            for axis, size in enumerate(shape_of(variable).shape)
            if size > 1 and axis not in one.repeated
        }
    return found


def _tell_sum(equation: JaxprEqn, operands: Sequence[Traced], on_sum: OnSum) -> None:
    """Tells of terms that are summed along an axis along which both of their factors differ.

    Sums by place are of copies of features, as sparse weights have them: there it is enough that
    the parameters differ.
    """
    name, settings = equation.primitive.name, equation.params
    summed, taken = operands[-1].origin, shape_of(equation.invars[-1])
    if name in _SPARSE_PRODUCTS:
        entries, by = shape_of(equation.invars[0]), settings["dimension_numbers"][0][1]
        if summed.images and operands[0].origin.leaves:
            rows = math.prod(n for axis, n in enumerate(taken.shape) if axis not in by)
            on_sum(Sum(operands[0].origin.leaves, entries.shape[-1] * rows))
    elif name == "scatter-add" and not settings["unique_indices"]:
        window = settings["dimension_numbers"].update_window_dims
        if found := frozenset(leaf for leaf, axis in summed.factors if axis not in window):
            on_sum(Sum(found, taken.size))
    elif name in ("reduce_sum", "cumsum", "reduce_window_sum"):
        if name == "reduce_window_sum":
            axes = {i for i, size in enumerate(settings["window_dimensions"]) if size > 1}
        else:
            axes = set(settings["axes"] if name == "reduce_sum" else [settings["axis"]])
        if summed.terms and not summed.repeated.issuperset(axes):
            on_sum(Sum(summed.terms, taken.size))


def _tell_filter(equation: JaxprEqn, operands: Sequence[Traced], on_sum: OnSum) -> None:
    """Tells of complex values of the images times parameters; one number for all is a scale."""
    made = shape_of(equation.outvars[0])
    if not jnp.issubdtype(made.dtype, jnp.complexfloating):
        return
    leaves = [
        one.origin.leaves
        for one, factor in zip(operands, equation.invars, strict=True)
        if not one.origin.images
        and any(n > 1 for i, n in enumerate(shape_of(factor).shape) if i not in one.origin.repeated)
    ]
    found = frozenset[int]().union(*leaves)
    if found and any(one.origin.images for one in operands):
        on_sum(Sum(found, made.size, filters=True))


def _written_out(equation: JaxprEqn, operands: Sequence[Traced]) -> Origin:
    """What an operation's results are made of, sums of products that it may begin among it.

    A product begins where what depends on the images is the same along an axis along which the
    parameters beside it differ. Of terms `repeated` has the axes along which either is the same.
    """
    name, origins = equation.primitive.name, [one.origin for one in operands]
    found = _of_all(operands)
    of_images = [one for one in origins if one.images]
    if name == "broadcast_in_dim":
        given, made = shape_of(equation.invars[0]).shape, shape_of(equation.outvars[0]).shape
        axes = equation.params["broadcast_dimensions"]
        kept = {axis for axis, size in zip(axes, given, strict=True) if size == made[axis]}
        repeated = frozenset(range(len(made))) - kept
        return replace(found, repeated=repeated, terms=origins[0].terms)
    if name not in _BY_ELEMENT | _POWERS | _MOVING | {"neg"}:
        return found
    if name not in _LAYOUT:
        found = replace(found, repeated=origins[0].repeated)
    apart = of_images[0].apart if of_images else frozenset[int]()
    squares = name in _POWERS or (name == "mul" and all(one.apart == apart for one in of_images))
    if apart and squares and len(of_images) == len(origins):
        return replace(found, terms=apart)
    if len(of_images) == 1 and name in _SCALING | {"sub"}:
        (features,) = of_images
        others = [one for one in origins if not one.images and one.leaves]
        if others and features.repeated - others[0].repeated:
            begun = replace(found, repeated=features.repeated | others[0].repeated)
            leaves = others[0].leaves
            return replace(begun, apart=leaves) if name == "sub" else replace(begun, terms=leaves)
        return replace(
            found, repeated=features.repeated, apart=features.apart, terms=features.terms
        )
    if name in _SCALING:
        return found
    return replace(found, apart=apart, terms=frozenset().union(*(one.terms for one in of_images)))


_POWERS = frozenset(("square", "integer_pow", "abs"))


def _of_all(operands: Sequence[Traced]) -> Origin:
    """What a value is made of that is made of all of these."""
    leaves = frozenset[int]().union(*(one.origin.leaves for one in operands))
    picked = frozenset[int]().union(*(one.origin.picked for one in operands))
    return Origin(leaves, any(one.origin.images for one in operands), picked=picked)


def _layouts(equation: JaxprEqn, operands: Sequence[Traced]) -> list[Weight | None]:
    """What an operation's results are of a parameter, where it only moves numbers."""
    name, count = equation.primitive.name, len(equation.outvars)
    if name in _PASSING and len(operands) == count:
        return [one.origin.weight for one in operands]
    if name == "select_n":  # vmapped branches choose between a weight and itself
        first, *others = (one.origin.weight for one in operands[1:])
        return [first if all(one == first for one in others) else None]
    if len(operands) != 1 or operands[0].origin.weight is None:
        return [None] * count
    weight, given = operands[0].origin.weight, shape_of(equation.invars[0])
    result = shape_of(equation.outvars[0])
    if name == "split":
        return [
            Weight(weight.leaf, (*weight.layout, partial(_part, equation, i))) for i in range(count)
        ]
    moves = name in _LAYOUT
    if name == "broadcast_in_dim":
        moves = result.size == given.size
    if name == "convert_element_type":
        moves = all(jnp.issubdtype(one.dtype, jnp.floating) for one in (given, result))
    if not moves:
        return [None] * count
    return [Weight(weight.leaf, (*weight.layout, partial(_part, equation, 0)))] * count


def _part(equation: JaxprEqn, number: int, value: Any) -> Any:
    """One result of a layout operation; whole numbers, which tell places, keep their type."""
    if equation.primitive.name == "convert_element_type" and jnp.issubdtype(
        value.dtype, jnp.integer
    ):
        return value
    return _compute(equation, [value])[number]


def _compute(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The results of one operation."""
    given = {
        variable: value
        for variable, value in zip(equation.invars, operands, strict=True)
        if not isinstance(variable, Literal)
    }
    told = DebugInfo("operation", equation.primitive.name, None, None)
    alone = Jaxpr((), list(given), equation.outvars, [equation], equation.effects, told)
    found: list[Any] = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())
    return found


def _product(equation: JaxprEqn, operands: Sequence[Traced], visitor: Visitor) -> Traced:
    origin = _of_all(operands)
    if not origin.images and not origin.leaves:
        return _as_it_is(equation, operands)[0]
    of_parameters = [i for i, one in enumerate(operands) if not one.origin.images]
    position = of_parameters[0] if of_parameters else None
    weight = None if position is None else operands[position].origin.weight
    first, second = map(shape_of, equation.invars)
    leaves = origin.leaves  # of parameters alone
    if origin.images:
        leaves = frozenset() if position is None else operands[position].origin.leaves
    met = Product(
        equation,
        position,
        weight,
        leaves,
        (first, second),
        origin.images,
        origin.picked,
    )
    here = 1 if position is None else position
    found = visitor.on_product(met, operands[1 - here].value, operands[here].value)
    if found is None:
        return _as_it_is(equation, operands)[0]
    return Traced(found, replace(origin, picked=frozenset()))


def _scan(equation: JaxprEqn, operands: Sequence[Traced], visitor: Visitor) -> list[Traced]:
    settings = equation.params
    if settings["length"] == 0:
        return _as_it_is(equation, operands)
    first, carried = settings["num_consts"], settings["num_carry"]
    fixed, carry = operands[:first], list(operands[first : first + carried])
    stacked, length = operands[first + carried :], settings["length"]
    steps = range(length)
    outputs: dict[int, list[Traced]] = {}
    for step in reversed(steps) if settings["reverse"] else steps:
        slices = [_slice(one, step) for one in stacked]
        found = _closed(settings["jaxpr"], [*fixed, *carry, *slices], visitor)
        carry, outputs[step] = found[:carried], found[carried:]
    rows = [outputs[step] for step in steps]
    return [*carry, *(_stacked(column) for column in zip(*rows, strict=True))]


def _slice(stacked: Traced, step: int) -> Traced:
    take = partial(lax.index_in_dim, index=step, keepdims=False)
    weight = stacked.origin.weight
    if weight is not None:
        weight = Weight(weight.leaf, (*weight.layout, take))
    return Traced(take(stacked.value), replace(stacked.origin, weight=weight))


def _stacked(column: Sequence[Traced]) -> Traced:
    return Traced(jnp.stack([one.value for one in column]), _of_all(column))


def _branches(equation: JaxprEqn, operands: Sequence[Traced], visitor: Visitor) -> list[Traced]:
    chosen, *given = operands
    results = [_closed(one, given, visitor) for one in equation.params["branches"]]
    found = []
    for of_branches in zip(*results, strict=True):
        origin = _of_all([*of_branches, chosen])
        if chosen.origin.images:
            fixed = (one.origin.leaves for one in of_branches if not one.origin.images)
            origin = replace(origin, picked=origin.picked.union(*fixed))
        values = [one.value for one in of_branches]
        found.append(Traced(_select(chosen.value, values), origin))
    return found


def _select(chosen: Any, values: Sequence[Any]) -> Any:
    found = values[-1]
    for number, value in enumerate(values[:-1]):
        found = jnp.where(chosen == number, value, found)
    return found


_PRODUCTS = frozenset(("dot_general", "conv_general_dilated"))
_INSIDE = {"scan": _scan, "cond": _branches}


def has_products(equation: JaxprEqn) -> bool:
    """Whether there are products in the programs within an operation."""
    return any(
        one.primitive.name in _PRODUCTS or has_products(one)
        for inner in _programs(equation.params.values())
        for one in inner.eqns
    )


def _programs(values: Any) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _programs(value)


def shape_of(variable: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a program's variable."""
    return jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)
