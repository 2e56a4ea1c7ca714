"""Arithmetic, comparisons and activations, at their kinks too."""

import numpy as np
import pytest
import torch

from tests.bridge.graphs.operators.against_torch import Call, assert_equals_torch, call

REAL = np.array(
    [[-100.0, -3.0, -1.3, -0.5, -0.2, 0.0], [0.0, 0.4, 0.5, 2.6, 3.0, 6.0], [1, -1, 2, -2, 9, 100]],
    np.float32,
)
MILD = np.array([[-0.9, -0.3, 0.0], [0.2, 0.5, 0.7]], np.float32)  # in the domain of asin
POSITIVE = np.array([[0.1, 0.5, 1.0], [2.0, 7.5, 30.0]], np.float32)
LARGE = np.array([[1.1, 1.5, 2.0], [3.0, 7.5, 30.0]], np.float32)
HALVES = np.array([[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]], np.float32)
STRANGE = np.array([[np.nan, np.inf, -np.inf], [0.0, 1.0, -2.0]], np.float32)
FAR = np.array([[np.inf, -np.inf, 0.0], [3e38, -3e38, 1e-37]], np.float32)
OTHER = np.array([[1.5, -2.0, 0.3], [-0.7, 4.0, 2.0]], np.float32)
ROW = np.array([2.0, -3.0, 0.5], np.float32)
SCALAR = np.array(1.5, np.float32)
EMPTY = np.zeros((0, 3), np.float32)
WHOLE = np.array([[-7, -2, 0], [1, 3, 8]], np.int64)
BITS = np.array([[5, 2, 1], [1, 3, 8]], np.int64)
TRUTH = np.array([[True, False, True], [False, False, True]])

EVERYWHERE = ("abs", "atan", "ceil", "cos", "exp2", "expm1", "floor", "neg", "relu", "sigmoid")
EVERYWHERE += ("sign", "sin", "tanh", "trunc", "asinh", "erf", "erfc", "exp")
ACTIVATIONS = ("hardsigmoid", "hardswish", "relu6", "selu", "silu", "mish", "log_sigmoid", "gelu")
ACTIVATIONS += ("celu", "elu", "hardtanh", "leaky_relu", "softplus", "softshrink", "hardshrink")
IN_DOMAIN = {
    **dict.fromkeys(("acos", "asin", "atanh", "erfinv"), MILD),
    **dict.fromkeys(("log", "log10", "log2", "rsqrt", "sqrt", "reciprocal"), POSITIVE),
    **dict.fromkeys(("cosh", "sinh", "tan", "log1p"), MILD),
    "acosh": LARGE,
}
COMPARED = ("eq", "ge", "gt", "le", "lt", "ne")

