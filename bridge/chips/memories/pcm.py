"""Phase-change memory: programming noise, drift and read noise (AIHWKit's models)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bridge.chips.memories import measured
from bridge.chips.memories.conductances import SinglePair, WeightMapping
from bridge.chips.memories.protocol import Compensation, check_settings
from jaxcurv.settings import is_whole, make_plain

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from numpy.typing import NDArray

    from bridge.chips.memories.expectations import DeviceMoments


@dataclass(frozen=True)
class PCM:
    """Phase-change memory after Nandakumar et al. (ICECS 2019): AIHWKit's PCMLikeNoiseModel.

    As in AIHWKit, t is counted from the end of programming, where the device's first reading, 20 s
    after its pulse, is the reference: a device of conductance g_prog and drift exponent nu has
    `g_prog * ((t + 20) / 20) ** -nu`.

    AIHWKit scales a tile that it reads by its largest programmed weight, not by its largest target,
    and so do we. Where the first is M times the second, read noise is M^0.65 times that of the
    model: 1.09 to 1.12 for 512x512 uniform magnitudes, 0.99 to 1.07 for normal ones, 0.94 to 1.06
    on the tiles of a trained ResNet-18 of width 16.

    Attributes:
      g_max: conductance of the largest weight, in microsiemens.
      t_inference: time from the end of programming to inference, in seconds.
      programming_noise: factor on the measured programming noise; 1 is as measured, 0 is none.
      drift: factor on the measured drift exponents; 1 is as measured, 0 is none.
      read_noise: factor on the measured read noise; 1 is as measured, 0 is none.
      compensation: digital correction of the mean drift: `global`, one factor per tile, relative to
        a reading right after programming; `global_exact`, one per tile, relative to the target
        weights; `per_column`, one per output; None (`none` on the command line), no correction.
      mapping: weight-to-conductance mapping: `SinglePair()` (`single_pair` on the command line),
        one pair of devices for each weight; `Pairs(...)` (`pairs` on the command line), several
        pairs of unequal significance, the first filled first; `MappedPairs(...)` (`mapped_pairs` on
        the command line), several pairs whose conductances are given at points, linear between
        them.
    """

    g_max: float = 25.0
    t_inference: float = 20.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0
    compensation: Compensation | None = None
    mapping: WeightMapping = field(default_factory=SinglePair)

    name: ClassVar[str] = "pcm"

    def __post_init__(self) -> None:
        make_plain(self)
        check_settings(self, "t_inference", "programming_noise", "drift", "read_noise")

    @property
    def full_scale(self) -> float:
        """Conductance of the largest weight, microsiemens."""
        return self.g_max

    @property
    def constants(self) -> measured.PhaseChange:
        """What was measured of its devices."""
        return measured.PCM

    def moments(self, targets: "NDArray[Any]") -> "DeviceMoments":
        """What can be expected of the weights of one tile; see `GivesMoments.moments`."""
        from bridge.chips.memories import pcm_moments

        return pcm_moments.moments(self, targets)

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `PCMLikeNoiseModel` with these settings."""
        from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

        return PCMLikeNoiseModel(
            g_max=self.g_max,
            g_converter=self.mapping.conductance_converter(self.g_max),
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
        )


@dataclass(frozen=True)
class Hermes:
    """Phase-change memory of IBM's HERMES chip (Le Gallo et al., Nature Electronics 2023).

    AIHWKit's HermesNoiseModel. Drift counts from a reading at 200 s with one device for each sign,
    at 300 s with two.

    Attributes:
      devices: devices for each sign of a weight; two program more exactly.
      g_max: conductance of the largest weight, in microsiemens; None for the largest that was
        characterised, 10.35 with one device and 20.7 with two.
      t_inference: time from the end of programming to inference, in seconds.
      programming_noise: factor on the measured programming noise; 1 is as measured, 0 is none.
      drift: factor on the measured drift; 1 is as measured, 0 is none.
      read_noise: factor on the measured read noise; 1 is as measured, 0 is none.
      compensation: digital correction of the mean drift, as for `PCM`; None for no correction.
      mapping: weight-to-conductance mapping, as for `PCM`.
    """

    devices: Literal[1, 2] = 2
    g_max: float | None = None
    t_inference: float = 20.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0
    compensation: Compensation | None = None
    mapping: WeightMapping = field(default_factory=SinglePair)

    name: ClassVar[str] = "hermes"

    def __post_init__(self) -> None:
        make_plain(self)
        if not is_whole(self.devices) or self.devices not in (1, 2):
            raise ValueError(f"Hermes devices must be 1 or 2, got {self.devices!r}")
        check_settings(self, "t_inference", "programming_noise", "drift", "read_noise")
        if self.g_max is not None and self.g_max > self.largest_conductance:
            raise ValueError(
                f"Hermes g_max must be at most {self.largest_conductance} uS, the largest that was "
                f"characterised for devices={self.devices}; got {self.g_max}"
            )

    @property
    def largest_conductance(self) -> float:
        """The largest that was characterised, microsiemens."""
        return {1: 10.35, 2: 20.7}[self.devices]

    @property
    def full_scale(self) -> float:
        """Conductance of the largest weight, microsiemens."""
        return self.g_max or self.largest_conductance

    @property
    def constants(self) -> measured.PhaseChange:
        """What was measured of its devices."""
        return measured.HERMES[self.devices]

    def moments(self, targets: "NDArray[Any]") -> "DeviceMoments":
        """What can be expected of the weights of one tile; see `GivesMoments.moments`."""
        from bridge.chips.memories import pcm_moments

        return pcm_moments.moments(self, targets)

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `HermesNoiseModel` with these settings."""
        from aihwkit.inference.noise.hermes import HermesNoiseModel

        g_max = self.full_scale
        return HermesNoiseModel(
            num_devices=self.devices,
            g_max=g_max,
            g_converter=self.mapping.conductance_converter(g_max),
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
        )
