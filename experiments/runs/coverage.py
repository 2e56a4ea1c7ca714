"""Which products of a run's network are on tiles, where the network is the user's own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

COVERAGE = "coverage.csv"
"""The table of `bridge.coverage`. Networks of presets have none: all of their products are on
tiles."""


def read_coverage(folder: Path) -> pd.DataFrame | None:
    """The table as `bridge.coverage` returned it; None where the run has none."""
    path = folder / COVERAGE
    return pd.read_csv(path, keep_default_na=False) if path.exists() else None
