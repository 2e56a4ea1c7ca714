"""Operators that treat each number by itself: arithmetic, comparisons, activations."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array

Number = Any  # an array or a number


def add(a: Number, b: Number, *, alpha: float = 1) -> Array:
    return jnp.add(a, b if alpha == 1 else jnp.multiply(alpha, b))


def subtract(a: Number, b: Number, *, alpha: float = 1) -> Array:
    return jnp.subtract(a, b if alpha == 1 else jnp.multiply(alpha, b))


def divide(a: Number, b: Number, *, rounding_mode: str | None = None) -> Array:
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b)
    quotient = jnp.true_divide(a, b)
    return jnp.trunc(quotient) if rounding_mode == "trunc" else quotient


def clamp(x: Array, minimum: Number | None = None, maximum: Number | None = None) -> Array:
    """Slope 1 at the bounds, as in PyTorch."""
    if minimum is not None:
        x = jnp.where(x < minimum, minimum, x)
    if maximum is not None:
        x = jnp.where(x > maximum, maximum, x)
    return x


def hardtanh(x: Array, minimum: float = -1.0, maximum: float = 1.0) -> Array:
    """Slope 0 at the bounds, as in PyTorch."""
    return jnp.where(x <= minimum, minimum, jnp.where(x >= maximum, maximum, x))


def relu6(x: Array) -> Array:
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: Array) -> Array:
    return hardtanh(x + 3, 0.0, 6.0) / 6


def hardswish(x: Array) -> Array:
    """0 below -3, x above 3, and x (x + 3) / 6 between."""
    return jnp.where(x <= -3, 0.0, jnp.where(x >= 3, x, x * (x + 3) / 6))


def gelu(x: Array, *, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    negative = jnp.where(x > 0, 0.0, x) * input_scale
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(negative))


def celu(x: Array, alpha: float = 1.0) -> Array:
    return elu(x, alpha, 1.0, 1 / alpha)


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    return jnp.where(x > 0, x, negative_slope * x)


def prelu(x: Array, weight: Array) -> Array:
    """One slope, or one for each channel, which is the second axis."""
    if weight.size > 1 and x.ndim > 1:
        weight = weight.reshape(1, -1, *(1 for _ in x.shape[2:]))
    return jnp.where(x > 0, x, weight * x)


def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above the threshold."""
    scaled = x * beta
    soft = jnp.logaddexp(jnp.minimum(scaled, threshold), 0.0) / beta
    return jnp.where(scaled > threshold, x, soft)


def mish(x: Array) -> Array:
    return x * jnp.tanh(softplus(x))


def softshrink(x: Array, width: float = 0.5) -> Array:
    return jnp.where(x > width, x - width, jnp.where(x < -width, x + width, 0.0))


def hardshrink(x: Array, width: float = 0.5) -> Array:
    return jnp.where((x > width) | (x < -width), x, 0.0)


def threshold(x: Array, least: float, value: float) -> Array:
    return jnp.where(x <= least, value, x)


def absolute(x: Array) -> Array:
    """Slope 0 at 0, as in PyTorch."""
    if not jnp.iscomplexobj(x):
        return x * jnp.sign(x)
    none = x == 0
    return jnp.where(none, 0.0, jnp.abs(jnp.where(none, 1.0, x)))


def rounded(x: Array, *, decimals: int = 0) -> Array:
    return jnp.round(x, decimals)


def square_root(x: Array) -> Array:
    return jnp.sqrt(x)


def rsqrt(x: Array) -> Array:
    return jax.lax.rsqrt(jnp.asarray(x))


def reciprocal(x: Array) -> Array:
    return jnp.reciprocal(x)


def power(a: Number, b: Number) -> Array:
    if isinstance(b, int | float) and float(b).is_integer() and abs(b) < 64:
        return jax.lax.integer_pow(jnp.asarray(a), int(b))
    return jnp.power(a, b)


def where(condition: Array, a: Number, b: Number) -> Array:
    return jnp.where(condition, a, b)


