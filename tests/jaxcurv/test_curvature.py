"""Probed estimators of one batch against closed forms, JAX's Hessian and PyTorch."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

from jaxcurv import (
    Curvature,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    input_curvature,
)
from jaxcurv.engine import cross_entropy
from jaxcurv.estimators import Estimator, Probed, Published
from tests.oracles import (
    CONV_IMAGES,
    CONV_INDICES,
    CONV_LABELS,
    CONV_PARAMS,
    DISTINCT,
    KEY,
    NETWORKS,
    ORACLES,
    channels_first,
    convnet_hessian,
    expected_draws,
    hessians,
    probes,
    repeated,
    score_convnet,
    score_draws,
    scored,
    softmax,
    torch_convnet,
    torch_derivatives,
)
from tests.refusals import refused

# Steps of a finite difference: one that crosses kinks of the ReLU network, and one near the limit.
PROBED: dict[str, Probed] = {
    "FiniteDifference": FiniteDifference(0.5, 5),
    "FiniteDifference, small step": FiniteDifference(1e-4, 5),
    "Published": Published(batch_size=32, step=0.5, probes=5),
    "HessianVector": HessianVector(5),
    "HessianTrace": HessianTrace(5),
    "HessianTrace, step": HessianTrace(5, step=0.5),
}
OTHER_PROBES: dict[str, Probed] = {
    "HessianVector, sphere": HessianVector(5, "sphere"),
    "HessianTrace, sphere": HessianTrace(5, distribution="sphere"),
}
every_case = pytest.mark.parametrize(
    ("name", "estimator"),
    [
        pytest.param(name, estimator, id=f"{name}-{label}")
        for name in NETWORKS
        for label, estimator in (PROBED | (OTHER_PROBES if name == "two layers" else {})).items()
    ],
)
every_network = pytest.mark.parametrize("name", NETWORKS)


def last_axis(weights: jax.Array, images: jax.Array) -> jax.Array:
    """Logits of images `[batch, 2, 3, 4]`."""
    return jnp.tanh(images.mean((1, 2)) @ weights)


def test_key_0_and_positions_are_taken_unless_given() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(3, 2, 3, 4)).astype(np.float32), np.array([1, 0, 1])
    settings: dict[str, Any] = {"params": rng.normal(size=(4, 2)).astype(np.float32)}
    key, few = jax.random.key(0), FiniteDifference(probes=2)
    given = input_curvature(
        last_axis, images, labels, indices=range(3), key=key, estimator=few, **settings
    )
    default = input_curvature(last_axis, images, labels, estimator=few, **settings)
    np.testing.assert_array_equal(default.score, given.score)
    other = input_curvature(last_axis, images, labels, indices=[0, 1, 7], estimator=few, **settings)
    assert (other.score != given.score).tolist() == [False, False, True]
    # Torch's images have their channels first, and these settings another kind of key.
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with jax.default_prng_impl("rbg"):
        found = input_curvature(last_axis, tensor, labels, estimator=few, **settings)
    np.testing.assert_array_equal(found.score, given.score)
    with pytest.raises(ValueError, match=r"got uint8 .*Normalisation\(mean, std\).apply\(images\)"):
        input_curvature(last_axis, images.astype(np.uint8), labels, **settings)
    with pytest.raises(ValueError, match=r"images must be \[batch, ...\]"):
        input_curvature(last_axis, np.float32(1), labels, **settings)


# --- in float64


@pytest.mark.parametrize("oracle", ORACLES)
@every_case
def test_score_and_error_are_those_of_the_definition(
    name: str, oracle: str, estimator: Probed
) -> None:
    """The formula is written out with the run's own probes: equality, not agreement on average."""
    result = scored(name, estimator)
    assert result.score.dtype == np.float64
    assert np.all(result.probes == 5)
    draws = score_draws(name, oracle, estimator)
    _, forms = expected_draws(name, oracle, estimator)
    # A difference over a small step loses as many digits as the step has zeros.
    tolerance = 1e-9 if estimator.probing.step is None else 1e-12 / estimator.probing.step
    for value, error, each in (
        (result.score, result.standard_error, draws),
        (result.hessian_trace, result.hessian_trace_standard_error, forms),
    ):
        assert value is not None
        assert error is not None
        scale = np.abs(each).max()
        np.testing.assert_allclose(value[:DISTINCT], each.mean(0), rtol=0, atol=tolerance * scale)
        spread = each.std(0, ddof=1) / np.sqrt(5)
        np.testing.assert_allclose(error[:DISTINCT], spread, rtol=0, atol=tolerance * scale)


