"""Checks of a chip's network on its first images."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn

from bridge.chips.behaviour import remember_inputs
from bridge.chips.beside_tiles import Seen, refuse_weights_beside_tiles
from bridge.chips.digital_products import (
    tell_digital_products,
    tell_distances,
    tell_filters,
    tell_fixed_products,
    tell_picked_products,
)
from bridge.chips.evaluation import (
    first_that_differs,
    require_independent,
    require_same_in_batch,
)
from bridge.chips.execution.fast_tiles import unsupported_settings
from bridge.chips.images import refuse_transform
from bridge.chips.memory_layout import Layout, contiguous
from bridge.chips.original import original_of
from bridge.chips.tiles import (
    AnalogLayer,
    digital_network,
    named_layers,
    named_tiles,
    replace_layer,
)
from bridge.chips.weight_noise import draws_per_operation

WATCHED = 64
"""Images among which each layer on tiles is looked for."""
_TRIED = 4
"""Images of the batches that `require_independent` tries; a larger one is compared with these."""
_NESTED = (
    "the network fails on tiles ({}): they take no nested tensors, but padded ones, "
    "x.to_padded_tensor(0.0)"
)
_EXAMINED = "network_examined"


def examine(
    analog: nn.Module,
    digital_layers: Sequence[str],
    images: torch.Tensor,
    engine: str = "fast",
) -> list[str]:
    """Refuses a network that would not compute on tiles what it computes in PyTorch; once a chip.

    Runs a copy without tiles, so that noise and ADC do not matter; it costs some 45 samples'
    digital passes on the CPU, two of them of the model, where that is still as it was, and up to 80
    more to compare the first 64 images as one batch with a few of them two at a time. Networks
    with tiles in other kinds of layers are not looked at, nor is one that fails on the images. A
    network that fails on two images is looked at on the first 64.

    Args:
      analog: on tiles, on the CPU; it remembers that it was examined, and what images are like.
      digital_layers: as for `program`.
      images: what the network takes, `[batch, ...]`.
      engine: what runs the chip.

    Returns:
      Layers on tiles that the first images do not need, as far as these were looked at.

    Raises:
      ValueError: weights that are on no tile, samples that depend on their batch, state that stays
        from one pass to the next, code that asks what a layer is where that matters on the engine,
        or logits that are not the model's.
    """
    asking: dict[str, str] | None = getattr(analog, _EXAMINED, None)
    unused: list[str] = []
    if asking is None and len(images):
        with torch.inference_mode(False), torch.no_grad(), refused_access():
            asking, unused = _examine(analog, digital_layers, images, engine)
        setattr(analog, _EXAMINED, asking)
        if asking is not None and (original := original_of(analog)):
            original.let_go()
    if asking and engine in asking:
        raise ValueError(asking[engine])
    return unused


def _examine(
    analog: nn.Module,
    digital_layers: Sequence[str],
    images: torch.Tensor,
    engine: str,
) -> tuple[dict[str, str] | None, list[str]]:
    """Why engines are refused, by name, and the layers that are not needed.

    The first is None where the images do not fit the network.
    """
    twin = digital_network(analog)
    if named_tiles(twin):
        remember_inputs(analog, images[:WATCHED])
        return {}, []
    original = original_of(analog)
    before = {name: tensor.clone() for name, tensor in _tensors(twin)}
    more = images[:WATCHED].detach().cpu()
    other = first_that_differs(images)
    some = torch.cat([more[:1], more[:1] if other is None else other.detach().cpu()])
    layout = Layout(twin)
    try:
        found = layout(twin, some)
    except (AttributeError, TypeError, StopIteration):
        raise
    except Exception as error:  # such as an IndexError of token ids, or an assertion
        if original is not None:
            original.refuse_failing(some, error)
        some, layout = more, Layout(twin := digital_network(analog))
        try:
            found = layout(twin, some)  # perhaps it takes batches of one size
        except Exception:
            return None, []  # which is told when the chip runs
    remember_inputs(analog, images[:WATCHED])
    if any(not torch.equal(before[name], tensor) for name, tensor in _tensors(twin)):
        _refuse_first_batch(analog, layout, some, found)
    names = list(named_layers(analog))
    run = partial(layout, twin)
    require_independent(run, some, "the network")
    if len(more) > _TRIED:
        whole = None
        with suppress(Exception):  # which is told when the chip runs
            whole = run(more)
        require_same_in_batch(run, more, whole, "the network")
    more = contiguous(more) if layout.contiguous else more
    seen: list[Seen] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(refuse_weights_beside_tiles(twin, names, digital_layers, x, more))
        return x

    layout(watched, some)
    tell_digital_products(twin, some)
    tell_fixed_products(twin, seen[-1].fixed, some)
    tell_picked_products(twin, seen[-1].picked, some)
    tell_distances(twin, seen[-1].distances)
    tell_filters(twin, seen[-1].filters)
    asking = _asking(twin, analog, layout, some, found)
    if engine not in asking and original is not None:
        original.refuse_other(twin, layout, some)
    return asking, seen[-1].unused


def _tensors(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    found = [*network.named_parameters(), *network.named_buffers()]
    return [(name, tensor) for name, tensor in found if tensor.layout == torch.strided]


def _refuse_first_batch(
    analog: nn.Module, layout: Layout, images: torch.Tensor, found: torch.Tensor
) -> None:
    """Refuses a network that changes itself in a pass, where its first batch decides the logits."""
    off, largest = 0.0, float(found.abs().max())
    for n in (0, -1):
        alone = layout(digital_network(analog), images[n].expand_as(images))
        off = max(off, float((alone[n] - found[n]).abs().max()))
    if off > 1e-4 * largest:
        raise ValueError(
            "the network sets itself up on its first batch: logits of one image differ by "
            f"{off:.2g} of {largest:.2g} with the images beside it there; run it on the batch that "
            "it is meant for first, and keep what it has learned in buffers, a flag among them"
        )


def forget_examination(network: nn.Module) -> None:
    """Drops the mark of an examination, which a copy for another chip must not keep."""
    vars(network).pop(_EXAMINED, None)


@contextmanager
def refused_access() -> Iterator[None]:
    """Within it a chip's network runs.

    Raises:
      ValueError: in place of the error of code that takes a layer on tiles for PyTorch's own.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the network fails on tiles ({type(error).__name__}: {error}): of a layer on tiles "
            "its weight, its bias and its settings can be read, no more, and it is called with its "
            "input alone, self.fc(x); name such a layer in digital_layers"
        ) from error
    except (StopIteration, RuntimeError) as error:
        if isinstance(error, StopIteration) or "raised StopIteration" in str(error):
            raise ValueError(
                "the network fails on tiles (StopIteration): its code asks for a tensor that a "
                "chip's copy does not have, such as next(p for p in self.parameters() if "
                "p.requires_grad): take the device and dtype of the input, x.device"
            ) from error
        refuse_transform(error)
        if "NestedTensor" in str(error):
            raise ValueError(_NESTED.format(error)) from error
        raise


