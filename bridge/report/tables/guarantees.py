"""What thresholds with a guarantee route, and how often what stays on the chip then fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import analog_only_failures
from bridge.report.tables.outcomes import over_chips
from bridge.report.tables.routers import RoutedBy, charges, routers_of, score_of
from bridge.routing.costs import Costs
from bridge.routing.curves import routed_at
from bridge.routing.guarantees import calibration_size, guaranteed_threshold, risk_at

LEVELS = (0.005, 0.01, 0.02, 0.05)
"""Largest shares of all samples that may stay on the chip and fail there."""

COLUMNS = (
    *("fold", "profile", "router", "kind", "level", "calibration", "chips"),
    *("threshold", "threshold_min", "threshold_max", "failing", "failing_min", "failing_max"),
    *("fraction", "fraction_min", "fraction_max", "accuracy", "accuracy_min", "accuracy_max"),
    *("energy", "saved"),
)


def guarantee(
    joined: pd.DataFrame,
    costs: pd.DataFrame,
    *,
    energies: Costs,
    fold: str = "test",
    calibrated_on: str = "validation",
) -> pd.DataFrame:
    """Thresholds by every score that is there, chosen on one fold and tried on another.

    Each chip has a threshold of its own, by conformal risk control on its own outcomes: the promise
    is for new samples on that chip, and not for other chips, of which a run has too few
    (`bridge.routing.guaranteed_threshold`).

    Args:
        joined: as `outcomes.join` returns it, with flip probabilities where there are any.
        costs: as `predictors.costs_table` returns it.
        energies: energy of one inference, analog and digital.
        fold: where thresholds are tried.
        calibrated_on: where they are chosen.

    Returns:
        One row a (profile, router, level): fold, kind; calibration (samples); chips; threshold (the
        middle one of the chips', the lower of two), a sample stays where its score is at most that;
        on this fold failing (share of all samples that stays and fails), fraction (routed) and
        accuracy, each the mean over chips; energy and saved (1 - energy / digital). _min and _max
        are over chips. No rows where `calibrated_on` has none.

    Raises:
        ValueError: a sample is of both folds.
    """
    rows: list[dict[str, Any]] = []
    for profile, here in joined.groupby("profile", sort=False):
        chosen, tried = (here[here["fold"] == one] for one in (calibrated_on, fold))
        if chosen.empty:
            continue
        for name, by in routers_of(here).items():
            which = {"fold": fold, "profile": profile, "router": name, "kind": by.kind}
            cost = charges(by, costs, energies)
            there, here_too = _fold(chosen, by), _fold(tried, by)
            rows += [which | _at(level, there, here_too, cost) for level in LEVELS]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class _Fold:
    """One fold of one profile; all but digital and samples as [chips, samples]."""

    samples: npt.NDArray[np.int64]
    digital: npt.NDArray[np.bool_]
    analog: npt.NDArray[np.bool_]
    failures: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]


def _fold(rows: pd.DataFrame, by: RoutedBy) -> _Fold:
    samples, analog = over_chips(rows)
    digital = samples["digital_correct"].to_numpy()
    return _Fold(
        samples["sample"].to_numpy(),
        digital,
        analog,
        analog_only_failures(digital, analog),
        np.broadcast_to(score_of(rows, by), analog.shape),
    )


def _at(level: float, chosen: _Fold, tried: _Fold, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `guarantee` from `level` on."""
    calibration = len(chosen.samples)
    # Too few samples would have a warning for each chip and score.
    possible = calibration >= calibration_size(level)
    chips = []
    for chip, analog in enumerate(tried.analog):
        threshold = -np.inf
        if possible:
            threshold = guaranteed_threshold(chosen.scores[chip], chosen.failures[chip], level)
        scores = tried.scores[chip]
        above = float(np.nextafter(threshold, np.inf))  # `routed_at` routes from there on
        chips.append(
            {
                "threshold": threshold,
                "failing": risk_at(
                    threshold,
                    scores,
                    tried.failures[chip],
                    indices=tried.samples,
                    calibrated_on=chosen.samples,
                ),
            }
            | asdict(routed_at(above, scores, tried.digital, analog, **cost))
        )
    table = pd.DataFrame(chips)
    found: dict[str, Any] = {"level": level, "calibration": calibration, "chips": len(table)}
    for name in ("threshold", "failing", "fraction", "accuracy"):
        found |= {f"{name}_min": table[name].min(), f"{name}_max": table[name].max()}
    found["threshold"] = table["threshold"].quantile(interpolation="lower")
    for name in ("failing", "fraction", "accuracy", "energy", "saved"):
        found[name] = table[name].mean()
    return found
