"""What a network's code does, as far as its digital logits on a few inputs tell.

Weights do not tell what happens between layers: an activation, a hook, a stride. Logits do. They
differ in their last bits between machines, so that they are compared within a tolerance and never
hashed.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from bridge.chips.memory_layout import Layout
from bridge.chips.plain_layers import copy_of
from bridge.chips.streams import stream
from bridge.chips.tiles import digital_network, named_layers, named_tiles
from jaxcurv.settings import plain

Json = dict[str, Any]

_TOLERANCE = 3e-5  # of the largest logit; rounding made 2e-7, an approximate GELU 8e-5
_NUDGES = (8, -8, 24, -24)  # in units in the last place of the input
_SEEN = "inputs_seen"
_SIZES = (32, 28, 64, 224, 8, 16, 48, 96, 128, 256)
"""Image sizes that are tried for a network which has seen no image."""
_NUMPY = re.compile(r"np\.\w+\(([^()]*)\)")  # how NumPy's numbers are shown
_PADS = 3  # ids that may be padding besides the most frequent
_UNTOLD = re.compile(
    "training|drop|momentum|_is_torch_compile"
)  # attributes without a say in eval mode
_WORD = re.compile(r"[\w-]{1,20}")
_TEXT = 200  # characters that tell a layer
_IDLE = re.compile(r"(\w*Drop\w*|StochasticDepth|Identity)\([^()]*\)$")  # in eval mode
_TORCHS = ("torch.", "aihwkit.", "bridge.chips.")  # whose settings their own words tell
_TRAINING = re.compile(r"(, )?\b(inplace=True|momentum=[\w.]+)")  # settings without a say in logits


def behaviour(network: nn.Module, images: torch.Tensor | None) -> Json:
    """A record of what a network does, as JSON holds it.

    Args:
      network: in eval mode; digital, or a chip's, whose tiles are taken as digital layers.
      images: `[batch, ...]`, all of which are run, on the CPU. None where none are known.

    Returns:
      logits, a list for each of the inputs, or None where it gives no finite ones or they are
      noisy; layers, their kinds, settings and hooks by path, which only name a difference; and
      attributes, numbers and words of layers that are not torch's, but for those that a run sets.
    """
    network = _on_cpu(network)
    attributes = _attributes(network)
    found = None if images is None else _logits(network, images.detach().cpu())
    digits = None if found is None else [[float(f"{x:.7g}") for x in row] for row in found.tolist()]
    after = _attributes(network)
    kept = {
        path: {name: one for name, one in its.items() if after[path].get(name) == one}
        for path, its in attributes.items()
    }
    return {"logits": digits, "layers": _layers(network), "attributes": kept}


def other_code(stored: Json, network: nn.Module, images: torch.Tensor) -> str | None:
    """How a network's logits differ from those of a record; None where rounding explains it.

    They may differ by 3e-5 of the largest, or by ten times what some units in the last place of the
    inputs do, which matters for networks that round. Where a record has no logits nothing is told.

    Args:
      stored: what `behaviour` gave.
      network, images: as for `behaviour`. Where a record, of an earlier version, is of two of
        more images, it is of the first and the first one that differs from it.
    """
    if stored["logits"] is None:
        return None
    network, images = _on_cpu(network), images.detach().cpu()
    if len(stored["logits"]) == 2 < len(images):
        images = _two(images)
    there, here = torch.tensor(stored["logits"]), _logits(network, images)
    if here is None:
        how = "it gives no logits now"
    elif here.shape != there.shape:
        how = f"it gives {here.shape[-1]} logits now and gave {there.shape[-1]}"
    else:
        off, largest = float((here - there).abs().max()), float(there.abs().max())
        allowed = _TOLERANCE * largest
        if off > allowed and images.is_floating_point():
            for nudge in _NUDGES:
                nudged = _logits(network, images * (1 + nudge * torch.finfo(images.dtype).eps))
                if nudged is not None:
                    allowed = max(allowed, 10 * float((nudged - here).abs().max()))
        if off <= allowed:
            return None
        how = f"its digital logits differ by {off:.2g} of {largest:.2g}"
    why = other_layers(stored, network)
    return f"{how} ({why or 'no kind, setting or hook of a layer tells why: see the code between'})"


def changed_layers(stored: Json, network: nn.Module) -> str | None:
    """What `other_layers` tells, but for what matters in training alone or is named otherwise.

    For a network whose logits are those of a record: what that record's inputs do not reach, such
    as the bound of a ReLU6, is seen by the layers only.
    """
    computing = [
        [
            text
            for one in layers.values()
            if (text := _TRAINING.sub("", one)) and not _IDLE.match(text)
        ]
        for layers in (stored["layers"], _layers(_on_cpu(network)))
    ]
    if computing[0] != computing[1]:
        return other_layers(stored, network)
    others = _other_attributes(stored, network)
    return f"{others[0]}{_and_more(len(others))}" if others else None


def other_layers(stored: Json, network: nn.Module) -> str | None:
    """The first layer of another kind, setting or hook than in a record, in words; None if none."""
    there, here = stored["layers"], _layers(_on_cpu(network))
    paths = [path for path in {**there, **here} if there.get(path) != here.get(path)]
    others = _other_attributes(stored, network)
    more = _and_more(len(paths) + len(others))
    if not paths:
        return f"{others[0]}{more}" if others else None
    path = paths[0]
    layer = f"layer {path}" if path else "the root"
    return f"{layer} was {there.get(path, 'not there')} and is {here.get(path, 'not there')}{more}"


def _and_more(count: int) -> str:
    return f", and {count - 1} more differ" if count > 1 else ""


def remember_inputs(network: nn.Module, images: torch.Tensor) -> None:
    """Keeps what a network's inputs are like, for a record without them; see `inputs_like`.

    Args:
      network: it remembers them.
      images: `[batch, ...]`; of token ids those are kept too that may be padding: the most
        frequent, what an embedding of the network names, and those that most often repeat.
    """
    finite = images[images.isfinite()]
    if not finite.numel():
        return
    low, high = (bound.item() for bound in finite.aminmax())
    like = {"shape": list(images.shape[1:]), "floating": images.is_floating_point(), "ramp": True}
    if not images.is_floating_point():
        like["often"] = images.flatten().mode().values.item()
        ids = [
            layer.padding_idx
            for layer in network.modules()
            if isinstance(layer, nn.Embedding)
            and layer.padding_idx is not None
            # Not of positions or segments, whose number may be smaller.
            and layer.num_embeddings > high
        ]
        repeated = images[..., 1:][images[..., 1:] == images[..., :-1]]
        runs, counts = repeated.unique(return_counts=True)
        ids += runs[counts.argsort(descending=True)].tolist()
        like["pads"] = [one for one in dict.fromkeys(ids) if one != like["often"]][:_PADS]
    else:
        like["channels"] = True
    keep_inputs(network, like | {"low": low, "high": high if low < high else low + 1})


def keep_inputs(network: nn.Module, like: Json | None) -> None:
    """Keeps what `inputs_of` told of another network."""
    setattr(network, _SEEN, like)


def inputs_of(network: nn.Module) -> Json | None:
    """What a digital network's inputs are like: their shape, range and whether they are token ids.

    Where it has seen none, an input is guessed by its first layer and tried: images of some usual
    sizes, a vector, a signal or tokens. None where none of these runs.
    """
    seen: Json | None = getattr(network, _SEEN, None)
    if seen is not None:
        return seen
    twin = _on_cpu(network)
    return next(
        (one for one in _guesses(twin) if _logits(twin, inputs_like(one)) is not None), None
    )


def inputs_like(like: Json) -> torch.Tensor:
    """A few inputs of a shape and range, `[2 to 4, ...]`: the same everywhere, and nobody's.

    The first is uniform noise. The second rises from the lowest to the highest value, along the
    last two axes: noise averages out in a convolution, what is smooth reaches the bounds of an
    activation, and is flat at either end, wider than a kernel. Of several channels a third
    and a fourth have one rise where others fall, for filters of colours; of four channels any two
    part in one of them. Token ids end in the most frequent one, and in others that may be padding.
    In records of earlier versions the second is noise, or there is no third and nothing is flat.
    """
    random = np.random.RandomState(0)  # whose stream NumPy keeps
    low, high, shape = like["low"], like["high"], (2, *like["shape"])
    inputs: NDArray[Any] = (
        random.uniform(low, high, shape)
        if like["floating"]
        else random.randint(low, high + 1, shape)
    )
    if like.get("ramp"):
        rising: Any = sum(np.ix_(*[np.linspace(0, 1, length) for length in shape[1:][-2:]]))
        rising = rising / max(np.max(rising), 1)
        if like.get("channels"):
            # Flat at either end, and not by as much, or what saturates there would cancel out.
            rising = np.clip(4 * rising - 1.2, 0, 1)
        ramp = low + (high - low) * rising
        inputs[1] = ramp if like["floating"] else ramp.round()
        if like.get("channels") and len(shape) > 2:
            bits = range(min(shape[1] - 1, 2))
            falls = [_along_channels(np.arange(shape[1]) >> bit & 1, shape) for bit in bits]
            opposed = [np.where(one, low + high - inputs[1], inputs[1]) for one in falls]
            inputs = np.stack([*inputs, *opposed])
    if "often" in like:
        quarter = shape[-1] // 4
        for number, one in enumerate([like["often"], *like.get("pads", [])]):
            end = shape[-1] - number // 2 * quarter
            inputs[1 - number % 2, ..., end - quarter : end] = one
    return torch.from_numpy(inputs).float() if like["floating"] else torch.from_numpy(inputs).long()


def _along_channels(channels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return channels.reshape(-1, *[1] * (len(shape) - 2)).astype(bool)


def _guesses(network: nn.Module) -> Iterator[Json]:
    kinds = (nn.Linear, _ConvNd, nn.Embedding)
    first = next((layer for layer in network.modules() if isinstance(layer, kinds)), None)
    around: Json = {"low": -1.0, "high": 1.0, "floating": True, "ramp": True, "channels": True}
    if isinstance(first, nn.Embedding):
        del around["channels"]
        ids = {"low": 0, "high": first.num_embeddings - 1, "often": first.padding_idx or 0}
        yield around | ids | {"shape": [16], "floating": False}
    elif isinstance(first, nn.Linear):
        yield around | {"shape": [first.in_features]}
        yield around | {"shape": [16, first.in_features]}
    elif isinstance(first, _ConvNd):
        axes = len(first.kernel_size)
        for size in _SIZES:
            yield around | {"shape": [first.in_channels, *axes * [size]]}


def _on_cpu(network: nn.Module) -> nn.Module:
    """A network without layers on tiles, on the CPU; itself where it is so."""
    if named_layers(network):
        return digital_network(network)
    tensors = [*network.parameters(), *network.buffers()]
    return network if all(one.is_cpu for one in tensors) else copy_of(network).cpu()


def _two(images: torch.Tensor) -> torch.Tensor:
    other = next((x for x in images.split(1) if not torch.equal(x, images[:1])), images[:1])
    return torch.cat([images[:1], other])


def _logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    """float32 `[batch, output]`; None where there are none, or they are not finite or the same."""
    found = _run(network, images, 0)
    if found is None or not named_tiles(network):
        return found
    again = _run(network, images, 1)  # tiles in other kinds of layers may draw noise
    noise = torch.inf if again is None else float((again - found).abs().max())
    return found if noise <= _TOLERANCE * float(found.abs().max()) else None


def _run(network: nn.Module, images: torch.Tensor, seed: int) -> torch.Tensor | None:
    layout, logits = Layout(network), []
    try:
        with torch.inference_mode(False), torch.no_grad(), stream(seed, "behaviour"):
            for two in images.split(2):  # as much memory as few take
                logits.append(layout(network, two.clone()).float().reshape(len(two), -1))
        found = torch.cat(logits)
    except Exception:  # which is told when it runs on its samples
        return None
    return found if found.isfinite().all() else None


def _layers(network: nn.Module) -> dict[str, str]:
    """Kind, settings and hooks of each layer, by path."""
    found = {}
    for path, module in network.named_modules():
        settings = ""
        with suppress(Exception):
            settings = _NUMPY.sub(r"\1", module.extra_repr())[:_TEXT]
        hooks = [
            _name(hook)
            for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if not str(getattr(hook, "__module__", "")).startswith("bridge.chips")
        ]
        if settings or hooks or not list(module.children()):
            text = f"{type(module).__name__}({settings})"
            found[path] = f"{text} with hook {', '.join(hooks)}" if hooks else text
    return found


def _attributes(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Numbers and words that layers of the user's own keep, by path and name, as JSON has them."""
    found = {}
    for path, module in network.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_TORCHS) or _IDLE.match(f"{kind.__name__}()"):
            continue
        its = {}
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor | np.ndarray):
                continue  # state, which is of no use to name a difference
            value = plain(value)
            parts = value if isinstance(value, tuple) else [value]
            if not _UNTOLD.search(name) and all(map(_is_told, parts)):
                # Of numbers what rounding leaves.
                digits = [float(f"{x:.6g}") if isinstance(x, float) else x for x in parts]
                its[name] = repr(tuple(digits) if isinstance(value, tuple) else digits[0])[:_TEXT]
        if its:
            found[path] = its
    return found


def _is_told(value: Any) -> bool:
    """Whether it is None, a number, or a word such as may name an activation."""
    return isinstance(value, bool | int | float | None) or (
        isinstance(value, str) and bool(_WORD.fullmatch(value))
    )


def _other_attributes(stored: Json, network: nn.Module) -> list[str]:
    """Attributes of a record that are others, in words; records of earlier versions have none."""
    here = _attributes(_on_cpu(network))
    told = []
    for path, its in stored.get("attributes", {}).items():
        for name, was in its.items():
            now = here.get(path, {}).get(name, "not there")
            if now != was and not _UNTOLD.search(name):
                told.append(f"{path}.{name} was {was} and is {now}".lstrip("."))
    return told


def _name(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__name__", type(hook).__name__)
