"""An operator in JAX beside PyTorch's own of the same name: values and gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bridge.graphs.operators import OPERATORS

TOLERANCE = 1e-5  # of the largest number
# Compiling is what takes the time, much of it for each program and much of it LLVM's.
TOGETHER = 48  # cases in one program
QUICKLY = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True, eq=False)
class Call:
    """An operator with its arguments, arrays among them; gradients for those of float32."""

    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    fixed: tuple[np.ndarray, ...] = ()

    def of_fixed(self, *arrays: np.ndarray) -> "Call":
        """For arrays of which PyTorch has no gradient."""
        return replace(self, fixed=arrays)

    def differentiable(self) -> list[bool]:
        """For each of its arrays."""
        return [
            array.dtype.kind in "fc" and not any(array is one for one in self.fixed)
            for array in self.arrays()
        ]

    def arrays(self) -> list[np.ndarray]:
        leaves = jax.tree.leaves((list(self.arguments), self.options))
        return [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]

    def given(self, arrays: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with others in the place of its arrays."""
        leaves, structure = jax.tree.flatten((list(self.arguments), self.options))
        others = iter(arrays)
        filled = [next(others) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        arguments, options = jax.tree.unflatten(structure, filled)
        return arguments, options

    def __str__(self) -> str:
        told = [*map(_told, self.arguments), *(f"{k}={_told(v)}" for k, v in self.options.items())]
        return f"{self.operator.removeprefix('aten.')}({', '.join(told)})"


def call(name: str, *arguments: Any, **options: Any) -> Call:
    return Call(f"aten.{name}", arguments, options)


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_told, value))}]"
    return str(value)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_equals_torch(tried: Call, cases: Sequence[Call]) -> None:
    """For one of many cases: the first that is asked for computes its neighbours too."""
    if tried not in _FOUND:
        first = cases.index(tried) // TOGETHER * TOGETHER
        _FOUND.update(_in_jax(cases[first : first + TOGETHER]))
    _assert_same(tried, _FOUND[tried])


def assert_all_equal_torch(tried: Sequence[Call]) -> None:
    """For some cases in one program."""
    for one, found in _in_jax(tried).items():
        try:
            _assert_same(one, found)
        except Exception as error:
            error.add_note(f"in {one}")
            raise


Results = tuple[list[Any], list[Any]]
"""Values of a call, and gradients for its differentiable arrays."""

_FOUND: dict[Call, Results | Exception] = {}


def _assert_same(tried: Call, found: Results | Exception) -> None:
    if isinstance(found, Exception):
        raise found
    ours, our_gradients = found
    tensors = [torch.tensor(array) for array in tried.arrays()]
    inputs = [
        tensor.requires_grad_()
        for tensor, smooth in zip(tensors, tried.differentiable(), strict=True)
        if smooth
    ]
    theirs = _in_torch(tried, tensors)
    assert len(ours) == len(theirs)
    read = [i for i, value in enumerate(ours) if value is not None]
    for i in read:
        _assert_close(ours[i], theirs[i].detach().resolve_conj().resolve_neg().numpy(), "values")
    their_gradients = _gradients([theirs[i] for i in read], inputs)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        _assert_close(mine, other, "gradients")


def _in_torch(tried: Call, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    _, packet, overload = tried.operator.split(".")
    arguments, options = tried.given(tensors)
    values = getattr(getattr(torch.ops.aten, packet), overload)(*arguments, **options)
    return list(values) if isinstance(values, list | tuple) else [values]


def _gradients(values: list[torch.Tensor], inputs: list[torch.Tensor]) -> list[np.ndarray]:
    """Zeros where PyTorch has none."""
    smooth = [value for value in values if value.requires_grad]
    found: Sequence[torch.Tensor | None] = [None] * len(inputs)
    if smooth:
        cotangents = [torch.from_numpy(_cotangent(value)) for value in smooth]
        found = torch.autograd.grad(smooth, inputs, cotangents, allow_unused=True)
    return [
        np.zeros(one.shape, np.float32) if got is None else got.resolve_conj().numpy(force=True)
        for one, got in zip(inputs, found, strict=True)
    ]


def _cotangent(value: Any) -> np.ndarray:
    """Random, the same for both."""
    shape, generator = tuple(value.shape), np.random.default_rng(len(value.shape))
    drawn = generator.normal(size=shape).astype(np.float32)
    if "complex" in str(value.dtype):
        return (drawn + 1j * generator.normal(size=shape)).astype(np.complex64)
    return drawn


def _in_jax(tried: Sequence[Call]) -> Mapping[Call, Results | Exception]:
    """All of them in one program; a call that fails has its error instead."""
    failed: dict[Call, Exception] = {}

    @partial(jax.jit, compiler_options=QUICKLY)
    def computed(given: list[list[Any]]) -> dict[int, Results]:
        found = {}
        for i, (one, arrays) in enumerate(zip(tried, given, strict=True)):
            try:
                found[i] = _values_and_gradients(one, arrays)
            except Exception as error:
                failed[one] = error
        return found

    found = computed([one.arrays() for one in tried])
    return {**failed, **{tried[i]: results for i, results in found.items()}}


def _values_and_gradients(tried: Call, arrays: Sequence[Any]) -> Results:
    smooth = tried.differentiable()

    def values_of(given: list[Any]) -> tuple[list[Any], list[Any]]:
        moved = iter(given)
        filled = [next(moved) if one else array for one, array in zip(smooth, arrays, strict=True)]
        arguments, options = tried.given(filled)
        options = {k: None if isinstance(v, torch.dtype) else v for k, v in options.items()}
        values = OPERATORS[tried.operator](*arguments, **options)
        if not isinstance(values, list | tuple):  # as a graph's node does
            dtype = str(_type(tried)).removeprefix("torch.")
            values = [jnp.asarray(values, jax.dtypes.canonicalize_dtype(dtype))]
        return [v for v in values if v is not None and v.dtype.kind in "fc"], list(values)

    given = [array for one, array in zip(smooth, arrays, strict=True) if one]
    found, vjp, values = jax.vjp(values_of, given, has_aux=True)
    # The gradient of a complex number is conjugate in PyTorch.
    (gradients,) = vjp([jnp.conj(jnp.asarray(_cotangent(value))) for value in found])
    return values, [jnp.conj(one) for one in gradients]


def _type(tried: Call) -> torch.dtype:
    """Dtype of PyTorch's value."""
    return _in_torch(tried, [torch.tensor(array) for array in tried.arrays()])[0].dtype


def _assert_close(ours: Any, theirs: np.ndarray, what: str) -> None:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} for {theirs.shape}"
    if theirs.dtype.kind not in "fc":
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
        return
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite], err_msg=what)
    if finite.any():
        bound = TOLERANCE * np.abs(theirs[finite]).max()
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=0, atol=bound, err_msg=what)
