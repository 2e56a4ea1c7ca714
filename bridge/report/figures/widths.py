"""Widths of figures, in columns of a paper."""

from __future__ import annotations

from typing import Literal

Width = Literal["single", "double"]

WIDTHS: dict[Width, float] = {"single": 3.5, "double": 7.2}
"""In inches: 3.5 (89 mm) and 7.2 (183 mm), which fit the columns of most journals."""

SINGLE, DOUBLE = WIDTHS["single"], WIDTHS["double"]
