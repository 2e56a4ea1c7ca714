"""Warnings about a network that every chip of it would repeat."""

import warnings
from functools import cache


@cache
def warn_once(text: str) -> None:
    """Warns, once a process for a text."""
    warnings.warn(text, stacklevel=4)