class _OnTiles(nn.Module):
    """A layer that computes as PyTorch's own and is none, as a chip's are."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self._chip_layer = (layer,)  # in a tuple, so that it is not found among a network's layers
        self.weight, self.bias = layer.weight, layer.bias
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self._chip_layer[0].forward(x)


def _asking(
    twin: nn.Module, analog: nn.Module, layout: Layout, images: torch.Tensor, expected: Any
) -> dict[str, str]:
    """By engine, what code does that asks for the kind of its layers, where a chip's are others."""
    kinds = {"aihwkit": ("AIHWKit's", _with_aihwkit_layers(twin, analog))}
    names = []
    if not unsupported_settings(analog):
        names = [name for name, layer in named_layers(analog).items() if not _is_plain(layer)]
    if names:
        disguised = deepcopy(twin)
        for name in names:
            disguised = replace_layer(disguised, name, _OnTiles(disguised.get_submodule(name)))
        kinds["fast"] = ("not PyTorch's own", disguised)
    asking = {}
    for engine, (kind, disguised) in kinds.items():
        try:
            found = layout(disguised, images)
        except Exception:
            continue  # which is told when the chip runs
        if not isinstance(found, torch.Tensor) or not found.isfinite().all():
            continue
        off, largest = float((found - expected).abs().max()), float(expected.abs().max())
        if off > 1e-4 * largest:
            asking[engine] = (
                f"the network gives other logits, by {off:.2g} of {largest:.2g}, where its layers "
                f"on tiles are {kind}: its code or a hook asks for their kind, as "
                "isinstance(layer, nn.Conv2d) and type(layer) do; let it ask for the "
                "layer's name, or register hooks on the layers that they are for alone"
            )
    return asking


def _with_aihwkit_layers(twin: nn.Module, analog: nn.Module) -> nn.Module:
    """The twin with AIHWKit's layers in name: they compute as PyTorch's."""
    disguised = deepcopy(analog, {id(tile): tile for tile in named_tiles(analog).values()})
    for name, layer in named_layers(disguised).items():
        vars(layer)["forward"] = twin.get_submodule(name).forward
    return disguised


def _is_plain(layer: AnalogLayer) -> bool:
    """Whether fast execution makes it one of PyTorch's layers."""
    for tile in layer.analog_tiles():
        forward = tile.rpu_config.forward
        bounded = forward.out_res > 0 or 0 < forward.out_bound < math.inf or forward.inp_res > 0
        if draws_per_operation(forward) or tile.input_range is not None:
            return False
        if bounded and not forward.is_perfect:
            return False
    return True
