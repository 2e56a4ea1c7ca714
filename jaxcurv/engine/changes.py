"""Functions as their code and arrays are now, where JAX does not remember others."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxcurv.engine.model import ROUNDING, AsTraced
from jaxcurv.engine.tracing import (
    fingerprint,
    has_own_rules,
    remembered_otherwise,
    trace,
    with_derivative,
)


def as_traced(
    what: str, function: Callable, arguments: Sequence[Any], program: ClosedJaxpr, number: int
) -> AsTraced:
    """The function as it is now, and its derivative with respect to the argument of this number.

    Raises:
      ValueError: JAX remembers another one.
    """
    if isinstance(function, AsTraced):  # else it compiles once more
        function = function.function
    programs = [program]
    check_remembered(what, function, arguments, program, params=True)
    own_rules = has_own_rules(program)
    if own_rules:
        pulled = with_derivative(function, number)
        derivative, _ = trace(pulled, *arguments)
        check_remembered(what, pulled, arguments, derivative, params=True)
        programs.append(derivative)
    return AsTraced(function, fingerprint(*programs), own_rules)


def check_remembered(
    what: str,
    function: Callable,
    arguments: Sequence[Any],
    program: ClosedJaxpr,
    *,
    params: bool = False,
) -> None:
    """Refuses a function within which JAX remembers other arrays or other code than there is now.

    Args:
      what: the function in words.
      program: that of the function.
      params: whether the function may be given arrays as params instead.

    Raises:
      ValueError: it does, and the results differ.
    """
    now = remembered_otherwise(function, arguments, program)
    if now is None:
        return
    old, new = (jax.jit(jaxpr_as_fun(p))(*jax.tree.leaves(arguments)) for p in (program, now))
    for one, other in zip(old, new, strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating) and not np.allclose(
            one, other, rtol=0, atol=ROUNDING * np.max(np.abs(one)), equal_nan=True
        ):
            raise ValueError(
                f"the {what}'s own jax.jit (or jax.checkpoint, loop or branch) has fixed arrays "
                "or settings that have changed since, for JAX remembers the function in it: leave "
                "that jit out, for the engine has its own, or define that function where it is used"
                + (", or hand the arrays over as params, to a function (params, images) -> logits")
                * params
            )
