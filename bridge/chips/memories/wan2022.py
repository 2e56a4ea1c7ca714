"""AIHWKit's noise model of resistive memory, corrected."""

from typing import Any

from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel
from torch import Tensor


class ReRamWan2022Model(ReRamWan2022NoiseModel):
    """AIHWKit's model in the units it was fitted in; 1.1 and 1.2 get two of them wrong.

    The polynomials' reference conductance is 40 uS, not g_max. And the noise of later times is
    around the target conductances, so that these are turned back into weights with the scale of the
    target weights; AIHWKit takes that of the programmed ones, whose largest is some 10 % larger.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.coeff_g_max_reference = 40.0

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Programmed weights; the target conductances, and behind them the target weights."""
        programmed, targets = super().apply_programming_noise(weights)
        return programmed, [*targets, weights]

    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor], t_inference: float
    ) -> Tensor:
        """Weights at a later time; AIHWKit's arguments."""
        *targets, target_weights = drift_noise_parameters
        return super().apply_drift_noise(target_weights, targets, t_inference)
