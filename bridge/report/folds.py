"""Names of the folds, as tables have them."""

from __future__ import annotations

from typing import Literal, get_args

Fold = Literal["train", "validation", "test"]

FOLDS: tuple[str, ...] = get_args(Fold)
"""In the order of tables."""

POOLED = "pooled"
"""Every scored fold together."""
