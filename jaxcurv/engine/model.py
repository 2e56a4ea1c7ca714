"""What is scored: a model of any kind, and a loss, brought to one form."""

import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.export
import numpy as np
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from jaxcurv.data.layouts import comes_from
from jaxcurv.engine.losses import Loss

LogitsFn = Callable[..., Array]
"""`logits_fn(images)` or, with `params` given, `logits_fn(params, images)`: `[batch, classes]`."""


@dataclass(frozen=True)
class Problem:
    """The compiled programs' static part; equal problems share them."""

    model: Callable[[Any, Array], Array]
    """`model(params, images [batch, ...]) -> logits [batch, classes]`."""
    loss: Loss
    """`loss(logits, labels [batch, ...]) -> [batch]`."""


@dataclass(frozen=True)
class AsTraced:
    """A function as it is now: programs are shared by those that hold the same arrays fixed.

    JAX remembers what a `jax.jit` or loop within the function was, for each shape. Here it
    remembers that for this function alone, or a shape that was met before a change would bring back
    what was there then.
    """

    function: Callable[..., Array]
    fingerprint: str
    """See `jaxcurv.engine.tracing.fingerprint`."""
    has_own_rules: bool = False
    """Whether derivatives call code of the function's own."""

    def __call__(self, *arguments: Any) -> Array:
        with set_xla_metadata(jaxcurv_function=self.fingerprint):
            return self.function(*arguments)


def own_rules(*functions: Callable) -> AbstractContextManager[Any]:
    """A context in which derivative rules of these functions' own are those of now, as the
    functions are: JAX calls such rules after the function."""
    found = [f.fingerprint for f in functions if isinstance(f, AsTraced) and f.has_own_rules]
    return set_xla_metadata(jaxcurv_rules=" ".join(found)) if found else nullcontext()


class CheckedModel(NamedTuple):
    """A model that treats each sample by itself and always alike."""

    model: AsTraced
    """What the programs are compiled for."""
    program: ClosedJaxpr
    """That of two images."""
    logits: np.ndarray
    """Logits of two images, `[2, classes]`."""
    still: np.ndarray
    """Where the first image's gradient is exactly 0, bool `[...]`."""


ROUNDING = 1e-4
"""Difference of logits that are equal, of the largest one."""


@dataclass(frozen=True)
class NnxCall:
    """An NNX module without its state, hashable, so that jit compiles once for all weights."""

    graphdef: Any
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Every dispatch asks for it, and Flax walks the whole graph to tell.
        try:
            value = hash(self.graphdef)
        except TypeError:  # a list, dict or set among its attributes, which `AsTraced` looks into
            value = hash(NnxCall)
        object.__setattr__(self, "_hash", value)

    def __hash__(self) -> int:
        return self._hash

    def __call__(self, state: Any, images: Array) -> Array:
        try:
            return self._merged(state, images)
        except (flax.errors.TraceContextError, ValueError) as error:
            if "flax.nnx.transforms" not in modules_passed(error):
                raise
            # Flax's own transforms within a module, nnx.jit, nnx.remat and nnx.scan, refuse to be
            # differentiated; the program that they make does not.
            program = jax.make_jaxpr(self._merged)(state, images)
            (logits,) = jaxpr_as_fun(program)(*jax.tree.leaves(state), images)
            return logits

    def _merged(self, state: Any, images: Array) -> Array:
        return self._module(state)(images)

    def _module(self, state: Any) -> Callable[[Array], Array]:
        # Its variables are those of the trace at hand, which a module may set: the counts of an
        # RNN's random stream, normalised weights.
        return nnx.merge(self.graphdef, state, copy=True)

    def twice(self, state: Any, images: Array) -> tuple[Array, ...]:
        """Logits of two calls, the second of what the first has made of the module's variables; of
        one, where it leaves them as they were."""
        module = self._module(state)
        before = dict(jax.tree.leaves_with_path(nnx.state(module)))
        logits = module(images)
        after = jax.tree.leaves_with_path(nnx.state(module))
        if all(path in before and leaf is before[path] for path, leaf in after):
            return (logits,)
        return logits, module(images)


@dataclass(frozen=True)
class _PlainCall:
    """A function of the images alone, given the signature `(params, images)`."""

    logits_fn: LogitsFn

    def __call__(self, params: None, images: Array) -> Array:
        return self.logits_fn(images)


def modules_passed(error: Exception) -> set[str]:
    """The modules whose code an error came through, and the packages around them."""
    passed = set()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        passed |= {name[: dot.start()] for dot in re.finditer(r"\.|$", name)}
    return passed


def arguments_of(model: Callable[[Any, Array], Array]) -> str:
    """What a model that `functional` has brought to its form is called with, in words."""
    if isinstance(model, NnxCall | _PlainCall):
        return "the images alone, for no params are given"
    return "params and images"


