"""Estimators with further probes and on a further model."""

import pytest

from tests.jaxcurv.engine.test_gauss_newton import LOW_RANK, assert_trace_of_quadratic
from tests.jaxcurv.test_curvature import (
    assert_trace_estimates_have_no_bias_and_the_variance_of_theory,
)
from tests.oracles import scored

pytestmark = pytest.mark.long


def test_trace_estimates_of_gaussian_probes_have_the_variance_of_theory() -> None:
    assert_trace_estimates_have_no_bias_and_the_variance_of_theory("two layers", "gaussian")


def test_a_subspace_of_a_curved_model_has_the_trace_of_its_gauss_newton_matrix() -> None:
    """Exactly: for two classes the matrix has rank one."""
    assert_trace_of_quadratic(scored("quadratic", LOW_RANK))
