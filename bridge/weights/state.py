"""Weights from Flax NNX to torch and back: names, axes, layers."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from numpy.typing import ArrayLike
from torch.nn.parameter import is_lazy

from bridge.weights.comparison import TOLERANCE, same_logits
from bridge.weights.recording import torch_names
from bridge.weights.settings import refuse_other_kinds, refuse_other_settings, untold
from bridge.weights.ties import Paths, memory, without_ties
from bridge.weights.wrappers import PREFIXES, named_as, undone_first, unwrapped, without_wrappers

Model = TypeVar("Model", bound=nnx.Module)
_COUNTER = "num_batches_tracked"  # PyTorch's BatchNorm counts its updates, Flax's does not
_NO_WEIGHTS = (nnx.RngState, nnx.Intermediate)  # random state and what was sown


class _Layout(NamedTuple):
    """Where a Flax variable goes: the last part of PyTorch's name, and the axes' new order."""

    suffix: str
    axes: tuple[int, ...]


class _Entry(NamedTuple):
    variable: nnx.Variable
    names: tuple[str, ...]
    """Several where layers share the variable; the first is that of its path."""
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


def _entries(model: nnx.Module) -> tuple[dict[tuple, _Entry], list[str]]:
    """What corresponds to what, by path, and the names of the BatchNorm counters."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be a Flax NNX module, not {type(model).__name__}; make one of a Linen "
            "module by wrapped = nnx.bridge.lazy_init(nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), "
            "images), and nnx.update(wrapped, part) for each part of variables.values()"
        )
    refuse_other_kinds(model)
    layers: dict[tuple, dict[str, nnx.Variable]] = defaultdict(dict)
    paths, state = Paths(model), nnx.to_flat_state(nnx.state(model))
    unknown = []
    for path, variable in state:
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            if not isinstance(variable, _NO_WEIGHTS):
                unknown.append(f"{_dotted(path)} ({type(variable).__name__})")
        elif not jnp.issubdtype(variable.dtype, jnp.floating):
            unknown.append(f"{_dotted(path)} ({variable.dtype}: dequantise it)")
        else:
            for one in paths.of(path):
                layers[one[:-1]][str(one[-1])] = variable
    places: dict[tuple, tuple[str, tuple[int, ...]]] = {}
    counters = []
    for path, variables in layers.items():
        layout = _layer_layout({leaf: variable.ndim for leaf, variable in variables.items()})
        if layout is None:
            unknown += [f"{_dotted((*path, leaf))} {v.shape}" for leaf, v in variables.items()]
            continue
        if layout is _BATCH_NORM:
            counters.append(_dotted((*path, _COUNTER)))
        for leaf in variables:
            suffix, axes = layout[leaf]
            places[(*path, leaf)] = _dotted((*path, suffix)), axes
    if unknown:
        raise ValueError(
            "only convolution, linear and BatchNorm variables can be transferred, not "
            + ", ".join(unknown)
            + ": write these into the other network yourself and compare with "
            "bridge.same_logits, or put the JAX network itself on chips with bridge.analog"
        )
    entries = {}
    for path, variable in state:
        if path in places:
            names = tuple(places[one][0] for one in paths.of(path))
            entries[path] = _Entry(variable, names, places[path][1])
    return entries, counters


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def refuse_non_finite(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if a tensor holds NaN or infinity; names every such tensor."""
    names = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if names:
        raise ValueError(f"non-finite weights in {', '.join(names)}; load another checkpoint")


def to_torch(
    model: nnx.Module,
    *,
    into: torch.nn.Module | None = None,
    images: ArrayLike | torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, torch.Tensor]:
    """The weights of a Flax NNX model as a PyTorch state dict, loaded and compared with `into`.

    Convolution kernels go from HWIO to OIHW, linear kernels are transposed, BatchNorm's scale,
    bias, mean and var become weight, bias, running_mean and running_var. The momentum of the
    running statistics is not a weight and does not travel (PyTorch's is one minus Flax's), nor do
    random state (`nnx.Dropout`, `nnx.Rngs`) and what was sown.

    Equal weights do not make equal networks. With `into` and `images` the weights are loaded and
    the logits compared; a module with other logits keeps the weights it had. Without, layers that
    by their type compute otherwise than PyTorch's with its defaults are refused: padding of a
    convolution that is "SAME" with strides, unequal on two sides, circular or reflecting;
    dilation; an epsilon other than 1e-5 (Keras has 1e-3); BatchNorm over another axis; a class
    derived from one of Flax's layers with a `__call__` of its own; a layer that was given a
    `dot_general`, `conv_general_dilated`, `promote_dtype` or `mask`; a Linen module within
    `nnx.bridge.ToNNX`, of whose layers only the weights show. What cannot be seen that way, and
    only the comparison shows:

    - strides, and a padding that the PyTorch layer does not have;
    - the order of a flatten: `[height, width, channel]` here, `[channel, height, width]` there;
    - activations (`jax.nn.gelu` approximates, PyTorch's does not), pooling and its padding, the
      order of layers, shortcuts, a softmax at the end, normalisation within the network;
    - other layers of your own whose variable `kernel` is not used as `nnx.Conv` and `nnx.Linear`
      do, and a convolution or product of yours within these;
    - computation in bfloat16.

    Args:
      model: a model of ordinary convolutions, linear layers and BatchNorms, in either mode; not
        changed.
      into: a module whose names of layers are the model's (without the "layers" of an
        `nnx.Sequential`), on any device, in either mode. Buffers that the model has no weights for
        keep their values.
      images: at least two, as `same_logits` takes them, of the size that the networks are for.
      tolerance: of the comparison, as `same_logits` has it.

    Returns:
      float32 CPU tensors by name (that of `into`), copies; `num_batches_tracked` is int64, 0. What
      layers share comes under each of its names, as one tensor.

    Raises:
      TypeError: model or `into` are no modules, or images or outputs are no arrays.
      ValueError: a layer or variable of another kind, variables that are no floats, several layers
        stacked into one, a setting that the weights do not tell, non-finite weights, names or
        shapes that do not fit `into` (all are named), logits that differ (with the layer in which
        the networks part), or what `same_logits` refuses.
    """
    if into is None:
        if images is not None:
            raise ValueError("images are for the comparison: give into=, the torch module, too")
        state_dict = collect(model)
        if found := untold(model):
            raise ValueError(
                f"the weights alone are another network in PyTorch, whose layers do not: {found}; "
                "give the torch module and images, to_torch(model, into=module, images=images), "
                "which compares the logits"
            )
        return state_dict
    if not isinstance(into, torch.nn.Module):
        raise TypeError(f"into must be a torch module, not {into!r}")
    if images is None:
        raise ValueError("give images= with into=: the logits are compared on them")
    module = unwrapped(into)
    state_dict = collect(model)
    shorter = {name: torch_names(model)(name) for name in state_dict}
    state_dict = _renamed(state_dict, set(module.state_dict()), shorter)
    before, state_dict = _load(module, state_dict)
    try:
        if not (comparison := same_logits(model, into, images, tolerance=tolerance)):
            raise ValueError(str(comparison))
    except BaseException:
        module.load_state_dict(before)
        raise
    return state_dict


def collect(model: nnx.Module) -> dict[str, torch.Tensor]:
    """What `to_torch` returns, whatever the settings of the layers."""
    entries, counters = _entries(model)
    if any(isinstance(one.variable.get_value(), jax.ShapeDtypeStruct) for one in entries.values()):
        raise ValueError("the model has shapes and no values; make it outside nnx.eval_shape")
    state_dict: dict[str, torch.Tensor] = {}
    for variable, names, axes in entries.values():
        array = np.array(variable[...], np.float32).transpose(axes).copy()
        state_dict |= dict.fromkeys(names, torch.from_numpy(array))
    refuse_non_finite(state_dict)
    return state_dict | {name: torch.zeros((), dtype=torch.int64) for name in counters}


def _load(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loads the weights; returns a copy of those from before, and those that the module has.

    What either network shares within itself may have one name in it and several in the other.

    Raises:
      ValueError: they do not fit, or the module has no values yet.
    """
    own = module.state_dict()
    problems = [f"{name} has no shape yet" for name in own if is_lazy(own[name])]
    if problems:
        raise ValueError(f"into has lazy layers, call it once first: {'; '.join(problems)}")
    if empty := [name for name, tensor in own.items() if tensor.is_meta]:
        raise ValueError(
            f"into has tensors without values ({', '.join(empty)}): into.to_empty(device='cpu')"
        )
    state_dict = without_ties(state_dict, own.keys())
    optional = {name for name, _ in module.named_buffers(remove_duplicate=False)} - {
        name for name in own if name.endswith((".running_mean", ".running_var"))
    }
    optional |= own.keys() - without_ties(own, state_dict.keys())
    problems = [
        f"missing {name} {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name not in state_dict and name not in optional
    ]
    problems += [
        f"unexpected {name}"
        for name in state_dict
        if name not in own and not name.endswith(_COUNTER)
    ]
    problems += [
        f"{name} has shape {tuple(own[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in state_dict.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        told = "; ".join(problems) + undone_first(own)
        raise ValueError(f"weights do not fit the torch module: {told}")
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    loaded = own | {name: tensor for name, tensor in state_dict.items() if name in own}
    module.load_state_dict(loaded)
    return before, state_dict


def from_torch(
    state_dict: Mapping[str, torch.Tensor] | torch.nn.Module,
    model: Model,
    *,
    images: ArrayLike | torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Model:
    """A copy of a Flax NNX model with the weights of a PyTorch state dict; inverse of `to_torch`.

    A prefix "module.", "_orig_mod." or "model." that all names of one side have is left out of
    account, and so are what other wrappers, or `DataParallel` around a part of the network, add to
    names and the "layers" of an `nnx.Sequential`. What layers share may have one name on one side
    and several on the other: tensors that are one, or equal ones where the model shares. Random
    state (`nnx.Dropout`, `nnx.Rngs`) stays the model's.

    Equal weights do not make equal networks: see `to_torch` for what they do not tell. Given the
    torch module itself and images, the logits are compared; without images, kind, strides,
    dilation, groups, padding and epsilon of its layers are, and layers with code or forward hooks
    of their own are refused; and a warning names layers that by their type compute otherwise than
    PyTorch's.

    Args:
      state_dict: tensors by name, such as torchvision's, or the torch module that has them.
        `num_batches_tracked` may be absent and is not used.
      model: gives structure, dtypes and train or eval mode; not changed. One without values will
        do, from `nnx.eval_shape`: then no random weights are drawn first, and random state comes
        from `jax.random.key(0)`.
      images: at least two, as `same_logits` takes them; with a torch module only.
      tolerance: of the comparison, as `same_logits` has it.

    Raises:
      TypeError: `state_dict` is neither, or holds other things than tensors.
      ValueError: entries that are missing, unexpected or of another shape (all are listed),
        tensors without values or shape, sparse, quantised or complex ones, whole numbers, a
        variable or layer of unknown kind in the model, non-finite weights, logits that differ (with
        the layer in which the networks part), or layers of the torch module with other settings,
        code of their own or forward hooks.
    """
    module = state_dict if isinstance(state_dict, torch.nn.Module) else None
    given = _tensors(state_dict)
    if images is not None and module is None:
        raise ValueError("images are for the comparison: give the torch module, not its state dict")
    carried = carry(given, model)
    if module is not None and images is not None:
        if not (comparison := same_logits(carried, module, images, tolerance=tolerance)):
            raise ValueError(str(comparison))
        return carried
    if module is not None:
        refuse_other_settings(model, unwrapped(module))
    if found := untold(model, None if module is None else unwrapped(module)):
        warnings.warn(
            f"the weights do not tell whether the torch network does this too: {found}; compare "
            "with bridge.same_logits(model, module, images)",
            stacklevel=2,
        )
    return carried


def _tensors(source: Mapping[str, torch.Tensor] | torch.nn.Module) -> Mapping[str, torch.Tensor]:
    if isinstance(source, torch.nn.Module):
        return unwrapped(source).state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            "state_dict must be tensors by name or a torch module, not "
            f"{type(source).__name__} (a Checkpoint has its .state_dict)"
        )
    if within := [name for name, one in source.items() if _has_tensors(one)]:
        raise TypeError(
            f"this is a checkpoint, of {', '.join(map(str, source))}, and not a state dict: give "
            f"checkpoint[{within[0]!r}], or bridge.weights.load_checkpoint of its file"
        )
    if wrong := [name for name, one in source.items() if not isinstance(one, torch.Tensor)]:
        raise TypeError(
            f"state_dict must hold tensors; {', '.join(map(str, wrong))} are none; "
            "torch.from_numpy makes one of an array"
        )
    return source


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, torch.Tensor) for one in value.values()
    )


