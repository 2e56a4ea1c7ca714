"""Problems with known input curvature, and oracles that share no code with the package."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcurv import Curvature, input_curvature
from jaxcurv.engine import probe
from jaxcurv.estimators import (
    Distribution,
    Estimator,
    FiniteDifference,
    HessianTrace,
    HessianVector,
    Probed,
    Published,
)

KEY = jax.random.key(7)
draw = jax.jit(probe, static_argnums=(0, 4, 5))


def probes(
    distribution: Distribution, indices: np.ndarray, count: int, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """The probes of a run, `[count, batch, *shape]`, for formulas written out in NumPy."""
    return np.stack(
        [draw(distribution, KEY, jnp.asarray(indices), n, shape, dtype) for n in range(count)]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def softmax_hessian(logits: np.ndarray) -> np.ndarray:
    """diag(p) - p p^T."""
    p = softmax(logits)
    return np.eye(p.shape[-1]) * p[..., None] - p[..., None] * p[..., None, :]


# --- small networks in float64, whose cross-entropy has a Hessian in closed form

SIZE, DISTINCT, ROWS = 4, 24, 3000
"""Pixels; different images; rows of a batch. The rows after the different images repeat the first
one under an index of their own: the same sample with independent probes each time."""


@dataclass(frozen=True)
class Network:
    """A model twice, in JAX and in PyTorch, with its derivatives in closed form."""

    model: Callable[[Any, jax.Array], jax.Array]
    torch_model: Callable[[Any, Any], Any]
    params: tuple[np.ndarray, ...]
    images: np.ndarray
    """`[DISTINCT, SIZE]`."""
    labels: np.ndarray
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Gradient of the loss, `(images [n, SIZE], labels [n]) -> [n, SIZE]`."""
    hessian: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """`[n, SIZE, SIZE]`."""


@jax.jit
def quadratic(params: Any, images: jax.Array) -> jax.Array:
    """Logits whose cross-entropy with label 0 is 1 + x.A x / 2, for any positive A.

    softplus(z) = q has the solution z = log(exp(q) - 1).
    """
    (matrix,) = params
    q = 1 + jnp.einsum("bi,ij,bj->b", images, matrix, images) / 2
    return jnp.stack([jnp.zeros_like(q), q + jnp.log(-jnp.expm1(-q))], axis=-1)


@jax.jit
def logistic(params: Any, images: jax.Array) -> jax.Array:
    (w,) = params
    z = images @ w + 0.3
    return jnp.stack([jnp.zeros_like(z), z], axis=-1)


@jax.jit
def two_layers(params: Any, images: jax.Array) -> jax.Array:
    first, second = params
    return jax.nn.relu(images @ first) @ second


def _quadratic() -> Network:
    root = np.random.default_rng(1).normal(size=(SIZE, SIZE))
    matrix = root @ root.T

    def torch_model(params: Any, x: Any) -> Any:
        torch = pytest.importorskip("torch")
        q = 1 + (x @ params[0] * x).sum(1) / 2
        return torch.stack([torch.zeros_like(q), q + torch.log(-torch.expm1(-q))], dim=1)

    return Network(
        quadratic,
        torch_model,
        (matrix,),
        np.random.default_rng(2).normal(size=(DISTINCT, SIZE)),
        np.zeros(DISTINCT, int),
        lambda x, y: x @ matrix,
        lambda x, y: np.broadcast_to(matrix, (len(x), SIZE, SIZE)),
    )


def _logistic() -> Network:
    rng = np.random.default_rng(3)
    w = rng.normal(size=SIZE)

    def torch_model(params: Any, x: Any) -> Any:
        torch = pytest.importorskip("torch")
        z = x @ params[0] + 0.3
        return torch.stack([torch.zeros_like(z), z], dim=1)

    def sigma(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(x @ w + 0.3)))

    return Network(
        logistic,
        torch_model,
        (w,),
        rng.normal(size=(DISTINCT, SIZE)),
        np.arange(DISTINCT) % 2,
        lambda x, y: np.outer(sigma(x) - y, w),
        lambda x, y: (sigma(x) * (1 - sigma(x)))[:, None, None] * np.outer(w, w),
    )


