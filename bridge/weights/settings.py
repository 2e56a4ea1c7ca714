"""What the type of a Flax layer says of it that its weights do not."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from flax import nnx

from bridge.weights.recording import torch_names
from bridge.weights.wrappers import without_inner

_EPSILON = 1e-5  # the default of PyTorch's normalisations
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

    Seen are a convolution's padding and dilation, a normalisation's epsilon and BatchNorm's axis;
    PyTorch's are those of the layer of the same name in `module`, else its defaults.
    """
    theirs = _layers(model, module)
    return _told(model, lambda name, layer: _setting(layer, theirs(name)))


def refuse_other_settings(model: nnx.Module, module: torch.nn.Module) -> None:
    """Refuses layers whose namesake in PyTorch has other strides, dilation or epsilon.

    Raises:
      ValueError: each of them, by name.
    """
    theirs = _layers(model, module)
    if found := _told(model, lambda name, layer: _differing(layer, theirs(name))):
        raise ValueError(f"not the same network: {found}; set both alike")


def _layers(
    model: nnx.Module, module: torch.nn.Module | None
) -> Callable[[str], torch.nn.Module | None]:
    """Finds PyTorch's layer by the name that it has in the Flax model."""
    found = module.named_modules() if module is not None else []
    # What is wrapped comes after its wrapper and takes its place.
    layers = {without_inner(f"{name}.").removesuffix("."): layer for name, layer in found}
    shorten = torch_names(model)
    return lambda name: layers.get(name) or layers.get(shorten(name))


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
    if isinstance(layer, nnx.Conv) and isinstance(other, torch.nn.Conv2d):
        size = len(layer.kernel_size)
        for name, ours, theirs in (
            ("strides", layer.strides, other.stride),
            ("kernel_dilation", layer.kernel_dilation, other.dilation),
        ):
            if _each(ours, size) != tuple(theirs):
                return f"{name} {ours}, PyTorch's are {theirs}"
    return None


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
    return None


def _setting(layer: nnx.Module, other: torch.nn.Module | None) -> str | None:
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
