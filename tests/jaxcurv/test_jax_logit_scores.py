"""Scores of the logits against float64 and in the limit of a confident model."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from jaxcurv.logit_scores import logit_scores

CLASSES = 7


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(0).normal(size=(200, CLASSES))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(CLASSES, size=200)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
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
    found = scores(logits, labels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


def test_margins_agree_where_the_label_is_predicted(logits: np.ndarray) -> None:
    found = scores(logits, logits.argmax(axis=1))
    np.testing.assert_array_equal(found["margin"], found["label_margin"])
    wrong = scores(logits, logits.argmin(axis=1))
    assert (wrong["label_margin"] < 0).all()
    np.testing.assert_array_equal(wrong["margin"], found["margin"])


def test_confident_samples_keep_their_order() -> None:
    """Where 1 - p and p - 1 round to 0 in float32, none of the scores ties."""
    gaps = np.linspace(20, 60, 9)
    logits = np.zeros((9, 3))
    logits[:, 1] = gaps
    found = scores(logits, np.ones(9, int))
    for name in ("el2n", "least_confidence", "entropy"):
        assert (np.diff(found[name]) < 0).all(), name
    np.testing.assert_allclose(found["least_confidence"], 2 * np.exp(-gaps), rtol=1e-5)
    others = 2 * np.exp(-gaps)
    entropy_of = np.log1p(others) + others * gaps / (1 + others)
    np.testing.assert_allclose(found["entropy"], entropy_of, rtol=1e-5)
    np.testing.assert_allclose(found["el2n"], np.sqrt(6) * np.exp(-gaps), rtol=1e-5)
