"""What the type of a Flax layer says of it that its weights do not."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from flax import nnx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from bridge.weights.own_code import hooked, own_call, own_code, own_product
from bridge.weights.recording import torch_names
from bridge.weights.wrappers import PREFIXES, unwrapped, without_any, without_inner

_EPSILON = 1e-5  # the default of PyTorch's normalisations
_KINDS: dict[Any, tuple[type[nnx.Module], ...]] = {  # PyTorch's, and what each is in Flax
    _ConvTransposeNd: (nnx.ConvTranspose,),
    _ConvNd: (nnx.Conv,),
    torch.nn.Linear: (nnx.Linear, nnx.LinearGeneral),
    torch.nn.Embedding: (nnx.Embed,),
    _BatchNorm: (nnx.BatchNorm,),
    _InstanceNorm: (nnx.InstanceNorm,),
    torch.nn.LayerNorm: (nnx.LayerNorm,),
    torch.nn.GroupNorm: (nnx.GroupNorm, nnx.InstanceNorm),
}
_LINEN = "a Linen module, whose layers' settings do not show"
_KNOWN = tuple({kind for kinds in _KINDS.values() for kind in kinds})
_NORMS = (nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.LayerNorm)


def refuse_other_kinds(model: nnx.Module) -> None:
    """Refuses layers whose weights look like a convolution's or a linear layer's and are not.

    Raises:
      ValueError: each of them, by name.
    """
    if found := _told(model, _other_kind):
        raise ValueError(
            "only convolution, linear and BatchNorm variables can be transferred, not those of "
            f"{found}: write these layers' weights into the other network yourself and compare "
            "with bridge.same_logits"
        )


def untold(model: nnx.Module, module: torch.nn.Module | None = None) -> str:
    """The layers that compute otherwise than PyTorch's with the same weights, and why.

    Seen are a convolution's padding and dilation, a normalisation's epsilon, BatchNorm's axis, a
    function or mask that a layer was given to compute with, the `__call__` of a class that is
    derived from one of Flax's layers, and that layers are Linen's, within `nnx.bridge.ToNNX`;
    PyTorch's are those of the layer of the same name in `module`, else its defaults.
    """
    theirs = _layers(model, module)
    return _told(
        model, lambda name, layer: _setting(layer, theirs(name)) or _padded(layer, theirs(name))
    )


def refuse_other_settings(model: nnx.Module, module: torch.nn.Module) -> None:
    """Refuses layers whose namesake in PyTorch is of another kind or has other settings.

    Compared are strides, dilation, groups, epsilon and, where PyTorch's network has no layers that
    pad, padding: `nn.ZeroPad2d` before a convolution may stand for the other's. What a layer's own
    code or forward hooks compute is not known: such layers are refused, too.

    Raises:
      ValueError: each of them, by name.
    """
    theirs = _layers(model, module)
    if found := _told(model, lambda name, layer: _differing(layer, theirs(name))):
        raise ValueError(f"not the same network: {found}; set both alike")
    if found := ", ".join(
        filter(None, [_told(model, lambda name, layer: _own(layer, theirs(name))), _hooks(module)])
    ):
        raise ValueError(
            f"the weights do not tell what {found} computes: give images, from_torch(module, "
            "model, images=images), which compares the logits"
        )
    if any(type(one).__module__ == torch.nn.ZeroPad2d.__module__ for one in module.modules()):
        return
    if found := _told(model, lambda name, layer: _padded(layer, theirs(name))):
        raise ValueError(
            f"not the same network: {found}; set both alike, or give images=, which compares the "
            "logits, where the code around a layer pads"
        )


def _layers(
    model: nnx.Module, module: torch.nn.Module | None
) -> Callable[[str], torch.nn.Module | None]:
    """Finds PyTorch's layer by the name that it has in the Flax model."""
    found = list(module.named_modules(remove_duplicate=False)) if module is not None else []
    # What is wrapped comes after its wrapper and takes its place.
    layers = {without_inner(f"{name}.").removesuffix("."): layer for name, layer in found}
    bare = {without_any(name): layer for name, layer in found}
    shorten = torch_names(model)

    def find(name: str) -> torch.nn.Module | None:
        names = [name, shorten(name)]
        for prefix in PREFIXES:
            names += [prefix + one for one in names[:2]]
            names += [one.removeprefix(prefix) for one in names[:2]]
        within = bare.get(without_any(shorten(name)))
        layer = next((layers[one] for one in names if one in layers), within)
        return None if layer is None else unwrapped(layer)

    return find


