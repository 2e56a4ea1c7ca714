"""Memory devices: what a crossbar's conductances are made of, with their physical settings.

Each is one of AIHWKit's phenomenological noise models, fitted to measured devices. All times are
seconds after programming has ended. Importable without torch.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bridge.checks import require_finite

Compensation = Literal["global", "global_exact", "per_column"]
"""Digital factors that undo the mean drift, found by reading the tile out with unit vectors.

"global": one factor a tile, relative to a readout right after programming; "global_exact": relative
to the target weights; "per_column": one factor an output."""


@dataclass(frozen=True)
class SinglePair:
    """One pair of devices a weight, one for either sign; the other of the pair stays at `g_min`.

    Attributes:
      g_min: conductance of weight zero, microsiemens.
    """

    g_min: float = 0.0

    def __post_init__(self) -> None:
        require_finite("g_min", self.g_min)


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


Converter = SinglePair | Pairs | MappedPairs
"""How a weight becomes conductances."""


@dataclass(frozen=True)
class PCM:
    """Phase-change memory after Nandakumar et al. (ICECS 2019): AIHWKit's PCMLikeNoiseModel.

    Attributes:
      g_max: conductance of the largest weight, microsiemens.
      t_inference: seconds from the end of programming to inference. Drift counts from the
        reference reading at 20 s: `g(t) = g_prog * ((t + 20) / 20) ** -nu`.
      programming_noise: factor on the fitted programming noise; 1 is as measured.
      drift: factor on the fitted drift exponents; 1 is as measured.
      read_noise: factor on the fitted read noise; 1 is as measured.
      compensation: of drift; None for none.
      converter: how a weight becomes conductances.
    """

    g_max: float = 25.0
    t_inference: float = 20.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0
    compensation: Compensation | None = None
    converter: Converter = field(default_factory=SinglePair)

    name: ClassVar[str] = "pcm"

    def __post_init__(self) -> None:
        _check(self, "t_inference", "programming_noise", "drift", "read_noise")


@dataclass(frozen=True)
class Hermes:
    """Phase-change memory of IBM's HERMES chip (Le Gallo et al., Nature Electronics 2023).

    AIHWKit's HermesNoiseModel.

    Attributes:
      devices: devices for either sign of a weight; two program more exactly.
      g_max: conductance of the largest weight, microsiemens; None for the largest characterised,
        10.35 with one device and 20.7 with two.
      t_inference: seconds from the end of programming to inference. Drift counts from a reading at
        200 s with one device, 300 s with two.
      programming_noise, drift, read_noise: factors on what was measured.
      compensation: of drift; None for none.
      converter: how a weight becomes conductances.
    """

    devices: Literal[1, 2] = 2
    g_max: float | None = None
    t_inference: float = 20.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0
    compensation: Compensation | None = None
    converter: Converter = field(default_factory=SinglePair)

    name: ClassVar[str] = "hermes"

    def __post_init__(self) -> None:
        if self.devices not in (1, 2):
            raise ValueError(f"Hermes devices must be 1 or 2, got {self.devices!r}")
        _check(self, "t_inference", "programming_noise", "drift", "read_noise")
        if self.g_max is not None and self.g_max > self.largest_conductance:
            raise ValueError(
                f"Hermes g_max must be at most {self.largest_conductance} uS, the largest that was "
                f"characterised for devices={self.devices}; got {self.g_max}"
            )

    @property
    def largest_conductance(self) -> float:
        """The largest that was characterised, microsiemens."""
        return {1: 10.35, 2: 20.7}[self.devices]


@dataclass(frozen=True)
class ReRamWan2022:
    """Resistive memory after Wan et al. (Nature 2022): AIHWKit's ReRamWan2022NoiseModel.

    The spread around the target was measured at three times only, at each anew; there is no drift.

    Attributes:
      g_max: conductance of the largest weight, microsiemens. The spread was fitted at 40 and
        scales with it.
      t_inference: 1 second, 1 day (86400) or 2 days (172800) after programming.
      noise: factor on the fitted spread; 1 is as measured.
      compensation: of the mean conductance; None for none.
      converter: how a weight becomes conductances.
    """

    g_max: float = 40.0
    t_inference: float = 1.0
    noise: float = 1.0
    compensation: Compensation | None = None
    converter: Converter = field(default_factory=SinglePair)

    name: ClassVar[str] = "reram_wan2022"

    def __post_init__(self) -> None:
        _check(self, "t_inference", "noise")
        if self.t_inference not in (1.0, 86400.0, 172800.0):
            raise ValueError(
                "ReRamWan2022 was measured 1, 86400 and 172800 s after programming: t_inference "
                f"must be one of these, got {self.t_inference}"
            )


@dataclass(frozen=True)
class ReRamCMO:
    """CMO/HfOx resistive memory (Falcone et al., IBM Zurich): AIHWKit's ReRamCMONoiseModel.

    One bidirectional device a weight, between `g_min` and `g_max`.

    Attributes:
      g_max: conductance of the tile's largest weight, microsiemens.
      g_min: conductance of the tile's smallest, most negative weight, microsiemens.
      acceptance: of the program-and-verify loop, percent of the target: 0.2 or 2.
      t_inference: seconds from the end of programming to inference: 0, or at least 1.
      programming_noise, drift, read_noise: factors on what was measured.
      compensation: of drift; None for none.
    """

    g_max: float = 88.2
    g_min: float = 9.0
    acceptance: float = 0.2
    t_inference: float = 1.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0
    compensation: Compensation | None = None

    name: ClassVar[str] = "reram_cmo"

    def __post_init__(self) -> None:
        _check(self, "t_inference", "programming_noise", "drift", "read_noise")
        require_finite("g_min", self.g_min, positive=True)
        if self.g_min >= self.g_max:
            raise ValueError(f"g_min must be below g_max, got {self.g_min} and {self.g_max}")
        if self.acceptance not in (0.2, 2.0):
            raise ValueError(f"acceptance was measured at 0.2 and 2 %, got {self.acceptance}")
        if 0 < self.t_inference < 1:
            raise ValueError(
                "ReRamCMO's decay is logarithmic from 1 s on: t_inference must be 0 or at least 1, "
                f"got {self.t_inference}"
            )


Memory = PCM | Hermes | ReRamWan2022 | ReRamCMO
"""What the weights are programmed into."""


def _check(memory: Memory, *numbers: str) -> None:
    what = type(memory).__name__
    if memory.g_max is not None:
        require_finite(f"{what} g_max", memory.g_max, positive=True)
    for name in numbers:
        require_finite(f"{what} {name}", getattr(memory, name))
    converter = getattr(memory, "converter", None)
    if hasattr(memory, "converter") and not isinstance(converter, Converter):
        raise ValueError(
            f"{what} converter must be SinglePair, Pairs or MappedPairs, got {converter!r}"
        )
    largest = memory.largest_conductance if isinstance(memory, Hermes) else memory.g_max
    if converter is not None and converter.g_min >= (memory.g_max or largest):
        raise ValueError(f"{what} g_min must be below g_max, got {converter.g_min}")
    if memory.compensation not in (None, "global", "global_exact", "per_column"):
        raise ValueError(
            f"{what} compensation must be global, global_exact, per_column or None, got "
            f"{memory.compensation!r}"
        )
