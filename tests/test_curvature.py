"""Curvature of one batch: closed forms, independent oracles, probes, and what is refused."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv import Curvature, FiniteDifference, cross_entropy, input_curvature, rademacher
from jaxcurv.models.resnet import BasicBlock, ResNet

KEY = jax.random.key(7)
RNG = np.random.default_rng
draw = jax.jit(rademacher, static_argnums=(3, 4))


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def probes(indices: np.ndarray, count: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The probes of a run, `[count, batch, *shape]`, for formulas written out in NumPy."""
    return np.stack([draw(KEY, jnp.asarray(indices), n, shape, dtype) for n in range(count)])


def linear(weights: Any, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ weights


# --- closed forms, in float64


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step", [1e-4, 0.5])
def test_logistic_regression_at_any_step(step: float) -> None:
    """g_i = (sigma(z + h w.v_i) - sigma(z)) w, exactly."""
    rng = RNG(0)
    w, x, y, indices = rng.normal(size=5), rng.normal(size=(6, 5)), np.arange(6) % 2, np.arange(6)
    z, v = x @ w + 0.3, probes(indices, 4, (5,), jnp.float64)

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    def logits(w: jax.Array, x: jax.Array) -> jax.Array:
        z = x @ w + 0.3
        return jnp.stack([jnp.zeros_like(z), z], axis=-1)

    result = input_curvature(
        logits, x, y, indices=indices, key=KEY, params=w, estimator=FiniteDifference(step, 4)
    )
    assert result.score.dtype == np.float64
    slope = sigmoid(z + step * (v @ w)) - sigmoid(z)  # [probes, batch]
    norms, traces = np.abs(slope) * np.linalg.norm(w), slope * (v @ w) / step
    for value, error, draws in (
        (result.score, result.standard_error, norms),
        (result.hessian_trace, result.hessian_trace_standard_error, traces),
    ):
        np.testing.assert_allclose(value, draws.mean(0), rtol=1e-9)
        np.testing.assert_allclose(error, draws.std(0, ddof=1) / 2, rtol=1e-9)
    np.testing.assert_allclose(result.gradient_norm, np.abs(sigmoid(z) - y) * np.linalg.norm(w))
    np.testing.assert_allclose(result.loss, np.log1p(np.exp(-(2 * y - 1) * z)))
    np.testing.assert_array_equal(result.prediction, z > 0)


def quadratic(matrix: jax.Array, images: jax.Array) -> jax.Array:
    """Logits whose cross-entropy with label 0 is 1 + x.A x / 2, for any positive A.

    softplus(z) = q has the solution z = log(exp(q) - 1).
    """
    q = 1 + jnp.einsum("bi,ij,bj->b", images, matrix, images) / 2
    return jnp.stack([jnp.zeros_like(q), q + jnp.log(-jnp.expm1(-q))], axis=-1)


def quadratic_curvature(
    matrix: np.ndarray, images: np.ndarray, estimator: FiniteDifference
) -> Curvature:
    count = len(images)
    return input_curvature(
        quadratic,
        images,
        np.zeros(count, int),
        indices=np.arange(count),
        key=KEY,
        params=matrix,
        estimator=estimator,
    )


def positive_matrix(size: int) -> np.ndarray:
    root = RNG(1).normal(size=(size, size))
    return root @ root.T


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step", [1e-3, 1.0])
def test_quadratic_loss_gives_the_hessian_at_any_step(step: float) -> None:
    matrix, images = positive_matrix(5), RNG(2).normal(size=(6, 5))
    products = probes(np.arange(6), 10, (5,), jnp.float64) @ matrix  # A v_i
    result = quadratic_curvature(matrix, images, FiniteDifference(step))
    expected = step * np.linalg.norm(products, axis=-1).mean(0)
    np.testing.assert_allclose(result.score, expected, rtol=1e-9)
    diagonal = np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    result = quadratic_curvature(diagonal, images, FiniteDifference(step))
    np.testing.assert_allclose(result.hessian_trace, 15, rtol=1e-9)  # v.A v = tr A, every draw
    np.testing.assert_allclose(result.hessian_trace_standard_error, 0, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_standard_errors_are_the_spread_over_probes() -> None:
    """One image under many indices is one sample scored with independent probes each time."""
    matrix, images = positive_matrix(6), np.tile(RNG(3).normal(size=6), (4096, 1))
    result = quadratic_curvature(matrix, images, FiniteDifference(probes=5))
    for value, error in (
        (result.score, result.standard_error),
        (result.hessian_trace, result.hessian_trace_standard_error),
    ):
        # The spread of 4,096 draws is itself known to 1 %; dividing by n and not n - 1 costs 11 %.
        assert value.std() == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.05)
    # Hutchinson's variance, 2 sum over i != j of A_ij^2, and no bias.
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2))
    assert result.hessian_trace.var() == pytest.approx(variance / 5, rel=0.1)
    bias = result.hessian_trace.mean() - np.trace(matrix)
    assert abs(bias) < 4 * np.sqrt(variance / 5 / 4096)


