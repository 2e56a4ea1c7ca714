"""A scale and a shift for each logit: the cheapest recalibration of a chip."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from bridge.chips.averaging import (
    logits_of,
    require_predictions,
    require_same_samples,
    with_logits,
)

_CONSTANT = 8 * np.finfo(np.float64).eps
"""Deviation of a logit that is the same on all images, of its magnitude: rounding of the mean."""


@dataclass(frozen=True, eq=False)
class LogitFit:
    """Corrects logits, class by class: `scale * logits + bias`; made by `fit_logits`.

    Attributes:
      scale: float64 `[class]`.
      bias: float64 `[class]`, in units of the logits.
    """

    scale: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, logits: Float[np.ndarray, "batch classes"]) -> NDArray[np.float32]:
        """Corrected logits, float32 `[batch, class]`."""
        given = np.asarray(logits, np.float64)
        if given.ndim != 2 or given.shape[1] != len(self.scale):
            raise ValueError(
                f"the fit is of logits [batch, {len(self.scale)}]; got shape {given.shape}"
            )
        return (self.scale * given + self.bias).astype(np.float32)

    def corrected(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of `bridge.predict`, with its logits, as it is with corrected ones.

        Rows keep their order and labels; columns that do not follow from the logits stay.

        Raises:
          ValueError: no table of `bridge.predict`, one without logits, or of another number of
            classes.
        """
        if not isinstance(table, pd.DataFrame):
            raise ValueError(
                f"corrected takes a table of bridge.predict; got a {type(table).__name__}: call "
                "the fit itself for an array of logits"
            )
        require_predictions(table, "the table")
        made = with_logits(table, self(logits_of(table, "the table")))
        return table.assign(**{str(name): column for name, column in made.items()})


def fit_logits(chip: Any, digital: Any) -> LogitFit:
    """Scale a and shift b of each class that bring a chip's logits nearest to the digital ones.

    Least squares over the images, class by class, in closed form:

        a = sum (z - mean z)(y - mean y) / sum (z - mean z)^2,  b = mean y - a mean z

    z a chip's logit, y the digital model's. Two numbers a class, measured at the outputs alone: it
    needs no BatchNorm and no second pass, undoes what shifts or shrinks a logit on all images
    alike, and nothing that differs between them. Where the chip errs at random a is below 1. A
    logit that is the same on all images gets a = 0.

        fit = bridge.fit_logits(bridge.predict(chip, some), bridge.predict(network, some))
        table = fit.corrected(bridge.predict(chip, others))

    Args:
      chip: its logits on calibration images, `[images, class]`, or its table of `bridge.predict`.
      digital: the digital model's on the same images, alike.

    Raises:
      ValueError: fewer than two images, two shapes, tables of other samples or without logits, or
        logits that are not finite.
    """
    if isinstance(chip, pd.DataFrame) and isinstance(digital, pd.DataFrame):
        require_same_samples({"chip": chip, "digital": digital})
    z, y = _as_logits(chip, "chip"), _as_logits(digital, "digital")
    if z.shape != y.shape:
        raise ValueError(
            f"the chip's logits are {z.shape}, the digital ones {y.shape}: give both for the same "
            "images"
        )
    if len(z) < 2:
        raise ValueError("a scale and a shift of each logit need two images at least; got 1")
    z_mean, y_mean = z.mean(0), y.mean(0)
    deviation = z - z_mean
    squares = np.square(deviation).sum(0)
    products = (deviation * (y - y_mean)).sum(0)
    least = len(z) * np.square(_CONSTANT * np.abs(z).max(0))
    scale = np.divide(products, squares, out=np.zeros_like(squares), where=squares > least)
    return LogitFit(scale, y_mean - scale * z_mean)


def _as_logits(given: Any, what: str) -> NDArray[np.float64]:
    found = logits_of(given, what) if isinstance(given, pd.DataFrame) else given
    try:
        logits = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} must be logits [images, class], or a table of bridge.predict that has them; "
            f"got a {type(given).__name__}"
        ) from None
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"{what} must be logits [images, class]; got shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{what} has logits that are not finite")
    return logits