def _told(model: nnx.Module, reason: Callable[[str, nnx.Module], str | None]) -> str:
    found = []
    for path, layer in sorted(nnx.iter_modules(model), key=lambda one: list(map(str, one[0]))):
        name = ".".join(map(str, path))
        if why := reason(name, layer):
            found.append(f"{name or 'the model'} ({type(layer).__name__}: {why})")
    return ", ".join(found)


def _differing(layer: nnx.Module, other: torch.nn.Module | None) -> str | None:
    if isinstance(layer, _NORMS) and not _close(layer.epsilon, eps := _epsilon(other)):
        return f"epsilon {layer.epsilon}, PyTorch's is {eps}"
    if isinstance(layer, _KNOWN) and isinstance(other, tuple(_KINDS)):
        kind = next(ours for there, ours in _KINDS.items() if isinstance(other, there))
        if not isinstance(layer, kind):
            return f"PyTorch's is a {type(other).__name__}"
    if isinstance(layer, nnx.Conv) and isinstance(other, _ConvNd):
        size = len(layer.kernel_size)
        if layer.feature_group_count != other.groups:
            return f"feature_group_count {layer.feature_group_count}, PyTorch's is {other.groups}"
        for name, ours, theirs in (
            ("strides", layer.strides, other.stride),
            ("kernel_dilation", layer.kernel_dilation, other.dilation),
        ):
            if _each(ours, size) != tuple(theirs):
                return f"{name} {ours}, PyTorch's are {theirs}"
    return None


def _own(layer: nnx.Module, other: torch.nn.Module | None) -> str | None:
    """What the code of one of two layers computes, that its kind does not tell."""
    if isinstance(layer, nnx.bridge.ToNNX):
        return _LINEN
    if not isinstance(layer, _KNOWN):
        return None
    if own_call(layer):
        return "with a __call__ of its own"
    if given := own_product(layer):
        return given
    if other is not None and (code := own_code(other)):
        return f"the torch network's is a {type(other).__name__}{code}"
    return None


def _hooks(module: torch.nn.Module) -> str:
    return ", ".join(
        f"{name or 'the module'} ({type(layer).__name__}: a forward hook)"
        for name, layer in hooked(module)
    )


def _padded(layer: nnx.Module, other: torch.nn.Module | None) -> str | None:
    """What pads in one of two convolutions alone; None also where the image's size decides."""
    if not isinstance(layer, nnx.Conv) or not isinstance(other, _ConvNd):
        return None
    ours, theirs = _pads(layer), _pads_there(other)
    if ours is None or ours == theirs:
        return None
    mode = "" if other.padding_mode == "zeros" else f" {other.padding_mode}"
    return f"padding {layer.padding!r}, PyTorch's is {other.padding}{mode}"


_Pads = tuple[str, list[tuple[int, int]]]  # with what, and how many before and after on each axis


