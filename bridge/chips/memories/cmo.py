"""AIHWKit's noise model of CMO/HfOx resistive memory, where it gives NaN."""

from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter.conductance import SingleDeviceConductanceConverter
from aihwkit.inference.noise.reram import ReRamCMONoiseModel
from torch import Tensor


class ReRamCMOModel(ReRamCMONoiseModel):
    """AIHWKit's model; a device that has decayed to no conductance or less is read as `g_min`.

    AIHWKit takes the logarithm of its conductance, which is NaN.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.g_converter = SingleDevice(g_max=self.g_max, g_min=self.g_min)

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        """Conductances at a later time, microsiemens; AIHWKit's arguments."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = super().apply_drift_noise_to_conductance(g_prog, drift_noise_param, t_inference)
        return torch.where(found.isnan() & ~g_prog.isnan(), self.g_min, found)


class SingleDevice(SingleDeviceConductanceConverter):
    """AIHWKit's mapping, also of a tile whose weights are all equal.

    Their spread, which AIHWKit divides by, is 0. All are then at `g_min`, and the range up to
    `g_max` stands for the largest magnitude, or 1.
    """

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict]:
        """Conductances of weights, and what turns them back."""
        lowest = weights.min()
        if lowest != weights.max():
            return super().convert_to_conductances(weights)
        ratio = (self.g_max - self.g_min) / (lowest.abs() if lowest != 0 else lowest + 1)
        found: Any = torch.full_like(weights, self.g_min)
        return found, {"scale_ratio": ratio, "min": lowest}
