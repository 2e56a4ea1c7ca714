"""Code and hooks that layers have beside those of PyTorch's and Flax's own kinds."""

import inspect
from collections.abc import Iterator

import torch
from flax import nnx

_COMPUTING = {
    *("forward", "_conv_forward", "_output_padding", "__call__", "_call_impl", "_slow_forward"),
    *("_wrapped_call_impl", "__getattr__", "__getattribute__"),
    *("weight", "bias", "running_mean", "running_var"),
}
"""What makes another layer of one of PyTorch's, if a class or a layer has one of its own."""


_GIVEN = ("dot_general", "dot_general_cls", "conv_general_dilated", "promote_dtype", "mask")
"""What a layer of Flax's computes with, which may be given to it."""


def own_code(layer: torch.nn.Module) -> str | None:
    """What of a layer is not PyTorch's, of what computes; None where all is."""
    kinds = type(layer).__mro__
    base = next(n for n, kind in enumerate(kinds) if kind.__module__.startswith("torch.nn.modules"))
    if kinds[base] is torch.nn.Module:
        return ", none of PyTorch's layers"
    above = {name for kind in kinds[:base] for name in vars(kind)}
    parts = {name for name, value in vars(layer).items() if callable(value)}
    if found := sorted(_COMPUTING & (above | parts)):
        return f" with a {found[0]} of its own"
    return None


def own_call(layer: nnx.Module) -> bool:
    """Whether a class derived from a layer of Flax's has a `__call__` of its own."""
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("flax.nnx."):
            return False
        if "__call__" in vars(kind):
            return True
    return False


def own_product(layer: nnx.Module) -> str | None:
    """What a layer of Flax's was given to compute with in place of its kind's default; or None."""
    kind = next(one for one in type(layer).__mro__ if one.__module__.startswith("flax.nnx."))
    defaults = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    for name in _GIVEN:
        if name in defaults and getattr(layer, name, None) is not defaults[name].default:
            return f"with a {name} of its own"
    return None


def hooked(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers, and containers of layers, with forward hooks, by name."""
    for name, layer in module.named_modules():
        if layer._forward_hooks or layer._forward_pre_hooks:
            yield name, layer
