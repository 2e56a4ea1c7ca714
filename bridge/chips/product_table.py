"""The table of a network's matrix products, which both kinds of chips give."""

from collections.abc import Iterable
from typing import TypedDict

import pandas as pd


class ProductRow(TypedDict):
    """One matrix product of a forward pass of one sample; see `bridge.coverage`."""

    layer: str
    operator: str
    weights: str
    macs: int
    tiles: int
    reason: str
    """Why it is digital; "" where tiles compute it."""


def product_table(products: Iterable[ProductRow]) -> pd.DataFrame:
    """One row a layer, operator and weight, in the order in which they are met; see
    `bridge.coverage` for the columns."""
    columns = ["layer", "operator", "weights", "calls", "macs", "tiles", "place", "reason"]
    rows = [
        {**one, "calls": 1, "place": "digital" if one["reason"] else "analog"} for one in products
    ]
    table = pd.DataFrame(rows, columns=columns)
    by = ["layer", "operator", "weights", "tiles", "place", "reason"]
    return table.groupby(by, sort=False, as_index=False).sum()[columns]
