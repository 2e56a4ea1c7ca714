"""Raw inputs in a second way: as normalised ones at another step."""

import jax
import numpy as np
import pytest

from experiments.studies import rescore
from jaxcurv import FiniteDifference, input_curvature
from jaxcurv.data import Normalisation
from tests.experiments.studies.test_rescore import INDICES, KEY, LABELS, Softmax, pixels

pytestmark = pytest.mark.long


def test_raw_inputs_are_another_step_where_channels_share_a_std() -> None:
    """curv_raw at h = curv_normalised at h / s, over s, for one s: on any model."""
    shared = Normalisation((0.4, 0.5, 0.3), (0.25, 0.25, 0.25))
    x = pixels()
    with jax.enable_x64(True):
        logits_fn, params = rescore.of_raw_pixels(Softmax(), shared)
        common = {"indices": INDICES, "key": KEY}
        raw = input_curvature(
            logits_fn, x, LABELS, params=params, estimator=FiniteDifference(step=1e-3), **common
        )
        normalised = input_curvature(
            Softmax(),
            (x - np.array(shared.mean)) / 0.25,
            LABELS,
            estimator=FiniteDifference(step=4e-3),
            **common,
        )
    np.testing.assert_allclose(raw.score, normalised.score / 0.25, rtol=1e-9)
