"""Costs in times of a forward pass: the formulas, and that the constants are the measured ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    costs,
)
from jaxcurv.costs import forward_passes
from jaxcurv.estimators import Published
from jaxcurv.storage.checksums import read_json

ROOT = Path(__file__).parents[2]


def test_every_constant_is_the_median_of_the_archived_measurement() -> None:
    measured = read_json(ROOT / "experiments" / "results" / "benchmark" / "cpu_costs.json")
    here = {
        "gradient_norm": costs.GRADIENT_NORM,
        "finite_difference_base": costs.FINITE_DIFFERENCE.base,
        "finite_difference_each": costs.FINITE_DIFFERENCE.each,
        "hessian_vector_base": costs.HESSIAN_VECTOR.base,
        "hessian_vector_each": costs.HESSIAN_VECTOR.each,
        "gauss_newton_base": costs.GAUSS_NEWTON.base,
        "gauss_newton_each": costs.GAUSS_NEWTON.each,
        "low_rank_base": costs.LOW_RANK_BASE,
        "low_rank_dimension": costs.LOW_RANK_DIMENSION,
        "low_rank_probe": costs.LOW_RANK_PROBE,
        "margin": costs.MARGIN,
        "margin_moments": costs.MARGIN_MOMENTS,
    }
    medians = {name: round(one["median"], 2) for name, one in measured["constants"].items()}
    assert here == medians
    assert all(value >= 0 for value in here.values())


FD, HV = costs.FINITE_DIFFERENCE, costs.HESSIAN_VECTOR


@pytest.mark.parametrize(
    ("estimator", "cost"),
    [
        (FiniteDifference(), FD.base + 10 * FD.each),
        (FiniteDifference(probes=1), FD.base + FD.each),
        (Published(batch_size=8, probes=5), FD.base + 5 * FD.each),
        (HessianTrace(step=1e-3), FD.base + 10 * FD.each),
        (HessianVector(), HV.base + 10 * HV.each),
        (HessianTrace(), HV.base + 10 * HV.each),
        # The base gradient once more, in the lower precision.
        (HessianVector(precision="bfloat16"), HV.base + 10 * HV.each + costs.GRADIENT_NORM),
        (GaussNewton(), costs.GAUSS_NEWTON.base + 99 * costs.GAUSS_NEWTON.each),
        (
            LowRankGaussNewton(rank=200, probes=3),
            costs.LOW_RANK_BASE + 99 * costs.LOW_RANK_DIMENSION + 3 * costs.LOW_RANK_PROBE,
        ),
        (Adaptive(FiniteDifference(probes=5)), FD.base + 20 * FD.each),
        (Adaptive(HessianVector(30)), HV.base + 30 * HV.each),
    ],
    ids=repr,
)
def test_cost_with_a_hundred_classes(estimator: Any, cost: float) -> None:
    assert forward_passes(estimator, 100) == pytest.approx(cost)


def test_each_later_round_of_adaptive_probing_has_a_base_gradient_of_its_own() -> None:
    adaptive = Adaptive(FiniteDifference(probes=5))
    first, later = FD.base + 20 * FD.each, FD.base + 5 * FD.each
    assert forward_passes(adaptive, 10, probes=35.0) == pytest.approx(first + 3 * later)
    assert forward_passes(adaptive, 10, probes=22.5) == pytest.approx(first + later / 2)


@dataclass(frozen=True)
class Own:
    def estimate(self, problem: Any) -> Any: ...

    def forward_passes(self, classes: int) -> float:
        return 3.0 * classes


def test_an_estimator_of_your_own_says_its_own() -> None:
    assert forward_passes(Own(), 4) == 12


def test_the_flip_probability_is_made_of_its_passes() -> None:
    assert costs.MARGIN_AT_MEAN == 2 * costs.MARGIN
    assert costs.FLIP_PROBABILITY == costs.MARGIN + costs.MARGIN_MOMENTS


def test_the_guide_has_the_same_costs() -> None:
    low = f"{costs.LOW_RANK_BASE:.1f} + {costs.LOW_RANK_DIMENSION:.1f} rank"
    newton = costs.GAUSS_NEWTON
    cells = {
        "FiniteDifference": f"{FD.base:.1f} + {FD.each:.1f} n",
        "HessianVector": f"{HV.base:.1f} + {HV.each:.1f} n",
        "HessianTrace": f"{HV.base:.1f} + {HV.each:.1f} n",
        "GaussNewton": f"{newton.base:.1f} + {newton.each:.1f} (C - 1)",
        "LowRankGaussNewton": f"{low} + {costs.LOW_RANK_PROBE:.1f} n",
        "estimators.Published(...)": f"{FD.base:.1f} + {FD.each:.1f} n",
    }
    lines = (ROOT / "docs/guides/jax-model.md").read_text().splitlines()
    for name, cell in cells.items():
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert line.endswith(f"| {cell} |"), (line, cell)