def _two_layers() -> Network:
    rng, hidden, classes = np.random.default_rng(4), 9, 6
    first, second = rng.normal(size=(SIZE, hidden)), rng.normal(size=(hidden, classes))

    def jacobian(x: np.ndarray) -> np.ndarray:
        """W1^T D W2^T transposed, `[n, SIZE, classes]`: D says which hidden units are active."""
        return (first * (x @ first > 0)[:, None, :]) @ second

    def logits(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ first, 0) @ second

    return Network(
        two_layers,
        lambda params, x: (x @ params[0]).relu() @ params[1],
        (first, second),
        0.7 * rng.normal(size=(DISTINCT, SIZE)),
        rng.integers(0, classes, DISTINCT),
        lambda x, y: np.einsum("nic,nc->ni", jacobian(x), softmax(logits(x)) - np.eye(classes)[y]),
        lambda x, y: jacobian(x) @ softmax_hessian(logits(x)) @ jacobian(x).swapaxes(1, 2),
    )


NETWORKS = {"quadratic": _quadratic(), "logistic": _logistic(), "two layers": _two_layers()}


@lru_cache
def scored(name: str, estimator: Estimator) -> Curvature:
    """Scores in float64 of the different images and the repeated one, `[ROWS]`."""
    network = NETWORKS[name]
    rows = np.zeros(ROWS, int)
    rows[:DISTINCT] = np.arange(DISTINCT)
    with jax.enable_x64(True):
        return input_curvature(
            network.model,
            network.images[rows],
            network.labels[rows],
            indices=np.arange(ROWS),
            key=KEY,
            params=network.params,
            estimator=estimator,
        )


def repeated(values: np.ndarray | None) -> np.ndarray:
    """The scores of the repeated image."""
    assert values is not None
    return values[DISTINCT:]


# --- three oracles for the first and second derivatives


def jax_hessian(network: Network, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(network.model(network.params, x[None])[0])[y]

    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(jax.hessian(loss)))(images, labels))


