"""Whether a Flax and a PyTorch network are the same function, and which layer says no."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import torch
from flax import nnx
from numpy.typing import ArrayLike

from bridge.weights.recording import Call, record_flax, record_torch
from bridge.weights.restoring import restored
from bridge.weights.wrappers import unwrapped
from jaxcurv.data.layouts import plain_array

TOLERANCE = 3e-5  # of logits, relative to the largest; rounding gives about 1e-6, another gelu 1e-4
_MASK = 1e3  # logits at or below its negative, and far from all others, say "never this class"
_FAR = 100
_LOOKED_AT = 4  # images whose layers are compared, those of the largest difference
_COLUMNS = ["layer", "input_difference", "output_difference"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far the logits of two networks lie apart, and where the networks part.

    It is true where the logits are the same, and `str` of it is a sentence.

    Attributes:
      same: whether `difference` is at most `tolerance` times `largest`.
      difference: largest absolute difference of two logits; infinity for other shapes, and where
        one network's is infinite and the other's is not.
      largest: largest absolute logit of the Flax network, masked ones aside.
      tolerance: as given to `same_logits`.
      layer: name of the first layer in which, or before which, they part; None where the logits
        are the same or no layer can be told. "NAME (PyTorch's name)" where they differ.
      place: "in" the layer, "before" it (what lies between it and the layer before: an activation,
        pooling, the order of a flatten) or "after" it, the last one; None where `layer` is.
      layers: one row a call of a layer that both networks have, in the order of PyTorch's calls,
        with the columns `layer`, `input_difference` and `output_difference`: largest absolute
        difference relative to the largest value, infinity for other shapes. Empty where the logits
        are the same.
      reason: what was seen, in words.
    """

    same: bool
    difference: float
    largest: float
    tolerance: float
    layer: str | None
    place: str | None
    layers: pd.DataFrame
    reason: str

    def __bool__(self) -> bool:
        return self.same

    def __str__(self) -> str:
        return self.reason


