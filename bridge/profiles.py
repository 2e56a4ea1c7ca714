"""Hardware profiles: which non-idealities a chip has, with their physical settings.

Three non-idealities, each present or absent, make eight profiles, "ideal" included:

- adc: tile outputs quantised uniformly between `-range` and `range`;
- wnoise: static Gaussian noise on the effective weights, frozen per chip;
- pcm: phase-change memory, that is programming noise, conductance drift and read noise, after
  Nandakumar et al. (ICECS 2019), as modelled by AIHWKit.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal


def _require_finite(name: str, value: float, *, positive: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be finite and {'> 0' if positive else '>= 0'}, got {value}")


@dataclass(frozen=True)
class ADC:
    """Uniform quantisation of each tile's outputs, with saturation.

    Attributes:
      bits: resolution; the `2**bits - 1` symmetric codes are `range / (2**(bits - 1) - 1)` apart.
      range: largest output represented. The unit is that of a tile whose largest weight is 1 and
        whose input vector has largest magnitude 1. "calibrated": per tile, the largest output that
        the ideal weights give on a calibration batch.
    """

    bits: int = 9
    range: Literal["calibrated"] | float = "calibrated"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits < 24:
            raise ValueError(f"ADC bits must be an integer from 2 to 23, got {self.bits!r}")
        if self.range != "calibrated":
            _require_finite('ADC range, unless "calibrated",', self.range, positive=True)


@dataclass(frozen=True)
class WeightNoise:
    """Static Gaussian weight noise, drawn once per chip.

    Attributes:
      sigma: standard deviation relative to the largest weight of the tile.
    """

    sigma: float = 0.02

    def __post_init__(self) -> None:
        _require_finite("weight noise sigma", self.sigma)


@dataclass(frozen=True)
class PCM:
    """Phase-change memory, a pair of devices per weight, no drift compensation.

    Attributes:
      g_max: conductance of the largest weight, microsiemens.
      t_inference: seconds from the end of programming to inference. Drift counts from AIHWKit's
        reference reading at 20 s: `g(t) = g_prog * ((t + 20) / 20) ** -nu`.
      programming_noise: factor on the fitted programming noise; 1 is as measured.
      drift: factor on the fitted drift exponents; 1 is as measured.
      read_noise: factor on the fitted read noise; 1 is as measured.
    """

    g_max: float = 25.0
    t_inference: float = 20.0
    programming_noise: float = 1.0
    drift: float = 1.0
    read_noise: float = 1.0

    def __post_init__(self) -> None:
        _require_finite("PCM g_max", self.g_max, positive=True)
        for name in ("t_inference", "programming_noise", "drift", "read_noise"):
            _require_finite(f"PCM {name}", getattr(self, name))


@dataclass(frozen=True)
class Clipping:
    """Clips each tile's weights at `sigma` of their standard deviations, before programming.

    AIHWKit's LAYER_GAUSSIAN; a layer larger than a tile is clipped tile by tile. Afterwards the
    weights are rescaled to the full conductance range.
    """

    sigma: float = 2.5

    def __post_init__(self) -> None:
        _require_finite("clipping sigma", self.sigma, positive=True)


@dataclass(frozen=True)
class Profile:
    """A combination of non-idealities; None leaves one out."""

    adc: ADC | None = None
    wnoise: WeightNoise | None = None
    pcm: PCM | None = None
    clipping: Clipping | None = None

    @property
    def name(self) -> str:
        """Such as "adc+pcm"; "ideal" if there is no non-ideality. Clipping is not one."""
        present = [name for name in ("adc", "wnoise", "pcm") if getattr(self, name) is not None]
        return "+".join(present) or "ideal"


def eight_profiles(
    adc: ADC | None = None,
    wnoise: WeightNoise | None = None,
    pcm: PCM | None = None,
    clipping: Clipping | None = None,
) -> dict[str, Profile]:
    """The eight profiles by name, from "ideal" to "adc+wnoise+pcm".

    Args:
      adc, wnoise, pcm: settings where the non-ideality is present; None takes its defaults.
      clipping: applies to all eight, "ideal" included, so that they differ in nothing else.
    """
    settings = {"adc": adc or ADC(), "wnoise": wnoise or WeightNoise(), "pcm": pcm or PCM()}
    combined = [
        Profile(**{name: settings[name] for name in names}, clipping=clipping)  # type: ignore[arg-type]
        for count in range(len(settings) + 1)
        for names in combinations(settings, count)
    ]
    return {profile.name: profile for profile in combined}


PROFILES = eight_profiles()
"""The eight profiles with default settings, no clipping."""
