"""Any torch module as a function in JAX."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from numpy.typing import ArrayLike
from torch import nn

from bridge.graphs.export import export
from bridge.graphs.graph import Graph, run
from bridge.graphs.operators import OPERATORS
from bridge.weights.restoring import restored
from bridge.weights.wrappers import require_unfrozen, unwrapped
from jaxcurv.data.layouts import plain_array, warn_of_channels_first
from jaxcurv.progress import progress

TOLERANCE = 1e-4  # of the largest logit; rounding gives about 1e-6

LogitsFn = Callable[[dict[str, Array], Array], Array]


@dataclass(frozen=True)
class _OfAnyBatch:
    """A graph that holds for every batch size; equal graphs are one function to JAX."""

    graph: Graph

    def __call__(self, params: dict[str, Array], images: Array) -> Array:
        return _logits(self.graph, params, images)


@dataclass(frozen=True, eq=False)
class _BySize:
    """A module that reads the batch size into Python: a graph for each size that it meets."""

    module: nn.Module
    example: torch.Tensor
    graphs: list[Graph]
    lock: Lock = field(default_factory=Lock)

    def __call__(self, params: dict[str, Array], images: Array) -> Array:
        return _logits(self._graph(len(images)), params, images)

    def _graph(self, batch: int) -> Graph:
        with self.lock:
            for graph in self.graphs:
                if graph.holds(batch):
                    return graph
            rows = torch.arange(batch) % len(self.example)
            with restored(self.module):
                graph = export(self.module, self.example[rows])
            self.graphs.append(graph)
            return graph


def to_jax(
    module: nn.Module, images: ArrayLike | torch.Tensor
) -> tuple[LogitsFn, dict[str, Array]]:
    """Brings a torch module to JAX: a function of weights and images, and the weights.

    The module is exported to ATen's operators (`torch.export`), each of which is a function in JAX.
    Logits on `images`, and their gradient, are compared with the module's.

        logits_fn, params = bridge.to_jax(module, images)
        scores = jaxcurv.score_dataset(logits_fn, (images, labels), params=params)

    Args:
      module: in evaluation mode, from a batch of inputs to logits `[batch, class]`. It is left as
        it is. Weights of other precision or on an accelerator are copied: JAX computes in float32.
      images: examples, two or more, float32 `[batch, height, width, channel]`, or a tensor `[batch,
        channel, height, width]`. Inputs with another number of axes, and token ids, are given as
        the module takes them.

    Returns:
      `(logits_fn, params)`. `logits_fn(params, images)` takes float32 images `[batch, height,
      width, channel]`, or other inputs as the module takes them, of any batch size; it can be
      differentiated, compiled, and mapped over stacked `params`. A module that reads the batch
      size into Python (`len(x)`) is exported anew for each size. `params` holds the module's
      floating and complex parameters and buffers that its logits depend on, by name, float32 or
      complex64; of those that are tied, the first name. Modules of one architecture share
      compiled programs.

    Raises:
      TypeError: `module` is no torch module.
      ValueError: it is in training mode, decides by values, returns several tensors, draws random
        numbers or changes its buffers; it uses operators that have no counterpart here, all of
        which are named; or its logits on `images` differ from JAX's by more than 1e-4 of the
        largest, or their gradient clearly does (`detach`, `torch.no_grad`, an own `backward`).
    """
    module = _prepared(module)
    example = _example(images)
    steps = progress(3, f"{type(module).__name__} to JAX", "step", side=True)
    with steps as shown, restored(module):  # after all, for each call must give the same
        theirs = _in_torch(module, example)
        shown.update()
        shown.note("export")
        graph = export(module, example)
        shown.update()
        shown.note("compile")
        params = _params(module, graph)
        logits_fn: LogitsFn = (
            _OfAnyBatch(graph)
            if graph.batch == (None, None)
            else _BySize(_copy_of(module), example[:1].clone(), [graph])
        )
        _require_same(_in_jax(logits_fn, params, example, theirs.logits.shape), theirs)
        shown.update()
    return logits_fn, params


def _copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that has kept what a forward pass computed."""
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, computed)


def graph_of(
    module: nn.Module, images: ArrayLike | torch.Tensor
) -> tuple[Graph, dict[str, Array], torch.Tensor]:
    """The graph of a module, its weights, and the examples in the module's own layout.

    Args:
      module, images: as for `to_jax`, which says what is refused.
    """
    module = _prepared(module)
    example = _example(images)
    with restored(module):
        graph = export(module, example)
    return graph, _params(module, graph), example


def _params(module: nn.Module, graph: Graph) -> dict[str, Array]:
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # Copies: JAX would take over memory that torch still writes to.
    return {path: jnp.array(held[path].detach().numpy(), copy=True) for _, path in graph.tensors}


