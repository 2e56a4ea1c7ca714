"""Resistive memory: programming noise and relaxation (AIHWKit's models)."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.checks import require_finite
from bridge.chips.memories.conductances import SinglePair, WeightMapping
from bridge.chips.memories.protocol import Compensation, check_settings
from jaxcurv.settings import is_number, make_plain

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from numpy.typing import NDArray

    from bridge.chips.memories.expectations import DeviceMoments


@dataclass(frozen=True)
class ReRamWan2022:
    """Resistive memory after Wan et al. (Nature 2022): AIHWKit's ReRamWan2022NoiseModel.

    The spread around the target was measured at three times only, at each anew; there is no drift.

    Attributes:
      g_max: conductance of the largest weight, in microsiemens. The spread was fitted at 40 and
        scales with it.
      t_inference: time from the end of programming to inference, in seconds: 1, 86400 (1 day) or
        172800 (2 days).
      noise: factor on the measured spread; 1 is as measured, 0 is none.
      compensation: digital correction of a shift of the mean conductance, as for `PCM`; None for
        no correction.
      mapping: weight-to-conductance mapping, as for `PCM`.
    """

    g_max: float = 40.0
    t_inference: float = 1.0
    noise: float = 1.0
    compensation: Compensation | None = None
    mapping: WeightMapping = field(default_factory=SinglePair)

    name: ClassVar[str] = "reram_wan2022"

    def __post_init__(self) -> None:
        make_plain(self)
        check_settings(self, "t_inference", "noise")
        if self.t_inference not in (1.0, 86400.0, 172800.0):
            raise ValueError(
                "ReRamWan2022 was measured 1, 86400 and 172800 s after programming: t_inference "
                f"must be one of these, got {self.t_inference}"
            )

    def moments(self, targets: "NDArray[Any]") -> "DeviceMoments":
        """What can be expected of the weights of one tile; see `GivesMoments.moments`."""
        from bridge.chips.memories import wan2022_moments

        return wan2022_moments.moments(
            self.mapping, self.g_max, self.noise, self.t_inference, targets
        )

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `ReRamWan2022NoiseModel` with these settings, corrected: see `wan2022`."""
        from bridge.chips.memories.wan2022 import ReRamWan2022Model

        return ReRamWan2022Model(
            g_converter=self.mapping.conductance_converter(self.g_max), noise_scale=self.noise
        )


@dataclass(frozen=True)
class ReRamCMO:
    """CMO/HfOx resistive memory (Falcone et al., IBM Zurich): AIHWKit's ReRamCMONoiseModel.

    One bidirectional device for each weight, between `g_min` and `g_max`.

    Attributes:
      g_max: conductance of the tile's largest weight, in microsiemens.
      g_min: conductance of the tile's most negative weight, in microsiemens.
      acceptance: acceptance range of the program-and-verify loop, in percent of the target: 0.2 or
        2.
      t_inference: time from the end of programming to inference, in seconds: 0, or at least 1.
      programming_noise: factor on the measured programming noise; 1 is as measured, 0 is none.
      drift: factor on the measured drift; 1 is as measured, 0 is none.
      read_noise: factor on the measured read noise; 1 is as measured, 0 is none.
      compensation: digital correction of the mean drift, as for `PCM`; None for no correction.
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
        make_plain(self)
        if is_number(self.acceptance) and math.isclose(self.acceptance, 0.2, rel_tol=1e-6):
            object.__setattr__(self, "acceptance", 0.2)  # given as float32
        check_settings(self, "t_inference", "programming_noise", "drift", "read_noise")
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

    def moments(self, targets: "NDArray[Any]") -> "DeviceMoments":
        """What can be expected of the weights of one tile; see `GivesMoments.moments`."""
        from bridge.chips.memories import cmo_moments

        return cmo_moments.moments(self, targets)

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's `ReRamCMONoiseModel` with these settings, without its NaN: see `cmo`."""
        from bridge.chips.memories.cmo import ReRamCMOModel

        return ReRamCMOModel(
            g_max=self.g_max,
            g_min=self.g_min,
            prog_noise_scale=self.programming_noise,
            read_noise_scale=self.read_noise,
            drift_scale=self.drift,
            acceptance_range=self.acceptance,
        )
