"""Weights from Flax NNX to torch and back: names, axes, layers."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)
_COUNTER = "num_batches_tracked"  # PyTorch's BatchNorm counts its updates, Flax's does not


class _Layout(NamedTuple):
    """Where a Flax variable goes: the last part of PyTorch's name, and the axes' new order."""

    suffix: str
    axes: tuple[int, ...]


class _Entry(NamedTuple):
    variable: nnx.Variable
    name: str
    axes: tuple[int, ...]


_VECTOR = (0,)
_BIAS = _Layout("bias", _VECTOR)
_LINEAR = {"kernel": _Layout("weight", (1, 0)), "bias": _BIAS}
_CONV = {"kernel": _Layout("weight", (3, 2, 0, 1)), "bias": _BIAS}

_BATCH_NORM = {
    "scale": _Layout("weight", _VECTOR),
    "bias": _BIAS,
    "mean": _Layout("running_mean", _VECTOR),
    "var": _Layout("running_var", _VECTOR),
}


def _layer_layout(ranks: Mapping[str, int]) -> dict[str, _Layout] | None:
    """The layouts of a layer with variables of these names and ranks; None if of no known kind."""
    if {"mean", "var"} <= ranks.keys():
        layout = _BATCH_NORM
    else:
        layout = {2: _LINEAR, 4: _CONV}.get(ranks.get("kernel", 0), {})
    fits = all(leaf in layout and rank == len(layout[leaf].axes) for leaf, rank in ranks.items())
    return layout if fits else None


def _entries(state: nnx.State) -> tuple[dict[tuple, _Entry], list[str]]:
    """What corresponds to what, by path, and the names of the BatchNorm counters."""
    layers: dict[tuple, dict[str, nnx.Variable]] = defaultdict(dict)
    unknown = []
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Param | nnx.BatchStat):
            layers[path[:-1]][str(path[-1])] = variable
        else:
            unknown.append(f"{_dotted(path)} ({type(variable).__name__})")
    entries, counters = {}, []
    for path, variables in layers.items():
        layout = _layer_layout({leaf: variable.ndim for leaf, variable in variables.items()})
        if layout is None:
            unknown += [f"{_dotted((*path, leaf))} {v.shape}" for leaf, v in variables.items()]
            continue
        if layout is _BATCH_NORM:
            counters.append(_dotted((*path, _COUNTER)))
        for leaf, variable in variables.items():
            suffix, axes = layout[leaf]
            entries[(*path, leaf)] = _Entry(variable, _dotted((*path, suffix)), axes)
    if unknown:
        raise ValueError(
            "only convolution, linear and BatchNorm variables can be transferred, not "
            + ", ".join(unknown)
        )
    return entries, counters


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def refuse_non_finite(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if a tensor holds NaN or infinity; names every such tensor."""
    names = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if names:
        raise ValueError(f"non-finite weights in {', '.join(names)}; load another checkpoint")


def to_torch(model: nnx.Module) -> dict[str, torch.Tensor]:
    """The weights of a Flax NNX model as a PyTorch state dict.

    Convolution kernels go from HWIO to OIHW, linear kernels are transposed, BatchNorm's scale,
    bias, mean and var become weight, bias, running_mean and running_var. The momentum of the
    running statistics is not a weight and does not travel (PyTorch's is one minus Flax's).

    Args:
      model: a model of ordinary convolutions, linear layers and BatchNorms. Transposed
        convolutions cannot be told from ordinary ones and are not supported.

    Returns:
      float32 CPU tensors by name, copies; `num_batches_tracked` is int64, 0.

    Raises:
      ValueError: a variable of another kind, or non-finite weights; all are named.
    """
    entries, counters = _entries(nnx.state(model))
    state_dict = {
        name: torch.from_numpy(np.array(variable[...], np.float32).transpose(axes).copy())
        for variable, name, axes in entries.values()
    }
    refuse_non_finite(state_dict)
    return state_dict | {name: torch.zeros((), dtype=torch.int64) for name in counters}


def from_torch(state_dict: Mapping[str, torch.Tensor], model: Model) -> Model:
    """A copy of a Flax NNX model with the weights of a PyTorch state dict; inverse of `to_torch`.

    Args:
      state_dict: tensors by name, such as torchvision's. `num_batches_tracked` may be absent and
        is not used.
      model: gives structure, dtypes and train or eval mode; not changed. One without values will
        do, from `nnx.eval_shape`: then no random weights are drawn first.

    Raises:
      ValueError: entries that are missing, unexpected or of another shape (all are listed), a
        variable of unknown kind in the model, or non-finite weights.
    """
    graph, state = nnx.split(model)
    entries, counters = _entries(state)
    problems = []
    for variable, name, axes in entries.values():
        shape = tuple(variable.shape[axis] for axis in axes)
        if name not in state_dict:
            problems.append(f"missing {name} {shape}")
        elif tuple(state_dict[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(state_dict[name].shape)}, not {shape}")
    known = {entry.name for entry in entries.values()}.union(counters)
    problems += [f"unexpected {name}" for name in state_dict if name not in known]
    if problems:
        raise ValueError("weights do not fit the model: " + "; ".join(problems))
    refuse_non_finite(state_dict)
    variables = {}
    for path, (variable, name, axes) in entries.items():
        array = state_dict[name].detach().cpu().numpy().transpose(np.argsort(axes))
        variables[path] = variable.replace(jnp.asarray(array, variable.dtype))
    return nnx.merge(graph, nnx.from_flat_state(variables))
