"""Scores of logits, in JAX and NumPy: against float64, and in the limit of a confident model."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import entropy

import bridge
import jaxcurv
from jaxcurv.logit_scores import logit_scores

LABEL_FREE = ["margin", "entropy", "least_confidence"]


def sample(classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    logits = 30 * random.normal(size=(64, classes)).astype(np.float32)
    return logits, random.integers(classes, size=64)


def test_it_is_one_function_that_needs_neither_jax_nor_torch() -> None:
    assert bridge.analysis.logit_scores is jaxcurv.logit_scores is logit_scores
    code = (
        "import sys, bridge, jaxcurv; bridge.analysis.logit_scores; jaxcurv.logit_scores\n"
        "print({'jax', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_numpy_and_jax_agree(classes: int) -> None:
    logits, labels = sample(classes)
    ours = logit_scores(logits, labels)
    for scores in (logit_scores, jax.jit(logit_scores)):
        theirs = scores(jnp.asarray(logits), jnp.asarray(labels))
        assert theirs.keys() == ours.keys()
        for name, values in theirs.items():
            assert isinstance(values, jax.Array)
            assert ours[name].dtype == values.dtype == np.float32
            np.testing.assert_allclose(values, ours[name], rtol=1e-4, atol=1e-20, err_msg=name)


def test_without_labels_there_are_the_scores_that_need_none() -> None:
    logits, labels = sample()
    for array in (logits, jnp.asarray(logits), logits.tolist()):
        assert list(logit_scores(array)) == LABEL_FREE
    with_labels = logit_scores(logits, labels)
    assert set(with_labels) == {*LABEL_FREE, "el2n", "label_margin"}
    for name, values in logit_scores(logits).items():
        np.testing.assert_array_equal(values, with_labels[name])


def test_a_confident_error_in_the_label_s_probability_does_not_vanish() -> None:
    logits = np.array([[0.0, 60.0, 0.0], [0.0, 30.0, 0.0]])
    for array in (logits, jnp.asarray(logits, jnp.float32)):
        found = np.asarray(logit_scores(array, np.array([1, 1]))["el2n"])
        np.testing.assert_allclose(found, np.sqrt(6) * np.exp([-60.0, -30.0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (jnp.ones((3, 1)), None, "at least two classes"),
        (np.ones((3, 2), bool), None, "must be real"),
        (np.ones((3, 2)), [0, 1], r"one a sample; got int64 \(2,\)"),
        (jnp.ones((3, 2)), jnp.array([0, 1]), r"one a sample; got int32 \(2,\)"),
        (np.ones((3, 2)), [0, 1, 2], r"lie in \[0, 2\), the classes; got \[0 1 2\]"),
        (np.ones((3, 2)), [0, 1, 0.5], r"must be integers, .* got float64"),
    ],
)
def test_bad_input_is_refused(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logit_scores(logits, labels)


CLASSES = 7


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(0).normal(size=(200, CLASSES))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(CLASSES, size=200)


def in_jax(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    found = logit_scores(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32))
    return {name: np.asarray(values) for name, values in found.items()}


def test_scores_are_those_of_their_formulas_in_float64(
    logits: np.ndarray, labels: np.ndarray
) -> None:
    p = softmax(logits, axis=1)
    ordered = np.sort(logits, axis=1)
    others = np.array([np.delete(row, y).max() for row, y in zip(logits, labels, strict=True)])
    expected = {
        "el2n": np.linalg.norm(p - np.eye(CLASSES)[labels], axis=1),
        "entropy": entropy(p, axis=1),
        "least_confidence": 1 - p.max(axis=1),
        "margin": ordered[:, -1] - ordered[:, -2],
        "label_margin": logits[np.arange(200), labels] - others,
    }
    found = in_jax(logits, labels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


def test_margins_agree_where_the_label_is_predicted(logits: np.ndarray) -> None:
    found = in_jax(logits, logits.argmax(axis=1))
    np.testing.assert_array_equal(found["margin"], found["label_margin"])
    wrong = in_jax(logits, logits.argmin(axis=1))
    assert (wrong["label_margin"] < 0).all()
    np.testing.assert_array_equal(wrong["margin"], found["margin"])


def test_confident_samples_keep_their_order() -> None:
    """Where 1 - p and p - 1 round to 0 in float32, none of the scores ties."""
    gaps = np.linspace(20, 60, 9)
    logits = np.zeros((9, 3))
    logits[:, 1] = gaps
    found = in_jax(logits, np.ones(9, int))
    for name in ("el2n", "least_confidence", "entropy"):
        assert (np.diff(found[name]) < 0).all(), name
    np.testing.assert_allclose(found["least_confidence"], 2 * np.exp(-gaps), rtol=1e-5)
    others = 2 * np.exp(-gaps)
    entropy_of = np.log1p(others) + others * gaps / (1 + others)
    np.testing.assert_allclose(found["entropy"], entropy_of, rtol=1e-5)
    np.testing.assert_allclose(found["el2n"], np.sqrt(6) * np.exp(-gaps), rtol=1e-5)


def test_a_column_of_arrays_is_a_batch_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels = np.arange(6) % 3
    table = pd.DataFrame({"logits": list(logits), "label": labels}, index=np.arange(6) + 50)
    expected = logit_scores(logits, labels)
    for rows in (table, table.map(lambda cell: cell.tolist() if np.ndim(cell) else cell)):
        scores = logit_scores(rows.logits, rows.label)
        for name, score in expected.items():
            np.testing.assert_array_equal(scores[name], score)
    for column in (table.logits, table.logits.to_numpy()):
        np.testing.assert_array_equal(logit_scores(column)["margin"], expected["margin"])
    with pytest.raises(ValueError, match="the same samples in another order"):
        logit_scores(table.logits, table.label.sample(frac=1, random_state=0))
    table.at[52, "logits"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"logits must be real \[batch, class\].*rows of 2 and 3"):
        logit_scores(table.logits, table.label)
    with pytest.raises(ValueError, match=r"logits must be real \[batch, class\]"):
        logit_scores(table.label, table.label)
    with pytest.raises(ValueError, match=r"logits must be real \[batch, class\]"):
        logit_scores(table.label.astype(str))
