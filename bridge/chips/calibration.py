"""Ranges of converters, each from what it has seen on calibration images."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from bridge.chips.mappable import some
from bridge.chips.range_rules import Given, Words, chosen_ranges, not_below

Observe = Callable[[torch.Tensor, Callable[[str, torch.Tensor], None]], None]
"""`observe(images, keep)` calls `keep(name, values)` for what each converter is given."""


def calibrated(
    observe: Observe,
    scales: Mapping[str, float],
    images: torch.Tensor,
    percentile: float,
    words: Words,
    unused: Callable[[list[str]], ValueError],
) -> dict[str, float]:
    """Ranges of converters: a percentile of the magnitudes of what they are given on some images.

    By nearest rank; `chosen_ranges` says what becomes of converters whose percentile is 0.

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
        magnitudes = values.abs().flatten()
        seen[name] += len(magnitudes)
        if name in largest:
            magnitudes = torch.cat([largest[name], magnitudes])
        kept = min(not_below(counts[name], percentile), len(magnitudes))
        largest[name] = magnitudes.topk(kept).values

    observe(images[:1], count)
    observe(images, keep_largest)
    if percentile < 100 and seen != counts:  # not as many of each image, as where images are routed
        counts, seen, largest = seen, Counter(), {}
        observe(images, keep_largest)
    if lacking := [name for name in scales if not seen.get(name)]:
        raise unused(lacking)
    # topk puts NaN first.
    given = {name: Given(float(largest[name][-1]), float(largest[name][0])) for name in scales}
    return chosen_ranges(given, scales, percentile, words, black=black, stacklevel=7)


def refused_unused(layers: list[str], images: int, what: str, example: str) -> ValueError:
    """The error of layers that the calibration images do not use, and whose converters have no
    range."""
    layers = list(dict.fromkeys(layers))
    return ValueError(
        f"not used on the {images} calibration images, and so without {what} range: layer "
        f"{some(layers)}; calibrate on images that need it, give a range, such as {example}, or "
        f"leave what no image needs digital, digital_layers={layers}"
    )
