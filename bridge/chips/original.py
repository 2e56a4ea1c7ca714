"""The model that a chip was made from, kept until the first images show that its copy computes it.

A copy has other layers than the model: what is known by these layers, such as masks in a dictionary
by module, is lost in it without a word.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bridge.chips.contents import sum_of_bits
from bridge.chips.memory_layout import Layout

_ORIGINAL = "_original_model"
_TOLERANCE = 1e-2  # of the largest logit; autocast to bfloat16 made 5e-3
_NUDGES = (8, -8, 24, -24)  # units in the last place of the input


class Original:
    """A model as it was when a chip was made from it, with the weights that went to tiles.

    Copies of a chip share it, and files do not have it.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, torch.Tensor]):
        self.model: nn.Module | None = model
        self.weights, self._was = weights, _content(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Original":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def logits(self, images: torch.Tensor) -> torch.Tensor | None:
        """The model's, on the CPU; None where it has changed since, fails or gives no tensor."""
        if self.model is None or _content(self.model) != self._was:
            return None
        weights = next(self.model.parameters())
        try:
            with _left_alone(self.model):
                found = Layout(self.model)(self.model, images.to(weights.device))
        except Exception:
            return None
        if not isinstance(found, torch.Tensor) or not found.isfinite().all():
            return None
        return found.cpu()

    def refuse_other(self, twin: nn.Module, layout: Layout, images: torch.Tensor) -> None:
        """Refuses a copy that computes something else than the model.

        Args:
          twin: the chip's network with ordinary layers, on the CPU; it gets the model's weights.
          layout: that of the twin.
          images: what it takes.

        Raises:
          ValueError: it does.
        """
        expected = self.logits(images)
        if expected is None:
            return
        for name, weight in self.weights.items():
            layer: Any = twin.get_submodule(name)
            layer.weight.data = weight.detach().cpu()
        found = layout(twin, images)
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return  # which is told when the chip runs
        off, largest = float((found - expected).abs().max()), float(expected.abs().max())
        allowed = _TOLERANCE * largest
        if off > allowed and images.is_floating_point():
            for nudge in _NUDGES:  # for networks that round
                nudged = layout(twin, images * (1 + nudge * torch.finfo(images.dtype).eps))
                allowed = max(allowed, 10 * float((nudged - found).abs().max()))
        if not off <= allowed:
            raise ValueError(
                f"a copy of the model gives other logits than the model itself, by {off:.2g} of "
                f"{largest:.2g}: {_HELD}. If the model has changed since, program it again"
            )

    def let_go(self) -> None:
        """Lets go of the model, for all copies of the chip."""
        self.model, self.weights = None, {}

    def refuse_failing(self, images: torch.Tensor, error: Exception) -> None:
        """Refuses a copy that fails on images which the model takes.

        Raises:
          ValueError: the model takes them.
        """
        if self.logits(images) is not None:
            raise ValueError(
                f"a copy of the model fails ({type(error).__name__}: {error}) where the model "
                f"itself does not: {_HELD}"
            ) from error


_HELD = (
    "a hook, or other code of it, holds on to the original's layers or values, such as a mask in a "
    "dictionary by layer; let it use self, an attribute of the layer, or the module that the hook "
    "is given"
)


def keep_original(analog: nn.Module, model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Has a chip's network, and its copies, know the model that it was made from.

    Args:
      analog: the network; it remembers it.
      model: the user's, which is not changed.
      weights: what goes to tiles, by the layer's path; unclipped and without noise. Where the model
        holds the same, that is kept in their place.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    kept = {}
    for name, weight in weights.items():
        there = own.get(f"{name}.weight".lstrip("."))
        same = there is not None and there.shape == weight.shape and there.is_cpu
        kept[name] = there if there is not None and same and torch.equal(there, weight) else weight
    vars(analog)[_ORIGINAL] = Original(model, kept)


def original_of(analog: nn.Module) -> Original | None:
    """The model that a network was made from, until it was looked at."""
    found: Original | None = vars(analog).get(_ORIGINAL)
    return found


def forget_original(network: nn.Module) -> None:
    """Drops the mark, which a copy for another chip must not keep."""
    vars(network).pop(_ORIGINAL, None)


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Gives modules back the attributes and buffers that they had, which a pass may set."""
    kept = [(one, dict(vars(one)), dict(one._buffers)) for one in model.modules()]
    values = [(one, one.clone()) for one in model.buffers()]
    try:
        yield
    finally:
        for module, attributes, buffers in kept:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def _content(model: nn.Module) -> list[Any]:
    """What tells a change of a model's modules, their mode and hooks, and its tensors."""
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    modules = [
        (id(one), one.training, *(tuple(getattr(one, kind)) for kind in hooks))
        for one in model.modules()
    ]
    tensors = [*model.parameters(), *model.buffers()]
    return [modules, [(one.dtype, tuple(one.shape), sum_of_bits(one)) for one in tensors]]
