"""Weight-to-conductance mappings: how a weight becomes conductances of pairs of devices."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.checks import require_finite
from jaxcurv.settings import make_plain

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter


@dataclass(frozen=True)
class SinglePair:
    """One pair of devices for each weight, one for positive and one for negative values.

    The device that a weight does not use stays at `g_min`.

    Attributes:
      g_min: conductance of weight zero, in microsiemens.
    """

    g_min: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        require_finite("g_min", self.g_min)

    def conductance_converter(self, g_max: float) -> "BaseConductanceConverter":
        """AIHWKit's converter; `g_max` is the conductance of the largest weight, microsiemens."""
        from aihwkit.inference.converter.conductance import SinglePairConductanceConverter

        return SinglePairConductanceConverter(g_max=g_max, g_min=self.g_min)


@dataclass(frozen=True)
class Pairs:
    """Several pairs of devices for each weight, of unequal significance; the first fill first.

    A memory takes it as its mapping: `PCM(mapping=Pairs(factors=(1.0, 4.0)))`.

    Attributes:
      factors: factor on the current of each pair, the least significant pair first.
      g_min: conductance of weight zero, in microsiemens.
    """

    factors: tuple[float, ...] = (1.0, 1.0)
    g_min: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
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
    """Several pairs of devices for each weight, each conductance piecewise linear in the weight.

    A memory takes it as its mapping, as for `Pairs`. Read back, the conductances must give the
    weights that they stand for.

    Attributes:
      factors: factor on the current of each pair, the least significant pair first.
      conductances: conductances in microsiemens at weights spaced evenly from -max|w| to max|w|:
        two lists for each pair, first the positive device, then the negative one; all lists of one
        length.
      g_min: lowest conductance of a device, in microsiemens.
    """

    factors: tuple[float, ...]
    conductances: tuple[tuple[float, ...], ...]
    g_min: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
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


WeightMapping = SinglePair | Pairs | MappedPairs
"""The weight-to-conductance mappings."""
