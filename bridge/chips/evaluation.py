"""A network as it is evaluated: its mode, its samples' independence, and the logits it gives."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridge.chips.streams import stream

_COMPARED = 64  # images, among which another length of padding is looked for


def require_eval(network: nn.Module, what: str) -> None:
    """Refuses a network a part of which computes as in training; `what` is its name in the message.

    Raises:
      ValueError: a part is in training mode, or a BatchNorm keeps no running statistics: a sample's
        logits would depend on the others in its batch, or be random.
    """
    for name, part in network.named_modules():
        if part.training:
            where = f" ({name})" if name else ""
            raise ValueError(f"{what}{where} is in training mode; call eval() first")
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"{what} mixes the samples of a batch: {name or type(part).__name__} keeps no "
                "running statistics; train it with track_running_stats=True"
            )


class _NoOutputs(Exception):
    """A network gives something else than an output a sample."""


def require_independent(
    run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, what: str
) -> None:
    """Refuses a network in which a sample's logits depend on its batch; `what` is its name.

    Seen by behaviour, on two samples in batches of four and of two: other neighbours, one of them
    beyond the samples' range, must not change a sample's logits by more than 1e-6 of the largest,
    or 3e-5 where their padding is of other lengths;
    another place, batch size or random state no more than rounding does, which a change of the
    input by some units in the last place measures. Not seen: coupling that needs more than four
    samples or vanishes at these, and that of a network which runs on batches of one size only.

    Args:
      run: the network without gradients; what gives no tensor `[batch, ...]` is not looked at.
      images: `[batch, ...]`; the first one and one that differs from it, in its padding where
        some do, are looked at.

    Raises:
      ValueError: it does.
    """
    one = images[:1]
    other = first_that_differs(images)
    if other is None:
        flipped = one.flip(-1)
        halved = one / 2 if one.is_floating_point() else one // 2  # of token ids
        other = halved if torch.equal(flipped, one) else flipped

    def logits(rows: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
        with stream(seed, "samples", device=images.device):
            found = run(torch.cat(rows))
        if not isinstance(found, torch.Tensor) or found.shape[:1] != (len(rows),):
            raise _NoOutputs
        return found.float()

    try:
        mixed = logits([one, other, other, other])
        alone = [logits(4 * [x]) for x in (one, other)]
        pair = logits(2 * [one], seed=1)
        largest = max(float(x.abs().max()) for x in (mixed, *alone, pair))
        if not math.isfinite(largest):
            return  # which is told of the sample itself
        beside = max(float((mixed[n] - alone[n][n]).abs().max()) for n in (0, 1))
        beside = max(beside, _beside_far(logits, one, other, alone))
        elsewhere = float((torch.cat([alone[0], pair]) - pair[0]).abs().max())
        rounding = 1e-4 * largest
        if elsewhere > rounding and one.is_floating_point():
            nearly = 2 * [one * (1 + 8 * torch.finfo(one.dtype).eps)]
            rounding = max(rounding, 10 * float((logits(nearly, seed=1) - pair).abs().max()))
    except Exception:
        return  # it fails on all images, which is told of these, or on batches of these sizes
    # A sum over a longer padding, correctly masked, is rounded otherwise.
    length = bool(_padding_apart(torch.cat([one, other])).any())
    if beside > (3e-5 if length else 1e-6) * largest:
        raise ValueError(
            f"{what} mixes the samples of a batch: a sample's logits change by {beside:.2g} with "
            "the other images (batch statistics, or an operation along the batch axis, such as "
            "attention without batch_first=True?): let it treat each sample by itself"
        )
    if elsewhere > rounding:
        raise ValueError(
            f"{what} gives one image different logits in another place, batch or call, by "
            f"{elsewhere:.2g} (active dropout or other noise, or use of the batch's size?): let it "
            "treat each sample by itself and always alike; noise of AIHWKit's tiles belongs to "
            "samples on a chip, bridge.program(network, None, seed=0)"
        )


def first_that_differs(images: torch.Tensor) -> torch.Tensor | None:
    """An image that is not the one of place 0, `[1, ...]`; None where all are alike.

    Of the first 64 sequences or rows of token ids the one that differs most in its padding: a
    network may cut a batch to its longest sample. Else the first.
    """
    apart = _padding_apart(images[:_COMPARED])
    if apart.any():
        return images[apart.argmax()][None]
    return next((x for x in images.split(1) if not torch.equal(x, images[:1])), None)


def _padding_apart(images: torch.Tensor) -> torch.Tensor:
    """By how many values a sequence has more or less padding than the first, int64 `[batch]`.

    Padding is taken to be 0, or for token ids the most frequent one. Images and volumes have none.
    """
    if images.ndim >= 4:
        return torch.zeros(len(images), dtype=torch.long)
    rows = images.flatten(1)
    padding = [rows.new_zeros(())]
    if not images.is_floating_point():
        padding.append(rows.flatten().mode().values)
    count = torch.stack([torch.eq(rows, one).sum(1) for one in padding])
    return (count - count[:, :1]).abs().amax(0)


def _beside_far(
    logits: Callable[[list[torch.Tensor]], torch.Tensor],
    one: torch.Tensor,
    other: torch.Tensor,
    alone: list[torch.Tensor],
) -> float:
    """How far logits change with a neighbour beyond the images' range, as their largest value."""
    if not one.is_floating_point():
        return 0.0
    low, high = torch.cat([one, other]).aminmax()
    least, largest = other.aminmax()
    beyond = (high - low).clamp(min=0.1) / 4
    stretched = (other - least) / (largest - least).clamp(min=torch.finfo(other.dtype).tiny)
    far = (low - beyond) + stretched * (high - low + 2 * beyond)
    try:
        mixed = logits([one, other, far, other])
    except Exception:
        return 0.0  # it takes no such image
    beside = max(float((mixed[n] - alone[n][n]).abs().max()) for n in (0, 1))
    return beside if math.isfinite(beside) else 0.0


def as_logits(output: Any, samples: int) -> torch.Tensor:
    """A network's output as float32 logits `[batch, class]` on the CPU.

    Args:
      output: that for a batch; of one sample also `[class]`, for some networks squeeze its axis
        away.
      samples: how many are in the batch.

    Raises:
      ValueError: it is something else, such as a tuple.
    """
    if samples == 1 and isinstance(output, torch.Tensor) and output.ndim == 1 and len(output) > 1:
        output = output[None]
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the module must give logits [batch, class], not {got}: wrap it in one that returns "
            "the logits alone"
        )
    return output.float().cpu()
