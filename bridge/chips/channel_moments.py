"""Mean and variance of each channel of activations, over all that was seen; NumPy alone."""

import numpy as np
from numpy.typing import NDArray


class ChannelMoments:
    """Collects values by channel, part by part; float64.

    Parts are merged by the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979, so that how values were split and in which
    order parts came matters to rounding alone.

    Attributes:
      count: values of a channel so far.
      mean: of a channel's values, `[channels]`, in their unit.
      squares: sum of squared deviations from it, `[channels]`.
    """

    def __init__(self, channels: int):
        self.count = 0
        self.mean, self.squares = np.zeros(channels), np.zeros(channels)

    def add(self, count: int, mean: NDArray[np.floating], squares: NDArray[np.floating]) -> None:
        """Merges a part of at least one value; see the attributes."""
        total = self.count + count
        step = np.asarray(mean, np.float64) - self.mean
        self.squares = self.squares + squares + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def variance(self) -> NDArray[np.float64]:
        """The unbiased estimate `squares / (count - 1)`, `[channels]`, as PyTorch's running one."""
        found: NDArray[np.float64] = self.squares / (self.count - 1)
        return found


def require_enough(images: int) -> None:
    """Refuses statistics of fewer than two images.

    Raises:
      ValueError: there are fewer.
    """
    if images < 2:
        raise ValueError(
            f"statistics of a BatchNorm are of many images, and {images} is given: pass some "
            "hundred, as the network was trained on"
        )


def require_measured(moments: ChannelMoments, name: str) -> None:
    """Refuses statistics of fewer than two values or that are not finite; `name` is the
    BatchNorm's.

    Raises:
      ValueError: they are.
    """
    if moments.count < 2:
        raise ValueError(
            f"the BatchNorm {name} is given {moments.count} values a channel on these images: pass "
            "more of them"
        )
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.squares).all()):
        raise ValueError(
            f"the BatchNorm {name} is given values that are not finite: check the weights and the "
            "images"
        )
