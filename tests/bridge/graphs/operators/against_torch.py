"""An operator in JAX beside PyTorch's own of the same name: values and gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bridge.graphs.operators import OPERATORS

TOLERANCE = 1e-5  # of the largest number


@dataclass(frozen=True)
class Call:
    """An operator with its arguments, arrays among them; gradients for those of float32."""

    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    fixed: tuple[np.ndarray, ...] = ()

    def of_fixed(self, *arrays: np.ndarray) -> "Call":
        """For arrays of which PyTorch has no gradient."""
        return replace(self, fixed=arrays)

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


def assert_equals_torch(tried: Call) -> None:
    leaves, structure = jax.tree.flatten((list(tried.arguments), tried.options))
    tensors = [torch.tensor(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    inputs = [tensors[i].requires_grad_() for i in _differentiable(tried, leaves)]
    theirs = _in_torch(tried.operator, jax.tree.unflatten(structure, tensors))
    ours, our_gradients = _in_jax(tried, leaves, structure, theirs)
    assert len(ours) == len(theirs)
    read = [i for i, value in enumerate(ours) if value is not None]
    for i in read:
        _assert_close(ours[i], theirs[i].detach().resolve_conj().resolve_neg().numpy(), "values")
    their_gradients = _gradients([theirs[i] for i in read], inputs)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        _assert_close(mine, other, "gradients")


def _in_torch(name: str, given: tuple[list[Any], dict[str, Any]]) -> list[torch.Tensor]:
    _, packet, overload = name.split(".")
    arguments, options = given
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


def _differentiable(tried: Call, leaves: Sequence[Any]) -> list[int]:
    return [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, np.ndarray)
        and leaf.dtype.kind in "fc"
        and not any(leaf is one for one in tried.fixed)
    ]


def _cotangent(value: Any) -> np.ndarray:
    """Random, the same for both."""
    shape, generator = tuple(value.shape), np.random.default_rng(len(value.shape))
    drawn = generator.normal(size=shape).astype(np.float32)
    if "complex" in str(value.dtype):
        return (drawn + 1j * generator.normal(size=shape)).astype(np.complex64)
    return drawn


def _in_jax(
    tried: Call, leaves: Sequence[Any], structure: Any, theirs: Sequence[torch.Tensor]
) -> tuple[list[Any], list[Any]]:
    """One program for values and gradients: compiling is what takes the time."""
    smooth = _differentiable(tried, leaves)
    whole = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and i not in smooth]

    @jax.jit
    def computed(given: list[Any], fixed: list[Any]) -> tuple[list[Any], list[Any]]:
        def values_of(given: list[Any]) -> tuple[list[Any], list[Any]]:
            all_of_them = [None if isinstance(leaf, torch.dtype) else leaf for leaf in leaves]
            for place, value in zip([*smooth, *whole], [*given, *fixed], strict=True):
                all_of_them[place] = value
            arguments, options = jax.tree.unflatten(structure, all_of_them)
            values = OPERATORS[tried.operator](*arguments, **options)
            if not isinstance(values, list | tuple):  # as a graph's node does
                dtype = str(theirs[0].dtype).removeprefix("torch.")
                values = [jnp.asarray(values, jax.dtypes.canonicalize_dtype(dtype))]
            return [v for v in values if v is not None and v.dtype.kind in "fc"], list(values)

        found, vjp, values = jax.vjp(values_of, given, has_aux=True)
        # The gradient of a complex number is conjugate in PyTorch.
        (gradients,) = vjp([jnp.conj(jnp.asarray(_cotangent(value))) for value in found])
        return values, [jnp.conj(one) for one in gradients]

    values, gradients = computed([leaves[i] for i in smooth], [leaves[i] for i in whole])
    return values, gradients


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
