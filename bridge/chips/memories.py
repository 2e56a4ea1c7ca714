"""Memory devices: what a crossbar's conductances are made of, with their physical settings.

Each is one of AIHWKit's phenomenological noise models, fitted to measured devices. All times are
seconds after programming has ended. Importable without torch: a method that needs AIHWKit imports
it.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from bridge.checks import require_finite

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter
    from aihwkit.inference.noise.base import BaseNoiseModel

Compensation = Literal["global", "global_exact", "per_column"]
"""Digital factors that undo the mean drift, found by reading the tile out with unit vectors.

"global": one factor a tile, relative to a readout right after programming; "global_exact": relative
to the target weights; "per_column": one factor an output."""


@runtime_checkable
class Memory(Protocol):
    """What the weights are programmed into: a memory below, or a frozen dataclass of your own.

    Its fields hold numbers, texts, None, tuples of these or further dataclasses, so that a chip's
    file can keep them; its `__post_init__` refuses bad ones with a ValueError. `load_chip` and
    `from_json` are given the class of your own memory, for a file only names it.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Its part of the profile's name, such as "pcm"."""

    @property
    def t_inference(self) -> float:
        """Seconds from the end of programming to inference; a field, which `Chip.at` replaces."""

    @property
    def compensation(self) -> Compensation | None:
        """Compensation of drift; None for none."""

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's noise model with these settings.

        What it draws from torch's global generator is seeded by chip and tile.
        """


def require_memory(memory: object) -> None:
    """Raises ValueError, with what is missing, unless this is a `Memory`."""
    members = ("name", "t_inference", "compensation", "noise_model")
    missing = [name for name in members if not hasattr(memory, name)]
    if not is_dataclass(memory) or isinstance(memory, type):
        missing.append("an instance of a dataclass")
    elif "t_inference" not in [*missing, *(one.name for one in fields(memory))]:
        missing.append("t_inference as a field")
    if missing:
        raise ValueError(
            "a profile's memory must be a PCM or Hermes or ReRamWan2022 or ReRamCMO, or a frozen "
            f"dataclass of your own with {', '.join(members)}; got {memory!r}, which lacks "
            f"{', '.join(missing)}"
        )


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
      compensation: how drift is compensated; None for not at all.
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

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `PCMLikeNoiseModel` with these settings."""
        from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

        return PCMLikeNoiseModel(
            g_max=self.g_max,
            g_converter=self.converter.conductance_converter(self.g_max),
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
        )


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
      compensation: how drift is compensated; None for not at all.
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

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `HermesNoiseModel` with these settings."""
        from aihwkit.inference.noise.hermes import HermesNoiseModel

        g_max = self.g_max or self.largest_conductance
        return HermesNoiseModel(
            num_devices=self.devices,
            g_max=g_max,
            g_converter=self.converter.conductance_converter(g_max),
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
        )


@dataclass(frozen=True)
class ReRamWan2022:
    """Resistive memory after Wan et al. (Nature 2022): AIHWKit's ReRamWan2022NoiseModel.

    The spread around the target was measured at three times only, at each anew; there is no drift.

    Attributes:
      g_max: conductance of the largest weight, microsiemens. The spread was fitted at 40 and
        scales with it.
      t_inference: 1 second, 1 day (86400) or 2 days (172800) after programming.
      noise: factor on the fitted spread; 1 is as measured.
      compensation: how a shift of the mean conductance is compensated; None for not at all.
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

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `ReRamWan2022NoiseModel` with these settings, see `bridge.chips.reram`."""
        from bridge.chips.reram import ReRamWan2022Model

        return ReRamWan2022Model(
            g_converter=self.converter.conductance_converter(self.g_max), noise_scale=self.noise
        )


@dataclass(frozen=True)
class ReRamCMO:
    """CMO/HfOx resistive memory (Falcone et al., IBM Zurich): AIHWKit's ReRamCMONoiseModel.

    One bidirectional device a weight, between `g_min` and `g_max`.

    Attributes:
      g_max: conductance of the tile's largest weight, microsiemens.
      g_min: conductance of the tile's smallest, most negative weight, microsiemens.
      acceptance: acceptance range of the program-and-verify loop, percent of the target: 0.2 or 2.
      t_inference: seconds from the end of programming to inference: 0, or at least 1.
      programming_noise, drift, read_noise: factors on what was measured.
      compensation: how drift is compensated; None for not at all.
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

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `ReRamCMONoiseModel` with these settings."""
        from aihwkit.inference.noise.reram import ReRamCMONoiseModel

        return ReRamCMONoiseModel(
            g_max=self.g_max,
            g_min=self.g_min,
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
            acceptance_range=self.acceptance,
        )


def _check(memory: PCM | Hermes | ReRamWan2022 | ReRamCMO, *numbers: str) -> None:
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