@every_case
def test_standard_error_is_the_spread_over_seeds(name: str, estimator: Probed) -> None:
    """One image is scored under many indices, with independent probes each time."""
    result = scored(name, estimator)
    for value, error in (
        (result.score, result.standard_error),
        (result.hessian_trace, result.hessian_trace_standard_error),
    ):
        # The spread is itself known to 2 %; dividing by n and not n - 1 costs 11 %.
        spread = repeated(value).std()
        assert spread == pytest.approx(np.sqrt(np.mean(repeated(error) ** 2)), rel=0.07)
        assert spread > 0


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("quadratic", "rademacher"),
        ("logistic", "rademacher"),
        ("two layers", "rademacher"),
        ("two layers", "sphere"),
    ],
)
def test_trace_estimates_have_no_bias_and_the_variance_of_theory(
    name: str, distribution: Any
) -> None:
    assert_trace_estimates_have_no_bias_and_the_variance_of_theory(name, distribution)


def assert_trace_estimates_have_no_bias_and_the_variance_of_theory(
    name: str, distribution: Any
) -> None:
    matrix = hessians(name, "closed form")[0]
    trace, size = np.trace(matrix), len(matrix)
    squares, diagonal = np.sum(matrix**2), np.sum(np.diag(matrix) ** 2)
    variance = {
        "rademacher": 2 * (squares - diagonal),
        "gaussian": 2 * squares,
        "sphere": 2 * size / (size + 2) * (squares - trace**2 / size),
    }[distribution]
    estimates = repeated(scored(name, HessianTrace(5, distribution=distribution)).score)
    assert abs(estimates.mean() - trace) < 4 * np.sqrt(variance / 5 / len(estimates))
    assert estimates.var() == pytest.approx(variance / 5, rel=0.12)
    # ||H v||^2 has the mean ||H||_F^2.
    norms = repeated(scored(name, HessianVector(5, distribution)).frobenius_norm)
    assert abs(np.mean(norms**2) - squares) < 4 * np.std(norms**2) / np.sqrt(len(norms))


@every_network
def test_loss_gradient_and_prediction(name: str) -> None:
    network, result = NETWORKS[name], scored(name, HessianVector(5))
    x, y = network.images, network.labels
    norms = np.linalg.norm(network.gradient(x, y), axis=1)
    np.testing.assert_allclose(result.gradient_norm[:DISTINCT], norms, rtol=1e-9)
    with jax.enable_x64(True):
        logits = np.asarray(jax.jit(network.model)(network.params, x))
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(DISTINCT), y]
    np.testing.assert_allclose(result.loss[:DISTINCT], losses, rtol=1e-9)
    np.testing.assert_array_equal(result.prediction[:DISTINCT], logits.argmax(1))
    if name == "quadratic":
        expected = 1 + np.einsum("bi,ij,bj->b", x, network.params[0], x) / 2
        np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_eq_1_of_a_quadratic_is_the_step_times_the_hessian_vector_product() -> None:
    """At any step; and Eq. 1 in the published form is that over the batch size."""
    product = scored("quadratic", HessianVector(5))
    difference = scored("quadratic", FiniteDifference(0.5, 5))
    published = scored("quadratic", Published(batch_size=32, step=0.5, probes=5))
    np.testing.assert_allclose(difference.score, 0.5 * product.score, rtol=1e-9)
    np.testing.assert_allclose(published.score, difference.score / 32, rtol=1e-5)
    assert difference.measures == "mean of || grad L(x + h v) - grad L(x) ||"
    assert product.measures == "mean of || H v ||"
    assert "published batch size" in published.measures


def test_a_small_step_is_fine_in_float64() -> None:
    near = scored("logistic", FiniteDifference(1e-7, 5)).score / 1e-7
    np.testing.assert_allclose(near, scored("logistic", HessianVector(5)).score, rtol=1e-5)


def test_eq_1_of_a_network_with_kinks_is_not() -> None:
    """The half-unit step crosses kinks; the small one crosses none for most images."""
    product = scored("two layers", HessianVector(5)).score[:DISTINCT]
    far = scored("two layers", FiniteDifference(0.5, 5)).score[:DISTINCT] / 0.5
    near = scored("two layers", FiniteDifference(1e-4, 5)).score[:DISTINCT] / 1e-4
    assert np.median(np.abs(far / product - 1)) > 0.1
    assert np.median(np.abs(near / product - 1)) < 1e-3


