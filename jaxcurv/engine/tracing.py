"""What a function's code says at this moment.

JAX traces a function once and remembers its program, with the arrays that the function closes over.
Here it is traced anew, so that arrays which have changed since are seen. Nothing is compiled.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_LIBRARY = str(Path(jax.__file__).parent)
_ACTIVATIONS = str(Path(_LIBRARY, "_src", "nn"))


def trace(function: Callable, *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """A function's program, and the shapes and dtypes of its result."""
    # In a function of its own, for JAX remembers those that it has traced.
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)


def fingerprint(*programs: ClosedJaxpr) -> str:
    """A hash of programs and of every array and number that they hold fixed: 32 digits, for it
    stands beside each operation of a compiled program."""
    digest = hashlib.sha256()
    for program in programs:
        digest.update(code(program).encode())
        for value in _constants(program):
            array = _on_host(value)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())  # bfloat16 has no buffer
    return digest.hexdigest()[:32]


def code(program: ClosedJaxpr) -> str:
    """A program in words, but for the arrays that it holds fixed; of equal programs equal."""
    return re.sub("0x[0-9a-f]+", "", str(program))


def dtypes(program: ClosedJaxpr | Jaxpr) -> set[Any]:
    """The types of all arrays that a program is given, holds or computes."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    arrays = [*jaxpr.invars, *jaxpr.constvars, *(v for e in jaxpr.eqns for v in e.outvars)]
    return set(map(_dtype, arrays)).union(
        *(dtypes(inner) for e in jaxpr.eqns for inner in _inside(e.params))
    )


def least_mantissa(program: ClosedJaxpr | Jaxpr) -> int:
    """The fewest bits of the mantissa that `jax.lax.reduce_precision` leaves to any number of a
    program; those of float64 where it is not called."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    found = [
        equation.params["mantissa_bits"]
        for equation in jaxpr.eqns
        if equation.primitive.name == "reduce_precision"
    ]
    inner = (one for equation in jaxpr.eqns for one in _inside(equation.params))
    return min([jnp.finfo(np.float64).nmant, *found, *map(least_mantissa, inner)])


def _dtype(variable: Any) -> Any:
    return getattr(variable.aval, "dtype", None)


def may_jump(program: ClosedJaxpr | Jaxpr, compared: Sequence[bool] = ()) -> bool:
    """Whether a program rounds numbers, makes whole ones of them, or numbers of comparisons.

    Args:
      compared: which of its inputs, the last ones, are comparisons of numbers; none by default.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    used = {v for e in jaxpr.eqns for v in e.invars if not isinstance(v, Literal)}
    used.update(v for v in jaxpr.outvars if not isinstance(v, Literal))
    known = {v for v, one in zip(reversed(jaxpr.invars), reversed(compared), strict=False) if one}
    for equation in jaxpr.eqns:
        name, invars = equation.primitive.name, equation.invars
        told = [not isinstance(v, Literal) and v in known for v in invars]
        of_numbers = any(_is(v, jnp.floating) for v in invars)
        if any(told) or of_numbers:
            known.update(v for v in equation.outvars if _is(v, np.bool_))
        whole = any(_is(v, jnp.integer) and v in used for v in equation.outvars)
        if (
            name in _ROUNDING
            or (name in _PLACING and of_numbers and whole)
            or (name == "select_n" and told[0] and whole)
            or (name == "convert_element_type" and _is(invars[0], np.bool_))
            or (
                name == "convert_element_type"
                and of_numbers
                and not _is(equation.outvars[0], jnp.floating)
            )
            or any(may_jump(inner, told) for inner in _inside(equation.params))
        ):
            return True
    return False


_ROUNDING = frozenset(
    ("floor", "ceil", "round", "sign", "rem", "argmax", "argmin", "bitcast_convert_type")
)

_PLACING = frozenset(("sort", "top_k", "approx_top_k"))
"""Operations that may give numbers' places beside the numbers."""


def _is(variable: Any, kind: Any) -> bool:
    """Whether a variable holds numbers of this kind."""
    dtype = _dtype(variable)
    return dtype is not None and bool(jnp.issubdtype(dtype, kind))


def stops_gradients(program: ClosedJaxpr | Jaxpr) -> bool:
    """Whether a program has a `stop_gradient`, but for that of a maximum: a softmax takes one away
    and gives it back."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    maxima: set[Any] = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        of = [v in maxima for v in equation.invars if not isinstance(v, Literal)]
        if name == "reduce_max" or (name in _SHAPING and any(of)):
            maxima.update(equation.outvars)
        if name == "stop_gradient" and not any(of):
            return True
        if any(map(stops_gradients, _inside(equation.params))):
            return True
    return False


_SHAPING = (
    "broadcast_in_dim", "convert_element_type", "max", "reshape", "select_n", "squeeze",
    "transpose",
)  # fmt: skip


def depends(program: ClosedJaxpr, inputs: Sequence[int]) -> tuple[bool, ...]:
    """Whether each result of a program is computed from any of the inputs with these numbers."""
    count = len(program.jaxpr.invars)
    numbers = {number % count for number in inputs}
    return tuple(_reached(program, [number in numbers for number in range(count)]))


def _reached(program: ClosedJaxpr | Jaxpr, given: Sequence[bool]) -> list[bool]:
    """Whether each result is computed from any of the inputs that are given as True."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    reached = {v for v, one in zip(jaxpr.invars, given, strict=True) if one}

    def told(variables: Sequence[Any]) -> list[bool]:
        return [not isinstance(v, Literal) and v in reached for v in variables]

    for equation in jaxpr.eqns:
        if any(of := told(equation.invars)):
            to = _reached_within(equation, of)
            reached.update(v for v, one in zip(equation.outvars, to, strict=True) if one)
    return told(jaxpr.outvars)


