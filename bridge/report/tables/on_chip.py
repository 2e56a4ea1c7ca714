"""How much of a network's work tiles do."""

from __future__ import annotations

import pandas as pd


def analog_share(coverage: pd.DataFrame | None) -> float:
    """The share of the multiply-accumulates that tiles compute, in [0, 1].

    It is exactly 1 only where no product stays digital.

    Args:
      coverage: as `bridge.coverage` returns it; None for a network whose products are all on tiles.
    """
    if coverage is None:
        return 1.0
    analog = coverage["place"] == "analog"
    return 1.0 if analog.all() else float(coverage["macs"][analog].sum() / coverage["macs"].sum())
