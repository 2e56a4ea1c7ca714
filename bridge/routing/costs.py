"""Energies that routing weighs; known to the command line, which has no use for tables."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.checks import require_finite


@dataclass(frozen=True)
class Costs:
    """Energy of one inference, in any unit; that of a digital one unless you say otherwise.

    The default, an analog inference at a tenth of a digital one, is an assumption: what a chip
    saves depends on its design and on the network. Put in your own.
    """

    analog: float = 0.1
    """Energy of one inference on the chip."""
    digital: float = 1.0
    """Energy of one forward pass of the digital model."""

    def __post_init__(self) -> None:
        require_finite("the energy of an analog inference", self.analog)
        require_finite("the energy of a digital inference", self.digital, positive=True)
