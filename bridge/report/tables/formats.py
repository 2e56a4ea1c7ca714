"""Numbers and names as people read them."""

from __future__ import annotations

from typing import Any

import numpy as np


def number(value: float) -> str:
    """A count, with thousands separated; one decimal where it is not whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def counted(count: int, noun: str) -> str:
    """A count and what it is of.

    >>> counted(1, "chip"), counted(1000, "chip")
    ('1 chip', '1,000 chips')
    """
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def rate(percent: float) -> str:
    """Percent with two decimals; "-" for NaN."""
    return "-" if percent != percent else f"{percent:.2f}"


def percent(fraction: float) -> str:
    """A fraction in percent with two decimals."""
    return f"{100 * fraction:.2f}"


def small_percent(fraction: float) -> str:
    """A fraction in percent with two decimals, but 0.00 and 100.00 only of none and of all.

    >>> small_percent(0.00001), small_percent(0.99999), small_percent(1.0)
    ('< 0.01', '> 99.99', '100.00')
    """
    if 0 < fraction < 0.00005:
        return "< 0.01"
    return "> 99.99" if 0.99995 <= fraction < 1 else percent(fraction)


decimals = "{:z.3f}".format  # z: no minus before what rounds to 0
signed = "{:+.3f}".format  # a sign says on which side of 0, also of what rounds to it
signed_percent = "{:+.2f}".format


def p_value(value: float) -> str:
    """Three decimals, or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, three digits."""
    return f"{1e3 * seconds:.3g}"


def time(seconds: float) -> str:
    """`3,600 s`, with thousands separated."""
    return f"{seconds:,.10g} s"


def with_interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    """`0.70 [0.65, 0.75]`, each number in the same form; "-" in place of NaN.

    Of what rounds to 0 only a form with signs (+) shows the side.

    >>> with_interval(0.7, float("nan"), float("nan")), with_interval(*[float("nan")] * 3)
    ('0.70 [-]', '-')
    >>> with_interval(-0.001, -0.01, 0.01), with_interval(-0.001, -0.01, 0.01, "+.2f")
    ('0.00 [-0.01, 0.01]', '-0.00 [-0.01, +0.01]')
    """
    if not form.startswith("+"):
        form = f"z{form}"
    if np.isnan(value):
        return "-"
    if np.isnan(low):
        return f"{value:{form}} [-]"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def words(name: str) -> str:
    """A name such as a column's, with spaces in place of underscores."""
    return name.replace("_", " ")


def plain(value: Any) -> str:
    """Any value: yes or no, a whole number with thousands separated, another to three digits."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):  # NumPy's float64 is one
        return f"{value:,.0f}" if 1000 <= abs(value) < np.inf else f"{value:.3g}"
    return str(value)
