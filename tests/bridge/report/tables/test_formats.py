"""Numbers and names as people read them; settings under dotted names."""

import numpy as np
import pytest

from bridge.report.tables import formats
from jaxcurv.nested import flatten


def test_a_value_stands_before_its_interval():
    assert formats.with_interval(0.7, 0.654, 0.75) == "0.70 [0.65, 0.75]"
    assert formats.with_interval(0.5, -0.25, 1, "+.1f") == "+0.5 [-0.2, +1.0]"
    nan = float("nan")
    assert formats.with_interval(0.0, nan, nan, ".0f") == "0 [-]"
    assert formats.with_interval(nan, nan, nan) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.bool_(True), "yes"),
        (np.int64(1714), "1,714"),
        (1234.5, "1,234"),
        (0.01234, "0.0123"),
        (float("inf"), "inf"),
        ("a_b", "a_b"),
    ],
)
def test_any_value_is_written(value, text):
    assert formats.plain(value) == text


def test_nested_settings_get_dotted_names():
    settings = {"data": {"name": "digits", "mean": None}, "folds": ["test"], "none": {}}
    assert dict(flatten(settings)) == {
        "data.name": "digits",
        "data.mean": None,
        "folds": ["test"],
    }


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.00"),
        (4e-5, "< 0.01"),
        (5e-5, "0.01"),
        (0.5, "50.00"),
        (0.9999, "99.99"),
        (0.99996, "> 99.99"),
        (1.0, "100.00"),
    ],
)
def test_no_share_is_rounded_to_none_or_all(share, text):
    assert formats.small_percent(share) == text
