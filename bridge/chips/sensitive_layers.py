"""Precision where it matters: which layers to leave digital within a budget."""

import numpy as np
import pandas as pd

from bridge.checks import require_between_0_and_1, vector
from bridge.chips.layer_tables import ALL_LAYERS

_ROUNDING = 1e-9
"""Slack of the budget, relative: a layer that fills it exactly must not fail for its rounding."""


def most_sensitive(failures: pd.DataFrame, coverage: pd.DataFrame, budget: float) -> list[str]:
    """The layers that cause most failures for the digital work that they take.

    Layers are taken by their failures alone on tiles over their multiply-accumulates (MACs),
    highest first; one that no longer fits into the budget is passed over. Layers that cause no
    failure are not taken. Choose on samples that no result is reported of.

        table = bridge.chips.layer_failures(model, profile, validation)
        kept = bridge.chips.most_sensitive(table, bridge.coverage(model, images), budget=0.05)
        chip = bridge.program(model, profile, digital_layers=kept)

    Failures of layers that err together are not the sum of those alone, so that the choice is
    plausible, not the best one.

    Args:
      failures: of `layer_failures`: a row a layer, with layer and failures.
      coverage: of `bridge.coverage` for the same network: layer, macs and place.
      budget: the largest share of the network's MACs that may move from tiles to the digital side,
        in (0, 1).

    Returns:
      The layers, in the order of `failures`, as `digital_layers` takes them.

    Raises:
      ValueError: a budget outside (0, 1), tables without these columns, a layer that is not among
        those on tiles or is there twice, or failures that are no numbers from 0 on.
    """
    budget = require_between_0_and_1("budget", budget)
    for name, table, wanted in (
        ("failures", failures, ("layer", "failures")),
        ("coverage", coverage, ("layer", "macs", "place")),
    ):
        if missing := [column for column in wanted if column not in table]:
            raise ValueError(f"the table of {name} has no column {' and '.join(missing)}")
    on_tiles = coverage[coverage["place"] == "analog"].groupby("layer")["macs"].sum()
    counted = failures[failures["layer"] != ALL_LAYERS].set_index("layer")["failures"]
    if unknown := [layer for layer in counted.index if layer not in on_tiles.index]:
        raise ValueError(
            f"{unknown[0]} has failures but no product on tiles: give both tables of one network"
        )
    if not counted.index.is_unique:
        twice = counted.index[counted.index.duplicated()][0]
        raise ValueError(
            f"the table of failures has {twice} twice: give one profile's and fold's, a row a layer"
        )
    numbers = vector("failures", counted, "iuf", "numbers from 0 on")
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError("failures must be finite and not negative; some are not")
    left = budget * coverage["macs"].sum() * (1 + _ROUNDING)
    taken = set()
    for layer in (
        (counted / on_tiles[counted.index]).sort_values(ascending=False, kind="stable").index
    ):
        if counted[layer] > 0 and on_tiles[layer] <= left:
            taken.add(layer)
            left -= on_tiles[layer]
    return [layer for layer in counted.index if layer in taken]
