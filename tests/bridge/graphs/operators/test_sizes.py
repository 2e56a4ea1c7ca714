"""Numbers of Python that sizes are computed with, and what the exporter has checked."""

import math
import operator

import numpy as np
import pytest
import torch

from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators.against_torch import draw

IMAGES = draw(2, 3, 4)
PAIRS = [(7, 2), (-7, 2), (3, 3), (0, 5)]
TWO = {  # of two numbers, as Python and PyTorch name them
    **{f"operator.{n}": getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "mod")},
    **{f"operator.{n}": getattr(operator, n) for n in ("truediv", "pow", "and_", "or_")},
    **{f"operator.{n}": getattr(operator, n) for n in ("eq", "ne", "ge", "gt", "le", "lt")},
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
}
ONE = {
    **{f"operator.{n}": getattr(operator, n) for n in ("neg", "not_")},
    **{f"math.{n}": getattr(math, n) for n in ("ceil", "floor", "trunc")},
    "torch.sym_float": torch.sym_float,
    "torch.sym_int": torch.sym_int,
    "torch.sym_not": torch.sym_not,
}
NOTHING = (  # they only assert
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten._assert_tensor_metadata.default",
    "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default",
)
OF_ARRAYS = {"aten.sym_size.int", "aten.sym_numel.default", "operator.getitem"}
EMPTY = ("aten.empty.memory_format", "aten.empty_permuted.default")
TRIED = {*TWO, *ONE, *NOTHING, *OF_ARRAYS, *EMPTY}


@pytest.mark.parametrize("name", TWO)
def test_two_numbers(name: str) -> None:
    for a, b in PAIRS:
        assert OPERATORS[name](a, b) == TWO[name](a, b)


@pytest.mark.parametrize("name", ONE)
def test_one_number(name: str) -> None:
    values = (True, False) if name.endswith("sym_not") else (2.5, -2.5, 0, 3)
    for value in values:
        assert OPERATORS[name](value) == ONE[name](value)


@pytest.mark.parametrize("name", NOTHING)
def test_assertions_of_the_exporter_give_nothing(name: str) -> None:
    assert OPERATORS[name](IMAGES, "a message", min=2) is None


def test_sizes_of_an_array() -> None:
    assert [OPERATORS["aten.sym_size.int"](IMAGES, dim) for dim in (0, -1)] == [2, 4]
    assert OPERATORS["aten.sym_numel.default"](IMAGES) == 24
    assert OPERATORS["operator.getitem"]((IMAGES, 3), 1) == 3


@pytest.mark.parametrize("name", EMPTY)
def test_what_pytorch_leaves_empty_is_zeros(name: str) -> None:
    layout = ([0, 1],) if "permuted" in name else ()
    value = OPERATORS[name]([2, 3], *layout, dtype=None, pin_memory=False)
    np.testing.assert_array_equal(value, np.zeros((2, 3)))