# --- a convolutional network in float32, against PyTorch in float64


def conv_gradient(images: np.ndarray) -> np.ndarray:
    """`[..., 16, 8, 8, 2]` -> `[..., 16, 128]`, in the order of channels first."""
    flat = channels_first(images.reshape(-1, 8, 8, 2).astype(np.float64))
    labels = np.tile(CONV_LABELS, len(flat) // 16)
    gradient, _ = torch_derivatives(torch_convnet, CONV_PARAMS, flat, labels)
    return gradient.reshape(*images.shape[:-3], -1)


def conv_probes(count: int) -> np.ndarray:
    return probes("rademacher", CONV_INDICES, count, (8, 8, 2), jnp.float32)


def test_eq_1_at_the_usual_step_agrees_with_pytorch() -> None:
    estimator = FiniteDifference()
    result = score_convnet(estimator)
    assert result.score.dtype == result.standard_error.dtype == np.float32
    v, h = conv_probes(estimator.probes), estimator.step
    base = conv_gradient(CONV_IMAGES)
    change = conv_gradient(CONV_IMAGES + h * v.astype(np.float64)) - base
    norms = np.linalg.norm(change, axis=-1)
    np.testing.assert_allclose(result.score, norms.mean(0), rtol=1e-3)
    flat = channels_first(v).reshape(change.shape)
    np.testing.assert_allclose(
        score_convnet(HessianTrace(step=h)).score, np.sum(flat * change, -1).mean(0) / h, rtol=1e-2
    )
    np.testing.assert_allclose(result.gradient_norm, np.linalg.norm(base, axis=1), rtol=1e-4)
    # Where no kink is crossed the norms are proportional to h; here some samples cross one.
    small = conv_gradient(CONV_IMAGES + h / 1000 * v.astype(np.float64)) - base
    ratio = norms.mean(0) / np.linalg.norm(small, axis=-1).mean(0) / 1000
    assert np.sum(ratio > 2) >= 3


def test_hessian_products_agree_with_pytorch() -> None:
    v = channels_first(conv_probes(10)).reshape(10, 16, 128)
    products = np.einsum("bij,nbj->nbi", convnet_hessian(), v)
    result = score_convnet(HessianVector())
    np.testing.assert_allclose(result.score, np.linalg.norm(products, axis=-1).mean(0), rtol=1e-4)
    trace = score_convnet(HessianTrace()).score
    np.testing.assert_allclose(trace, np.sum(v * products, axis=-1).mean(0), rtol=1e-4)
    np.testing.assert_array_equal(result.hessian_trace, trace)


@pytest.mark.parametrize("size", [16, 5])
def test_published_formula_as_pytorch_evaluates_it(size: int) -> None:
    """The last batch of a run, here of 5, is divided by its own length."""
    torch = pytest.importorskip("torch")
    functional, estimator = torch.nn.functional, Published(batch_size=size, probes=4)
    params = {name: torch.tensor(w) for name, w in CONV_PARAMS.items()}
    images = torch.tensor(channels_first(CONV_IMAGES[:size]))
    labels = torch.tensor(CONV_LABELS[:size])
    total = torch.zeros(size)
    for sign in channels_first(conv_probes(estimator.probes)[:, :size]):
        v = estimator.step * (torch.tensor(sign) + 1e-7)
        x = images.clone().requires_grad_()
        moved = functional.cross_entropy(torch_convnet(params, x + v), labels)
        still = functional.cross_entropy(torch_convnet(params, x), labels)
        (difference,) = torch.autograd.grad(moved - still, x)
        total += difference.flatten(1).norm(dim=1)
    expected = (total / estimator.probes).numpy()
    assert expected.dtype == np.float32
    # A sample's score needs no batch: the 5 images are scored among 16 here.
    result = score_convnet(estimator)
    assert result.score.dtype == np.float32
    # Both round the gradients that they subtract.
    rounding = 4 * np.finfo(np.float32).eps * result.gradient_norm[:size] / size
    assert np.all(np.abs(result.score[:size] - expected) < 1e-3 * expected + rounding)
    assert np.median(expected / rounding) > 100


def test_one_probe_has_no_standard_error() -> None:
    result = score_convnet(FiniteDifference(probes=1))
    assert np.isnan(result.standard_error).all()
    assert result.hessian_trace_standard_error is not None
    assert np.isnan(result.hessian_trace_standard_error).all()
    assert np.isfinite(result.score).all()


# --- cross-entropy of confident samples, in float32


def test_cross_entropy_is_accurate_at_any_gap() -> None:
    gaps = np.linspace(-80, 80, 41)
    logits = np.stack([0 * gaps, gaps, gaps - 1.5], axis=-1).astype(np.float32) + 3
    labels = np.ones(41, int)
    wide = logits.astype(np.float64)
    others = wide[:, [0, 2]] - wide[:, [1]]
    expected = np.logaddexp(0, np.logaddexp(*others.T))
    actual = jax.jit(cross_entropy)(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_gradient_of_cross_entropy_does_not_vanish_for_confident_samples() -> None:
    logits, labels = jnp.array([[0.0, 30.0, 4.0]]), jnp.array([1])
    wide = np.asarray(logits, np.float64)
    p = np.exp(wide - 30) / np.exp(wide - 30).sum()
    p[0, 1] = -p[0, [0, 2]].sum()  # p - onehot without the cancellation
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, labels).sum()))(logits)
    np.testing.assert_allclose(gradient, p, rtol=1e-5)
    usual = jax.jit(jax.grad(lambda x: -jax.nn.log_softmax(x)[0, 1]))(logits)
    assert usual[0, 1] == 0  # the reason for another form