def identity(x: Array, **_: Any) -> Array:
    """What changes where a value lies, or its dtype, which the graph says of each node."""
    return x


def copied(x: Array, source: Array, non_blocking: bool = False) -> Array:
    return jnp.broadcast_to(source, x.shape)


def checked(*_: Any, **__: Any) -> None:
    """An assertion of the exporter, which has checked it on the example."""


_UNARY: dict[str, Callable[..., Any]] = {
    "abs": absolute,
    "acos": jnp.arccos,
    "acosh": jnp.arccosh,
    "asin": jnp.arcsin,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "atanh": jnp.arctanh,
    "bitwise_not": jnp.invert,
    "ceil": jnp.ceil,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "floor": jnp.floor,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "isinf": jnp.isinf,
    "isnan": jnp.isnan,
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "log_sigmoid": jax.nn.log_sigmoid,
    "logical_not": jnp.logical_not,
    "mish": mish,
    "neg": jnp.negative,
    "_neg_view": jnp.negative,
    "reciprocal": reciprocal,
    "relu": jax.nn.relu,
    "relu6": relu6,
    "round": rounded,
    "rsqrt": rsqrt,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "sqrt": square_root,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "trunc": jnp.trunc,
}

_COMPARED: dict[str, Callable[..., Any]] = {
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "eq": jnp.equal,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "ne": jnp.not_equal,
    "fmod": jnp.fmod,
    "remainder": jnp.remainder,
    "mul": jnp.multiply,
}

_SYMBOLIC: dict[str, Callable[..., Any]] = {  # of sizes, numbers of Python
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "mod": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "eq": operator.eq,
    "ne": operator.ne,
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "and_": operator.and_,
    "or_": operator.or_,
    "not_": operator.not_,
    "getitem": operator.getitem,
}

TABLE: dict[str, Callable[..., Any]] = {
    **{f"aten.{name}.default": function for name, function in _UNARY.items()},
    **{f"aten.{name}.Tensor": function for name, function in _COMPARED.items()},
    **{f"aten.{name}.Scalar": function for name, function in _COMPARED.items()},
    **{f"operator.{name}": function for name, function in _SYMBOLIC.items()},
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "aten.add.Tensor": add,
    "aten.add.Scalar": add,
    "aten.sub.Tensor": subtract,
    "aten.sub.Scalar": subtract,
    "aten.div.Tensor": divide,
    "aten.div.Scalar": divide,
    "aten.div.Tensor_mode": divide,
    "aten.div.Scalar_mode": divide,
    "aten.pow.Tensor_Scalar": power,
    "aten.pow.Tensor_Tensor": power,
    "aten.pow.Scalar": power,
    "aten.atan2.default": jnp.arctan2,
    "aten.hypot.default": jnp.hypot,
    "aten.maximum.default": jnp.maximum,
    "aten.minimum.default": jnp.minimum,
    "aten.logical_and.default": jnp.logical_and,
    "aten.logical_or.default": jnp.logical_or,
    "aten.logical_xor.default": jnp.logical_xor,
    "aten.round.decimals": rounded,
    "aten.clamp.default": clamp,
    "aten.clamp.Tensor": clamp,
    "aten.hardtanh.default": hardtanh,
    "aten.gelu.default": gelu,
    "aten.elu.default": elu,
    "aten.celu.default": celu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.prelu.default": prelu,
    "aten.softplus.default": softplus,
    "aten.softshrink.default": softshrink,
    "aten.hardshrink.default": hardshrink,
    "aten.threshold.default": threshold,
    "aten.where.self": where,
    "aten.alias.default": identity,
    "aten.clone.default": identity,
    "aten._to_copy.default": identity,
    "aten.lift_fresh_copy.default": identity,
    "aten.copy.default": copied,
    "aten._assert_scalar.default": checked,
    "aten._assert_async.msg": checked,
    "aten._assert_tensor_metadata.default": checked,
    "aten.sym_constrain_range_for_size.default": checked,
    "aten.sym_constrain_range.default": checked,
}
