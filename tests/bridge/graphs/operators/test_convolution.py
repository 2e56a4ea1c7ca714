"""Convolutions of one to three dimensions: strides, padding, dilation, groups, transposes."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.graphs.operators.against_torch import (
    Call,
    assert_all_equal_torch,
    assert_equals_torch,
    call,
    draw,
)


@dataclass(frozen=True)
class _Setting:
    """Settings of a convolution of 4 channels to 6, or of the transposed one."""

    space: int = 2
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False
    extra: int = 0
    groups: int = 1
    bias: bool = True

    def call(self) -> Call:
        inputs, outputs = 4, 6
        first, second = (inputs, outputs) if self.transposed else (outputs, inputs)
        kernel = [self.kernel, 2, 1][: self.space]
        return call(
            "convolution.default",
            draw(2, inputs, *[6, 5, 4][: self.space]),
            draw(first, second // self.groups, *kernel, seed=1),
            draw(outputs, seed=2) if self.bias else None,
            [self.stride] * self.space,
            [self.padding, 0, 0][: self.space],
            [self.dilation] * self.space,
            self.transposed,
            [self.extra] * self.space,
            self.groups,
        )


CASES: list[Call] = [
    one.call()
    for one in (
        _Setting(),
        _Setting(stride=2, padding=1, groups=2),
        _Setting(dilation=2, padding=2, bias=False),
        _Setting(kernel=2, groups=2),
        _Setting(space=1, stride=2, padding=1),
        _Setting(space=3, kernel=2),
        _Setting(transposed=True),
        _Setting(transposed=True, stride=2, padding=1, extra=1, groups=2),
        _Setting(transposed=True, stride=3, dilation=2, extra=1),
        _Setting(transposed=True, space=1, stride=2, extra=1),
        _Setting(transposed=True, space=3, kernel=2, stride=2),
    )
] + [
    # one number for all axes; each channel by itself
    call(
        "convolution.default", draw(2, 4, 5, 5), draw(8, 1, 3, 3), None, [2], [1], [1], *(0, [0], 4)
    )
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


SETTINGS = st.builds(
    _Setting,
    space=st.just(2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(tried=st.lists(SETTINGS, min_size=6, max_size=8, unique=True))
def test_any_convolution_is_pytorchs(tried: list[_Setting]) -> None:
    assert_all_equal_torch([one.call() for one in tried])
