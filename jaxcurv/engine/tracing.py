"""What a function's code says at this moment.

JAX traces a function once and remembers its program, with the arrays that the function closes over.
Here it is traced anew, so that arrays which have changed since are seen. Nothing is compiled.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_LIBRARY = str(Path(jax.__file__).parent)


def trace(function: Callable, *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """A function's program, and the shapes and dtypes of its result."""
    # In a function of its own, for JAX remembers those that it has traced.
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)


def fingerprint(program: ClosedJaxpr) -> str:
    """SHA-256 of a program and of every array and number that it holds fixed."""
    digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(program)).encode())
    for value in _constants(program):
        array = _on_host(value)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def depends(program: ClosedJaxpr, inputs: Sequence[int]) -> tuple[bool, ...]:
    """Whether each result of a program is computed from any of the inputs with these numbers."""
    reached = {program.jaxpr.invars[number] for number in inputs}
    for equation in program.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return tuple(not isinstance(v, Literal) and v in reached for v in program.jaxpr.outvars)


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


def fixed_by_own_jit(
    function: Callable, arguments: Sequence[Any], program: ClosedJaxpr
) -> ClosedJaxpr | None:
    """A function's program without what its own `jax.jit` remembers, where that may be another.

    Args:
      program: that of `trace(function, *arguments)`.

    Returns:
      None where the function has no `jax.jit` of its own, or one that holds fixed what is there
      now; or where this cannot be told: new numbers are drawn whenever it is traced, or a loop of
      JAX waits for a traced number.
    """
    fixed = set(map(_comparable, _fixed_inside(program.jaxpr)))
    if not fixed:
        return None
    try:
        with jax.disable_jit():
            now, _ = trace(function, *arguments)
            there = set(map(_comparable, _constants(now)))
            if fixed <= there:
                return None
            again, _ = trace(function, *arguments)
    except Exception:  # the function is anybody's code, and loops need a jit
        return None
    return now if there == set(map(_comparable, _constants(again))) else None


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Every array and number that a program holds fixed, those of programs within it too."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
    for equation in program.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, Literal))
        for inner in _inside(equation.params):
            yield from _constants(inner)


def _fixed_inside(program: Jaxpr, own: bool = False) -> Iterator[Any]:
    """What a program's inner ones hold fixed that are compiled by a `jax.jit` outside of JAX."""
    for equation in program.eqns:
        if own:
            yield from (v.val for v in equation.invars if isinstance(v, Literal))
        for inner in _inside(equation.params):
            jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            place = str(getattr(jaxpr.debug_info, "func_src_info", ""))
            here = own or (equation.primitive.name in ("jit", "pjit") and _LIBRARY not in place)
            if here and isinstance(inner, ClosedJaxpr):
                yield from inner.consts
            yield from _fixed_inside(jaxpr, here)


def _inside(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one


def _on_host(value: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _comparable(value: Any) -> bytes:
    """An array's numbers in the type that JAX gives them; the same for each way to hold them."""
    array = _on_host(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)).tobytes()
