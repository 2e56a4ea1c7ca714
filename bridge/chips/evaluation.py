"""A network as it is evaluated: its mode, its samples' independence, and the logits it gives."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridge.chips.streams import stream
from bridge.weights.wrappers import require_unfrozen

_COMPARED = 64  # images, among which another length of padding is looked for
_MOST = 2**18  # values, among which the most frequent one is looked for
_LONGER = 3e-5  # of the largest logit: a sum over a longer padding, masked, is rounded otherwise
_ROUNDING = 1e-4  # of the largest logit
_FEW = 16  # samples of a batch that are run two at a time
_STATE = 1e-5  # of the largest logit, by which one batch may differ from itself
_Logits = Callable[[list[torch.Tensor]], torch.Tensor]
_ELSEWHERE = (
    "{} gives one image different logits in another place, batch or call, by {:.2g} (active "
    "dropout or other noise, use of the batch's size, or experts without room for all of it?): let "
    "it treat each sample by itself and always alike; noise of AIHWKit's tiles belongs to samples "
    "on a chip, bridge.program(network, None, seed=0)"
)


def require_eval(network: nn.Module, what: str) -> None:
    """Refuses a network a part of which computes as in training; `what` is its name in the message.

    Raises:
      ValueError: a part is in training mode, or a BatchNorm keeps no running statistics: a sample's
        logits would depend on the others in its batch, or be random; or one is frozen by
        TorchScript.
    """
    require_unfrozen(network, what)
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
    run: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    what: str,
) -> None:
    """Refuses a network in which a sample's logits depend on its batch.

    Seen by behaviour, on two samples in batches of four and of two: other neighbours, one of them
    beyond the samples' range, must not change a sample's logits by more than 1e-6 of the largest,
    nor by more than 3e-5 where padding is of other lengths, or neighbours are without it, dark, or
    32 times as bright and of either sign, which move extremes and thresholds of a whole batch (so
    must bright samples beside dark ones);
    another place, batch size or random state no more than rounding does, which a change of the
    input by some units in the last place measures. A network that fails on batches of four or two
    runs on all the images, twice, the second time in the opposite order. So state is seen that
    stays from one pass to the next. Not seen: coupling that needs more samples than these (see
    `require_same_in_batch`), or vanishes at them.

    Args:
      run: the network without gradients; what gives no tensor `[batch, ...]` is not looked at.
      images: `[batch, ...]`, a batch that the network takes; the first one and one that differs
        from it, in its padding where some do, are looked at.
      what: its name in the message.

    Raises:
      ValueError: it does.
    """
    rows = list(images.split(1))
    one, other = rows[0], first_that_differs(images)
    if other is None:
        flipped = one.flip(-1)
        halved = one / 2 if one.is_floating_point() else one // 2  # of token ids
        other = halved if torch.equal(flipped, one) else flipped
        rows[1:] = [*rows[1:-1], other] if len(rows) > 1 else []

    logits = partial(_each_row, run)
    beside: float | None = None
    longer = 0.0
    try:
        mixed = logits([one, other, other, other])
        alone = [logits(4 * [x]) for x in (one, other)]
        largest = max(float(x.abs().max()) for x in (mixed, *alone))
        if not math.isfinite(largest):
            return  # which is told of the sample itself
        beside = max(float((mixed[n] - alone[n][n]).abs().max()) for n in (0, 1))
        beside = max(beside, _beside(logits, one, other, _far(one, other), alone))
        longer = _beside(logits, one, other, _unpadded(other), alone)
        longer = max(
            longer,
            _beside_bright(logits, one, other, alone),
            _darkened(logits, one, other),
            _brightened(logits, one) * largest,
        )
    except Exception:
        pass  # it fails on all images, or on batches of four
    if beside is None:
        _require_order(logits, rows, what)
        return
    length = bool(_padding_apart(torch.cat([one, other])).any())
    if beside > (_LONGER if length else 1e-6) * largest or longer > _LONGER * largest:
        beside = max(beside, longer)
        _refuse_state(logits, [one, other, other, other], what)
        raise ValueError(
            f"{what} mixes the samples of a batch: a sample's logits change by {beside:.2g} with "
            "the other images (batch statistics, or an operation along the batch axis, such as "
            "attention without batch_first=True?): let it treat each sample by itself"
        )
    try:
        pair = logits(2 * [one], seed=1)
    except Exception:
        _require_order(logits, rows, what)
        return
    elsewhere = float((torch.cat([alone[0], pair]) - pair[0]).abs().max())
    if elsewhere > _ROUNDING * largest:
        _refuse_state(logits, 2 * [one], what)
        if elsewhere > _rounding(partial(logits, seed=1), 2 * [one], pair):
            raise ValueError(_ELSEWHERE.format(what, elsewhere))


def require_same_in_batch(
    run: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    whole: Any,
    what: str,
) -> None:
    """Refuses a network that gives samples of a batch other logits two at a time.

    Looked at are up to 16 that lie all over the batch: experts of limited capacity leave out its
    last ones. A network that takes no two is not looked at.

    Args:
      run, images, what: as for `require_independent`.
      whole: what `run` gave for all the images at once; what is no tensor is not looked at.

    Raises:
      ValueError: it does.
    """
    count = min(_FEW, len(images) // 2 * 2)
    if not count or not isinstance(whole, torch.Tensor) or whole.shape[:1] != images.shape[:1]:
        return
    logits, whole = partial(_each_row, run), whole.float()
    for places in torch.linspace(0, len(images) - 1, count).round().long().split(2):
        pair = list(images[places].split(1))
        try:
            found = logits(pair)
        except Exception:
            return
        off = float((found - whole[places]).abs().max())
        if off > _ROUNDING * float(whole.abs().max()) and off > _rounding(logits, pair, found):
            raise ValueError(_ELSEWHERE.format(what, off))


def _each_row(
    run: Callable[[torch.Tensor], torch.Tensor], rows: list[torch.Tensor], seed: int = 0
) -> torch.Tensor:
    """What a network gives for rows as one batch, in a random state of its own."""
    with stream(seed, "samples", device=rows[0].device):
        found = run(torch.cat(rows))
    if not isinstance(found, torch.Tensor) or found.shape[:1] != (len(rows),):
        raise _NoOutputs
    return found.float()


def _require_order(logits: _Logits, rows: list[torch.Tensor], what: str) -> None:
    """Refuses a network by a batch of a size that it takes, and the same in the opposite order."""
    try:
        first, again = logits(rows), logits(rows[::-1]).flip(0)
    except Exception:
        return  # it fails on all images, which is told of these
    if not first.isfinite().all() or not again.isfinite().all():
        return
    off = float((first - again).abs().max())
    if off > _ROUNDING * float(first.abs().max()):
        _refuse_state(logits, rows, what)
        if off > _rounding(logits, rows, first):
            raise ValueError(_ELSEWHERE.format(what, off))


def _refuse_state(logits: _Logits, rows: list[torch.Tensor], what: str) -> None:
    """Refuses a network that gives the same batch other logits in a second pass, or every batch the
    logits of the first.

    The random state is the same in each pass.
    """
    try:
        first, again, alike = logits(rows), logits(rows), logits(len(rows) * rows[:1])
    except Exception:
        return
    off, largest = float((first - again).abs().max()), float(first.abs().max())
    remembered = (
        torch.equal(again, alike)
        and not torch.equal(alike, alike[:1].expand_as(alike))
        and any(not torch.equal(row, rows[0]) for row in rows)
    )
    if off > _STATE * largest or remembered:
        how = f"the same batch has other logits when it runs again, by {off:.2g} of {largest:.2g}"
        raise ValueError(
            f"{what} keeps state from one forward pass to the next: "
            f"{'another batch has the logits of the first' if remembered else how} (a membrane "
            "potential, a hidden state, features that it remembers?): reset the state at the start "
            "of forward, so that every batch begins alike"
        )


def _rounding(logits: _Logits, rows: list[torch.Tensor], found: torch.Tensor) -> float:
    """How far rounding may change logits: as ten times some units in the last place of the input.

    At least 1e-4 of the largest.
    """
    least = _ROUNDING * float(found.abs().max())
    if not rows[0].is_floating_point():
        return least
    step = 1 + 8 * torch.finfo(rows[0].dtype).eps
    try:
        nudged = logits([row * step for row in rows])
    except Exception:
        return math.inf
    return max(least, 10 * float((nudged - found).abs().max()))


def first_that_differs(images: torch.Tensor) -> torch.Tensor | None:
    """An image that is not the one of place 0, `[1, ...]`; None where all are alike.

    Of the first 64 the one that differs most in its padding: a network may cut a batch to its
    longest sample. Else the first.
    """
    apart = _padding_apart(images[:_COMPARED])
    if apart.any():
        return images[apart.argmax()][None]
    return next((x for x in images.split(1) if not torch.equal(x, images[:1])), None)


def _padding_apart(images: torch.Tensor) -> torch.Tensor:
    """By how many values a sample has more or less padding than the first, int64 `[batch]`.

    Padding is taken to be what repeats along an axis, as `_repeats` has it; of sequences also 0 and
    the most frequent value.
    """
    counts = [_repeats(images, axis).flatten(1).sum(1) for axis in range(1, images.ndim)]
    counts = [images[0].numel() // images.shape[1 + n] * one for n, one in enumerate(counts)]
    if images.ndim < 4:
        rows = images.flatten(1)
        often = rows.flatten()[:: 1 + rows.numel() // _MOST].mode().values
        counts += [torch.eq(rows, one).sum(1) for one in (rows.new_zeros(()), often)]
    count = torch.stack(counts)
    return (count - count[:, :1]).abs().amax(0)


def _repeats(images: torch.Tensor, axis: int) -> torch.Tensor:
    """Where along an axis a frame, row or token is the one before it: bool, of size 1 elsewhere."""
    others = [n for n in range(1, images.ndim) if n != axis]
    same = torch.eq(images, images.roll(1, axis))
    same = same.all(dim=others, keepdim=True) if others else same
    same.movedim(axis, 0)[:1] = False
    return same


def _unpadded(images: torch.Tensor) -> torch.Tensor:
    """The same with what repeats along an axis filled, by the other end of it."""
    for axis in range(1, images.ndim):
        images = torch.where(_repeats(images, axis), images.flip(axis), images)
    return images


def _far(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The other image stretched beyond the range of both; token ids as they are."""
    if not one.is_floating_point():
        return other
    low, high = torch.cat([one, other]).aminmax()
    least, largest = other.aminmax()
    beyond = (high - low).clamp(min=0.1) / 4
    stretched = (other - least) / (largest - least).clamp(min=torch.finfo(other.dtype).tiny)
    return (low - beyond) + stretched * (high - low + 2 * beyond)


