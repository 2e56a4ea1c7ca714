"""Energies that routing compares, in a module that the command line can import at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.checks import require_finite
from jaxcurv.settings import make_plain


@dataclass(frozen=True)
class Costs:
    """Energy of one inference, both in the same unit, which may be any.

    The default, an analog inference at a tenth of a digital one, is an assumption: what a chip
    saves depends on its design and on the network. Put in your own.

    Attributes:
      analog: energy of one inference on the analog chip, in the unit of the digital one, with every
        product on tiles. Where some stay digital, `partly_analog` gives that of tiles and digital
        part together; a run does so with the share of its own network.
      digital: energy of one forward pass of the digital model, in any unit.
    """

    analog: float = 0.1
    digital: float = 1.0

    def __post_init__(self) -> None:
        make_plain(self)
        require_finite("the energy of an analog inference", self.analog)
        require_finite("the energy of a digital inference", self.digital, positive=True)

    def partly_analog(self, share: float) -> Costs:
        """Energies of a network of which tiles compute only a share.

            share * analog + (1 - share) * digital

        Args:
          share: of the multiply-accumulates, in [0, 1], as `bridge.coverage` tells them.

        Raises:
          ValueError: the share is not in [0, 1].
        """
        share = require_finite("the share on tiles", share)
        if share > 1:
            raise ValueError(f"the share on tiles must lie in [0, 1]; got {share}")
        return replace(self, analog=share * self.analog + (1 - share) * self.digital)