def same_logits(
    flax_model: nnx.Module,
    torch_model: torch.nn.Module,
    images: ArrayLike | torch.Tensor,
    *,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Compares two networks' logits on images; where they differ, says at which layer they part.

    Both run in evaluation mode and are left as they are. The networks may differ where these images
    do not show it: give some of the size and kind that the networks are for.

        max |flax - torch| <= tolerance * max |flax|

    Masks of classes, which are minus infinity, or at most -1e3 and a hundred times as large as any
    other logit, do not count as the largest: infinite ones must be at the same places, and of a
    finite one the difference is relative to itself.

    Layers are matched by name, and where no name is shared by the order in which layers with
    weights are called.

    Args:
      flax_model: an NNX module from images to logits `[batch, class]`.
      torch_model: a module from images to logits `[batch, class]`.
      images: at least two. Arrays `[batch, height, width, channel]` or tensors `[batch, channel,
        height, width]`; what has another number of axes goes to both networks as it is.
      tolerance: what rounding explains. Networks that compute in bfloat16 need about 0.05.

    Returns:
      A `Comparison`, true where the logits are the same.

    Raises:
      TypeError: a network of another kind, or one that does not give an array.
      ValueError: a network that gives classes, fewer than two images, images on which a network
        fails or gives NaN, infinity or masks alone, or equal logits on images that show nothing:
        on which logits hardly vary, or that have one value throughout each.
    """
    if not isinstance(flax_model, nnx.Module):
        raise TypeError(f"flax_model must be a Flax NNX module, not {_kind(flax_model)}")
    if not isinstance(torch_model, torch.nn.Module):
        raise TypeError(f"torch_model must be a torch module, not {_kind(torch_model)}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance!r}")
    channels_last, channels_first = _layouts(images)
    ours = flax_logits(flax_model, channels_last, masked=True)
    theirs = torch_logits(torch_model, channels_first, masked=True)
    masked = _masked(ours)
    largest = float(np.abs(ours[~masked]).max(initial=0))
    if ours.shape == theirs.shape:
        rounded = masked & (_apart_each(ours, theirs) <= tolerance * np.abs(ours))
        theirs = np.where(rounded, ours, theirs)
    difference = _apart(ours, theirs)
    if difference <= tolerance * largest:
        _require_varied(ours, masked, tolerance)
        _require_patterns(channels_last)
        reason = f"the same logits: they differ by {difference:.1e}, the largest is {largest:.1e}"
        empty = pd.DataFrame(columns=_COLUMNS)
        return Comparison(True, difference, largest, tolerance, None, None, empty, reason)
    worst = np.arange(min(len(ours), len(theirs), _LOOKED_AT))
    if ours.shape == theirs.shape:
        worst = np.argsort(-_apart_each(ours, theirs).max(axis=tuple(range(1, ours.ndim))))
        worst = np.sort(worst[:_LOOKED_AT])
    calls = _calls(flax_model, torch_model, channels_last[worst], channels_first[worst])
    layer, place, layers, hint = _parting(*calls, tolerance)
    if math.isfinite(difference):
        reason = (
            f"not the same network: logits differ by {difference:.1e}, the largest is "
            f"{largest:.1e} (tolerance {tolerance:g}; bfloat16 needs about 0.05); {hint}"
        )
    elif ours.shape == theirs.shape:
        reason = f"not the same network: logits are infinite at other places; {hint}"
    else:
        reason = f"not the same network: logits are {ours.shape} and {theirs.shape}; {hint}"
    return Comparison(False, difference, largest, tolerance, layer, place, layers, reason)


def flax_logits(model: nnx.Module, images: np.ndarray, *, masked: bool = False) -> np.ndarray:
    """Logits of a model in evaluation mode, float32 `[batch, class]`; the model is not changed.

    They must be finite; if `masked`, some may be minus infinity.
    """
    with jax.default_matmul_precision("highest"):
        try:
            logits = nnx.jit(lambda model, x: model(x))(_evaluated(model), jnp.asarray(images))
        except Exception as error:
            raise ValueError(f"flax_model {_failed(images, error)}") from error
    return _require_logits("flax_model", logits, masked)


def torch_logits(
    module: torch.nn.Module, images: torch.Tensor, *, masked: bool = False
) -> np.ndarray:
    """Logits of a module in evaluation mode, float32 `[batch, class]`; it is left as it was.

    They must be finite; if `masked`, some may be minus infinity.
    """
    modes = {layer: layer.training for layer in module.modules()}
    try:
        with restored(module), torch.inference_mode():
            module.eval()
            logits = module(_placed(images.clone(), module))  # which may work in place
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"torch_model {_failed(images, error)}") from error
    finally:
        for layer, training in modes.items():
            layer.training = training
    if isinstance(logits, torch.Tensor):
        floating = logits.is_floating_point()
        logits = logits.detach().to("cpu", torch.float32 if floating else None).numpy()
    return _require_logits("torch_model", logits, masked)


def _failed(images: Any, error: Exception) -> str:
    return (
        f"fails on images {tuple(images.shape)} ({type(error).__name__}: {error}): give images of "
        "the size that both networks are for, arrays as [batch, height, width, channel]"
    )


def _require_logits(name: str, logits: Any, masked: bool) -> np.ndarray:
    if not isinstance(logits, jax.Array | np.ndarray):
        raise TypeError(f"{name} gives {_kind(logits)}: wrap it in a module that gives its logits")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"{name} gives {logits.dtype}, classes and not logits: compare the module before its "
            "argmax or topk"
        )
    array = np.asarray(logits, np.float32)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} gives {array.shape} and not logits [batch, class]")
    finite = np.isfinite(array)
    if not (finite.any() and (finite | np.isneginf(array)).all() if masked else finite.all()):
        raise ValueError(f"logits of {name} are not finite: give other images or weights")
    return array


def _masked(logits: np.ndarray) -> np.ndarray:
    """Which logits are masks of classes, boolean; see `same_logits`."""
    sizes = np.unique(np.abs(logits[np.isfinite(logits)]))
    for size in sizes[1:][(sizes[1:] >= _MASK) & (sizes[1:] >= _FAR * sizes[:-1])]:
        if not (logits >= size).any():
            return logits <= -size
    return np.isneginf(logits)


def _require_varied(logits: np.ndarray, masked: np.ndarray, tolerance: float) -> None:
    """Refuses logits so alike on all images that a difference of the networks would not show."""
    highest, lowest = (np.where(masked, sign * np.inf, logits) for sign in (-1, 1))
    spread = float((highest.max(axis=0) - lowest.min(axis=0)).max())
    if spread <= max(10 * TOLERANCE, tolerance) * float(np.abs(logits[~masked]).max(initial=0)):
        raise ValueError(
            f"the logits do not depend on the images (they vary by {spread:.1e}), so that equal "
            "ones show nothing: give images that differ, and a network with weights that are "
            "trained or random"
        )


def _require_patterns(images: np.ndarray) -> None:
    """Refuses images of one level each: they look alike in whatever order a network reads them."""
    rows = images.reshape(len(images), -1)
    if rows.shape[1] > 1 and (rows == rows[:, :1]).all():
        raise ValueError(
            "each image has one value throughout, so that equal logits do not show in which order "
            "the networks read it: give images of the kind that the networks are for"
        )


def _evaluated(model: nnx.Module) -> nnx.Module:
    copy = nnx.clone(model)
    copy.eval()
    return copy


def _placed(images: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """A copy of images where the module's weights are, in their precision."""
    weights = next(module.parameters(), None)
    if weights is None:
        return images.clone()
    dtype = weights.dtype if images.is_floating_point() else None
    return images.to(weights.device, dtype, copy=True)


def _layouts(images: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Images as Flax and as PyTorch take them."""
    if isinstance(images, torch.Tensor):
        array = images.detach().cpu().numpy()
        array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    elif hasattr(images, "__array__"):
        array = plain_array(images)
    else:
        raise TypeError(
            "images must be an array [batch, height, width, channel] or a torch tensor [batch, "
            f"channel, height, width], not {_kind(images)}"
        )
    if array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) < 2:
        raise ValueError(
            "images must be at least two, numbers [batch, height, width, channel]; got "
            f"{array.dtype} {array.shape}"
        )
    if array.dtype.kind == "f" or array.ndim == 4:
        array = array.astype(np.float32)
    else:
        array = array.astype(np.int32)  # token ids
    first = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    return array, torch.from_numpy(first.copy())


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _calls(
    flax_model: nnx.Module, torch_model: torch.nn.Module, last: np.ndarray, first: torch.Tensor
) -> tuple[list[Call], list[Call]]:
    with jax.default_matmul_precision("highest"):
        ours = record_flax(_evaluated(flax_model), lambda model: model(jnp.asarray(last)))
    inner = unwrapped(torch_model)  # torch.compile calls no hooks of the layers
    with record_torch(inner) as theirs:
        torch_logits(inner, first, masked=True)
    return ours, theirs


def _parting(
    ours: list[Call], theirs: list[Call], tolerance: float
) -> tuple[str | None, str | None, pd.DataFrame, str]:
    """The layer where calls part, the place, the table of calls, and the finding in words."""
    rows = [
        (name, _relative(a.taken, b.taken), _relative(a.given, b.given), a, b)
        for name, a, b in _pairs(ours, theirs)
    ]
    table = pd.DataFrame([row[:3] for row in rows], columns=_COLUMNS)
    if not rows:
        return None, None, table, "no layer could be compared: no names are shared"
    agreeing = "the images"
    for name, taken, given, a, b in rows:
        if taken > tolerance:
            hint = f"they part between {agreeing} and {name} ({_by(a.taken, b.taken, taken)})"
            return name, "before", table, hint
        if given > tolerance:
            return name, "in", table, f"they part in {name} ({_by(a.given, b.given, given)})"
        agreeing = name
    return agreeing, "after", table, f"they part after {agreeing}, the last layer that both have"


def _pairs(ours: list[Call], theirs: list[Call]) -> list[tuple[str, Call, Call]]:
    """Calls that belong together, in PyTorch's order."""
    waiting: dict[str, list[Call]] = {}
    for call in ours:
        waiting.setdefault(call.layer, []).append(call)
    named = [
        (call.layer, waiting[call.layer].pop(0), call) for call in theirs if waiting.get(call.layer)
    ]
    if named:
        return named
    left, right = ([call for call in calls if call.weighted] for calls in (ours, theirs))
    if len(left) != len(right):
        return []
    return [(f"{a.layer} ({b.layer})", a, b) for a, b in zip(left, right, strict=True)]


def _layouts_of(array: np.ndarray) -> list[np.ndarray]:
    """PyTorch's features as they are, and with the channels last."""
    return [array, np.moveaxis(array, 1, -1)] if array.ndim > 2 else [array]


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    apart = min(_apart(ours, one) for one in _layouts_of(theirs))
    largest = float(np.abs(ours).max(initial=0))
    return apart if apart == 0 or not largest else apart / largest


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return float(_apart_each(ours, theirs).max(initial=0.0))


def _apart_each(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Absolute differences of two arrays of one shape; infinity where one is not finite alone."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    return np.nan_to_num(apart, nan=math.inf, posinf=math.inf)


def _by(ours: np.ndarray, theirs: np.ndarray, relative: float) -> str:
    if math.isfinite(relative):
        one = np.sort(ours, axis=None), np.sort(theirs, axis=None)
        if _relative(*one) <= min(TOLERANCE, relative / 100):
            return "the same numbers in another order: Flax flattens [height, width, channel]"
        return f"by {relative:.1e} of the largest value"
    if not any(ours.shape == one.shape for one in _layouts_of(theirs)):
        shapes = f"{ours.shape[1:]} and {theirs.shape[1:]}"
        return f"shapes of one image differ: {shapes}, channels first in PyTorch's"
    return "values that are not finite"