def functional(
    logits_fn: LogitsFn | nnx.Module, params: Any
) -> tuple[Callable[[Any, Array], Array], Any]:
    """Brings every kind of model to `model(params, images)`.

    Raises:
      ValueError: it is no model that JAX can call, or `params` holds something else than arrays.
    """
    bound: Any = logits_fn
    if _is_linen(bound) and bound.scope is not None:  # by model.bind(variables)
        if params is not None:
            raise ValueError("a bound Linen module carries its own weights: leave params out")
        module, params = bound.unbind()
        logits_fn = module.apply
    _check_callable(logits_fn)
    check_params(params)
    if isinstance(logits_fn, nnx.Module):
        if params is not None:
            raise ValueError("an NNX module carries its own weights: leave params out")
        graphdef, state = nnx.split(logits_fn)
        _check_held(state, "the module")
        return NnxCall(graphdef), state
    if params is None:
        owner: Any = getattr(logits_fn, "__self__", None)
        if _is_linen(owner) and owner.scope is not None:
            raise ValueError(
                "got a method of a bound Linen module: with module, variables = bound.unbind() "
                "give lambda v, x: module.apply(v, x, method=...), and params=variables"
            )
        if _is_linen(owner):
            raise ValueError("a Linen model's apply needs its variables: give them as params")
        return _PlainCall(logits_fn), None
    return logits_fn, params


def _is_linen(value: Any) -> bool:
    return comes_from(value, "flax", "Module") and not isinstance(value, nnx.Module)


def check_params(params: Any, name: str = "params") -> None:
    """Refuses weights some of which are no arrays.

    Raises:
      ValueError: there are such, or arrays that JAX has deleted; the first one is named.
    """
    _check_held(params, name)
    for path, leaf in jax.tree.leaves_with_path(params):
        if _is_array(leaf):
            continue
        where = f"{name}{jax.tree_util.keystr(path)}"
        kind = type(leaf).__name__
        if comes_from(leaf, "torch", "Tensor"):
            raise ValueError(
                f"{where} is a torch tensor: bridge.from_torch takes a state dict over into a "
                "Flax model, tensor.detach().numpy() gives one array"
            )
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"{where} is a shape without values: initialise or load the weights")
        what = f"{where} is a {kind}"
        if isinstance(leaf, np.ndarray | np.generic):
            what = f"{where} is an array of {leaf.dtype}"
        elif isinstance(leaf, str | bytes):
            what = f"{where} is the text {leaf!r}"
        elif callable(leaf):
            what = f"{where} is the function or class {getattr(leaf, '__name__', kind)}"
        raise ValueError(f"{name} must hold arrays alone, but {what}: {_SPLIT}")


def _check_held(params: Any, name: str) -> None:
    """Refuses arrays whose memory a compiled function was given."""
    for path, leaf in jax.tree.leaves_with_path(params):
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if concrete and leaf.is_deleted():
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} was deleted, or donated to a train step "
                "(donate_argnums): give the new params, which that step returned"
            )


_SPLIT = (
    "split the arrays from the rest, as with Equinox params, rest = eqx.partition(model, "
    "eqx.is_array), and give the function lambda params, images: "
    "jax.vmap(eqx.combine(params, rest))(images) and params=params; what is no array the function "
    "closes over"
)


def _is_array(leaf: Any) -> bool:
    try:
        return not isinstance(leaf, jax.ShapeDtypeStruct) and jax.typeof(leaf) is not None
    except (TypeError, ValueError):
        return False


UNCOMPILED = "give the function as it is before .lower() and .compile(), under jax.jit or not"


def _check_callable(logits_fn: Any) -> None:
    kind = type(logits_fn).__name__
    owner = getattr(logits_fn, "__self__", logits_fn)
    if comes_from(owner, "torch", "Module"):
        raise ValueError(
            f"got the torch module {type(owner).__name__}: JAX computes here; build the "
            "network in Flax and take its weights over with bridge.from_torch"
        )
    if isinstance(owner, jax.stages.Compiled | jax.stages.Lowered):
        raise ValueError(f"got a {kind} function, which has no derivative: {UNCOMPILED}")
    if isinstance(owner, jax.export.Exported) and not owner.has_vjp():
        raise ValueError(
            "got a function of jax.export without its derivative: give the function that was "
            "exported, or serialize it with vjp_order=2"
        )
    if isinstance(logits_fn, type):
        raise ValueError(
            f"got the class {logits_fn.__name__}, which has no weights: give an instance of it"
        )
    if _is_linen(logits_fn):
        raise ValueError(
            f"got the Linen module {kind}, which has no weights of its own: give its apply, and "
            "its variables as params, or the module bound to them, model.bind(variables)"
        )
    if hasattr(logits_fn, "apply_fn") and hasattr(logits_fn, "params"):
        raise ValueError(
            f"got a {kind}: give its apply_fn, and what that takes as params, such as "
            'params={"params": state.params}'
        )
    if not callable(logits_fn):
        cure = "a function images -> logits, or (params, images) -> logits with params"
        if callable(getattr(logits_fn, "apply", None)):
            cure = (
                "its apply, and the weights as params (of Haiku that of "
                "hk.without_apply_rng(transformed), for it is called with params and images)"
            )
        elif isinstance(logits_fn, Mapping | tuple | list) or _is_array(logits_fn):
            cure = "the function first, such as model.apply, and the weights as params"
        raise ValueError(f"got a {kind}, which is no function: give {cure}")
    try:
        hash(logits_fn)
    except TypeError as error:
        tree = not jax.tree_util.all_leaves([logits_fn])
        raise ValueError(
            f"the {kind} given as logits_fn cannot be hashed, which tells compiled programs apart: "
            + (
                _SPLIT
                if tree
                else "wrap it in a function (params, images) -> logits and hand its arrays over as "
                "params"
            )
        ) from error