CASES: list[Call] = [
    *(call(f"{name}.default", REAL) for name in (*EVERYWHERE, *ACTIVATIONS)),
    *(call(f"{name}.default", STRANGE) for name in ("isnan", "isinf")),
    *(call(f"{name}.default", FAR) for name in ("relu", "hardtanh", "sigmoid", "sign", "abs")),
    *(call(f"{name}.default", x) for name, x in IN_DOMAIN.items()),
    *(call(f"{name}.default", SCALAR) for name in ("exp", "relu", "gelu", "round")),
    *(call(f"{name}.default", EMPTY) for name in ("exp", "softplus")),
    *(call(f"{name}.default", WHOLE) for name in ("abs", "neg", "sign", "relu")),
    *(call(f"{name}.default", WHOLE) for name in ("bitwise_not", "logical_not")),
    call("bitwise_not.default", TRUTH),
    call("logical_not.default", REAL),
    call("sqrt.default", np.zeros(3, np.float32)[:0]),
    call("round.default", HALVES),
    call("round.decimals", REAL, decimals=1),
    call("round.decimals", REAL * 37, decimals=-1),
    # activations with numbers of their own
    call("gelu.default", REAL, approximate="tanh"),
    call("elu.default", REAL, 0.7, 1.3, 0.5),
    call("celu.default", REAL, 1.5),
    call("leaky_relu.default", REAL, 0.3),
    call("hardtanh.default", REAL, -0.5, 0.5),
    call("softplus.default", REAL, 2.0, 5.0),
    call("softshrink.default", REAL, 0.4),
    call("hardshrink.default", REAL, 0.4),
    call("threshold.default", REAL, 0.5, -3.0),
    call("prelu.default", REAL, SCALAR[None]),
    call("prelu.default", OTHER, ROW),
    call("prelu.default", np.ones((2, 3, 2, 2), np.float32) * -1.5, ROW),
    call("prelu.default", ROW, SCALAR[None]),
    # arithmetic
    call("add.Tensor", OTHER, ROW),
    call("add.Tensor", OTHER, ROW, alpha=2),
    call("add.Tensor", OTHER, WHOLE),
    call("add.Tensor", OTHER, SCALAR),
    call("add.Tensor", TRUTH, TRUTH),
    call("add.Scalar", WHOLE, 2),
    call("sub.Tensor", OTHER, ROW, alpha=0.5),
    call("sub.Tensor", ROW, OTHER),
    call("sub.Scalar", OTHER, 2),
    call("mul.Tensor", OTHER, ROW),
    call("mul.Tensor", OTHER, TRUTH),
    call("mul.Scalar", OTHER, 3),
    call("div.Tensor", OTHER, ROW),
    call("div.Tensor", WHOLE, BITS),
    call("div.Scalar", WHOLE, 2),
    *(call("div.Tensor_mode", REAL, 0.3 + 0 * REAL, rounding_mode=m) for m in ("floor", "trunc")),
    *(call("div.Tensor_mode", WHOLE, BITS, rounding_mode=m) for m in ("floor", "trunc", None)),
    *(call("div.Scalar_mode", REAL, -0.7, rounding_mode=m) for m in ("floor", "trunc", None)),
    call("div.Tensor_mode", OTHER, ROW, rounding_mode=None),
    call("fmod.Tensor", OTHER, ROW),
    call("fmod.Scalar", REAL, 0.7),
    call("fmod.Scalar", WHOLE, 3),
    call("remainder.Tensor", OTHER, ROW),
    call("remainder.Scalar", REAL, 0.7),
    call("remainder.Scalar", REAL, -0.7),
    call("remainder.Scalar", WHOLE, 3),
    *(call("pow.Tensor_Scalar", OTHER, power) for power in (2, 3, -1, 1.0, 0, -2, 5)),
    *(call("pow.Tensor_Scalar", POSITIVE, power) for power in (0.5, 2.5, -0.5, 1 / 3)),
    call("pow.Tensor_Scalar", np.zeros(3, np.float32), 2),
    call("pow.Tensor_Scalar", np.zeros(3, np.float32), 0),
    call("pow.Tensor_Scalar", np.zeros(3, np.float32), 1.5),
    call("pow.Tensor_Scalar", WHOLE, 2),
    call("pow.Tensor_Tensor", POSITIVE, OTHER),
    call("pow.Tensor_Tensor", OTHER, BITS),
    call("pow.Scalar", 2, OTHER),
    call("pow.Scalar", 2.5, OTHER),
    call("atan2.default", OTHER, ROW),
    call("hypot.default", OTHER, ROW),
    call("maximum.default", OTHER, np.minimum(OTHER, 0.3)),
    call("minimum.default", OTHER, np.minimum(OTHER, 0.3)),
    call("maximum.default", FAR, OTHER),
    call("maximum.default", WHOLE, BITS),
    # bounds
    call("clamp.default", REAL, -0.5, 0.5),
    call("clamp.default", REAL, 0.5),
    call("clamp.default", REAL, None, 0.5),
    call("clamp.default", REAL, 0.5, -0.5),
    call("clamp.default", FAR, -1, 1),
    call("clamp.default", WHOLE, 0, 3),
    call("clamp.Tensor", OTHER, ROW - 1, ROW + 1),
    call("clamp.Tensor", OTHER, OTHER),
    call("clamp.Tensor", OTHER, None, OTHER),
    call("clamp.Tensor", OTHER, ROW),
    # comparisons, bits
    *(call(f"{name}.Tensor", OTHER, np.minimum(OTHER, 0.3)) for name in COMPARED),
    *(call(f"{name}.Scalar", REAL, 0.5) for name in COMPARED),
    *(call(f"{name}.Scalar", WHOLE, 1) for name in COMPARED),
    *(call(f"bitwise_{n}.Tensor", WHOLE, BITS) for n in ("and", "or", "xor")),
    *(call(f"bitwise_{n}.Tensor", TRUTH, TRUTH[:1]) for n in ("and", "or", "xor")),
    *(call(f"bitwise_{n}.Scalar", WHOLE, 3) for n in ("and", "or", "xor")),
    *(call(f"logical_{n}.default", OTHER, MILD) for n in ("and", "or", "xor")),
    *(call(f"logical_{n}.default", TRUTH, TRUTH[:1]) for n in ("and", "or", "xor")),
    # choices
    call("where.self", TRUTH, OTHER, ROW),
    call("where.self", TRUTH[:, :1], SCALAR, OTHER),
    # copies
    call("_neg_view.default", OTHER),
    call("alias.default", OTHER),
    call("lift_fresh_copy.default", WHOLE),
    call("clone.default", OTHER),
    call("clone.default", OTHER, memory_format=torch.contiguous_format),
    call("_to_copy.default", REAL, dtype=torch.int32),
    call("_to_copy.default", REAL, dtype=torch.bool),
    call("_to_copy.default", WHOLE, dtype=torch.float32),
    call("copy.default", WHOLE, OTHER),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)