def _pads(layer: nnx.Conv) -> _Pads | None:
    axes = len(layer.kernel_size)
    more = [
        by * (pixels - 1)
        for by, pixels in zip(_each(layer.kernel_dilation, axes), layer.kernel_size, strict=True)
    ]
    if not isinstance(layer.padding, str):
        given = _each(layer.padding, axes)
        pairs = [tuple(_each(one, 2)) for one in (given if len(given) == axes else given * axes)]
        return _pads_of("zeros", [(pair[0], pair[-1]) for pair in pairs])
    kind = layer.padding.upper()
    if kind == "VALID":
        return _pads_of("zeros", [(0, 0)] * axes)
    before_less = [(one // 2, one - one // 2) for one in more]
    if kind in ("CIRCULAR", "REFLECT"):
        return _pads_of(kind.lower(), before_less)
    if kind == "CAUSAL":
        return _pads_of("zeros", [(one, 0) for one in more])
    strides = zip(_each(layer.strides, axes), more, strict=True)
    if kind not in ("SAME", "SAME_LOWER") or any(by != 1 and one for by, one in strides):
        return None
    lower = kind == "SAME_LOWER"
    return _pads_of("zeros", [pair[::-1] if lower else pair for pair in before_less])


def _pads_there(other: _ConvNd) -> _Pads:
    numbers = other._reversed_padding_repeated_twice  # before and after, of the last axis first
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return _pads_of(other.padding_mode, pairs[::-1])


def _pads_of(mode: str, pairs: list[tuple[int, int]]) -> _Pads:
    return (mode if any(map(any, pairs)) else "zeros"), pairs


def _epsilon(other: torch.nn.Module | None) -> float:
    return float(getattr(other, "eps", _EPSILON))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4)


def _other_kind(_: str, layer: nnx.Module) -> str | None:
    if isinstance(layer, nnx.ConvTranspose):
        return "a transposed convolution"
    if isinstance(layer, nnx.Einsum):
        return f"einsum {layer.einsum_str!r}"
    if isinstance(layer, nnx.LinearGeneral) and (
        layer.batch_axis or tuple(_each(layer.axis, 1)) != (-1,)
    ):
        return f"axis {layer.axis}"
    return _stacked(layer)


def _stacked(layer: nnx.Module) -> str | None:
    """A kernel of more axes than the layer has, or of several for features."""
    if isinstance(layer, nnx.Conv):
        kind, axes = "convolutions", len(layer.kernel_size) + 2
    elif isinstance(layer, nnx.LinearGeneral):
        kind, axes = "linear layers", len(layer.in_features) + len(layer.out_features)
        if axes != 2:
            return f"from {layer.in_features} to {layer.out_features} features"
    elif isinstance(layer, nnx.Linear):
        kind, axes = "linear layers", 2
    else:
        return None
    return None if layer.kernel.ndim == axes else f"several {kind}, stacked"


def _setting(layer: nnx.Module, other: torch.nn.Module | None) -> str | None:
    if isinstance(layer, nnx.bridge.ToNNX):
        return _LINEN
    if isinstance(layer, _KNOWN) and own_call(layer):
        return "with a __call__ of its own"
    if isinstance(layer, _KNOWN) and (given := own_product(layer)):
        return given
    if isinstance(layer, nnx.Conv):
        return _convolution(layer, getattr(other, "dilation", None))
    if isinstance(layer, nnx.BatchNorm) and layer.axis != -1:
        return f"axis {layer.axis}"
    if isinstance(layer, _NORMS) and not _close(layer.epsilon, _epsilon(other)):
        return f"epsilon {layer.epsilon}, PyTorch's default is {_EPSILON}"
    return None


def _convolution(layer: nnx.Conv, dilation_there: object = None) -> str | None:
    size = layer.kernel_size
    for name in ("kernel_dilation", "input_dilation"):
        dilation = getattr(layer, name)
        if name == "kernel_dilation" and _each(dilation, len(size)) == dilation_there:
            continue
        whole = name == "input_dilation"  # a kernel of one pixel has nothing to dilate
        axes = zip(_each(dilation, len(size)), size, strict=True)
        if any(by != 1 and (whole or pixels > 1) for by, pixels in axes):
            return f"{name} {dilation}"
    wide = [pixels > 1 for pixels in size]
    if isinstance(layer.padding, str):
        kind, strides = layer.padding.upper(), _each(layer.strides, len(size))
        if kind == "VALID" or not any(wide):
            return None
        if kind not in ("SAME", "SAME_LOWER"):
            return f"padding {layer.padding!r}"
        if any(by != 1 and more for by, more in zip(strides, wide, strict=True)):
            return (
                f"padding {layer.padding!r} with strides {layer.strides} pads the sides unequally, "
                "PyTorch's does not"
            )
        if kind == "SAME_LOWER" and any(pixels % 2 == 0 for pixels in size):
            return f"padding {layer.padding!r} of an even kernel"
        return None
    if isinstance(layer.padding, Sequence) and any(
        isinstance(pair, Sequence) and pair[0] != pair[-1] for pair in layer.padding
    ):
        return f"padding {layer.padding}"
    return None


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A setting of each axis; None and one number stand for all of them."""
    if isinstance(value, Sequence):
        return tuple(value)
    return (1 if value is None else value,) * axes
