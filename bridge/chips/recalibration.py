"""BatchNorm statistics that a chip measures itself (AdaBS)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridge.checks import require_count
from bridge.chips.channel_moments import ChannelMoments, require_enough, require_measured
from bridge.chips.evaluation import require_eval
from bridge.chips.examination import refused_access
from bridge.chips.execution.executable import Executable
from bridge.chips.images import Images, as_tensor, refused_layout
from bridge.chips.mappable import some
from bridge.chips.outcomes import refuse_other_scale
from bridge.chips.programming import Chip
from jaxcurv.progress import Progress, progress


def recalibrate(chip: Chip, images: Images, *, batch_size: int = 64) -> Chip:
    """The same chip with BatchNorm statistics of its own activations on some images.

    Drift and programming errors move and scale what a layer on tiles gives; the BatchNorm behind it
    still subtracts the digital network's mean and divides by its standard deviation. Here both are
    estimated anew, as AdaBS does (Joshi et al., "Accurate deep neural network inference using
    computational phase-change memory", Nature Communications 2020), labels unused:

        mean = sum x / n,  variance = sum (x - mean)^2 / (n - 1)

    over all n values x of a channel, all images and positions. One BatchNorm after the other, in
    the order in which they run, each on activations for which those before it have their new
    statistics: so the result is that of one batch of all images, whatever `batch_size` is. It
    costs up to as many passes as there are BatchNorms, and one. Scales and shifts of the
    BatchNorms, and all else, stay as they are: no device is programmed, no tile changes, and the
    given chip is left as it is.

    The statistics are those of this moment: at another time, `at(t_inference)`, the chip has
    devices that have drifted on and still these statistics. `chip.at(t)`, then `recalibrate`, is a
    chip that is recalibrated after t seconds. `save_chip` keeps them.

    Args:
      chip: of `program`, on any engine.
      images: for calibration, as for `program`; some hundred, as the network was trained on.
        Noise of each operation is drawn as for samples of the indices 0, 1, ...
      batch_size: images at once; changes speed and memory.

    Raises:
      ValueError: a network that runs no BatchNorm, or one more than once in a pass, a part of the
        chip that computes as in training, fewer than two images, images that the network fails on
        or of another scale than the chip was calibrated on, values that are not finite, or what
        `Chip.examine` refuses.
    """
    if not isinstance(chip, Chip):
        raise ValueError(
            f"recalibrate takes a chip of bridge.program; got {type(chip).__name__}: for a chip in "
            "JAX, bridge.jax_chips.recalibrate(chip, weights, images)"
        )
    batch_size = require_count("batch_size", batch_size)
    require_eval(chip.analog, "chip.analog")
    if not batch_norms(chip.analog):
        raise ValueError("the chip's network has no BatchNorm, so that nothing is to recalibrate")
    tensor = as_tensor(images, "images")
    require_enough(len(tensor))
    if chip.largest_pixel is not None:
        numbers = list(range(len(tensor)))
        refuse_other_scale(tensor.numpy(), numbers, chip.largest_pixel, first=True)
    chip.examine(tensor)
    made = deepcopy(chip)
    with torch.inference_mode(), refused_access():
        found = _measured(made.executable, tensor, batch_size)
    for name, moments in found.items():
        _set(made.analog.get_submodule(name), moments)
    return made.on(made.engine)


def batch_norms(network: nn.Module) -> dict[str, Any]:
    """The BatchNorms of a network by their paths."""
    return {name: one for name, one in network.named_modules() if isinstance(one, _BatchNorm)}


def _measured(
    executable: Executable, images: torch.Tensor, batch_size: int
) -> dict[str, ChannelMoments]:
    """Statistics of each BatchNorm that runs, in their order; the executable has them then."""
    norms = batch_norms(executable.network)
    batches = list(_batches(images, batch_size))
    with progress(len(images), "recalibrate", side=True) as shown:
        order = _order(executable, norms, batches, shown)
    # Where samples run one by one, the first would end the pass of its batch.
    batches = list(_batches(images, 1 if executable.one_by_one else batch_size))
    found = {}
    with progress(len(order) * len(images), "recalibrate") as shown:
        for name in order:
            moments = _of_inputs(executable, norms[name], batches, shown)
            require_measured(moments, name)
            _set(norms[name], moments)
            found[name] = moments
    return found


def _batches(images: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, range]]:
    """Images with their indices."""
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        yield chunk, range(start, start + len(chunk))


def _order(
    executable: Executable,
    norms: Mapping[str, nn.Module],
    batches: list[tuple[torch.Tensor, range]],
    shown: Progress,
) -> list[str]:
    """The BatchNorms in the order in which they first run.

    Raises:
      ValueError: none runs, or one runs again in the same pass: what it is given then depends on
        its own statistics.
    """
    calls: Counter[str] = Counter()
    order: dict[str, None] = {}
    again: dict[str, None] = {}

    def count(name: str, *_: Any) -> None:
        calls[name] += 1
        order[name] = None
        if calls[name] > 1:
            again[name] = None

    def begin(*_: Any) -> None:
        calls.clear()

    hooks: dict[nn.Module, Callable[..., None]] = {executable.network: begin}
    hooks |= {norm: partial(count, name) for name, norm in norms.items()}
    with _hooked(hooks):
        for chunk, indices in batches:
            with refused_layout(chunk, len(batches[0][0])):
                executable(chunk, indices)
            shown.update(len(chunk))
    if again:
        raise ValueError(
            f"{some(list(again))}: a BatchNorm that runs more than once in a pass has no one "
            "statistic; give each place a BatchNorm of its own"
        )
    if not order:
        raise ValueError("no BatchNorm runs on these images, so that nothing is to recalibrate")
    return list(order)


class _Seen(Exception):
    """The layer has got its input; what follows in the pass is not needed."""


def _of_inputs(
    executable: Executable,
    norm: Any,
    batches: list[tuple[torch.Tensor, range]],
    shown: Progress,
) -> ChannelMoments:
    """Moments of what a BatchNorm is given, by channel, which is the second axis."""
    moments = ChannelMoments(len(norm.running_mean))

    def look(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (*inputs, *named.values())[0]
        values = x.movedim(1, 0).flatten(1).double().cpu()
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        moments.add(values.shape[1], mean.numpy(), squares.numpy())
        raise _Seen

    with _hooked({norm: look}, named=True):
        for chunk, indices in batches:
            with suppress(_Seen):
                executable(chunk, indices)
            shown.update(len(chunk))
    return moments


@contextmanager
def _hooked(
    hooks: Mapping[nn.Module, Callable[..., None]], *, named: bool = False
) -> Iterator[None]:
    """Within it, each hook is called ahead of its layer, behind the layer's own."""
    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=named) for layer, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set(norm: Any, moments: ChannelMoments) -> None:
    norm.running_mean.copy_(torch.from_numpy(moments.mean))
    norm.running_var.copy_(torch.from_numpy(moments.variance))
