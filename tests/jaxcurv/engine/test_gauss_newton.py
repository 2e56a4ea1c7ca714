"""Gauss-Newton: exact and from a random subspace, for cross-entropy and for other losses."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcurv import Curvature, GaussNewton, HessianVector, LowRankGaussNewton, input_curvature
from jaxcurv.curvature import inspect
from jaxcurv.data.reading import Batch
from jaxcurv.engine import cross_entropy
from jaxcurv.engine.losses import Loss, hessian_root
from jaxcurv.engine.model import Problem
from tests.oracles import (
    DISTINCT,
    HESSIANS,
    KEY,
    NETWORKS,
    ROWS,
    SIZE,
    convnet_hessian,
    hessians,
    probes,
    repeated,
    score_convnet,
    scored,
    softmax,
    softmax_hessian,
)

LOW_RANK = LowRankGaussNewton(rank=2, probes=3)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def trace(matrices: np.ndarray) -> np.ndarray:
    return np.trace(matrices, axis1=1, axis2=2)


# --- against closed forms, JAX's Hessian and PyTorch, in float64


@pytest.mark.parametrize("oracle", HESSIANS)
@pytest.mark.parametrize("name", ["logistic", "two layers"])
def test_spectrum_is_that_of_the_hessian(name: str, oracle: str) -> None:
    result, hessian = scored(name, GaussNewton()), hessians(name, oracle)
    assert result.measures == "trace of the Hessian"
    np.testing.assert_allclose(result.score[:DISTINCT], trace(hessian), rtol=1e-9)
    norms = np.linalg.norm(hessian, axis=(1, 2))
    assert result.frobenius_norm is not None
    np.testing.assert_allclose(result.frobenius_norm[:DISTINCT], norms, rtol=1e-9)
    assert result.eigenvalues is not None
    columns = 1 if name == "logistic" else 5
    assert result.eigenvalues.shape == (ROWS, columns)
    expected = np.zeros((DISTINCT, columns))  # of more classes than pixels, the last one is 0
    expected[:, :SIZE] = np.linalg.eigvalsh(hessian)[:, ::-1][:, :columns]
    np.testing.assert_allclose(result.eigenvalues[:DISTINCT], expected, atol=1e-12)


def test_an_exact_trace_has_no_error_and_no_probes() -> None:
    result = scored("two layers", GaussNewton())
    assert np.all(result.standard_error == 0)
    assert np.all(result.probes == 0)
    assert np.ptp(repeated(result.score)) < 1e-12
    assert result.hessian_trace is None
    assert result.residual_trace is None


def test_a_curved_model_has_a_gauss_newton_matrix_of_its_own() -> None:
    assert_trace_of_quadratic(scored("quadratic", GaussNewton()))


def assert_trace_of_quadratic(result: Curvature) -> None:
    """The Hessian of `quadratic` is A: z = log(exp(q) - 1), dz/dx = A x / s, s = sigma(z), and
    G = s (1 - s) dz/dx dz/dx^T = A x (A x)^T / (exp(q) - 1)."""
    network = NETWORKS["quadratic"]
    assert result.measures == "trace of the Gauss-Newton matrix"
    slope = network.images @ network.params[0]
    q = 1 + np.sum(slope * network.images, axis=1) / 2
    expected = np.sum(slope**2, axis=1) / np.expm1(q)
    np.testing.assert_allclose(result.score[:DISTINCT], expected, rtol=1e-9)


def test_a_convolutional_network_in_float32_agrees_with_pytorch() -> None:
    result, hessian = score_convnet(GaussNewton()), convnet_hessian()
    assert result.score.dtype == np.float32
    assert result.measures == "trace of the Hessian"
    np.testing.assert_allclose(result.score, trace(hessian), rtol=1e-4)
    norms = np.linalg.norm(hessian, axis=(1, 2))
    np.testing.assert_allclose(result.frobenius_norm, norms, rtol=1e-4)
    expected = np.linalg.eigvalsh(hessian)[:, :-6:-1]
    assert result.eigenvalues is not None
    np.testing.assert_allclose(result.eigenvalues, expected, rtol=1e-4, atol=1e-6 * norms.max())


@jax.jit
def switched(params: Any, images: jax.Array) -> jax.Array:
    """Two layers with the activation that the parameters name."""
    first, second, activation = params
    hidden = images @ first
    curves = jnp.stack([jax.nn.relu(hidden), jnp.tanh(hidden), jax.nn.gelu(hidden)])
    return jnp.tensordot(activation, curves, 1) @ second


@pytest.mark.parametrize(
    ("activation", "matrix"),
    [("relu", "Hessian"), ("tanh", "Gauss-Newton matrix"), ("gelu", "Gauss-Newton matrix")],
)
def test_activation_decides_what_the_matrix_is_called(activation: str, matrix: str) -> None:
    network = NETWORKS["two layers"]
    weights = tuple(w.astype(np.float32) for w in network.params)
    chosen = (np.array(["relu", "tanh", "gelu"]) == activation).astype(np.float32)
    images = network.images.astype(np.float32)
    batch = Batch(images, network.labels, np.arange(DISTINCT))
    problem = Problem(switched, cross_entropy)
    for estimator in (GaussNewton(), LOW_RANK):
        found = inspect(problem, (*weights, chosen), batch, {"score": estimator})
        assert found.matrix == matrix


# --- a random subspace


def test_a_subspace_for_two_classes_is_exact() -> None:
    result = scored("logistic", LOW_RANK)
    assert result.measures == "trace of the Hessian"
    hessian = hessians("logistic", "closed form")
    np.testing.assert_allclose(result.score[:DISTINCT], trace(hessian), rtol=1e-9)
    assert np.all(result.standard_error < 1e-12)
    assert np.all(result.probes == 1 + 3)


def test_trace_from_a_subspace_has_no_bias_and_its_error_is_the_spread() -> None:
    result = scored("two layers", LOW_RANK)
    assert np.all(result.probes == 2 + 3)
    hessian = hessians("two layers", "closed form")
    score, error = repeated(result.score), repeated(result.standard_error)
    assert abs(score.mean() - trace(hessian)[0]) < 4 * score.std() / np.sqrt(len(score))
    assert score.std() > 0
    # Each row has a subspace and so a spread of its own: compared in units of what lies outside it.
    assert result.eigenvalues is not None
    outside = trace(hessian)[0] - repeated(result.eigenvalues.sum(1))
    off_outside, error = (score - trace(hessian)[0]) / outside, error / outside
    # Dividing by n and not n - 1 costs 22 %.
    assert np.sqrt(np.mean(off_outside**2)) == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.1)
    off = np.abs(result.score[:DISTINCT] - trace(hessian)) / trace(hessian)
    assert np.median(off) < 0.3


def test_eigenvalues_in_a_subspace_are_never_too_large() -> None:
    result, exact = scored("two layers", LOW_RANK), scored("two layers", GaussNewton())
    assert result.eigenvalues is not None
    assert exact.eigenvalues is not None
    assert result.eigenvalues.shape == (ROWS, 2)
    assert np.all(np.diff(result.eigenvalues, axis=1) <= 0)
    assert np.all(result.eigenvalues <= exact.eigenvalues[:, :2] + 1e-12)
    # What they lack is the trace outside, which the residual estimates without bias.
    shortfall = exact.score - result.eigenvalues.sum(1)
    assert np.all(shortfall > -1e-12)
    off = repeated(result.residual_trace) - repeated(shortfall)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
    np.testing.assert_allclose(
        result.score, result.eigenvalues.sum(1) + result.residual_trace, rtol=1e-12
    )


@pytest.mark.parametrize("rank", [4, 50])
def test_a_subspace_of_all_dimensions_is_exact(rank: int) -> None:
    """Whichever vectors span it: all 3,000 rows. With 4 pixels G has rank 4, not 5."""
    estimator = LowRankGaussNewton(rank=rank, probes=3)
    result, exact = scored("two layers", estimator), scored("two layers", GaussNewton())
    np.testing.assert_allclose(result.score, exact.score, rtol=1e-6)
    assert result.eigenvalues is not None
    assert exact.eigenvalues is not None
    assert result.eigenvalues.shape == (ROWS, 4)
    np.testing.assert_allclose(result.eigenvalues, exact.eigenvalues[:, :4], atol=1e-6)
    assert np.all(result.residual_trace < 1e-6 * exact.score)
    assert np.all(result.probes == 4 + 3)


def test_a_subspace_belongs_to_the_sample() -> None:
    network, order = NETWORKS["two layers"], np.random.default_rng(12).permutation(ROWS)
    whole = scored("two layers", LOW_RANK)
    rows = np.where(np.arange(ROWS) < DISTINCT, np.arange(ROWS), 0)[order]
    with jax.enable_x64(True):
        shuffled = input_curvature(
            network.model,
            network.images[rows],
            network.labels[rows],
            indices=order,
            key=KEY,
            params=network.params,
            estimator=LOW_RANK,
        )
    np.testing.assert_array_equal(shuffled.score, whole.score[order])
    np.testing.assert_array_equal(shuffled.standard_error, whole.standard_error[order])


# --- the square root of the loss's Hessian

root_of = jax.jit(hessian_root, static_argnums=0)


def plain_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    classes = logits.shape[-1]
    target = 0.9 * jax.nn.one_hot(labels, classes, dtype=logits.dtype) + 0.1 / classes
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """|| z - e_y ||^2 / 2."""
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(jnp.square(logits - target), axis=-1) / 2


def gram(root: jax.Array) -> np.ndarray:
    """A A^T."""
    wide = np.asarray(root, np.float64)
    return wide @ wide.swapaxes(1, 2)


@pytest.mark.parametrize(
    ("loss", "columns"),
    [(cross_entropy, 4), (plain_cross_entropy, 5), (smoothed_cross_entropy, 5)],
    ids=["closed form", "eigenvectors", "eigenvectors, smoothed"],
)
def test_root_of_the_softmax_hessian(loss: Loss, columns: int) -> None:
    logits = 2 * np.random.default_rng(13).normal(size=(20, 5))
    logits[0] = 0  # all classes tie
    logits[1, 2:] = 1.5  # the most probable ones do
    with jax.enable_x64(True):
        root = root_of(loss, logits, np.arange(20) % 5)
    assert root.shape == (20, 5, columns)
    assert root.dtype == np.float64
    np.testing.assert_allclose(gram(root), softmax_hessian(logits), atol=1e-14)


GAPS = np.array([0.0, 1, 5, 10, 15, 18, 20, 30, 40, 60])


def saturated_logits() -> np.ndarray:
    """Any one of five classes leads by each gap."""
    logits = np.repeat([[0.0, -0.4, -1.3, -2.2, -5.0]], 10, axis=0)
    logits[:, 1:] -= GAPS[:, None]
    return np.concatenate([np.roll(logits, shift, axis=1) for shift in range(5)]).astype(np.float32)


def test_root_in_float32_is_accurate_for_saturated_softmax() -> None:
    """Every entry of diag(p) - p p^T, down to e^-60."""
    logits = saturated_logits()
    p = softmax(logits.astype(np.float64))
    rest = np.where(np.eye(5, dtype=bool), 0, p[:, None, :]).sum(-1)  # 1 - p without cancellation
    expected = np.eye(5) * (p * rest)[:, :, None] - (1 - np.eye(5)) * p[:, :, None] * p[:, None, :]
    actual = gram(root_of(cross_entropy, logits, np.zeros(50, int)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-38)


@pytest.mark.parametrize("loss", [plain_cross_entropy, smoothed_cross_entropy])
def test_saturated_softmax_of_another_loss_is_still_convex(loss: Loss) -> None:
    """Automatic differentiation of log-softmax rounds to 1e-7: no reason to refuse a sample."""
    logits = saturated_logits()
    actual = gram(root_of(loss, logits, np.zeros(50, int)))
    np.testing.assert_allclose(actual, softmax_hessian(logits.astype(np.float64)), atol=1e-6)


# --- other losses


@pytest.mark.usefixtures("float64")
def test_squared_error_has_the_hessian_of_the_jacobian() -> None:
    """H = J^T J on a piecewise linear network, W1^T D W2^T W2 D W1."""
    first, second = NETWORKS["two layers"].params
    active = NETWORKS["two layers"].images @ first > 0
    jacobian = (first * active[:, None, :]) @ second
    result = with_loss(GaussNewton(), squared_error)
    assert result.measures == "trace of the Hessian"
    np.testing.assert_allclose(result.score, np.sum(jacobian**2, axis=(1, 2)), rtol=1e-9)
    assert result.eigenvalues is not None
    assert result.eigenvalues.shape == (DISTINCT, 6)
    expected = np.linalg.eigvalsh(jacobian.swapaxes(1, 2) @ jacobian)[:, ::-1]
    np.testing.assert_allclose(result.eigenvalues, expected, atol=1e-9)
    logits = np.maximum(NETWORKS["two layers"].images @ first, 0) @ second
    residual = logits - np.eye(6)[NETWORKS["two layers"].labels]
    np.testing.assert_allclose(result.loss, np.sum(residual**2, axis=1) / 2, rtol=1e-9)
    slope = np.linalg.norm(np.einsum("nic,nc->ni", jacobian, residual), axis=1)
    np.testing.assert_allclose(result.gradient_norm, slope, rtol=1e-9)
    # The probes see the same loss.
    v = probes("rademacher", np.arange(DISTINCT), 3, (SIZE,), jnp.float64)
    products = np.einsum("bij,nbj->nbi", jacobian @ jacobian.swapaxes(1, 2), v)
    norms = np.linalg.norm(products, axis=-1).mean(0)
    np.testing.assert_allclose(with_loss(HessianVector(3), squared_error).score, norms, rtol=1e-9)


def with_loss(estimator: Any, loss: Loss) -> Curvature:
    network = NETWORKS["two layers"]
    return input_curvature(
        network.model,
        network.images,
        network.labels,
        indices=np.arange(DISTINCT),
        key=KEY,
        params=network.params,
        estimator=estimator,
        loss=loss,
    )


def wave(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(logits), axis=-1)


@pytest.mark.usefixtures("float64")
def test_a_loss_that_is_not_convex_is_refused() -> None:
    message = r"Gauss-Newton is undefined for \d+ of 24 samples, .*check that the loss is convex"
    with pytest.raises(ValueError, match=message):
        with_loss(GaussNewton(), wave)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda z, y: cross_entropy(z, y).mean(),
            r"one float32 a sample, \[batch\], not reduced; got float32 \(\) for a batch of 2",
        ),
        (lambda z, y: z - 1, r"one float32 a sample.*got float32 \(2, 6\)"),
        (lambda z, y: cross_entropy(z, y).astype(jnp.bfloat16), "got bfloat16"),
        (lambda z, y: jnp.argmax(z, axis=-1), r"one float32 a sample.*got int32 \(2,\)"),
        (lambda z, y: cross_entropy(z - z.mean(0), y), "the loss mixes the samples of a batch"),
        (lambda z, y: (cross_entropy(z, y), y), "the loss must return losses alone; got a tuple"),
        (lambda z, y: cross_entropy(z, y) / jnp.sum(z**2), "the loss mixes the samples"),
    ],
    ids=["reduced", "matrix", "bfloat16", "integer", "mixed", "scaled", "two results"],
)
def test_a_loss_that_is_not_per_sample_is_refused(loss: Loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_convnet(GaussNewton(), loss=loss)