def torch_gradient(network: Network, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return torch_derivatives(network.torch_model, network.params, images, labels)[0]


def torch_hessian(network: Network, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return torch_derivatives(network.torch_model, network.params, images, labels, second=True)[1]


def torch_derivatives(
    model: Callable[[Any, Any], Any],
    params: Any,
    images: np.ndarray,
    labels: np.ndarray,
    second: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient `[n, d]` and, where asked, Hessian `[n, d, d]` of the cross-entropy, in float64."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(images, dtype=torch.float64, requires_grad=True)
    tensors = jax.tree.map(lambda p: torch.tensor(np.asarray(p), dtype=torch.float64), params)
    logits = model(tensors, x)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=second)
    gradient, rows = gradient.flatten(1), []
    if second:
        for column in gradient.sum(0):
            (row,) = torch.autograd.grad(column, x, retain_graph=True)
            rows.append(row.flatten(1).numpy())
    return gradient.detach().numpy(), np.stack(rows, axis=1) if rows else np.empty(0)


@dataclass(frozen=True)
class Oracle:
    gradient: Callable[[Network, np.ndarray, np.ndarray], np.ndarray]
    hessian: Callable[[Network, np.ndarray, np.ndarray], np.ndarray]


ORACLES = {
    "closed form": Oracle(
        lambda network, x, y: network.gradient(x, y), lambda network, x, y: network.hessian(x, y)
    ),
    "pytorch": Oracle(torch_gradient, torch_hessian),
}

HESSIANS = {name: oracle.hessian for name, oracle in ORACLES.items()} | {"jax.hessian": jax_hessian}


@lru_cache
def hessians(name: str, oracle: str) -> np.ndarray:
    """Hessians of the different images, `[DISTINCT, SIZE, SIZE]`."""
    network = NETWORKS[name]
    return HESSIANS[oracle](network, network.images, network.labels)


def expected_draws(name: str, oracle: str, estimator: Probed) -> tuple[np.ndarray, np.ndarray]:
    """What each probe gives for the different images by the definition, `[probes, DISTINCT]`:
    a norm, and a quadratic form whose mean estimates the trace."""
    network, probing = NETWORKS[name], estimator.probing
    with jax.enable_x64(True):
        v = probes(
            probing.distribution, np.arange(DISTINCT), estimator.probes, (SIZE,), jnp.float64
        )
    v = v + probing.offset
    if probing.step is None:
        change = np.einsum("bij,nbj->nbi", hessians(name, oracle), v)
        return np.linalg.norm(change, axis=-1), np.sum(v * change, axis=-1)
    gradient = ORACLES[oracle].gradient
    moved = (network.images + probing.step * v).reshape(-1, SIZE)
    ends = gradient(network, moved, np.tile(network.labels, estimator.probes)).reshape(v.shape)
    change = ends - gradient(network, network.images, network.labels)
    return np.linalg.norm(change, axis=-1), np.sum(v * change, axis=-1) / probing.step


def score_draws(name: str, oracle: str, estimator: Probed) -> np.ndarray:
    """What each probe contributes to the score, `[probes, DISTINCT]`."""
    norms, forms = expected_draws(name, oracle, estimator)
    match estimator:
        case HessianTrace():
            return forms
        case Published():
            return norms / estimator.batch_size
        case FiniteDifference() | HessianVector():
            return norms


# --- a convolutional network with kinks, in float32

CONV_INDICES = np.arange(16) * 3


def _convnet_data() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 8), "c": (8, 6)}
    params = {k: rng.normal(size=s) * np.sqrt(4 / np.prod(s[:-1])) for k, s in shapes.items()}
    images = rng.normal(size=(16, 8, 8, 2))
    return (
        {name: w.astype(np.float32) for name, w in params.items()},
        images.astype(np.float32),
        rng.integers(0, 6, 16),
    )


CONV_PARAMS, CONV_IMAGES, CONV_LABELS = _convnet_data()


@jax.jit
def convnet(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Convolution, ReLU, strided convolution, ReLU, mean, linear: `[batch, 8, 8, 2]` in."""

    def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = jax.nn.relu(convolve(images, params["a"], 1))
    x = jax.nn.relu(convolve(x, params["b"], 2))
    return jnp.mean(x, axis=(1, 2)) @ params["c"]


def torch_convnet(params: Any, images: Any) -> Any:
    """The same on `[batch, 2, 8, 8]`."""
    functional = pytest.importorskip("torch").nn.functional
    a, b = (params[name].permute(3, 2, 0, 1) for name in "ab")
    x = functional.conv2d(images, a, padding=1).relu()
    x = functional.conv2d(x, b, stride=2, padding=1).relu()
    return x.mean((2, 3)) @ params["c"]


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -1, -3))


@lru_cache
def convnet_hessian() -> np.ndarray:
    """By PyTorch in float64, `[16, 128, 128]`, in the order of channels first."""
    images = channels_first(CONV_IMAGES)
    return torch_derivatives(torch_convnet, CONV_PARAMS, images, CONV_LABELS, second=True)[1]


def score_convnet(estimator: Estimator, **changed: Any) -> Curvature:
    """Scores of the network's 16 images, or of what `changed` puts in their place."""
    batch: dict[str, Any] = {
        "images": CONV_IMAGES,
        "labels": CONV_LABELS,
        "indices": CONV_INDICES,
        "params": CONV_PARAMS,
    }
    return input_curvature(convnet, **(batch | changed), key=KEY, estimator=estimator)
