"""How a weight becomes conductances of pairs of devices."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.checks import require_finite

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter


@dataclass(frozen=True)
class SinglePair:
    """One pair of devices a weight, one for either sign; the other of the pair stays at `g_min`.

    Attributes:
      g_min: conductance of weight zero, microsiemens.
    """

    g_min: float = 0.0

    def __post_init__(self) -> None:
        require_finite("g_min", self.g_min)

    def conductance_converter(self, g_max: float) -> "BaseConductanceConverter":
        """AIHWKit's converter; `g_max` is the conductance of the largest weight, microsiemens."""
        from aihwkit.inference.converter.conductance import SinglePairConductanceConverter

        return SinglePairConductanceConverter(g_max=g_max, g_min=self.g_min)


@dataclass(frozen=True)
class Pairs:
    """Several pairs of devices a weight, of unequal significance; the first are filled first.

    Attributes:
      factors: weight of each pair's current, from the least significant on.
      g_min: conductance of weight zero, microsiemens.
    """

    factors: tuple[float, ...] = (1.0, 1.0)
    g_min: float = 0.0

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("factors must hold a number for each pair")
        for factor in self.factors:
            require_finite("a factor", factor, positive=True)
        require_finite("g_min", self.g_min)

    def conductance_converter(self, g_max: float) -> "BaseConductanceConverter":
        """AIHWKit's converter; `g_max` is the conductance of the largest weight, microsiemens."""
        from aihwkit.inference.converter.conductance import NPairConductanceConverter

        return NPairConductanceConverter(list(self.factors), g_max=g_max, g_min=self.g_min)


@dataclass(frozen=True)
class MappedPairs:
    """Several pairs of devices a weight, each conductance a piecewise linear function of it.

    Attributes:
      factors: weight of each pair's current.
      conductances: for each pair the plus and then the minus device: conductances in microsiemens
        at weights spaced evenly over [-max|w|, max|w|]; `2 len(factors)` lists of equal length.
        The weights that they stand for must be these weights again.
      g_min: lowest conductance of a device, microsiemens.
    """

    factors: tuple[float, ...]
    conductances: tuple[tuple[float, ...], ...]
    g_min: float = 0.0

    def __post_init__(self) -> None:
        for factor in self.factors:
            require_finite("a factor", factor, positive=True)
        require_finite("g_min", self.g_min)
        lengths = {len(values) for values in self.conductances}
        if len(self.conductances) != 2 * len(self.factors) or len(lengths) != 1 or 1 in lengths:
            raise ValueError(
                "conductances must hold two lists, of one length of at least 2, for each factor"
            )
        for values in self.conductances:
            for value in values:
                require_finite("a conductance", value)

    def conductance_converter(self, g_max: float) -> "BaseConductanceConverter":
        """AIHWKit's converter; `g_max` is the conductance of the largest weight, microsiemens."""
        from aihwkit.inference.converter.conductance import CustomPairConductanceConverter

        conductances = [list(values) for values in self.conductances]
        return CustomPairConductanceConverter(
            list(self.factors), conductances, g_max=g_max, g_min=self.g_min
        )


Converter = SinglePair | Pairs | MappedPairs
"""How a weight becomes conductances."""
