"""Ranges of converters, each from what it has seen on calibration images."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

from bridge.chips.mappable import some

Observe = Callable[[torch.Tensor, Callable[[str, torch.Tensor], None]], None]
"""`observe(images, keep)` calls `keep(name, values)` for what each converter is given."""


class Words(NamedTuple):
    """How messages speak of a converter."""

    what: str
    """Its name, such as "ADC"."""
    place: str
    """Where it is, such as "tile"."""
    given: str
    """What it is given, such as "output"."""
    unit: str
    """Said behind a range that is in units of its own."""


def calibrated(
    observe: Observe,
    scales: Mapping[str, float],
    images: torch.Tensor,
    percentile: float,
    words: Words,
    unused: Callable[[list[str]], ValueError],
) -> dict[str, float]:
    """Ranges of converters: a percentile of the magnitudes of what they are given on some images.

    By nearest rank. A converter that is given nothing but 0 gets the median of the others' ranges,
    1 if there is none, relative to its scale, and a UserWarning names it. Where only the percentile
    is 0, the largest takes its place, and a UserWarning says so.

    Args:
      observe: runs the network.
      scales: the converters, and the scale of each.
      images: as `as_tensor` gives them.
      percentile: above 0, at most 100.
      words: for messages.
      unused: the error of converters that no image has shown.

    Raises:
      ValueError: images that are all 0, leave a converter unused, or give it what is not finite.
    """
    black = images.is_floating_point() and not images.any()
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    largest: dict[str, torch.Tensor] = {}

    def count(name: str, values: torch.Tensor) -> None:
        counts[name] += values.numel() * len(images)

    def keep_largest(name: str, values: torch.Tensor) -> None:
        # Rounding must not lift 99.9 % of 3,000 above 2,997.
        below = math.ceil(counts[name] * percentile / 100 * (1 - 1e-12)) - 1
        magnitudes = values.abs().flatten()
        seen[name] += len(magnitudes)
        if name in largest:
            magnitudes = torch.cat([largest[name], magnitudes])
        largest[name] = magnitudes.topk(min(counts[name] - below, len(magnitudes))).values

    observe(images[:1], count)
    observe(images, keep_largest)
    if percentile < 100 and seen != counts:  # not as many of each image, as where images are routed
        counts, seen, largest = seen, Counter(), {}
        observe(images, keep_largest)
    if lacking := [name for name in scales if not seen.get(name)]:
        raise unused(lacking)
    bounds: dict[str, float] = {}
    dead: list[str] = []
    sparse: list[str] = []
    for name in scales:
        # topk puts NaN first: a maximum would hide it.
        kept = largest[name]
        bound = math.nan if kept.isnan().any() else float(kept[-1])
        if not math.isfinite(bound) or (bound == 0 and black):
            raise ValueError(
                f"calibration gives {words.place} {name} the {words.what} range {bound}; "
                "use images on which every layer is finite and active"
            )
        if bound == 0:
            bound = float(kept[0])
            (sparse if bound else dead).append(name)
        if bound:
            bounds[name] = bound
    share = median([bound / scales[name] for name, bound in bounds.items()]) if bounds else 1.0
    if dead:
        warnings.warn(
            f"no {words.given} other than 0 on the calibration images: {words.place} "
            f"{', '.join(dead)}; each gets the {words.what} range {share:g}{words.unit}"
            f"{f', the median of the other {words.place}s' if bounds else ''}",
            stacklevel=5,
        )
    if sparse:
        warnings.warn(
            f"percentile {percentile:g} of the {words.given}s on the calibration images is 0: "
            f"{words.place} {', '.join(sparse)}; each gets its largest {words.given} as its "
            f"{words.what} range",
            stacklevel=5,
        )
    return {name: bounds.get(name, share * scale) for name, scale in scales.items()}


def refused_unused(layers: list[str], images: int, what: str, example: str) -> ValueError:
    """The error of layers that the calibration images do not use, and whose converters have no
    range."""
    layers = list(dict.fromkeys(layers))
    return ValueError(
        f"not used on the {images} calibration images, and so without {what} range: layer "
        f"{some(layers)}; calibrate on images that need it, give a range, such as {example}, or "
        f"leave what no image needs digital, digital_layers={layers}"
    )
