"""Models and losses without a derivative are refused; a gradient that happens to be 0 is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping._decorator
import numpy as np
import optax
import pytest
from flax import nnx

from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    flip_probability,
    input_curvature,
    score_dataset,
)
from jaxcurv.engine import cross_entropy
from jaxcurv.margins import Moments, margin_moments
from tests.examined import examined

RNG = np.random.default_rng(8)
TABLE = RNG.normal(size=(9, 3)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (6, 4)).astype(np.float32)
IMAGES = RNG.uniform(size=(6, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 6)


def embedded(x: jax.Array) -> jax.Array:
    return jnp.asarray(TABLE)[x.astype(jnp.int32)].mean(axis=1)


def embedded_by_flax(x: jax.Array) -> jax.Array:
    return nnx.Embed(9, 3, rngs=nnx.Rngs(0))(x.astype(jnp.int32)).mean(axis=1)


WITHOUT: dict[str, Callable] = {
    "token ids": embedded,
    "token ids, Flax": embedded_by_flax,
    "token ids, one at a time": jax.vmap(lambda ids: jnp.asarray(TABLE)[ids.astype(int)].sum(0)),
    "one-hot of whole numbers": lambda x: jax.nn.one_hot(x[:, 0].astype(int), 9) @ TABLE,
    "rounded": lambda x: jax.nn.relu(jnp.round(255 * x) / 255) @ WEIGHTS,
    "uint8 and back": lambda x: (255 * x).astype(jnp.uint8).astype(jnp.float32) @ WEIGHTS,
    "binarised": lambda x: jnp.where(x > 0.5, 1.0, 0.0) @ WEIGHTS,
    "signs": lambda x: jnp.sign(x - 0.5) @ WEIGHTS,
    "stop_gradient": lambda x: jax.lax.stop_gradient(x) @ WEIGHTS,
    "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x @ WEIGHTS, axis=1), 3),
    "in a jit of its own": jax.jit(lambda x: jax.nn.gelu(jnp.floor(9 * x)) @ WEIGHTS),
    "constant": lambda x: jnp.zeros((len(x), 3)),
}


@pytest.mark.parametrize("model", WITHOUT.values(), ids=WITHOUT)
def test_a_model_without_a_derivative_is_refused(model: Callable) -> None:
    for estimator in (FiniteDifference(), HessianVector()):
        with pytest.raises(
            ValueError, match=r"no derivative with respect to its input.*embeddings"
        ):
            input_curvature(model, TOKENS, LABELS, estimator=estimator)


@jax.custom_jvp
def without_rule(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


without_rule.defjvp(lambda x, t: (without_rule(x[0]), 0 * t[0]))

FLAT: dict[str, Callable] = {
    "less the remainder": lambda x: (x - x % 0.25) @ WEIGHTS,
    "less the remainder, 8 bits": lambda x: jax.nn.relu((x - x % (1 / 255)) @ WEIGHTS) @ SQUARE,
    "but for rounding": lambda x: x @ (0.3 * WEIGHTS) - 0.3 * ((x % 0.25) @ WEIGHTS),
    "heaviside": lambda x: jnp.heaviside(x - 0.5, 0.5) @ WEIGHTS,
    "0 times x, and token ids": lambda x: 0 * x[:, :3] + embedded(8 * x),
    "a comparison of two": lambda x: jnp.where(x[:, :1] > x[:, 1:2], 0 * x + 1, 0 * x) @ WEIGHTS,
    "stop_gradient": lambda x: 0 * (x @ WEIGHTS) + jax.lax.stop_gradient(jnp.tanh(x @ WEIGHTS)),
    "the rest is stopped": lambda x: (x - (x - jax.lax.stop_gradient(x))) @ WEIGHTS,
    "a rule of zeros": lambda x: without_rule(x @ WEIGHTS),
    "rounded in a loop": lambda x: (
        jax.lax.fori_loop(0, 2, lambda _, z: jnp.round(z), 4 * x) @ WEIGHTS
    ),
    "ranks": lambda x: (jnp.argsort(jnp.argsort(x, axis=1), axis=1) + 0 * x) @ WEIGHTS,
}
SQUARE = RNG.normal(size=(3, 3)).astype(np.float32)


@pytest.mark.parametrize("model", FLAT.values(), ids=FLAT)
def test_logits_that_change_without_a_gradient_are_refused(model: Callable) -> None:
    # By the logits, or where each way from the images is rounded, by the structure.
    told = r"no derivative .* (the logits change with it where|through whole numbers, rounding)"
    for images in (IMAGES, np.full((1, 4), 0.3, np.float32)):
        with pytest.raises(ValueError, match=told):
            input_curvature(model, images, LABELS[: len(images)], estimator=HessianVector(1))


def test_nothing_is_written_for_it(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no derivative with respect to its input"):
        score_dataset(embedded, (TOKENS, LABELS), out=tmp_path / "scores.parquet")
    assert list(tmp_path.iterdir()) == []


@jax.custom_jvp
def rounded_straight_through(x: jax.Array) -> jax.Array:
    return jnp.round(255 * x) / 255


rounded_straight_through.defjvp(lambda x, t: (rounded_straight_through(x[0]), t[0]))

ZERO: dict[str, Callable] = {
    "a head of zeros": lambda x: jax.nn.relu(x @ WEIGHTS) @ jnp.zeros((3, 3)),
    "a head that is 0 times": lambda x: 0 * (x @ WEIGHTS),
    "dead units": lambda x: jax.nn.relu(-1 - x) @ WEIGHTS,
    "clipped": lambda x: jnp.clip(x, 2, 3) @ WEIGHTS,
    "hard tanh between": lambda x: jnp.clip(1e3 * (x - 0.5), -1, 1) @ WEIGHTS,
    "ReLU6 between": lambda x: jax.nn.relu6(1e3 * (x - 0.2)) @ WEIGHTS,
    "steep between": lambda x: jnp.tanh(1e4 * (x - 0.5)) @ WEIGHTS,
    "thresholded": lambda x: jnp.where(x > 5, x, 0) @ WEIGHTS,
}


@pytest.mark.parametrize("model", ZERO.values(), ids=ZERO)
def test_a_gradient_that_is_0_here_is_not_refused(model: Callable) -> None:
    with pytest.warns(UserWarning, match="0 at 6 of 6 samples, the first at index 0: .* tied"):
        found = input_curvature(model, IMAGES, LABELS, estimator=FiniteDifference(probes=2))
    assert np.all(found.score == 0)


def test_a_derivative_that_is_not_finite_is_no_mixing_of_samples() -> None:
    model: Callable = lambda x: jnp.sqrt(x) @ WEIGHTS  # noqa: E731
    with pytest.raises(ValueError, match=r"gradient of the model's logits is not finite .* at 0"):
        input_curvature(model, 0 * IMAGES, LABELS)


def test_the_first_image_alone_decides_nothing() -> None:
    images = IMAGES.copy()
    images[:2] = -2  # where every unit is dead
    model: Callable = lambda x: jax.nn.relu(x) @ WEIGHTS  # noqa: E731
    with pytest.warns(UserWarning, match="0 at 2 of 6 samples, the first at index 0: .* tied"):
        found = input_curvature(model, images, LABELS, estimator=FiniteDifference(probes=2))
    assert np.all((found.score > 0) == (np.arange(6) >= 2))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: rounded_straight_through(x) @ WEIGHTS,
        lambda x: (x + jax.lax.stop_gradient(jnp.round(x) - x)) @ WEIGHTS,
        lambda x: jnp.asarray(TABLE)[x[:, 0].astype(int)] + x @ WEIGHTS,
        lambda x: jax.lax.fori_loop(0, 3, lambda _, z: jax.nn.tanh(z), x) @ WEIGHTS,
    ],
    ids=["rule of its own", "straight through", "in a part", "in a loop"],
)
def test_what_has_a_derivative_is_scored(model: Callable) -> None:
    found = input_curvature(model, IMAGES, LABELS, estimator=HessianVector(2))
    assert np.all(found.score > 0)


def test_embeddings_are_scored_as_the_message_says() -> None:
    """The score of the embedded tokens is that of softmax regression on their mean."""
    embeddings = TABLE[TOKENS.astype(int)]
    found = input_curvature(
        lambda e: e.mean(axis=1), embeddings, LABELS, estimator=HessianVector(200)
    )
    z = embeddings.astype(np.float64).mean(1)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    hessian = np.einsum("bi,ij->bij", p, np.eye(3)) - np.einsum("bi,bj->bij", p, p)
    # Of the embeddings H is the Kronecker product of this with 1/16 ones [4, 4], of norm 1/4.
    norms = np.linalg.norm(hessian, axis=(1, 2)) / 4
    np.testing.assert_allclose(found.frobenius_norm, norms, rtol=0.3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: (jnp.argmax(z, axis=1) != y).astype(z.dtype),
        lambda z, y: jnp.round(cross_entropy(z, y)),
        lambda z, y: cross_entropy(jax.lax.stop_gradient(z), y),
        lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z[:, :1], 0 * y),
    ],
    ids=["error rate", "rounded", "stop_gradient", "softmax of one logit"],
)
def test_a_loss_without_a_gradient_is_refused(loss: Callable) -> None:
    with pytest.raises(ValueError, match="the loss has no gradient in the logits"):
        input_curvature(lambda x: x @ WEIGHTS, IMAGES, LABELS, loss=loss)


def test_a_loss_whose_gradient_is_0_here_is_not_refused() -> None:
    def hinge(logits: jax.Array, labels: jax.Array) -> jax.Array:
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        return jnp.maximum(0, 1 + logits - own).at[jnp.arange(len(labels)), labels].set(0).sum(1)

    scale = np.diag([100, 100, 100]).astype(np.float32)
    sure = np.eye(3, dtype=np.float32)[LABELS]
    with pytest.warns(UserWarning, match="tied"):
        found = input_curvature(lambda x: x @ scale, sure, LABELS, loss=hinge)
    assert np.all(found.score == 0)


def test_tokens_have_margins_but_rounded_weights_have_none() -> None:
    """Margins take derivatives with respect to the weights, not to the input."""
    noises = {"noise": Moments(None, np.ones((9, 3), np.float32))}

    def tokens(table: Any, x: jax.Array) -> jax.Array:
        return table[x.astype(int)].mean(axis=1)

    found = margin_moments(tokens, TOKENS, params=TABLE, noises=noises)
    counts = np.array([np.bincount(one, minlength=9) for one in TOKENS.astype(int)])
    expected = 2 * np.sum(np.square(counts / 4), axis=1)
    np.testing.assert_allclose(found.variance["noise"], expected, rtol=1e-5)
    for dead in (jnp.round, jnp.sign, jax.lax.stop_gradient):
        with pytest.raises(ValueError, match="no derivative with respect to its noisy weights"):
            flip_probability(
                lambda table, x, dead=dead: tokens(dead(table), x),
                (TOKENS, LABELS),
                params=TABLE,
                moments=noises["noise"],
            )


# --- whole numbers beside numbers


CODES = np.random.default_rng(8).normal(size=(20, 4)).astype(np.float32)
SIX = np.random.default_rng(9).normal(size=(7, 3)).astype(np.float32)


def coded(x: jax.Array) -> jax.Array:
    """A category in the first entry of `[batch, 4]`, three numbers beside it."""
    both = jnp.concatenate([jnp.asarray(CODES)[x[:, 0].astype(int)], x[:, 1:]], axis=1)
    return jnp.tanh(both @ SIX)


def rows_with_codes() -> np.ndarray:
    rows = np.random.default_rng(10).normal(size=(6, 4)).astype(np.float32)
    rows[:, 0] = np.arange(6) + 5
    return rows


@pytest.mark.parametrize(
    ("model", "entry"),
    [
        (coded, r"\[0\]"),
        (lambda x: coded(x[:, ::-1]), r"\[3\]"),
        (lambda x: coded(jnp.concatenate([jnp.floor(x[:, :1]), x[:, 1:]], axis=1)), r"\[0\]"),
    ],
    ids=["astype", "last", "floor"],
)
def test_a_code_among_numbers_is_refused_for_a_difference(model: Callable, entry: str) -> None:
    rows = rows_with_codes()
    rows = rows[:, ::-1].copy() if entry == r"\[3\]" else rows
    with pytest.raises(ValueError, match=f"entry {entry} of an image is a whole number"):
        input_curvature(model, rows, LABELS[:6])
    examined(model, rows, LABELS[:6], HessianVector(2))


FLAG = np.array([[0.3], [-0.2], [0.5]], np.float32).T
FROM_ZERO: dict[str, Callable] = {
    "astype": coded,
    "floor": lambda x: coded(jnp.concatenate([jnp.floor(x[:, :1]), x[:, 1:]], axis=1)),
    "a flag": lambda x: jnp.tanh(jnp.where(x[:, :1] >= 1, FLAG, -FLAG) + x[:, 1:] @ SIX[:3]),
    "one of its values": lambda x: jnp.tanh(
        jnp.where(x[:, :1] == 3, FLAG, -FLAG) + x[:, 1:] @ SIX[:3]
    ),
    "an embedding": lambda x: jnp.tanh(
        jnp.take(jnp.asarray(CODES), x[:, 0].astype(jnp.int32), axis=0) @ SIX[:4]
        + jax.nn.relu(x[:, 1:] - 0.1) @ SIX[4:]
    ),
}


@pytest.mark.parametrize("model", FROM_ZERO.values(), ids=FROM_ZERO)
def test_a_code_whose_first_sample_is_0_is_refused(model: Callable) -> None:
    rows = rows_with_codes()
    rows[:, 0] = np.arange(6) % 4
    with pytest.raises(ValueError, match=r"entry \[0\] of an image is a whole number"):
        input_curvature(model, rows, LABELS[:6])
    with pytest.raises(ValueError, match=r"entry \[0\] of an image is a whole number"):
        score_dataset(model, (rows, LABELS[:6]))


def test_a_mask_that_is_empty_in_the_first_image_is_refused() -> None:
    images = np.random.default_rng(1).normal(size=(4, 3, 3, 2)).astype(np.float32)
    images[..., 1] = np.random.default_rng(2).integers(0, 3, (4, 3, 3))
    images[0, ..., 1] = 0

    def model(x: jax.Array) -> jax.Array:
        kinds = jax.nn.one_hot(x[..., 1].astype(int), 3)
        return jnp.tanh(jnp.concatenate([x[..., :1], kinds], axis=-1).mean((1, 2)) @ SIX[:4])

    with pytest.raises(ValueError, match=r"entry \[0, 0, 1\] of an image is a whole number"):
        input_curvature(model, images, LABELS[:4])


@pytest.mark.parametrize("shift", [5, 0])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: jnp.tanh(x[:, 1:] @ SIX[:3]),
        lambda x: jnp.tanh(jax.nn.relu(x - 5) @ SIX[:4]),
        lambda x: jnp.tanh(jax.nn.relu(x - 5.0005) @ SIX[:4]),
        lambda x: jnp.tanh(jnp.abs(x - 5) @ SIX[:4]),
        lambda x: coded(jnp.concatenate([jnp.round(x[:, :1]), x[:, 1:]], axis=1)),
        lambda x: jnp.tanh(jnp.max(x, axis=1, keepdims=True) * SIX[0]),
        lambda x: jnp.tanh(1e4 * x) @ SIX[:4],
    ],
    ids=["cropped", "at the ReLU", "ReLU within the step", "abs", "round", "max", "saturated"],
)
def test_other_entries_without_a_gradient_are_not_refused(model: Callable, shift: int) -> None:
    rows = rows_with_codes()
    rows[:, 0] += shift - 5
    examined(model, rows, LABELS[:6])


# --- rounding in a part of the model


WIDE = np.random.default_rng(11).normal(size=(2, 48, 5)).astype(np.float32) / 7
GRID = np.arange(-1, 1, 1 / 64, dtype=np.float32)
PICTURES = np.random.default_rng(12).normal(size=(4, 48)).astype(np.float32)


@pytest.mark.parametrize(
    "rounded",
    [
        lambda x: x - x % (1 / 64),
        lambda x: jnp.round(64 * x) / 64,
        lambda x: (64 * x).astype(jnp.int8) / 64,
        lambda x: jnp.sum(x[:, :, None] > jnp.arange(-1, 1, 1 / 64), axis=2) / 64,
        lambda x: jnp.sign(jnp.sin(200 * x)) / 64,
        lambda x: jnp.searchsorted(GRID, x) / 64,
        lambda x: jax.lax.top_k(-jnp.abs(x[:, :, None] - GRID), 1)[1][:, :, 0] / 64,
        lambda x: jnp.argsort(jnp.abs(x[:, :, None] - GRID), axis=2)[:, :, 0] / 64,
    ],
    ids=[
        *("less the remainder", "round", "whole numbers", "comparisons", "sign", "bins"),
        *("nearest", "ranks"),
    ],
)
def test_rounding_in_a_part_is_warned_of_for_a_difference(rounded: Callable) -> None:
    def model(x: jax.Array) -> jax.Array:
        return jnp.tanh(rounded(x)) @ WIDE[0] + 0.3 * x @ WIDE[1]

    with pytest.warns(UserWarning, match=r"a step of 0\.001 moves the logits otherwise"):
        examined(model, PICTURES, LABELS[:4], FiniteDifference(probes=1))
    examined(model, PICTURES, LABELS[:4], HessianVector(1))


def test_what_is_warned_of_is_scored_nevertheless() -> None:
    def model(x: jax.Array) -> jax.Array:
        return jnp.tanh(x - x % (1 / 64)) @ WIDE[0] + 0.3 * jax.nn.tanh(x @ WIDE[1])

    with pytest.warns(UserWarning, match=r"a step of 0\.001 moves the logits otherwise"):
        found = input_curvature(model, PICTURES, LABELS[:4], estimator=FiniteDifference(probes=1))
    assert np.all(found.score > 0)
    found = input_curvature(model, PICTURES, LABELS[:4], estimator=HessianVector(1))
    assert np.all(found.score > 0)


def test_a_category_beside_its_own_skip_is_warned_of_whatever_the_first_sample_has() -> None:
    def model(x: jax.Array) -> jax.Array:
        return (jnp.asarray(CODES)[x[:, 0].astype(int)] + 0.1 * x) @ SIX[:4]

    for first in ([0, 1, 2, 1, 0, 2], [0, 0, 0, 0, 0, 0]):  # each has 0 in the first one
        rows = rows_with_codes()
        rows[:, 0] = first
        with pytest.warns(UserWarning, match=r"a step of 0\.001 moves the logits otherwise"):
            input_curvature(model, rows, LABELS[:6], estimator=FiniteDifference(probes=1))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: jnp.abs(x - 2 * jnp.floor(x / 2) - 1) @ WIDE[0],
        lambda x: (x * (x > 0)) @ WIDE[0],
        lambda x: jnp.mod(jnp.abs(x), 4) @ WIDE[0],
        lambda x: (x + jnp.round(0 * x)) @ WIDE[0],
    ],
    ids=["a triangle wave", "ReLU as a product", "a remainder", "of nothing"],
)
def test_rounding_that_makes_no_jump_is_not(model: Callable) -> None:
    examined(model, PICTURES, LABELS[:4], FiniteDifference(probes=1))


def frozen(x: jax.Array) -> jax.Array:
    return jnp.tanh(jax.lax.stop_gradient(x) @ WIDE[0])


def adapter(x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ WIDE[1])


STOPPED: dict[str, Callable] = {
    "a frozen part beside an adapter": lambda x: frozen(x) + 0.1 * adapter(x),
    "an ensemble with a frozen teacher": lambda x: 0.3 * frozen(x) + adapter(x),
    "frozen features beside others": lambda x: (
        jax.nn.relu(jnp.concatenate([frozen(x), adapter(x)], axis=1)) @ WIDE[0][:10]
    ),
    "an attention's keys": lambda x: (
        jax.nn.softmax(jax.lax.stop_gradient(x) * (x @ WIDE[0])[:, :1]) @ WIDE[1]
    ),
    "in a loop": lambda x: (
        jax.lax.fori_loop(0, 2, lambda _, z: z + jnp.sin(3 * jax.lax.stop_gradient(z)), x) @ WIDE[0]
    ),
    "in a jit of its own": jax.jit(lambda x: jax.checkpoint(frozen)(x) + adapter(x)),
    "most entries": lambda x: jnp.tanh(x.at[:, 4:].set(jax.lax.stop_gradient(x[:, 4:])) @ WIDE[0]),
}


@pytest.mark.parametrize("model", STOPPED.values(), ids=STOPPED)
def test_what_is_behind_stop_gradient_in_a_part_is_warned_of(model: Callable) -> None:
    for estimator in (FiniteDifference(probes=1), HessianVector(1)):
        with pytest.warns(UserWarning, match="behind stop_gradient"):
            examined(model, PICTURES, LABELS[:4], estimator)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: jax.nn.softmax(x @ WIDE[0]) @ SIX[:5],
        lambda x: jax.nn.log_softmax(jax.nn.relu(x @ WIDE[0])),
        lambda x: (
            nnx.dot_product_attention(*[x.reshape(-1, 6, 2, 4)] * 3).reshape(-1, 48) @ WIDE[0]
        ),
        lambda x: jax.nn.logsumexp(x.reshape(-1, 6, 8), axis=2) @ WIDE[0][:6],
        lambda x: jnp.tanh(x @ WIDE[0] * jax.lax.stop_gradient(jnp.ones(5))),
        lambda x: (lambda z: z - jax.lax.stop_gradient(jnp.mean(0 * z)))(jnp.tanh(x @ WIDE[0])),
    ],
    ids=["softmax", "log-softmax", "attention", "logsumexp", "weights", "of nothing"],
)
def test_stop_gradient_that_hides_nothing_is_not(model: Callable) -> None:
    for estimator in (FiniteDifference(probes=1), HessianVector(1)):
        examined(model, PICTURES, LABELS[:4], estimator)


# --- second derivatives that vanish


@jax.custom_vjp
def sign_by_vjp(x: jax.Array) -> jax.Array:
    return jnp.sign(x)


sign_by_vjp.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * (jnp.abs(x) <= 1),))


@jax.custom_jvp
def sign_by_jvp(x: jax.Array) -> jax.Array:
    return jnp.sign(x)


sign_by_jvp.defjvp(lambda x, t: (jnp.sign(x[0]), t[0] * (jnp.abs(x[0]) <= 1)))


def binarised(sign: Callable) -> Callable:
    return lambda x: sign(x @ WIDE[0]) @ SIX[:5]


def surrogate(x: jax.Array) -> jax.Array:
    return x + jax.lax.stop_gradient(jnp.sign(x) - x)


def negative_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


WITHOUT_STEP = [HessianVector(1), HessianTrace(2), Adaptive(HessianVector(5), max_probes=20)]


@pytest.mark.parametrize("sign", [sign_by_vjp, sign_by_jvp])
def test_scores_that_are_all_0_behind_a_rule_of_its_own_are_warned_of(sign: Callable) -> None:
    for estimator in WITHOUT_STEP:
        with pytest.warns(UserWarning, match=r"is exactly 0.*stop_gradient.*GaussNewton") as said:
            found = input_curvature(binarised(sign), PICTURES, LABELS[:4], estimator=estimator)
        assert len(said) == 1
        assert said[0].filename in (__file__, jaxtyping._decorator.__file__)
        assert not found.score.any()
        assert found.gradient_norm.all()


def test_a_data_set_of_scores_that_are_all_0_is_warned_of_once(tmp_path: Any) -> None:
    estimators = {"trace": HessianTrace(1), "norm": HessianVector(1)}
    estimators |= {"gn": GaussNewton()}
    for out in (None, tmp_path / "scores.parquet"):
        with pytest.warns(
            UserWarning, match="of HessianTrace and HessianVector is exactly 0"
        ) as said:
            table = score_dataset(
                binarised(sign_by_jvp), (PICTURES, LABELS[:4]), estimators=estimators, out=out,
                batch_size=2,
            )  # fmt: skip
        assert len(said) == 1
        assert said[0].filename in (__file__, jaxtyping._decorator.__file__)
        assert np.all(table["gn"] > 0)


def test_what_the_warning_recommends_has_a_curvature() -> None:
    for sign, estimator in [
        (surrogate, HessianVector(1)),
        (sign_by_jvp, GaussNewton()),
        (sign_by_jvp, LowRankGaussNewton(1, 1)),
    ]:
        found = input_curvature(binarised(sign), PICTURES, LABELS[:4], estimator=estimator)
        assert np.all(found.score > 0)


@pytest.mark.parametrize("estimator", [GaussNewton(), LowRankGaussNewton(1, 1)])
def test_gauss_newton_says_what_to_do_about_a_custom_vjp(estimator: Any) -> None:
    with pytest.raises(ValueError, match=r"custom_vjp .* as a jax\.custom_jvp, or take Hessian"):
        input_curvature(binarised(sign_by_vjp), PICTURES, LABELS[:4], estimator=estimator)


@pytest.mark.parametrize("estimator", [HessianVector(1), HessianTrace(1)])
def test_a_custom_vjp_whose_forward_rule_calls_it_is_told(estimator: Any) -> None:
    own = jax.custom_vjp(jnp.tanh)
    own.defvjp(lambda x: (own(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
    with pytest.raises(ValueError, match=r"its own forward rule calls again .* FiniteDifference"):
        input_curvature(binarised(own), PICTURES, LABELS[:4], estimator=estimator)
    itself = jax.custom_vjp(jnp.tanh)
    itself.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
    found = input_curvature(binarised(itself), PICTURES, LABELS[:4], estimator=estimator)
    expected = input_curvature(binarised(jnp.tanh), PICTURES, LABELS[:4], estimator=estimator)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)


def test_a_loss_that_is_linear_in_the_logits_is_warned_of() -> None:
    def model(x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ WIDE[0]) @ SIX[:5]

    for estimator, why in [
        (HessianVector(1), "or, rightly, where both model and loss are linear"),
        (GaussNewton(), "the loss has no second derivative in the logits"),
    ]:
        with pytest.warns(UserWarning, match=why):
            found = input_curvature(
                model, PICTURES, LABELS[:4], estimator=estimator, loss=negative_logit
            )
        assert not found.score.any()
        assert found.gradient_norm.any()


# --- samples that are tied


@pytest.mark.parametrize("estimator", [FiniteDifference(), HessianVector(10), GaussNewton()])
def test_samples_whose_softmax_is_one_hot_are_tied(estimator: Any) -> None:
    """e^-88 is the least that float32 tells from 0, at the gap of the logits or a few more."""
    images = np.array([[0, gap] for gap in (150, 1, 20, 200)], np.float32)
    with pytest.warns(UserWarning, match=r"at 2 of 4 samples, .* at index 7: .* margin") as said:
        found = input_curvature(
            lambda x: x, images, np.ones(4, int), indices=[7, 8, 9, 10], estimator=estimator
        )
    assert len(said) == 1
    assert said[0].filename in (__file__, jaxtyping._decorator.__file__)
    np.testing.assert_array_equal(found.score == 0, [True, False, False, True])


def test_a_data_set_counts_tied_samples_once(tmp_path: Any) -> None:
    images = np.array([[0, gap] for gap in (1, 150, 2, 3, 150)], np.float32)
    for out in (None, tmp_path / "scores.parquet"):
        with pytest.warns(UserWarning, match="0 at 2 of 5 samples, the first at index 1") as said:
            score_dataset(lambda x: x, (images, np.ones(5, int)), out=out, batch_size=2)
        assert len(said) == 1
        assert said[0].filename in (__file__, jaxtyping._decorator.__file__)


def test_a_sample_of_several_checkpoints_is_counted_once() -> None:
    images = np.array([[0, gap] for gap in (1, 150, 2, 3, 80)], np.float32)
    weights = [np.full(1, factor, np.float32) for factor in (1, 2)]
    with pytest.warns(UserWarning, match="0 at 2 of 5 samples, the first at index 1"):
        score_dataset(lambda w, x: w * x, (images, np.ones(5, int)), checkpoints=weights)


def test_a_single_sample_or_few_of_many_are_not_told_of() -> None:
    for count, flat in ((3, 1), (40, 3)):
        images = np.array([[0, 150]] * flat + [[0, 1]] * (count - flat), np.float32)
        found = input_curvature(lambda x: x, images, np.ones(count, int))
        assert np.sum(found.score == 0) == flat