@pytest.mark.usefixtures("float64")
def test_softmax_regression_tends_to_the_hessian_of_jax() -> None:
    rng, count, step = RNG(4), 64, 1e-5
    weights, x, y = rng.normal(size=(5, 4)), rng.normal(size=(count, 5)), rng.integers(0, 4, count)

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(x @ weights)[y]

    hessian = np.asarray(jax.jit(jax.vmap(jax.hessian(loss)))(x, y))
    p = np.exp(x @ weights) / np.exp(x @ weights).sum(1, keepdims=True)
    fisher = np.einsum("bk,kl->bkl", p, np.eye(4)) - np.einsum("bk,bl->bkl", p, p)
    np.testing.assert_allclose(hessian, weights @ fisher @ weights.T, atol=1e-12)

    indices = np.arange(count) + 1000
    result = input_curvature(
        linear,
        x,
        y,
        indices=indices,
        key=KEY,
        params=weights,
        estimator=FiniteDifference(step, 40),
    )
    products = np.einsum("bij,nbj->nbi", hessian, probes(indices, 40, (5,), jnp.float64))
    expected = np.linalg.norm(products, axis=-1).mean(0)
    np.testing.assert_allclose(result.score / step, expected, rtol=1e-3)
    off = result.hessian_trace - np.trace(hessian, axis1=1, axis2=2)
    off /= result.hessian_trace_standard_error
    assert abs(off.mean()) < 4 / np.sqrt(count)
    assert 0.7 < np.sqrt(np.mean(off**2)) < 1.4


# --- Eq. 1 on a network with kinks, against PyTorch in float64


def convnet_params() -> dict[str, np.ndarray]:
    rng = RNG(5)
    shapes = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 8), "c": (8, 5)}
    return {k: rng.normal(size=s) * np.sqrt(4 / np.prod(s[:-1])) for k, s in shapes.items()}


