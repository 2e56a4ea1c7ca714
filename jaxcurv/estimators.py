"""How curvature is estimated: plain settings, importable without JAX."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FiniteDifference:
    """Eq. 1 with the base gradient computed once: n + 1 forward and input-backward passes."""

    step: float = 1e-3
    """h, in units of the (normalised) input."""
    probes: int = 10
    """n, the Rademacher vectors a sample."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"step must be a positive number; got {self.step}")
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1; got {self.probes}")
