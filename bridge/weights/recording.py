"""What each layer of a network takes and gives, in Flax NNX and in PyTorch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx


class Call(NamedTuple):
    """A call of a layer, recorded when it is over."""

    layer: str
    """Dotted name; an `nnx.Sequential` adds no "layers"."""
    weighted: bool
    """Whether the layer itself has weights, not only those in it."""
    taken: np.ndarray
    """First argument."""
    given: np.ndarray
    """Result, or its first entry."""


_calls: ContextVar[list[Call]] = ContextVar("calls")


def record_flax(model: nnx.Module, run: Callable[[nnx.Module], Any]) -> list[Call]:
    """The calls of a model's layers while `run(copy of the model)` runs, compiled nowhere.

    The classes of the copy's layers give way to subclasses that record; nothing of the user's is
    changed. Calls within a transformation that traces (`remat`, `vmap`) have no values and are left
    out.
    """
    copy = nnx.clone(model)
    layers: list[tuple[tuple, Any]] = list(nnx.iter_modules(copy))
    shorten = torch_names(copy)
    for path, layer in layers:
        if path and callable(layer):
            layer.recorded_as = shorten(".".join(map(str, path)))
            layer.recorded_weights = any(
                isinstance(value, nnx.Param | nnx.BatchStat) for value in vars(layer).values()
            )
            kind: Any = type(layer)
            layer.__class__ = _recording(kind)
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        with jax.disable_jit():
            run(copy)
    finally:
        _calls.reset(token)
    return calls


def torch_names(model: nnx.Module) -> Callable[[str], str]:
    """Takes the "layers" of each `nnx.Sequential`, which PyTorch does not say, out of names."""
    sequences = {
        ".".join(map(str, (*path, "layers")))
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.Sequential)
    }

    def shorten(name: str) -> str:
        parts = name.split(".")
        return ".".join(
            part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in sequences
        )

    return shorten


@cache
def _recording(kind: Any) -> Any:
    """A subclass that records its calls under `recorded_as`."""

    def __call__(self: Any, *args: Any, **settings: Any) -> Any:
        given = kind.__call__(self, *args, **settings)
        taken = _array(_first(args, settings))
        _append(_calls.get(), self.recorded_as, self.recorded_weights, taken, _array(given))
        return given

    return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})


@contextmanager
def record_torch(module: torch.nn.Module) -> Iterator[list[Call]]:
    """The calls of a module's layers within the block; of TorchScript's, none can be seen."""
    calls: list[Call] = []
    handles = []

    def watch(name: str, layer: torch.nn.Module) -> None:
        weighted = any(True for _ in layer.parameters(recurse=False))
        taken: list[np.ndarray | None] = []  # a stack, for a layer may call itself

        def before(_: Any, args: Any, settings: Any) -> None:
            taken.append(_array(_first(args, settings)))

        def after(_: Any, args: Any, settings: Any, given: Any) -> None:
            _append(calls, name, weighted, taken.pop(), _array(given))

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))

    try:
        for name, layer in module.named_modules():
            if name and not isinstance(layer, torch.jit.ScriptModule):
                watch(name, layer)
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _append(
    calls: list[Call], name: str, weighted: bool, taken: np.ndarray | None, given: np.ndarray | None
) -> None:
    if taken is not None and given is not None:
        calls.append(Call(name, weighted, taken, given))


def _first(args: tuple, settings: dict[str, Any]) -> Any:
    return next(iter((*args, *settings.values())), None)


def _array(value: Any) -> np.ndarray | None:
    """A copy of an array, or of the first of several; None for what has no values."""
    if isinstance(value, tuple | list):
        value = next(iter(value), None)
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", torch.float64).numpy().copy()
    if isinstance(value, jax.Array | np.ndarray) and not isinstance(value, jax.core.Tracer):
        return np.array(value, np.float64)
    return None