GAPS = np.array([5.0, 10, 15, 18, 20, 25, 30, 35, 40, 45, 50, 60])
RIGHT = np.arange(36) < 12
"""Which saturated samples are right; the others have the runner-up or the least likely label."""


def linear(weights: jax.Array, images: jax.Array) -> jax.Array:
    return images @ weights


@lru_cache
def saturated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights `[5, 6]`, images and labels: class 0 leads by each gap, whatever the label."""
    rng = np.random.default_rng(11)
    weights = 20 * rng.normal(size=(5, 6)) / np.sqrt(5)
    lead = weights[:, 0] @ (weights[:, :1] - weights[:, 1:])
    images = GAPS[:, None] / lead.min() * weights[:, 0]
    ranked = np.argsort(-weights[:, 0] @ weights)
    assert ranked[0] == 0
    labels = np.repeat(ranked[[0, 1, 5]], 12)
    return weights.astype(np.float32), np.tile(images, (3, 1)).astype(np.float32), labels


def score_saturated(estimator: Estimator) -> Curvature:
    weights, images, labels = saturated()
    return input_curvature(
        linear,
        images,
        labels,
        indices=np.arange(36),
        key=KEY,
        params=weights,
        estimator=estimator,
    )


def saturated_probes(count: int) -> np.ndarray:
    return probes("rademacher", np.arange(36), count, (5,), jnp.float32).astype(np.float64)


def tail(logits: np.ndarray) -> np.ndarray:
    """Probabilities but for class 0, the leading one, whose distance from 1 they are."""
    return softmax(logits)[..., 1:]


def saturated_products(v: np.ndarray) -> np.ndarray:
    """H v without cancellation: S t = p (u - p.u), u = t - t_0."""
    weights, images, _ = (array.astype(np.float64) for array in saturated())
    t = v @ weights
    u, p = t - t[..., :1], softmax(images @ weights)
    return (p * (u - np.sum(p * u, axis=-1, keepdims=True))) @ weights.T


def saturated_differences(v: np.ndarray, step: float) -> np.ndarray:
    weights, images, _ = (array.astype(np.float64) for array in saturated())
    change = tail((images + step * v) @ weights) - tail(images @ weights)
    return change @ (weights[:, 1:] - weights[:, :1]).T


@pytest.mark.parametrize("measure", [HessianVector(), HessianTrace()], ids=["norm", "trace"])
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_hessian_products_of_saturated_samples(measure: Probed) -> None:
    result, v = score_saturated(measure), saturated_probes(10)
    products = saturated_products(v)
    norms, forms = np.linalg.norm(products, axis=-1), np.sum(v * products, axis=-1)
    expected = (norms if isinstance(measure, HessianVector) else forms).mean(0)
    assert np.all(result.score != 0)
    np.testing.assert_allclose(result.score[RIGHT], expected[RIGHT], rtol=1e-3)
    np.testing.assert_allclose(result.score[~RIGHT], expected[~RIGHT], rtol=1e-3)


@pytest.mark.parametrize(
    "measure",
    [FiniteDifference(), Published(4), HessianTrace(step=1e-3)],
    ids=["norm", "published", "trace"],
)
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_finite_differences_of_saturated_samples(measure: Probed) -> None:
    result, v, step = score_saturated(measure), saturated_probes(10), 1e-3
    change = saturated_differences(v, step)
    if isinstance(measure, HessianTrace):
        expected, unit = np.sum(v * change, axis=-1).mean(0) / step, np.sqrt(5) / step
    else:
        unit = 1 / measure.batch_size if isinstance(measure, Published) else 1.0
        expected = np.linalg.norm(change, axis=-1).mean(0) * unit
    assert np.all(result.score[RIGHT] != 0)
    np.testing.assert_allclose(result.score[RIGHT], expected[RIGHT], rtol=1e-2)
    # The gradient of a confidently wrong sample is large, and its own rounding is the limit.
    rounding = 4 * np.finfo(np.float32).eps * result.gradient_norm * unit
    assert np.all(np.abs(result.score - expected) < 1e-2 * np.abs(expected) + rounding)


def test_loss_and_gradient_of_saturated_samples() -> None:
    weights, images, labels = saturated()
    result = score_saturated(HessianVector())
    wide = weights.astype(np.float64)
    logits = images.astype(np.float64) @ wide
    others = np.where(np.arange(6) == labels[:, None], -np.inf, logits)
    loss = np.logaddexp(0, np.logaddexp.reduce(others, axis=1) - logits[np.arange(36), labels])
    p = np.where(np.arange(6) == labels[:, None], 0, softmax(logits))
    own = np.where(np.arange(6) == labels[:, None], -p.sum(1, keepdims=True), 0)
    gradient_norm = np.linalg.norm((p + own) @ wide.T, axis=1)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(result.gradient_norm, gradient_norm, rtol=1e-4)


@pytest.mark.parametrize("estimator", [GaussNewton(), LowRankGaussNewton(rank=8)], ids=type)
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_gauss_newton_of_saturated_samples(estimator: Estimator) -> None:
    """With 5 pixels and 6 classes, G has rank 5: a subspace of as many dimensions holds it all."""
    result = score_saturated(estimator)
    matrix = saturated_products(np.eye(5)[:, None, :]).transpose(1, 2, 0)
    np.testing.assert_allclose(result.score, np.trace(matrix, axis1=1, axis2=2), rtol=1e-3)
    assert result.eigenvalues is not None
    largest = np.linalg.eigvalsh(matrix)[:, -1]
    np.testing.assert_allclose(result.eigenvalues[:, 0], largest, rtol=1e-3)
    if isinstance(estimator, GaussNewton):
        norms = np.linalg.norm(matrix, axis=(1, 2))
        np.testing.assert_allclose(result.frobenius_norm, norms, rtol=1e-3)


def test_a_frame_of_inputs_is_in_the_order_of_its_labels() -> None:
    rng = np.random.default_rng(0)
    inputs = pd.DataFrame(rng.normal(size=(6, 4)).astype(np.float32))
    labels = pd.Series(np.arange(6) % 3)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    given = input_curvature(lambda x: x @ weights, inputs, labels)
    plain = input_curvature(lambda x: x @ weights, inputs.to_numpy(), labels.to_numpy())
    np.testing.assert_array_equal(given.score, plain.score)
    with refused("the same samples in another order"):
        input_curvature(lambda x: x @ weights, inputs.iloc[::-1], labels)
    targets, loss = pd.DataFrame(rng.normal(size=(6, 3))), lambda z, y: ((z - y) ** 2).sum(-1)
    for order in (slice(None), slice(None, None, -1)):
        several = inputs.iloc[order], targets.iloc[order]
        given = input_curvature(lambda x: x @ weights, *several, loss=loss)
        arrays = (one.to_numpy() for one in several)
        plain = input_curvature(lambda x: x @ weights, *arrays, loss=loss)
        np.testing.assert_array_equal(given.score, plain.score)
    with refused("labels has the same samples in another order"):
        input_curvature(lambda x: x @ weights, inputs, targets.iloc[::-1], loss=loss)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_pixels_of_more_than_8_bits_are_not_taken_for_token_ids(dtype: Any) -> None:
    pixels = np.ones((2, 4, 4, 1), dtype)
    with pytest.raises(ValueError, match=f"got {np.dtype(dtype)} .levels of more than 8 bits"):
        input_curvature(lambda x: x.reshape(len(x), -1)[:, :3], pixels, np.zeros(2, int))
    with pytest.raises(ValueError, match="for token ids"):
        input_curvature(lambda x: x, pixels[:, :, 0, 0], np.zeros(2, int))
