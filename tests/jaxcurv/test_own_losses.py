"""A loss of the user's own, with labels that are no classes: Eq. 1 needs a loss alone."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    flip_probability,
    input_curvature,
    logit_scores,
    merge_scores,
    score_dataset,
)
from jaxcurv.engine import cross_entropy
from jaxcurv.estimators import Estimator
from jaxcurv.margins import Moments
from tests.refusals import refused

RNG = np.random.default_rng(21)
IMAGES = RNG.normal(size=(7, 5)).astype(np.float32)
ONE = RNG.normal(size=(5, 1)).astype(np.float32)
FOUR = RNG.normal(size=(5, 4)).astype(np.float32)
BINARY = np.array([0, 1, 1, 0, 1, 0, 0])
NUMBERS = RNG.normal(size=7).astype(np.float32)
SEVERAL = RNG.integers(0, 2, (7, 4)).astype(np.float32)
INDICES = np.arange(7) + 30


def linear(weights: Any, x: jax.Array) -> jax.Array:
    return x @ weights


def logistic(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels)


def squared(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (logits[:, 0] - labels) ** 2 / 2


def sum_of_logistic(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=1)


def second_derivatives(name: str) -> np.ndarray:
    """d2L/dz2 of each sample, its diagonal `[7, outputs]`."""
    z = IMAGES.astype(np.float64) @ WEIGHTS[name]
    s = 1 / (1 + np.exp(-z))
    return np.ones_like(z) if name == "regression" else s * (1 - s)


WEIGHTS = {"binary": ONE, "regression": ONE, "multi-label": FOUR}
LABELS = {"binary": BINARY, "regression": NUMBERS, "multi-label": SEVERAL}
LOSSES: dict[str, Any] = {
    "binary": logistic,
    "regression": squared,
    "multi-label": sum_of_logistic,
}
every_kind = pytest.mark.parametrize("name", WEIGHTS)


def hessians(name: str) -> np.ndarray:
    wide = WEIGHTS[name].astype(np.float64)
    return np.einsum("dk,bk,ek->bde", wide, second_derivatives(name), wide)


def score(name: str, estimator: Estimator, **changed: Any) -> Any:
    settings: dict[str, Any] = {
        "params": WEIGHTS[name], "indices": INDICES, "loss": LOSSES[name], "estimator": estimator,
    } | changed  # fmt: skip
    return input_curvature(linear, IMAGES, LABELS[name], **settings)


@every_kind
def test_scores_of_other_targets_are_those_of_their_hessian(name: str) -> None:
    matrices = hessians(name)
    exact = score(name, GaussNewton())
    np.testing.assert_allclose(exact.score, np.trace(matrices, axis1=1, axis2=2), rtol=1e-4)
    assert exact.measures == "trace of the Hessian"
    norms = np.linalg.norm(matrices, axis=(1, 2))
    np.testing.assert_allclose(exact.frobenius_norm, norms, rtol=1e-4)
    whole = score(name, LowRankGaussNewton(rank=4, probes=2))
    np.testing.assert_allclose(whole.score, exact.score, rtol=1e-4)
    trace = score(name, HessianTrace(200))
    assert np.all(np.abs(trace.score - exact.score) < 5 * trace.standard_error)
    # Of one output, || H v || = L'' |w.v| || w ||, and a quadratic's difference is h times that.
    product, difference = (score(name, e) for e in (HessianVector(3), FiniteDifference(0.1, 3)))
    if name == "regression":
        np.testing.assert_allclose(difference.score, 0.1 * product.score, rtol=1e-4)
    if WEIGHTS[name].shape[1] == 1:
        ratio = product.hessian_trace / np.square(product.frobenius_norm) * norms
        np.testing.assert_allclose(ratio, 1, rtol=1e-4)


@every_kind
def test_loss_and_gradient_are_those_of_the_targets_and_there_is_no_prediction(name: str) -> None:
    found = score(name, FiniteDifference(probes=2))
    z = IMAGES.astype(np.float64) @ WEIGHTS[name]
    y = LABELS[name].reshape(7, -1).astype(np.float64)
    if name == "regression":
        losses, slopes = np.square(z - y) / 2, z - y
    else:
        losses, slopes = np.logaddexp(0, z) - y * z, 1 / (1 + np.exp(-z)) - y
    np.testing.assert_allclose(found.loss, losses.sum(1), rtol=1e-4)
    norms = np.linalg.norm(slopes @ WEIGHTS[name].T, axis=1)
    np.testing.assert_allclose(found.gradient_norm, norms, rtol=1e-4)
    assert found.prediction is None


def test_one_logit_is_two_of_which_one_is_0() -> None:
    """What the message about one logit says."""

    def both(weights: Any, x: jax.Array) -> jax.Array:
        z = x @ weights
        return jnp.concatenate([jnp.zeros_like(z), z], axis=1)

    for estimator in (FiniteDifference(probes=3), HessianVector(3), GaussNewton()):
        two = input_curvature(
            both, IMAGES, BINARY, params=ONE, indices=INDICES, estimator=estimator
        )
        one = score("binary", estimator)
        np.testing.assert_allclose(one.score, two.score, rtol=2e-3)
        np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    assert two.prediction is not None


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float32, np.float64])
def test_labels_of_one_logit_may_be_of_any_type(dtype: Any) -> None:
    found = input_curvature(
        linear, IMAGES, BINARY.astype(dtype), params=ONE, indices=INDICES, loss=logistic
    )
    np.testing.assert_array_equal(found.score, score("binary", FiniteDifference()).score)


@every_kind
def test_a_data_set_of_them_is_scored_and_its_labels_are_in_the_table(
    name: str, tmp_path: Path
) -> None:
    estimators: dict[str, Estimator] = {
        "curvature": FiniteDifference(probes=3),
        "gn": GaussNewton(),
        "adaptive": Adaptive(FiniteDifference(probes=5), 0.3, 25),
    }
    labels, few = LABELS[name], FiniteDifference(probes=3)
    rows = [
        {"image": image, "label": label, "index": int(index)}
        for image, label, index in zip(IMAGES, labels, INDICES, strict=True)
    ]
    run = partial(
        score_dataset, linear, params=WEIGHTS[name], loss=LOSSES[name], estimators=estimators,
        batch_size=4, out=tmp_path / "scores.parquet",
    )  # fmt: skip
    table = run(rows)
    assert list(table.columns)[:4] == ["index", "label", "loss", "gradient_norm"]
    assert not {"prediction", "correct", "margin", "entropy", "el2n"} & set(table.columns)
    np.testing.assert_array_equal(np.stack(table["label"].to_numpy()), labels)
    found = score(name, few)
    np.testing.assert_allclose(table["curvature"], found.score, rtol=1e-5)
    np.testing.assert_allclose(table["loss"], found.loss, rtol=1e-5)
    # Again, from the file; and grown by a sample.
    np.testing.assert_array_equal(run(rows)["curvature"], table["curvature"])
    more = run([*rows, {**rows[0], "index": 99}])
    np.testing.assert_array_equal(more["curvature"][:7], table["curvature"])
    # Another label of the same sample is seen.
    other = [*rows]
    other[0] = {**rows[0], "label": 1 - rows[0]["label"]}
    with pytest.raises(ValueError, match="other samples"):
        run(other)


def test_pairs_of_arrays_shards_and_checkpoints_take_them_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loss": sum_of_logistic, "estimators": {"c": FiniteDifference(probes=2)}, "batch_size": 2,
    }  # fmt: skip
    whole = score_dataset(linear, (IMAGES, SEVERAL), params=FOUR, **settings)
    out = tmp_path / "scores.parquet"
    for turn in range(2):
        score_dataset(linear, (IMAGES, SEVERAL), params=FOUR, shard=(turn, 2), out=out, **settings)
    merged = merge_scores(out)
    np.testing.assert_array_equal(merged["c"], whole["c"])
    np.testing.assert_array_equal(np.stack(merged["label"].to_numpy()), SEVERAL)
    both = score_dataset(linear, (IMAGES, SEVERAL), checkpoints=[FOUR, 2 * FOUR], **settings)
    np.testing.assert_array_equal(both["checkpoint"], [0, 1] * 7)
    np.testing.assert_array_equal(both["c"][::2], whole["c"])
    np.testing.assert_array_equal(np.stack(both["label"].to_numpy())[1::2], SEVERAL)
    mean = score_dataset(
        linear, (IMAGES, SEVERAL), checkpoints=[FOUR, 1 * FOUR], average=True, **settings
    )
    np.testing.assert_array_equal(mean["c"], whole["c"])


def test_a_loss_of_classes_is_scored_as_before() -> None:
    labels = RNG.integers(0, 4, 7)
    run = partial(input_curvature, linear, IMAGES, params=FOUR)
    own = run(labels, loss=lambda z, y: cross_entropy(z, y))
    np.testing.assert_array_equal(own.score, run(labels).score)
    assert own.prediction is not None
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\).*got 0\.\.9.*floats"):
        run([0, 1, 2, 3, 0, 9, 1], loss=lambda z, y: cross_entropy(z, y))


# --- what is refused, and what to do


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4)[RNG.integers(0, 4, 7)], r"one-hot.*labels\.argmax\(axis=1\)"),
        (np.eye(4, dtype=int)[RNG.integers(0, 4, 7)], r"one-hot.*labels\.argmax\(axis=1\)"),
        (SEVERAL, r"labels .*\(7, 4\).*loss of your own"),
        (BINARY[:, None], r"labels\[:, 0\]"),
        (BINARY.astype(np.float32), r"labels must be integers; got float32.*astype\(int\)"),
        (NUMBERS, r"labels must be integers; got float32.*loss of your own"),
        (BINARY.astype(bool), r"labels must be integers; got bool.*astype\(int\)"),
        (np.array(list("abcdefg")), r"labels must be integers; got <U1.*number of its class"),
    ],
    ids=[
        *("one-hot", "one-hot integers", "several", "a column"),
        *("whole floats", "floats", "bool", "texts"),
    ],
)
def test_labels_that_cross_entropy_cannot_take_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_curvature(linear, IMAGES, labels, params=FOUR)
    if labels.dtype.kind != "U":
        with pytest.raises(ValueError, match="label"):
            score_dataset(linear, (IMAGES, labels), params=FOUR)


@pytest.mark.parametrize("labels", [BINARY, NUMBERS], ids=["binary", "regression"])
def test_one_logit_under_the_default_loss_is_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"(at least two classes.*zeros_like|loss of your own)"):
        input_curvature(linear, IMAGES, labels, params=ONE)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(np.arange(7) == 3, np.nan, NUMBERS), "labels .*NaN.*index 33"),
        (np.array(list("abcdefg")), "labels must be numbers; got <U1"),
        (NUMBERS * 1j, "labels must be numbers; got complex64"),
        (NUMBERS[:5], r"one label and one index each.*\(5,\)"),
        (np.full(7, 2**40), r"labels .*int32"),
        (SEVERAL, r"the loss (fails|must give one)"),
    ],
    ids=["NaN", "texts", "complex", "too few", "too large", "other shape"],
)
def test_labels_that_no_loss_can_take_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_curvature(linear, IMAGES, labels, params=ONE, indices=INDICES, loss=squared)


@pytest.mark.parametrize("labels", [NUMBERS, np.repeat(NUMBERS[:2], [5, 2])], ids=["", "alike"])
def test_a_loss_that_mixes_the_labels_of_a_batch_is_refused(labels: Any) -> None:
    """`[batch, 1]` less `[batch]` is `[batch, batch]`."""
    with pytest.raises(ValueError, match=r"the loss mixes the samples .*or their labels"):
        input_curvature(
            linear, IMAGES, labels, params=ONE, loss=lambda z, y: ((z - y) ** 2).mean(axis=1)
        )


def test_what_needs_classes_says_so() -> None:
    with pytest.raises(ValueError, match=r"logits must be real \[batch, class\] of at least two"):
        logit_scores(IMAGES @ ONE)
    with refused("labels must be integers"):
        logit_scores(IMAGES @ FOUR, SEVERAL)
    noise = Moments(None, np.ones_like(ONE))
    with pytest.raises(ValueError, match="at least two classes"):
        flip_probability(linear, (IMAGES, BINARY), params=ONE, moments=noise)
    concave = score_of_concave()
    with pytest.raises(ValueError, match="Gauss-Newton is undefined"):
        concave(GaussNewton())
    assert np.all(concave(HessianTrace(3)).score < 0)


def score_of_concave() -> Any:
    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return -squared(logits, labels)

    return partial(score, "regression", loss=loss)


# --- a sample's loss is its own


def per_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


MIXING: dict[str, tuple[Any, Any, Any]] = {
    "divided by the batch": (FOUR, BINARY, lambda z, y: per_class(z, y) / len(z)),
    "a share of the weights": (
        ONE,
        np.stack([NUMBERS, np.ones_like(NUMBERS)], 1),
        lambda z, t: t[:, 1] * (z[:, 0] - t[:, 0]) ** 2 / t[:, 1].sum(),
    ),
    "NaN where alone": (ONE, BINARY, lambda z, t: (z[:, 0] - t / t.max()) ** 2),
}


@pytest.mark.parametrize(("weights", "labels", "loss"), MIXING.values(), ids=MIXING)
def test_a_loss_that_depends_on_the_batch_is_refused(weights: Any, labels: Any, loss: Any) -> None:
    with pytest.raises(ValueError, match="the loss mixes the samples of a batch"):
        input_curvature(linear, IMAGES, labels, params=weights, loss=loss)


def test_a_model_that_depends_on_the_size_of_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the model mixes .*how many there are"):
        input_curvature(lambda x: x @ FOUR * (8 / len(x)), IMAGES, BINARY)
    chosen = input_curvature(lambda x: (x @ FOUR)[jnp.arange(len(x)) - len(x)], IMAGES, BINARY)
    np.testing.assert_allclose(
        chosen.score, input_curvature(lambda x: x @ FOUR, IMAGES, BINARY).score, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_loss_of_rows_that_weigh_nothing_is_scored() -> None:
    targets = np.stack([NUMBERS, np.arange(7) > 1], 1).astype(np.float32)
    found = input_curvature(
        linear,
        IMAGES,
        targets,
        params=ONE,
        loss=lambda z, t: t[:, 1] * jnp.log(jnp.cosh(z[:, 0] - t[:, 0])),
    ).score
    assert np.all(found[:2] == 0)
    assert np.all(found[2:] > 0)


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_loss_of_classes_that_weigh_nothing_is_scored() -> None:
    weights = np.array([0, 0, 1, 1], np.float32)
    found = input_curvature(
        linear,
        IMAGES,
        np.array([0, 1, 2, 3, 0, 1, 2]),
        params=FOUR,
        loss=lambda z, y: jnp.asarray(weights)[y] * per_class(z, y),
    ).score
    np.testing.assert_array_equal(found > 0, [0, 0, 1, 1, 0, 0, 1])


def test_a_column_of_losses_says_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"take its \[:, 0\]"):
        input_curvature(
            linear,
            IMAGES,
            NUMBERS[:, None],
            params=ONE,
            loss=lambda z, t: optax.l2_loss(z, t),
        )


def test_a_table_belongs_to_the_weight_of_each_class(tmp_path: Path) -> None:
    weights = np.ones(4, np.float32)

    def weighted(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.asarray(weights)[labels] * per_class(logits, labels)

    def table() -> Any:
        source = (IMAGES, np.array([0, 1, 2, 3, 0, 1, 2]))
        return score_dataset(linear, source, params=FOUR, loss=weighted, out=tmp_path / "t.parquet")

    table()
    weights[3] = 9
    with pytest.raises(ValueError, match="losses"):
        table()


def masked(logits: jax.Array, labels: jax.Array) -> jax.Array:
    there = optax.sigmoid_binary_cross_entropy(logits, jnp.nan_to_num(labels))
    return jnp.where(jnp.isnan(labels), 0, there).sum(axis=1)


def test_missing_ones_of_several_labels_are_for_the_loss_to_mask(tmp_path: Path) -> None:
    labels = np.where(RNG.random(SEVERAL.shape) < 0.4, np.nan, SEVERAL).astype(np.float32)
    labels[0] = np.nan
    settings: dict[str, Any] = {"params": FOUR, "loss": masked, "out": tmp_path / "t.parquet"}
    found = input_curvature(linear, IMAGES, labels, params=FOUR, loss=masked).score
    rows = score_dataset(linear, (IMAGES[:5], labels[:5]), **settings)
    np.testing.assert_array_equal(rows["curvature"] > 0, found[:5] > 0)
    grown = score_dataset(linear, (IMAGES, labels), **settings)
    np.testing.assert_array_equal(grown["curvature"][:5], rows["curvature"])
    with pytest.raises(ValueError, match=r"not finite .*must mask them"):
        input_curvature(linear, IMAGES, labels, params=FOUR, loss=sum_of_logistic)
    labels[6, 0] = np.inf
    with pytest.raises(ValueError, match=r"labels of 1 of 7 samples hold .*infinity"):
        input_curvature(linear, IMAGES, labels, params=FOUR, loss=masked)


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_whole_numbers_among_floats_are_floats(batch_size: int, tmp_path: Path) -> None:
    numbers = [0.5, 1, 2, 3, 1.5, 2, 4]
    source = list(zip(IMAGES, numbers, strict=True))
    settings: dict[str, Any] = {
        "params": ONE,
        "loss": squared,
        "batch_size": batch_size,
        "out": tmp_path / "t.parquet",
    }
    score_dataset(linear, source[:6], **settings)
    assert score_dataset(linear, source, **settings)["label"].tolist() == numbers


def squares(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(logits - labels[:, None]), axis=1)


LATE = [1, 2, 3, 4, 2, 1, 0.5]
"""Whole numbers first."""


class Lazy:
    """Samples that are read by position: 40, one of them a float."""

    def __init__(self, float_at: int) -> None:
        self.float_at = float_at

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return IMAGES[position % 7], 0.5 if position == self.float_at else position % 3


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        (list(zip(IMAGES, LATE, strict=True)), None),
        (
            tuple(
                {"image": x, "label": y, "index": i}
                for i, (x, y) in enumerate(zip(IMAGES, LATE, strict=True))
            ),
            None,
        ),
        (
            [
                {"pixels": x, "y": np.float32(y) if y < 1 else y}
                for x, y in zip(IMAGES, LATE, strict=True)
            ],
            {"image": "pixels", "label": "y"},
        ),
        (Lazy(float_at=39), None),
    ],
    ids=["pairs", "rows", "named", "lazy"],
)
@pytest.mark.parametrize("weights", [ONE, FOUR[:, :3]], ids=["one output", "three"])
def test_floats_after_whole_numbers_are_known_from_the_first_on(
    source: Any, keys: Any, weights: Any
) -> None:
    settings: dict[str, Any] = {"params": weights, "loss": squares, "batch_size": 2}
    found = score_dataset(linear, source, keys=keys, **settings)
    floats = np.float32(LATE if len(source) == 7 else [Lazy(39)[i][1] for i in range(40)])
    images = IMAGES[np.arange(len(source)) % 7]
    assert found.equals(score_dataset(linear, (images, floats), **settings))


def test_a_float_that_is_seen_late_says_where_it_is_and_what_to_give() -> None:
    for size in (2, 40):
        with pytest.raises(
            ValueError, match=r"labels must be of one kind.*index 13 is 0.5.*as floats, all of them"
        ):
            score_dataset(linear, Lazy(float_at=13), params=ONE, loss=squared, batch_size=size)
