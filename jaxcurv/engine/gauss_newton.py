"""Spectrum of the Gauss-Newton matrix G = V V^T, V = J^T A, of every sample of a batch.

See `GaussNewton` and `LowRankGaussNewton` for the quantities. One small program computes one
column, and is dispatched once a column.

No program calls LAPACK: on a CPU each batched call waits for threads of the pool that it runs in,
and with as many devices as threads all wait for ever. Eigenvalues are the host's work.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from jaxcurv.engine.losses import as_targets, hessian_root
from jaxcurv.engine.model import Problem
from jaxcurv.engine.norms import norm
from jaxcurv.engine.probes import probe
from jaxcurv.estimators import Distribution, LowRankGaussNewton


class Linearised(NamedTuple):
    """A model at a batch of images."""

    pullback: Any
    """VJP of the logits."""
    pushforward: Any
    """JVP of the logits, where kept."""
    root: Float[Array, "batch classes columns"]
    """A, see `hessian_root`."""


def spectrum(linearised: Linearised) -> dict[str, Array]:
    """Trace and Frobenius norm `[batch]` of G, and the Gram matrix `[batch, columns, columns]`."""
    count = linearised.root.shape[2]
    columns = [_column(*_reverse(linearised), jnp.uint32(k)) for k in range(count)]
    return _gram_spectrum(columns)


def low_rank_spectrum(
    linearised: Linearised,
    estimator: LowRankGaussNewton,
    images: Array,
    indices: Integer[Array, " batch"],
    key: Key[Array, ""],
) -> dict[str, Array]:
    """Trace within a random subspace `[batch]`, that outside it by probe `[batch, probes]`, and
    the Gram matrix within `[batch, rank, rank]`."""
    rank = min(estimator.rank, linearised.root.shape[2], images.size // len(images))
    draw = partial(_random_column, *_reverse(linearised), indices, key)
    # Of few classes, sign vectors are often parallel.
    q = _orthonormal([draw(jnp.uint32(k), "gaussian") for k in range(rank)])
    rows = [_row(linearised.pushforward, linearised.root, one, images) for one in q]
    inside, gram = _inside(rows)
    # Vectors of their own: the residual must not know those that made the subspace.
    numbers = range(rank, rank + estimator.probes)
    outside = [_outside(q, draw(jnp.uint32(k), "rademacher")) for k in numbers]
    return {"trace": inside, "outside": jnp.stack(outside, axis=1), "gram": gram}


def hessian_mismatch(
    problem: Problem, params: Any, images: np.ndarray, labels: np.ndarray
) -> float:
    """Largest || H v - G v || over the largest || H v || of a few samples, one random v each.

    Rounding where the model is piecewise linear; the share of the model's own second derivative
    where it is not. Not each sample's own ratio: a saturated one's products are rounding alone.

    Raises:
      ValueError: the model has a `jax.custom_vjp`, which has no derivative in forward mode.
    """
    try:
        hv, gv = _products(problem, params, jnp.asarray(images), jnp.asarray(as_targets(labels)))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            "GaussNewton and LowRankGaussNewton push vectors forward through the model, which a "
            "jax.custom_vjp in it does not allow: write its rule as a jax.custom_jvp, or take "
            "HessianVector"
        ) from error
    wide = [np.asarray(p, np.float64).reshape(len(p), -1) for p in (hv, gv)]
    largest = max(np.linalg.norm(p, axis=1).max() for p in wide)
    off = np.linalg.norm(wide[0] - wide[1], axis=1).max()
    return float(off / largest) if largest > 0 else 0.0


@partial(jax.jit, static_argnames="problem")
def _products(problem: Problem, params: Any, x: Array, y: Array) -> tuple[Array, Array]:
    v = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    model = partial(problem.model, params)

    def total(x: Array) -> Array:
        return jnp.sum(problem.loss(model(x), y))

    hv = jax.jvp(jax.grad(total), (x,), (v,))[1]
    logits, pullback = jax.vjp(model, x)
    root = hessian_root(problem.loss, logits, y)
    pushed = jax.jvp(model, (x,), (v,))[1]
    (gv,) = pullback(jnp.einsum("bck,bdk,bd->bc", root, root, pushed))
    return hv, gv


def _reverse(linearised: Linearised) -> tuple[Any, Array]:
    return linearised.pullback, linearised.root


@jax.jit
def _column(pullback: Any, root: Array, number: Array) -> Array:
    (column,) = pullback(jnp.take(root, number, axis=2))
    return column


@partial(jax.jit, static_argnames="distribution")
def _random_column(
    pullback: Any,
    root: Array,
    indices: Array,
    key: Array,
    number: Array,
    distribution: Distribution,
) -> Array:
    w = probe(distribution, key, indices, number, root.shape[2:], root.dtype)
    (column,) = pullback(jnp.einsum("bck,bk->bc", root, w))
    return column


@jax.jit
def _gram_spectrum(columns: list[Array]) -> dict[str, Array]:
    v = jnp.stack([column.reshape(len(column), -1) for column in columns], axis=1)
    gram = jnp.einsum("bid,bjd->bij", v, v)
    return {
        "trace": jnp.trace(gram, axis1=1, axis2=2),
        "frobenius_norm": norm(gram),
        "gram": gram,
    }


@jax.jit
def _orthonormal(columns: list[Array]) -> list[Array]:
    """An orthonormal basis of the columns' span, `[batch, size]` each.

    By Gram-Schmidt, each column twice, for what rounding leaves of the others after the first time.
    A column that the others span becomes 0, which adds nothing to the basis.
    """
    basis: list[Array] = []
    for column in columns:
        z = column.reshape(len(column), -1)
        before = norm(z)
        for _ in range(2):
            for q in basis:
                z -= jnp.sum(q * z, axis=1, keepdims=True) * q
        left = norm(z)
        spanned = left <= 16 * jnp.finfo(z.dtype).eps * before
        basis.append(jnp.where(spanned, 0, z.T / jnp.where(spanned, 1, left)).T)
    return basis


@jax.jit
def _row(pushforward: Any, root: Array, q: Array, images: Array) -> Array:
    """V^T q, `[batch, columns]`."""
    return jnp.einsum("bck,bc->bk", root, pushforward(q.reshape(images.shape)))


@jax.jit
def _inside(rows: list[Array]) -> tuple[Array, Array]:
    """Trace `[batch]` of Q^T G Q and the matrix itself, from V^T Q by column."""
    b = jnp.stack(rows, axis=1)
    return jnp.sum(jnp.square(b), axis=(1, 2)), jnp.einsum("bik,bjk->bij", b, b)


@jax.jit
def _outside(q: list[Array], column: Array) -> Array:
    """Squared length of the part of a column outside the span of q, `[batch]`."""
    z = column.reshape(len(column), -1)
    basis = jnp.stack(q)
    z -= jnp.einsum("kbd,kb->bd", basis, jnp.einsum("kbd,bd->kb", basis, z))
    return jnp.sum(jnp.square(z), axis=1)


def eigenvalues(gram: np.ndarray) -> np.ndarray:
    """Eigenvalues `[batch, k]`, descending, of positive matrices `[batch, k, k]`; in float64."""
    found = np.linalg.eigvalsh(gram.astype(np.float64))[:, ::-1]
    # Rounding may push the zero ones below zero.
    return np.maximum(found, 0).astype(gram.dtype)