def _reached_within(equation: Any, given: list[bool]) -> list[bool]:
    """As `_reached`, for one operation: through the programs of a call, a scan or a branch."""
    name, inner = equation.primitive.name, list(_inside(equation.params))
    if name == "cond" and not given[0]:
        return [any(ones) for ones in zip(*(_reached(b, given[1:]) for b in inner), strict=True)]
    if name == "scan":
        first, count = equation.params["num_consts"], equation.params["num_carry"]
        while True:
            to = _reached(inner[0], given)
            carried = [a or b for a, b in zip(given[first:], to[:count], strict=False)]
            if carried == given[first : first + count]:
                return to
            given = [*given[:first], *carried, *given[first + count :]]
    if name in (*_CALLS, "checkpoint", "remat2", "closed_call") and len(inner) == 1:
        return _reached(inner[0], given)  # whose arguments are the operation's
    return [True] * len(equation.outvars)


def differentiable(function: Callable, point: Any) -> Any:
    """Whether a function's result depends on each leaf of `point` through operations that have
    derivatives: a tree like `point`, of booleans.

    By structure, not by value: a gradient that is 0 at this point, as behind dead units or a layer
    of zeros, has its operations; behind rounding, comparisons, whole numbers or `stop_gradient`
    there are none.

    Args:
      function: its result is one floating array.
      point: floating arrays, or their shapes and dtypes.
    """
    result = jax.eval_shape(lambda x: function(x), point)
    program, _ = trace(lambda x, seed: jax.vjp(function, x)[1](seed)[0], point, result)
    return jax.tree.unflatten(jax.tree.structure(point), depends(program, [-1]))


def with_derivative(function: Callable, number: int) -> Callable:
    """A function's pullback of ones to the argument with this number: what the rules say that the
    function's code has for derivatives."""

    def pulled(*arguments: Any) -> Any:
        def at(point: Any) -> Any:
            return function(*arguments[:number], point, *arguments[number + 1 :])

        value, pullback = jax.vjp(at, arguments[number])
        return pullback(jnp.ones_like(value))

    return pulled


def has_own_rules(program: ClosedJaxpr | Jaxpr) -> bool:
    """Whether a program has derivative rules that are not JAX's own (`custom_jvp`, `custom_vjp`).

    Not seen: one that is given to an activation of `jax.nn`.
    """
    for equation in program.eqns:
        for inner in _inside(equation.params):
            place = _place(inner)
            if "custom" in equation.primitive.name and not place.startswith(_ACTIVATIONS):
                return True
            if not place.startswith(_LIBRARY) and has_own_rules(inner):
                return True
    return False


def remembered_otherwise(
    function: Callable, arguments: Sequence[Any], program: ClosedJaxpr
) -> ClosedJaxpr | None:
    """A function's program without what JAX remembers of functions within it, where that may be
    another: of its own `jax.jit` or `jax.checkpoint`, or of the body of a loop or branch.

    Args:
      program: that of `trace(function, *arguments)`.

    Returns:
      None where there is nothing of this kind, or it is as it was; or where this cannot be told,
      for new numbers are drawn whenever it is traced.
    """
    if not _remembers(program.jaxpr):
        return None
    now, again = (trace_anew(function, *arguments) for _ in range(2))
    there = _said(now)
    return now if there != _said(program) and there == _said(again) else None


def _said(program: ClosedJaxpr) -> tuple[str, list[bytes]]:
    return code(program), held(program)


_TRACES = itertools.count()


def trace_anew(function: Callable, *arguments: Any) -> ClosedJaxpr:
    """A function's program without what JAX remembers of functions within it."""
    # JAX remembers them for these metadata alone.
    with set_xla_metadata(jaxcurv_trace=str(next(_TRACES))):
        return trace(function, *arguments)[0]


def _remembers(program: Jaxpr) -> bool:
    """Whether a program has inner ones that JAX remembers and that are not its own."""
    for equation in program.eqns:
        name = equation.primitive.name
        for inner in _inside(equation.params):
            if name not in _CALLS or not _place(inner).startswith(_LIBRARY):
                return True
    return False


_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


def _place(program: ClosedJaxpr | Jaxpr) -> str:
    """The file that a program's function is in, and its line."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return str(getattr(jaxpr.debug_info, "func_src_info", "")).partition(" at ")[2]


def held(program: ClosedJaxpr) -> list[bytes]:
    """The arrays and numbers that a program holds fixed, each as bytes, in its code's order."""
    return list(map(_comparable, _constants(program)))


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Every array and number that a program holds fixed, those of programs within it too."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
    for equation in program.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, Literal))
        for inner in _inside(equation.params):
            yield from _constants(inner)


def _inside(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one


def _on_host(value: Any) -> np.ndarray:
    """Raises ValueError for an array whose memory a compiled function was given."""
    concrete = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    if concrete and value.is_deleted():
        raise ValueError(
            "the function closes over an array that was deleted, or donated to a train step "
            "(donate_argnums): let it close over the new one, which that step returned, or take "
            "it as params"
        )
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _comparable(value: Any) -> bytes:
    """An array's numbers in the type that JAX gives them; the same for each way to hold them."""
    array = _on_host(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)).tobytes()