def convnet(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    x = images
    for name, stride in (("a", 1), ("b", 2)):
        x = jax.lax.conv_general_dilated(
            x,
            params[name],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x)
    return jnp.mean(x, axis=(1, 2)) @ params["c"]


def test_eq_1_at_the_real_step_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng, estimator = RNG(6), FiniteDifference()
    params, indices = convnet_params(), np.arange(16) * 3
    images = rng.normal(size=(16, 8, 8, 2)).astype(np.float32)
    labels = rng.integers(0, 5, 16)
    result = input_curvature(
        convnet,
        images,
        labels,
        indices=indices,
        key=KEY,
        params={name: jnp.asarray(w, jnp.float32) for name, w in params.items()},
        estimator=estimator,
    )

    def gradient(images: np.ndarray) -> np.ndarray:
        x = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_()
        hidden = x
        for name, stride in (("a", 1), ("b", 2)):
            kernel = torch.tensor(params[name].transpose(3, 2, 0, 1))
            hidden = functional.relu(functional.conv2d(hidden, kernel, stride=stride, padding=1))
        logits = hidden.mean((2, 3)) @ torch.tensor(params["c"])
        loss = functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
        return torch.autograd.grad(loss, x)[0].numpy().transpose(0, 2, 3, 1)

    wide, h = images.astype(np.float64), estimator.step
    base = gradient(wide)
    v = probes(indices, estimator.probes, images.shape[1:], jnp.float32)
    g = np.stack([gradient(wide + h * one) - base for one in v])
    norms = np.sqrt(np.sum(g**2, axis=(2, 3, 4)))
    np.testing.assert_allclose(result.score, norms.mean(0), rtol=1e-3)
    np.testing.assert_allclose(
        result.hessian_trace, np.sum(v * g, axis=(2, 3, 4)).mean(0) / h, rtol=1e-2
    )
    np.testing.assert_allclose(
        result.gradient_norm, np.sqrt(np.sum(base**2, axis=(1, 2, 3))), rtol=1e-4
    )
    # Where no kink is crossed the norms are proportional to h; here some samples cross one.
    small = np.stack([gradient(wide + h / 1000 * one) - base for one in v])
    ratio = norms.mean(0) / np.sqrt(np.sum(small**2, axis=(2, 3, 4))).mean(0) / 1000
    assert np.sum(ratio > 2) >= 3


# --- probes


def test_probe_entries_are_fair_signs() -> None:
    v = np.asarray(draw(KEY, jnp.arange(200), 0, (20, 25)))
    assert v.shape == (200, 20, 25)
    assert v.dtype == np.float32
    assert np.unique(v).tolist() == [-1, 1]
    assert abs(v.mean()) < 4 / np.sqrt(v.size)
    assert np.abs(v.mean(0)).max() < 5 / np.sqrt(200)  # no pixel has a sign of its own
    correlation = np.einsum("nij,nij->n", v[1:], v[:-1]) / 500
    assert np.abs(correlation).max() < 5 / np.sqrt(500)  # nor do neighbours share theirs


def test_probes_belong_to_the_sample() -> None:
    indices = np.array([5, 0, 2**32 - 1, 17, 4], np.uint32)
    together = np.asarray(draw(KEY, jnp.asarray(indices), 3, (6, 7)))
    for order in ([3], [2, 3, 0, 1, 1]):
        some = draw(KEY, jnp.asarray(indices[order]), 3, (6, 7))
        np.testing.assert_array_equal(some, together[order])


def test_probes_differ_between_samples_probes_and_keys() -> None:
    draws = [
        np.asarray(v)
        for key in (KEY, jax.random.key(8))
        for probe in (0, 1)
        # Keys folded in the wrong order would give sample 1, probe 0 and sample 0, probe 1 alike.
        for v in draw(key, jnp.array([0, 1, 2]), probe, (64,))
    ]
    assert len(np.unique(draws, axis=0)) == 12


def test_scores_follow_the_key_and_the_index() -> None:
    batch = (linear, *arrays()[:2])
    first = input_curvature(*batch, indices=np.arange(6), key=KEY, params=WEIGHTS)
    again = input_curvature(*batch, indices=np.arange(6), key=KEY, params=WEIGHTS)
    shifted = input_curvature(*batch, indices=np.arange(6) + 1, key=KEY, params=WEIGHTS)
    other = input_curvature(*batch, indices=np.arange(6), key=jax.random.key(8), params=WEIGHTS)
    np.testing.assert_array_equal(first.score, again.score)
    assert np.all(first.score != shifted.score)
    assert np.all(first.score != other.score)
    np.testing.assert_array_equal(first.loss, shifted.loss)


def test_one_probe_has_no_standard_error() -> None:
    images, labels, indices = arrays()
    result = input_curvature(
        linear,
        images,
        labels,
        indices=indices,
        key=KEY,
        params=WEIGHTS,
        estimator=FiniteDifference(probes=1),
    )
    assert np.isnan(result.standard_error).all()
    assert np.isnan(result.hessian_trace_standard_error).all()
    assert np.isfinite(result.score).all()
    assert result.score.dtype == result.standard_error.dtype == np.float32


# --- cross-entropy


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


# --- models and the compilation cache

WEIGHTS = RNG(9).normal(size=(4, 3)).astype(np.float32)


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = RNG(10)
    images = rng.normal(size=(6, 4)).astype(np.float32)
    return images, rng.integers(0, 3, 6), np.arange(6) + 10


def score(model: Any, params: Any = None, **changed: Any) -> np.ndarray:
    images, labels, indices = arrays()
    batch: dict[str, Any] = {
        "images": images,
        "labels": labels,
        "indices": indices,
        "key": KEY,
    } | changed
    return input_curvature(model, params=params, **batch).score


class Perceptron(nnx.Module):
    """Linear, BatchNorm, ReLU, Dropout, Linear on `[batch, 4]`."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(jax.nn.relu(self.norm(self.hidden(x)))))


@pytest.fixture(scope="module")
def initial() -> Perceptron:
    return nnx.jit(Perceptron)()


@pytest.fixture
def perceptron(initial: Perceptron) -> Perceptron:
    model = nnx.clone(initial)
    model.eval()
    return model


def test_every_kind_of_model_gives_the_same_scores(perceptron: Perceptron) -> None:
    graphdef, state = nnx.split(perceptron)
    as_module = score(perceptron)
    assert np.all(as_module > 0)
    np.testing.assert_array_equal(
        score(lambda params, x: nnx.merge(graphdef, params)(x), state), as_module
    )
    # The weights are constants of the compiled program here: other roundings are allowed.
    closed = score(lambda x: nnx.merge(graphdef, state)(x))
    np.testing.assert_allclose(closed, as_module, rtol=1e-3)


def test_new_weights_of_a_module_change_its_scores(perceptron: Perceptron) -> None:
    before = score(perceptron)
    perceptron.out.kernel[...] *= 2
    changed = score(perceptron)
    assert np.all(changed != before)
    perceptron.out.kernel[...] /= 2
    np.testing.assert_array_equal(score(perceptron), before)


def test_a_second_checkpoint_compiles_nothing_and_precision_is_pinned() -> None:
    traces: list[str | None] = []

    def model(params: jax.Array, images: jax.Array) -> jax.Array:
        traces.append(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        return linear(params, images)

    first = score(model, WEIGHTS)
    # The check for coupling, the base gradient, and one probe for all of them.
    assert len(traces) == 3
    assert traces[1:] == ["highest", "highest"]
    second = score(model, 2 * WEIGHTS)
    assert len(traces) == 3
    assert np.all(first != second)


# --- refusals


@pytest.mark.parametrize("layer", ["norm", "dropout"])
def test_a_module_in_training_mode_is_refused(perceptron: Perceptron, layer: str) -> None:
    assert score(perceptron).shape == (6,)  # and not from what is compiled already
    getattr(perceptron, layer).train()
    with pytest.raises(ValueError, match=r"changes its own state.*model\.eval\(\)"):
        score(perceptron)


def test_a_resnet_in_training_mode_is_refused() -> None:
    model = nnx.eval_shape(
        lambda: ResNet(
            BasicBlock,
            (1, 1, 1, 1),
            num_classes=3,
            stem="cifar",
            width=2,
            in_channels=1,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
    )
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jnp.ones(variable.shape))
    with pytest.raises(ValueError, match=r"BatchNorm in training mode.*model\.eval\(\)"):
        score(model, images=RNG(0).normal(size=(6, 8, 8, 1)).astype(np.float32))


def centred(logits: jax.Array) -> jax.Array:
    return logits - logits.mean(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: linear(WEIGHTS, x - x.mean(0)),
        lambda x: linear(WEIGHTS, x) / jnp.std(x),
        lambda x: linear(WEIGHTS, x + x[::-1] ** 2),
        lambda x: centred(linear(WEIGHTS, x - x.mean(0))),
    ],
    ids=["mean", "std", "neighbour", "mean, logits with constant sum"],
)
@pytest.mark.parametrize("count", [6, 1])
def test_a_function_that_mixes_samples_is_refused(model: Callable, count: int) -> None:
    some = dict(zip(("images", "labels", "indices"), (a[:count] for a in arrays()), strict=True))
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        score(model, **some)


def with_entry(array: np.ndarray, row: int, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


IMAGES, LABELS, INDICES = arrays()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS.astype(np.float32)}, "labels must be integers; got float32"),
        ({"indices": INDICES / 2}, "indices must be integers; got float64"),
        ({"labels": with_entry(LABELS, 4, 3)}, r"labels must lie in \[0, 3\).*\.\.3$"),
        ({"labels": with_entry(LABELS, 4, -1)}, r"labels must lie in \[0, 3\).*got -1\.\."),
        ({"indices": with_entry(INDICES, 2, -1)}, r"indices must lie in .*got -1\.\."),
        ({"indices": with_entry(INDICES, 2, 2**32)}, r"indices must lie in .*\.\.4294967296"),
        ({"images": with_entry(IMAGES, 4, np.nan)}, "1 of 6 images.*NaN.*first at index 14"),
        ({"images": with_entry(IMAGES, 0, np.inf)}, "1 of 6 images.*infinity.*at index 10"),
        ({"images": IMAGES.astype(np.uint8)}, "images must be float32 or float64.*got uint8"),
        ({"images": IMAGES[:, 0]}, r"images must be \[batch, ...\].*got \(6,\)"),
        ({"labels": LABELS[:5]}, r"one label and one index each.*\(5,\)"),
        ({"indices": INDICES[:, None]}, r"one label and one index each.*\(6, 1\)"),
        (
            {"images": IMAGES[:0], "labels": LABELS[:0], "indices": INDICES[:0]},
            r"images must be \[batch, ...\].*batch >= 1.*got \(0, 4\)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_batch_that_cannot_be_scored_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(linear, WEIGHTS, **changed)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x: x[:, 0], r"\(2,\)"),
        (lambda x: x[:, :1], r"\(2, 1\)"),
        (lambda x: jnp.ones((5, 3)) * x.mean(), r"\(5, 3\)"),
        (lambda x: x[:, :, None], r"\(2, 4, 1\)"),
    ],
)
def test_logits_of_the_wrong_shape_are_refused(model: Callable, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"logits must be \[batch, classes\].*got {shape}"):
        score(model)


def test_bfloat16_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits are bfloat16, too coarse.*float32"):
        score(lambda x: linear(WEIGHTS, x).astype(jnp.bfloat16))


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits are not finite.*check its weights"):
        score(linear, with_entry(WEIGHTS, 1, np.nan))


def test_the_sample_whose_logits_overflow_is_named() -> None:
    images = with_entry(IMAGES, 3, 3e38)
    with pytest.raises(ValueError, match="not finite for 1 of 6 samples, the first at index 13"):
        score(linear, WEIGHTS + 2, images=images)


def test_params_and_a_module_are_refused(perceptron: Perceptron) -> None:
    with pytest.raises(ValueError, match="carries its own weights: leave params out"):
        score(perceptron, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0.0}, "step must be a positive number; got 0"),
        ({"step": -1e-3}, "step must be a positive number; got -0.001"),
        ({"step": float("inf")}, "step must be a positive number; got inf"),
        ({"step": float("nan")}, "step must be a positive number; got nan"),
        ({"probes": 0}, "probes must be at least 1; got 0"),
    ],
)
def test_impossible_estimators_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FiniteDifference(**settings)
