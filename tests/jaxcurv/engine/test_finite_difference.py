"""Samples on a jump of the model are counted; kinks, black pixels and large logits are no jumps."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping._decorator
import numpy as np
import pytest

from jaxcurv import Adaptive, FiniteDifference, HessianVector, input_curvature, score_dataset
from jaxcurv.estimators import HessianTrace, Published
from tests.examined import examined

RNG = np.random.default_rng(3)
SIX = RNG.normal(size=(6, 8)).astype(np.float32) / 2
FIVE = RNG.normal(size=(5, 8)).astype(np.float32) / 2
HEAD = RNG.normal(size=(8, 3)).astype(np.float32) / 2
CODES = RNG.normal(size=(6, 8)).astype(np.float32)
EDGES = np.array([18, 30, 45, 60], np.float32)
ROWS = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = np.arange(40) % 3
ONE = FiniteDifference(probes=1)
"""With a jump at an entry's own value each probe has half a chance to meet it."""


def told(on: np.ndarray, of: int = 40) -> str:
    first = np.flatnonzero(on)[0]
    return rf"jumps at {np.sum(on)} of {of} samples, the first at index {first}: "


def with_missing_values() -> np.ndarray:
    rows = ROWS.copy()
    rows[[7, 17, 31], 1] = -1
    return rows


MISSING = np.isin(np.arange(40), [7, 17, 31])


def imputed(x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.where(x == -1, 2.5, x) @ SIX) @ HEAD


def sequences() -> np.ndarray:
    steps = RNG.normal(size=(40, 12, 5)).astype(np.float32)
    steps[[9, 21], 8:] = 0
    return steps


def masked(x: jax.Array) -> jax.Array:
    mask = jnp.any(x != 0, axis=-1, keepdims=True)
    hidden = jnp.where(mask, jnp.tanh(x @ FIVE + 0.3), 0)
    return (hidden.sum(1) / mask.sum(1)) @ HEAD


def with_ages() -> np.ndarray:
    rows = ROWS.copy()
    rows[:, 0] = np.where(np.arange(40) < 5, 25, np.resize([52, 18, 41, 60, 29], 40))
    return rows


def binned(x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.asarray(CODES)[jnp.digitize(x[:, 0], EDGES)] + x[:, 1:] @ SIX[1:]) @ HEAD


def binned_beside_itself(x: jax.Array) -> jax.Array:
    codes = jnp.asarray(CODES)[jnp.searchsorted(EDGES, x[:, 0], side="right")]
    return jnp.tanh(codes + x[:, 1:] @ SIX[1:] + 0.01 * x[:, :1]) @ HEAD


def with_ties() -> np.ndarray:
    rows = RNG.permuted(np.tile(np.linspace(-2, 2, 6, dtype=np.float32), (40, 1)), axis=1)
    rows[25, :3] = 0.5
    return rows


def ranked(x: jax.Array) -> jax.Array:
    ranks = jnp.argsort(jnp.argsort(x, axis=1), axis=1)
    weights = jnp.arange(1.0, 7)[:, None]
    return jnp.tanh((jnp.asarray(CODES)[ranks] * weights).sum(1) / 6 + 0.3 * x @ SIX) @ HEAD


def one_hot(x: jax.Array) -> jax.Array:
    return jnp.tanh((x[:, :1] == EDGES) @ CODES[:4] + x[:, 1:] @ SIX[1:]) @ HEAD


def on_edges() -> np.ndarray:
    return np.isin(with_ages()[:, 0], EDGES)


ON_JUMPS = {
    "a missing value": (imputed, with_missing_values, MISSING),
    "a mask of zeros": (masked, sequences, np.isin(np.arange(40), [9, 21])),
    "bins": (binned, with_ages, on_edges()),
    "bins beside the number": (binned_beside_itself, with_ages, on_edges()),
    "ranks": (ranked, with_ties, np.arange(40) == 25),
    "one-hot of numbers": (one_hot, with_ages, on_edges()),
}


@pytest.mark.parametrize(("model", "data", "on"), ON_JUMPS.values(), ids=ON_JUMPS)
def test_every_sample_on_a_jump_is_counted_and_no_other(
    model: Callable, data: Callable[[], np.ndarray], on: np.ndarray
) -> None:
    with pytest.warns(UserWarning, match=told(on)) as warned:
        found = input_curvature(model, data(), LABELS)
    assert len(warned) == 1
    assert warned[0].filename in (__file__, jaxtyping._decorator.__file__)  # of checked signatures
    assert np.median(found.score[on]) > 20 * np.median(found.score[~on])


PICTURES = np.zeros((20, 8, 8, 1), np.float32)
PICTURES[:, 2:6, 2:6] = np.abs(RNG.normal(size=(20, 4, 4, 1))) + 0.1
WIDE = RNG.normal(size=(64, 8)).astype(np.float32) / 3
MANY = RNG.normal(size=(6, 64)).astype(np.float32)
SQUARE = RNG.normal(size=(64, 64)).astype(np.float32) / 5
LAST = RNG.normal(size=(64, 3)).astype(np.float32) / 3


