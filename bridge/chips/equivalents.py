"""PyTorch's modules as Conv2d and Linear layers that compute the same, and their weights' names."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from bridge.chips.attention import PlainAttention
from bridge.chips.flat_convolutions import SignalConvolution, VolumeConvolution
from bridge.chips.plain_layers import (
    is_mapped,
    kind_of,
    own_attributes,
    put_in_place,
    settle_weights,
)
from bridge.chips.telling import warn_once

_Moments = TypeVar("_Moments", bound=tuple[torch.Tensor, ...])

_EQUIVALENT: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.MultiheadAttention: PlainAttention,
    nn.Conv1d: SignalConvolution,
    nn.Conv3d: VolumeConvolution,
}
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("q_proj", "k_proj", "v_proj", "out_proj"),
    nn.Conv1d: ("conv",),
    nn.Conv3d: ("conv",),
}


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Which of PyTorch's modules it is, or computes as; None for others."""
    if isinstance(module, PlainAttention):
        return None
    own = kind_of(module)
    for kind in _EQUIVALENT:
        if issubclass(own, kind) and own.forward is kind.forward:
            return kind
    return None


def paths_of_equivalents(model: nn.Module) -> set[str]:
    """Paths that layers have after `with_equivalents`, for a model before it."""
    return {
        f"{path}.{layer}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        if (kind := _kind(module)) is not None
        for layer in _LAYERS[kind]
    }


def with_equivalents(model: nn.Module, left: Callable[[str], bool]) -> nn.Module:
    """Gives a network Conv2d and Linear layers in the place of what they can compute; in place.

    Packed attention becomes four linear layers, a convolution of one or three dimensions one of
    two.

    Args:
      model: in evaluation mode, a copy of the user's.
      left: whether the module at a path stays as it is.

    Returns:
      The model, which is another module where its root was replaced.

    Raises:
      ValueError: an attention that adds rows of its own to keys and values; it is named.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None or left(name):
            continue
        settle_weights(module)
        try:
            made[module] = _EQUIVALENT[kind](module).train(module.training)
        except ValueError as error:
            raise ValueError(f"layer {name or 'at the root'} {error}") from error
    return put_in_place(model, made)


def join_tied(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Makes layers on tiles that share weight and bias one layer of several names; in place.

    A chip programs it once, as one array. Layers that share a weight and differ in their bias,
    geometry or hooks are arrays of their own, of which a warning tells.

    Args:
      model: after `with_equivalents`.
      left: whether the layer at a path stays digital.
    """
    first: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    joined: dict[nn.Module, nn.Module] = {}
    for path, layer in model.named_modules():
        if left(path) or not is_mapped(layer):
            continue
        weight = layer.get_parameter("weight")
        name, other = first.setdefault(weight, (path, layer))
        if other is layer:
            continue
        if _alike(layer, other):
            joined[layer] = other
        else:
            warn_once(
                f"layers {name} and {path} share a weight and differ in bias, geometry or hooks: "
                "each is an array of its own on the chip, with errors of its own"
            )
    put_in_place(model, joined)


def _alike(layer: nn.Module, other: nn.Module) -> bool:
    """Whether two layers of one weight compute the same and carry no hooks."""
    own = [own_attributes(one) for one in (layer, other)]
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in (layer, other))
    same_bias = getattr(layer, "bias", None) is getattr(other, "bias", None)
    try:
        same = own[0] == own[1]
    except RuntimeError:  # two tensors
        same = False
    return type(layer) is type(other) and same and same_bias and not hooked


def by_own_names(model: nn.Module, tensors: Mapping[str, _Moments]) -> dict[str, _Moments]:
    """Tensors of weights by the names and in the shapes that the model itself gives them.

    Args:
      model: before `with_equivalents`.
      tensors: tuples of tensors by the name of a weight after it.
    """
    found = dict(tensors)

    def each(function: Callable[..., torch.Tensor], *of: _Moments) -> _Moments:
        return type(of[0])(*(function(*one) for one in zip(*of, strict=True)))

    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        kind = _kind(module)
        names = [] if kind is None else [f"{prefix}{layer}.weight" for layer in _LAYERS[kind]]
        taken = {one: found.pop(one) for one in names if one in found}
        if not taken:
            continue
        if isinstance(module, nn.MultiheadAttention):
            *projections, out = names
            if out in taken:
                found[out] = taken.pop(out)
            if module.in_proj_weight is None:
                found |= {one.replace("_proj.", "_proj_"): own for one, own in taken.items()}
            elif taken:
                # What stays digital is exact.
                zeros = each(torch.zeros_like, next(iter(taken.values())))
                parts = [taken.get(one, zeros) for one in projections]
                found[f"{prefix}in_proj_weight"] = each(lambda *of: torch.cat(of), *parts)
        else:
            shape = module.get_parameter("weight").shape
            (moments,) = taken.values()
            found[f"{prefix}weight"] = each(lambda one, shape=shape: one.reshape(shape), moments)
    return found
