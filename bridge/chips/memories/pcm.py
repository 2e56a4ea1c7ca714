"""Phase-change memory: programming noise, drift and read noise (AIHWKit's models)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from bridge.chips.memories.conductances import Converter, SinglePair
from bridge.chips.memories.protocol import Compensation, check_settings

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel


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
        check_settings(self, "t_inference", "programming_noise", "drift", "read_noise")

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
