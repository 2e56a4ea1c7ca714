"""One definition of the scores of logits: JAX and NumPy, with labels and without."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxcurv
from jaxcurv.logit_scores import logit_scores

LABEL_FREE = ["margin", "entropy", "least_confidence"]


def sample(classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    logits = 30 * random.normal(size=(64, classes)).astype(np.float32)
    return logits, random.integers(classes, size=64)


def test_it_is_one_function_that_needs_neither_jax_nor_torch() -> None:
    assert bridge.logit_scores is jaxcurv.logit_scores is logit_scores
    code = "import sys, bridge; bridge.logit_scores; print({'jax', 'torch'} & sys.modules.keys())"
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