def _prepared(module: nn.Module) -> nn.Module:
    """The module, or a copy of it in float32 on the CPU.

    Raises:
      TypeError: it is no torch module.
      ValueError: a part of it is in training mode.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch module, not {type(module).__name__}")
    module = unwrapped(module)
    require_unfrozen(module, "the module")
    training = [path or "the module" for path, part in module.named_modules() if part.training]
    if training:
        raise ValueError(
            f"{', '.join(training[:3])} is in training mode, where BatchNorm and Dropout give "
            "other logits: call eval() on the module first"
        )
    tensors = [*module.parameters(), *module.buffers()]
    if any(
        tensor.device.type != "cpu"
        or (tensor.is_floating_point() and tensor.dtype != torch.float32)
        for tensor in tensors
    ):
        return copy.deepcopy(module).to("cpu", torch.float32)
    return module


def _example(images: ArrayLike | torch.Tensor) -> torch.Tensor:
    """At least two examples as the module takes them; one is repeated."""
    if isinstance(images, torch.Tensor):
        tensor = images.detach().cpu()
    elif hasattr(images, "__array__"):
        array = plain_array(images)
        warn_of_channels_first(array.shape)
        tensor = torch.from_numpy(np.array(_channels_first(array), order="C"))
    else:
        raise ValueError(
            "images must be an array [batch, height, width, channel] or a tensor [batch, channel, "
            f"height, width], not a {type(images).__name__}"
        )
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise ValueError(f"images must be some examples; got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    elif tensor.dtype == torch.uint8 or tensor.ndim == 4:
        raise ValueError(
            f"images are {tensor.dtype}: give float32, normalised as the module expects"
        )
    else:
        tensor = tensor.long()
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor])


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.ndim == 4 else images


def _channels_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 else images


def _logits(graph: Graph, params: dict[str, Array], images: Array) -> Array:
    images = jnp.asarray(images)
    if images.ndim == 4:
        images = jnp.transpose(images, (0, 3, 1, 2))
    return run(graph, OPERATORS, params, images)


@dataclass(frozen=True)
class _Behaviour:
    """What a network does on examples: logits, and their gradient for the inputs.

    The gradient is that of the logits' sum with fixed weights, None for inputs that are whole
    numbers.
    """

    logits: np.ndarray
    gradient: np.ndarray | None


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _in_torch(module: nn.Module, example: torch.Tensor) -> _Behaviour:
    kind = type(module).__name__
    inputs = example.clone().requires_grad_(example.is_floating_point())
    with torch.enable_grad():
        try:
            logits = module(inputs.clone())  # of a leaf nothing may be changed in place
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"{kind} fails on inputs {example.dtype} {tuple(example.shape)} in its own layout "
                f"({type(error).__name__}: {error}): give images as [batch, height, width, "
                "channel], other inputs as the module takes them"
            ) from error
        if not isinstance(logits, torch.Tensor):
            raise ValueError(
                f"{kind} returns a {type(logits).__name__}: wrap it in a module that returns its "
                "logits [batch, class] alone"
            )
        if logits.ndim == 0 or len(logits) != len(example):
            raise ValueError(
                f"{kind} gives {tuple(logits.shape)} for {len(example)} inputs, not one row each: "
                "wrap it in a module that returns its logits [batch, class]"
            )
        if not logits.is_floating_point():
            raise ValueError(
                f"{kind} gives {logits.dtype}, classes and not logits: give the module before its "
                "argmax or topk"
            )
        logits = logits.to(torch.float32)
        if not torch.isfinite(logits).all():
            raise ValueError(f"logits of {kind} are not finite: give other images or weights")
        gradient = None
        if inputs.requires_grad:
            gradient = torch.zeros_like(inputs)
            if logits.requires_grad:
                weighted = (logits * torch.from_numpy(_weights(tuple(logits.shape)))).sum()
                (found,) = torch.autograd.grad(weighted, inputs, allow_unused=True)
                gradient = gradient if found is None else found
    return _Behaviour(
        logits.detach().numpy(), None if gradient is None else _channels_last(gradient.numpy())
    )


def _in_jax(
    logits_fn: LogitsFn, params: dict[str, Array], example: torch.Tensor, shape: tuple[int, ...]
) -> _Behaviour:
    weights = _weights(shape)

    def weighted(inputs: Array) -> tuple[Array, Array]:
        logits = logits_fn(params, inputs)
        return jnp.sum(logits * weights), logits

    inputs = jnp.asarray(_channels_last(example.numpy()))
    with jax.default_matmul_precision("highest"):
        if example.is_floating_point():
            gradient, logits = _once(jax.grad(weighted, has_aux=True), inputs)
            return _Behaviour(np.asarray(logits), np.asarray(gradient))
        return _Behaviour(np.asarray(_once(partial(logits_fn, params), inputs)), None)


def _once(function: Callable[..., Any], inputs: Array) -> Any:
    """A function's value, by a program that is compiled quickly, for it runs once."""
    quickly: dict[str, Any] = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(inputs).compile(compiler_options=quickly)(inputs)


def _require_same(ours: _Behaviour, theirs: _Behaviour) -> None:
    largest = float(np.abs(theirs.logits).max())
    apart = float(np.abs(ours.logits - theirs.logits).max())
    if not apart <= TOLERANCE * largest:
        raise ValueError(
            f"the logits in JAX differ from the module's by {apart:.1e}, the largest is "
            f"{largest:.1e}: the module rounds to 16 bits in its forward pass (torch.autocast, "
            "half(), bfloat16()), which is to be left out, for JAX computes in float32; an "
            "operator behaves otherwise here; or the module is not the same function at each call"
        )
    if ours.gradient is None or theirs.gradient is None:
        return
    # A kink hit exactly, such as a tie in max pooling, may have another slope: few pixels do.
    steep = np.abs(theirs.gradient).max()
    differing = float(np.mean(np.abs(ours.gradient - theirs.gradient) > 0.01 * steep))
    if differing > 0.01:
        raise ValueError(
            f"the logits are equal, but their gradient differs from PyTorch's at {differing:.0%} "
            "of the inputs: detach(), torch.no_grad() and an autograd.Function with a backward of "
            "its own are not carried over; curvature would be that of another function"
        )