def pooled(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


NO_JUMPS: dict[str, tuple[Callable, np.ndarray]] = {
    "ReLU": (lambda x: jax.nn.relu(jax.nn.relu(x @ MANY) @ SQUARE) @ LAST, ROWS),
    "30 times the logits": (lambda x: 30 * jax.nn.relu(x @ MANY) @ LAST, ROWS),
    "logits with a large offset": (lambda x: 1e4 + jnp.tanh(x @ SIX) @ HEAD, ROWS),
    "leaky ReLU of black": (lambda x: jnp.tanh(flat(jax.nn.leaky_relu(x)) @ WIDE) @ HEAD, PICTURES),
    "abs of black": (lambda x: jnp.tanh(flat(jnp.abs(x)) @ WIDE) @ HEAD, PICTURES),
    "max-pool of black": (lambda x: jnp.tanh(flat(pooled(x)) @ WIDE[:16]) @ HEAD, PICTURES),
    "largest of equals": (lambda x: jnp.tanh(jax.lax.top_k(flat(x), 8)[0] @ WIDE[:8]), PICTURES),
    "dead": (lambda x: jax.nn.relu(flat(x) - 50) @ WIDE, PICTURES),
}


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
@pytest.mark.parametrize(("model", "images"), NO_JUMPS.values(), ids=NO_JUMPS)
def test_what_is_continuous_is_not_counted(model: Callable, images: np.ndarray) -> None:
    for step in (1e-3, 1e-2):
        estimator = FiniteDifference(step=step, probes=4)
        input_curvature(model, images, LABELS[: len(images)], estimator=estimator)


@pytest.mark.parametrize(
    "estimator",
    [
        FiniteDifference(distribution="gaussian"),
        FiniteDifference(probes=1),
        HessianTrace(step=1e-3),
        Published(batch_size=40),
        Adaptive(FiniteDifference(probes=5), tolerance=0.5, max_probes=30),
    ],
    ids=["gaussian", "one probe", "trace", "published", "adaptive"],
)
def test_every_finite_difference_counts(estimator: object) -> None:
    with pytest.warns(UserWarning, match=told(MISSING)):
        input_curvature(imputed, with_missing_values(), LABELS, estimator=estimator)


def test_an_estimator_without_a_step_is_not_warned_of() -> None:
    rows = with_missing_values()
    input_curvature(imputed, rows, LABELS, estimator=HessianVector(2))
    examined(imputed, rows, LABELS)


def test_further_probes_of_an_adaptive_estimator_count() -> None:
    """The step goes below a bin's edge in one probe of twenty, and in none of the first twenty of
    some samples."""
    rows = ROWS.copy()
    rows[:, 0] = 30 + 1.645e-3

    def model(x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.where(x[:, :1] < 30, 2 * x, x)[:, 1:] @ SIX[1:] + x[:, :1] / 99) @ HEAD

    def counted(estimator: object) -> str:
        with pytest.warns(UserWarning, match="the model jumps at .* of 40 samples") as warned:
            input_curvature(model, rows, LABELS, estimator=estimator)
        return str(warned[0].message)

    first, all_of_them = (FiniteDifference(probes=n, distribution="gaussian") for n in (20, 60))
    further = counted(Adaptive(first, tolerance=0.001, max_probes=60))
    assert further == counted(all_of_them) != counted(first)


def test_a_table_counts_what_a_call_computes(tmp_path: Path) -> None:
    rows = np.concatenate([with_missing_values(), ROWS[:10]])
    rows[-1, 1] = -1  # which the padding of the last batch repeats
    samples = [{"image": r, "label": n % 3, "index": n + 100} for n, r in enumerate(rows)]

    def counted(expected: str, **options: object) -> None:
        with pytest.warns(UserWarning, match=expected) as warned:
            score_dataset(imputed, samples, estimators={"a": ONE}, batch_size=16, **options)
        assert len(warned) == 1
        assert warned[0].filename in (__file__, jaxtyping._decorator.__file__)

    counted("jumps at 4 of 50 samples, the first at index 107: ")
    out = tmp_path / "scores.parquet"
    counted("1 of 32 samples, the first at index 107: ", out=out, shard=(0, 2))
    counted("3 of 18 samples, the first at index 117: ", out=out)
    score_dataset(imputed, samples, estimators={"a": ONE}, batch_size=16, out=out)


def test_of_several_checkpoints_any_counts() -> None:
    def model(missing: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.where(x == missing, 2.5, x) @ SIX) @ HEAD

    rows = with_missing_values()
    rows[3, 0] = -2
    with pytest.warns(UserWarning, match=told(MISSING | (np.arange(40) == 3))):
        score_dataset(model, (rows, LABELS), checkpoints=[np.float32(-1), np.float32(-2)])


def test_no_second_warning_for_a_model_that_rounds() -> None:
    def model(x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.asarray(CODES)[jnp.digitize(x[:, 0], EDGES)] + x @ SIX) @ HEAD

    rows = with_ages()
    rows[:4, 0] = 30
    with pytest.warns(UserWarning, match="moves the logits otherwise") as warned:
        input_curvature(model, rows, LABELS, estimator=ONE)
    assert len(warned) == 1
