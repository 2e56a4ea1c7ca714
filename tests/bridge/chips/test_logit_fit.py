"""A scale and a shift for each logit, against `numpy.polyfit`."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge import PROFILES
from bridge.chips import LogitFit
from tests.refusals import refused

RNG = np.random.default_rng(0)
DIGITAL = RNG.normal(size=(50, 4)).astype(np.float32)


def test_it_is_the_least_squares_line_of_each_class() -> None:
    chip = (0.3 * DIGITAL - 1 + 0.2 * RNG.normal(size=DIGITAL.shape)).astype(np.float32)
    fit = bridge.fit_logits(chip, DIGITAL)
    for one in range(4):
        scale, bias = np.polyfit(chip[:, one].astype(float), DIGITAL[:, one].astype(float), 1)
        assert fit.scale[one] == pytest.approx(scale, rel=1e-9)
        assert fit.bias[one] == pytest.approx(bias, rel=1e-9)
    np.testing.assert_allclose(fit(chip), fit.scale * chip + fit.bias, rtol=1e-5)
    assert fit(chip).dtype == np.float32


def test_it_undoes_a_scale_and_a_shift() -> None:
    scale, shift = np.array([0.5, 2.0, 1.0, 0.1]), np.array([1.0, -2.0, 0.0, 30.0])
    chip = (scale * DIGITAL + shift).astype(np.float32)
    np.testing.assert_allclose(bridge.fit_logits(chip, DIGITAL)(chip), DIGITAL, atol=1e-4)
    fit = bridge.fit_logits(torch.from_numpy(chip), DIGITAL)
    np.testing.assert_allclose(fit.scale, 1 / scale, rtol=1e-4)


def test_a_logit_that_never_changes_gets_the_mean() -> None:
    chip = DIGITAL.copy()
    chip[:, 2] = 7.0
    fit = bridge.fit_logits(chip, DIGITAL)
    assert fit.scale[2] == 0
    np.testing.assert_allclose(fit(chip)[:, 2], DIGITAL[:, 2].mean(), rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 1e6])
def test_a_constant_that_has_no_exact_mean_is_constant(value: float) -> None:
    """The mean of float64 logits is rounded: deviations of 1e-17 are no scale."""
    digital = np.random.default_rng(0).normal(size=(37, 2))
    fit = bridge.fit_logits(np.full((37, 2), value), digital)
    np.testing.assert_array_equal(fit.scale, 0)
    np.testing.assert_allclose(fit.bias, digital.mean(0))


def tables() -> tuple[LogitFit, Any]:
    """A fit, and predictions of other images by a chip that has drifted."""
    network = nn.Sequential(nn.Linear(8, 4)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    images = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    labels = network(torch.from_numpy(images)).argmax(1).numpy()
    # Drift makes logits smaller, and biases do not shrink with them.
    chip = bridge.program(network, PROFILES["pcm"], seed=0).at(3.15e7)
    some, others = (images[:200], labels[:200]), (images[200:], labels[200:])
    fit = bridge.fit_logits(bridge.predict(chip, some), bridge.predict(network, some))
    return fit, bridge.predict(chip, others)


def test_tables_of_a_chip_that_has_drifted_for_a_year() -> None:
    fit, table = tables()
    found = fit.corrected(table)
    logits = fit(np.stack(table["logits"]))
    np.testing.assert_array_equal(np.stack(found["logits"]), logits)
    np.testing.assert_array_equal(found["prediction"], logits.argmax(1))
    np.testing.assert_array_equal(found["correct"], found["prediction"] == table["label"])
    assert found.columns.tolist() == table.columns.tolist()
    assert (fit.scale > 1.2).all()
    assert found["correct"].mean() > table["correct"].mean() + 0.05
    # Pandas joins by the rows' labels, and other columns are the user's.
    some = table.assign(chip=3).sample(50, random_state=0)
    corrected = fit.corrected(some)
    assert corrected.index.equals(some.index)
    np.testing.assert_array_equal(corrected["prediction"], found["prediction"].loc[some.index])
    assert (corrected["chip"] == 3).all()


def test_what_is_refused() -> None:
    fit, table = tables()
    for chip, digital, message in (
        (DIGITAL, DIGITAL[:40], r"\(50, 4\), the digital ones \(40, 4\)"),
        (DIGITAL[:1], DIGITAL[:1], "two images at least; got 1"),
        (DIGITAL[0], DIGITAL[0], r"chip must be logits \[images, class\]; got shape \(4,\)"),
        (DIGITAL, np.full_like(DIGITAL, np.nan), "digital has logits that are not finite"),
        (table, table.drop(columns="logits"), "digital has no logits"),
        (table, table[::-1], "digital has other samples than chip, or in another order"),
        ("a chip", DIGITAL, r"chip must be logits .* or a table of bridge\.predict.*got a str"),
        (table["logits"], DIGITAL, "chip must be logits .* got a Series"),
        (table[:0], DIGITAL, "chip has no rows"),
    ):
        with refused(message):
            bridge.fit_logits(chip, digital)
    with refused(r"the fit is of logits \[batch, 4\]; got shape \(50, 3\)"):
        fit(DIGITAL[:, :3])
    assert isinstance(fit, LogitFit)
    with refused(r"the table has no logits"):
        fit.corrected(table.drop(columns="logits"))
    with refused("has no column index"):
        fit.corrected(table.set_index("index"))
    with refused("got a ndarray: call the fit itself"):
        fit.corrected(DIGITAL)