def _plain_numbers(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, those of a float type that NumPy lacks as float32; refuses what holds none."""
    refusals: list[tuple[str, Callable[[torch.Tensor], bool]]] = [
        ("no shape yet (lazy): call the module once first", is_lazy),
        ("tensors without values (meta): load a checkpoint into the module", lambda t: t.is_meta),
        ("quantised tensors: give tensor.dequantize()", lambda t: t.is_quantized),
        ("sparse tensors: give tensor.to_dense()", lambda t: t.layout != torch.strided),
        ("complex tensors, which are no weights of these layers", torch.is_complex),
    ]
    for problem, is_such in refusals:
        if names := [name for name, tensor in given.items() if is_such(tensor)]:
            raise ValueError(f"{', '.join(names)} of the torch network: {problem}")
    known = (torch.float16, torch.float32, torch.float64)
    converted: dict[Any, torch.Tensor] = {}  # tensors that are one stay so
    numbers = {}
    for name, tensor in given.items():
        if tensor.is_floating_point() and tensor.dtype not in known:
            tensor = converted.setdefault(memory(tensor) or name, tensor.float())
        numbers[name] = tensor
    return numbers


def _refuse_whole_numbers(weights: Mapping[str, torch.Tensor]) -> None:
    names = [
        f"{name} ({tensor.dtype})"
        for name, tensor in weights.items()
        if not tensor.is_floating_point() and not name.endswith(_COUNTER)
    ]
    if names:
        raise ValueError(
            f"weights must be floats; {', '.join(names)} are not: give the dequantised weights, "
            "those that the network computes with"
        )


def carry(given: Mapping[str, torch.Tensor], model: Model) -> Model:
    """What `from_torch` returns, whatever the settings of the layers."""
    given = _plain_numbers(given)
    graph, state = nnx.split(model)
    entries, counters = _entries(model)
    known = {name for entry in entries.values() for name in entry.names}.union(counters)
    shorten = torch_names(model)
    state_dict = _renamed(given, known, {shorten(name): name for name in known})
    problems = []
    for variable, names, axes in entries.values():
        shape = tuple(variable.shape[axis] for axis in axes)
        there = [name for name in names if name in state_dict]
        if not there:
            problems.append(f"missing {names[0]} {shape}")
        for name in there:
            if tuple(state_dict[name].shape) != shape:
                problems.append(f"{name} has shape {tuple(state_dict[name].shape)}, not {shape}")
            elif name != there[0] and not torch.equal(state_dict[name], state_dict[there[0]]):
                problems.append(f"{name} is not {there[0]}, and the model has both as one")
    problems += [f"unexpected {name}" for name in state_dict if name not in known]
    if problems:
        told = "; ".join(problems) + undone_first(given)
        raise ValueError(f"weights do not fit the model: {told}")
    _refuse_whole_numbers(state_dict)
    refuse_non_finite(state_dict)
    variables = {}
    for position, (path, variable) in enumerate(nnx.to_flat_state(state)):
        if path not in entries:
            fill = partial(_with_values, position=position)
            variables[path] = variable.replace(jax.tree.map(fill, variable.get_value()))
            continue
        _, names, axes = entries[path]
        name = next(name for name in names if name in state_dict)
        array = state_dict[name].detach().cpu().numpy().transpose(np.argsort(axes))
        # A copy: JAX would take over memory that torch still writes to.
        variables[path] = variable.replace(jnp.array(array, variable.dtype, copy=True))
    return nnx.merge(graph, nnx.from_flat_state(variables))


def _with_values(leaf: Any, position: int) -> Any:
    """A part of what is no weight; a key derived from key 0, or zeros, where it has no values."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    key = jax.random.fold_in(jax.random.key(0), position)
    return jax.random.split(key, leaf.shape) if leaf.shape else key


def _renamed(
    given: Mapping[str, torch.Tensor], known: set[str], others: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors under the names with which all are known; as they are where there are none.

    A tensor that is one with another of a known name needs none, and is left out.

    Tried are the names as they are, `others` of them, what wrappers add taken off, and a prefix
    put on, or taken off where all have it; last without what wrappers of parts add on either
    side. No two tensors come under one name.
    """
    plain = dict(given)
    other = {others.get(name, name): tensor for name, tensor in given.items()}
    candidates = [plain, other] if len(other) == len(plain) else [plain]
    for names in tuple(candidates):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names):
                candidates.append({name.removeprefix(prefix): names[name] for name in names})
            candidates.append({prefix + name: names[name] for name in names})
        for lightning in (False, True):
            fewer = without_wrappers(names, lightning=lightning)
            candidates.append({new: names[name] for name, new in fewer.items()})
    candidates += [named_as(names, known, others) for names in candidates]
    for names in candidates:
        fitting = without_ties(names, known)
        if not fitting.keys() - known:
            return fitting
    return plain
