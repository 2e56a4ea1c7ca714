"""What the type of a Flax layer says of it that its weights do not."""

import math
from collections.abc import Sequence
from typing import Any

from flax import nnx

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


def untold(model: nnx.Module) -> str:
    """The layers that compute otherwise than PyTorch's with the same weights, and why.

    Seen are a convolution's padding and dilation, a normalisation's epsilon and BatchNorm's axis.
    """
    return _told(model, _setting)


def _told(model: nnx.Module, reason: Any) -> str:
    found = []
    for path, layer in sorted(nnx.iter_modules(model), key=lambda one: list(map(str, one[0]))):
        if why := reason(layer):
            name = ".".join(map(str, path)) or "the model"
            found.append(f"{name} ({type(layer).__name__}: {why})")
    return ", ".join(found)


def _other_kind(layer: nnx.Module) -> str | None:
    if isinstance(layer, nnx.ConvTranspose):
        return "a transposed convolution"
    if isinstance(layer, nnx.Einsum):
        return f"einsum {layer.einsum_str!r}"
    if isinstance(layer, nnx.LinearGeneral) and (
        layer.batch_axis or tuple(_each(layer.axis, 1)) != (-1,)
    ):
        return f"axis {layer.axis}"
    return None


def _setting(layer: nnx.Module) -> str | None:
    if isinstance(layer, nnx.Conv):
        return _convolution(layer)
    if isinstance(layer, nnx.BatchNorm) and layer.axis != -1:
        return f"axis {layer.axis}"
    if isinstance(layer, _NORMS) and not math.isclose(layer.epsilon, _EPSILON, rel_tol=1e-4):
        return f"epsilon {layer.epsilon}, PyTorch's default is {_EPSILON}"
    return None


def _convolution(layer: nnx.Conv) -> str | None:
    size = layer.kernel_size
    for name in ("kernel_dilation", "input_dilation"):
        dilation = getattr(layer, name)
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
