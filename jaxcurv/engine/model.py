"""What is scored: a model of any kind, and a loss, brought to one form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx
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
    """`loss(logits, labels) -> [batch]`."""


@dataclass(frozen=True)
class AsTraced:
    """A function as it is now: programs are shared by those that hold the same arrays fixed."""

    function: Callable[..., Array]
    fingerprint: str
    """See `jaxcurv.engine.tracing.fingerprint`."""

    def __call__(self, *arguments: Any) -> Array:
        return self.function(*arguments)


@dataclass(frozen=True)
class _NnxCall:
    """An NNX module without its state, hashable, so that jit compiles once for all weights."""

    graphdef: Any
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Every dispatch asks for it, and Flax walks the whole graph to tell.
        object.__setattr__(self, "_hash", hash(self.graphdef))

    def __hash__(self) -> int:
        return self._hash

    def __call__(self, state: Any, images: Array) -> Array:
        return nnx.merge(self.graphdef, state)(images)


@dataclass(frozen=True)
class _PlainCall:
    """A function of the images alone, given the signature `(params, images)`."""

    logits_fn: LogitsFn

    def __call__(self, params: None, images: Array) -> Array:
        return self.logits_fn(images)


def functional(
    logits_fn: LogitsFn | nnx.Module, params: Any
) -> tuple[Callable[[Any, Array], Array], Any]:
    """Brings every kind of model to `model(params, images)`."""
    if comes_from(logits_fn, "torch", "Module"):
        raise ValueError(
            f"got the torch module {type(logits_fn).__name__}: JAX computes here; build the "
            "network in Flax and take its weights over with bridge.from_torch"
        )
    try:
        hash(logits_fn)
    except TypeError as error:
        raise ValueError(
            "logits_fn cannot be hashed, which tells compiled programs apart: wrap it in a "
            "function (params, images) -> logits and hand its arrays over as params"
        ) from error
    if isinstance(logits_fn, nnx.Module):
        if params is not None:
            raise ValueError("an NNX module carries its own weights: leave params out")
        graphdef, state = nnx.split(logits_fn)
        return _NnxCall(graphdef), state
    if params is None:
        if comes_from(getattr(logits_fn, "__self__", None), "flax", "Module"):
            raise ValueError("a Linen model's apply needs its variables: give them as params")
        return _PlainCall(logits_fn), None
    return logits_fn, params
