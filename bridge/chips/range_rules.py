"""A converter's range from what it was given on calibration images, whoever ran them."""

import math
import warnings
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple


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


OUTPUTS = Words("ADC", "tile", "output", " (for a largest weight of 1)")
INPUTS = Words("DAC", "layer", "input", "")


class Given(NamedTuple):
    """Magnitudes that a converter was given on all images."""

    percentile: float
    """The one at the percentile, by nearest rank."""
    largest: float
    """The largest; NaN or infinite where one of them is."""


def not_below(count: int, percentile: float) -> int:
    """How many of `count` numbers are not below their percentile, by nearest rank.

    The percentile of sorted numbers is the one of rank ceil(count percentile / 100), counted from 1
    (Hyndman and Fan, The American Statistician 1996, definition 1).
    """
    # Rounding must not lift 99.9 % of 3,000 above 2,997.
    return count - (math.ceil(count * percentile / 100 * (1 - 1e-12)) - 1)


def chosen_ranges(
    given: Mapping[str, Given],
    scales: Mapping[str, float],
    percentile: float,
    words: Words,
    *,
    black: bool,
    stacklevel: int,
) -> dict[str, float]:
    """Ranges of converters, each the percentile of what it was given.

    A converter that was given nothing but 0 gets the median of the others' ranges, 1 if there is
    none, relative to its scale, and a UserWarning names it. Where only the percentile is 0, the
    largest takes its place, and a UserWarning says so.

    Args:
      given: the converters, and what each was given.
      scales: what each range is relative to in that median.
      percentile: above 0, at most 100.
      words: for messages.
      black: whether all calibration images are 0.
      stacklevel: of the warnings, that of the user's call; 1 is this function.

    Raises:
      ValueError: a converter was given what is not finite, or a percentile of 0 of images that are
        all 0.
    """
    bounds: dict[str, float] = {}
    dead: list[str] = []
    sparse: list[str] = []
    for name, (bound, largest) in given.items():
        if not math.isfinite(largest) or (bound == 0 and black):
            raise ValueError(
                f"calibration gives {words.place} {name} the {words.what} range "
                f"{bound if math.isfinite(largest) else largest}; use images on which every layer "
                "is finite and active"
            )
        if bound == 0:
            (sparse if largest else dead).append(name)
        if largest:
            bounds[name] = bound or largest
    share = median([bound / scales[name] for name, bound in bounds.items()]) if bounds else 1.0
    if dead:
        warnings.warn(
            f"no {words.given} other than 0 on the calibration images: {words.place} "
            f"{', '.join(dead)}; each gets the {words.what} range {share:g}{words.unit}"
            f"{f', the median of the other {words.place}s' if bounds else ''}",
            stacklevel=stacklevel,
        )
    if sparse:
        warnings.warn(
            f"percentile {percentile:g} of the {words.given}s on the calibration images is 0: "
            f"{words.place} {', '.join(sparse)}; each gets its largest {words.given} as its "
            f"{words.what} range",
            stacklevel=stacklevel,
        )
    return {name: bounds.get(name, share * scales[name]) for name in given}