def _beside_bright(
    logits: _Logits, one: torch.Tensor, other: torch.Tensor, alone: list[torch.Tensor]
) -> float:
    """As `_beside`, of neighbours that move a batch's maximum far; 0 of token ids.

    32 is a power of two, which rounds nothing; `one + 4` is no multiple of the image, for networks
    that divide each by its own brightness, and as many deviations of normalised pixels.
    """
    if not one.is_floating_point():
        return 0.0
    return _change(logits, [one, other, 32 * one, one + 4], alone)


def _darkened(logits: _Logits, one: torch.Tensor, other: torch.Tensor) -> float:
    """How far logits of an eighth of an image change from dark neighbours to bright ones.

    So a threshold shows that every whole image passes, and a least value that none does.
    """
    if not one.is_floating_point():
        return 0.0
    small = one / 8
    try:
        dark = logits([small, 0 * one, -small, other / 8])[0]
        bright = logits([small, one, 32 * one, -32 * one])[0]
    except Exception:
        return 0.0  # it takes no such images
    off = float((dark - bright).abs().max())
    return off if math.isfinite(off) else 0.0


def _brightened(logits: _Logits, one: torch.Tensor) -> float:
    """How far logits of an image 32 times as bright change from bright neighbours to dark ones, in
    units of their largest; so a threshold shows that no whole image passes alone.
    """
    if not one.is_floating_point():
        return 0.0
    large = 32 * one
    try:
        bright = logits(4 * [large])[0]
        dark = logits([large, one / 8, 0 * one, -one / 8])[0]
    except Exception:
        return 0.0  # it takes no such images
    off = float((bright - dark).abs().max())
    return off / float(bright.abs().max()) if math.isfinite(off) and off else 0.0


def _beside(
    logits: _Logits,
    one: torch.Tensor,
    other: torch.Tensor,
    neighbour: torch.Tensor,
    alone: list[torch.Tensor],
) -> float:
    """How far logits of two images change with a neighbour, as their largest value."""
    if torch.equal(neighbour, other):
        return 0.0
    return _change(logits, [one, other, neighbour, other], alone)


def _change(logits: _Logits, rows: list[torch.Tensor], alone: list[torch.Tensor]) -> float:
    """How far logits of the first two rows are from those that these have alone."""
    try:
        mixed = logits(rows)
    except Exception:
        return 0.0  # it takes no such image
    change = max(float((mixed[n] - alone[n][n]).abs().max()) for n in (0, 1))
    return change if math.isfinite(change) else 0.0


def as_logits(output: Any, samples: int) -> torch.Tensor:
    """A network's output as float32 logits `[batch, class]` on the CPU.

    Args:
      output: that for a batch; of one sample also `[class]`, for some networks squeeze its axis
        away.
      samples: how many are in the batch.

    Raises:
      ValueError: it is something else, such as a tuple, or whole numbers.
    """
    if samples == 1 and isinstance(output, torch.Tensor) and output.ndim == 1 and len(output) > 1:
        output = output[None]
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the module must give logits [batch, class], not {got}: wrap it in one that returns "
            "the logits alone"
        )
    if not output.is_floating_point():
        raise ValueError(
            f"the module gives {output.dtype}, classes and not logits: give the module before its "
            "argmax or topk"
        )
    return output.float().cpu()
