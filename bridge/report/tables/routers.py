"""What routing fragile samples to the digital model is worth: curves, and thresholds that hold."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import pandas as pd

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.outcomes import over_chips
from bridge.report.tables.predictors import FLIP_PROBABILITY, LABEL_FREE
from bridge.routing.curves import (
    Costs,
    Kind,
    choose_threshold,
    mean_energy,
    routed_at,
    routing_baselines,
    routing_curve,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoutedBy:
    """A score that a router might take.

    `sign` is -1 for a score that falls with fragility. A score of kind "digital" or "student" takes
    the forward passes of the predictor that `costed_as` names.
    """

    column: str
    kind: Kind
    sign: int = 1
    costed_as: str = ""


STUDENT = "student"
"""Score of a `bridge.routing.Student`, which sees the image alone. A run's own tables have none."""

ROUTERS: dict[str, RoutedBy] = {
    "analog margin": RoutedBy("analog_margin", "analog", -1),
    "analog entropy": RoutedBy("analog_entropy", "analog"),
    "analog least confidence": RoutedBy("analog_least_confidence", "analog"),
    "curvature, known": RoutedBy(f"curvature{LABEL_FREE}", "known"),
    "margin, known": RoutedBy("margin", "known", -1),
    "flip probability, known": RoutedBy(FLIP_PROBABILITY, "known"),
    "curvature, computed": RoutedBy(f"curvature{LABEL_FREE}", "digital", costed_as="curvature"),
    "flip probability, computed": RoutedBy(FLIP_PROBABILITY, "digital", costed_as=FLIP_PROBABILITY),
    "margin, computed": RoutedBy("margin", "digital", -1, costed_as="margin"),
    STUDENT: RoutedBy(STUDENT, "student", costed_as=STUDENT),
}
"""No router sees a label: curvature is that of the model's own prediction."""


def routers_of(rows: pd.DataFrame) -> dict[str, RoutedBy]:
    """The routers whose score these rows of one profile have; the ideal one has no flips."""
    return {
        name: by
        for name, by in ROUTERS.items()
        if by.column in rows and not rows[by.column].isna().all()
    }


def charges(by: RoutedBy, costs: pd.DataFrame, energies: Costs) -> dict[str, Any]:
    """The arguments of `bridge.routing.routed_at` that say what a router's score costs.

    Args:
        by: the router.
        costs: as `predictors.costs_table` returns it.
        energies: energy of one inference, analog and digital.
    """
    passes = costs.set_index("predictor")["forward_passes"]
    return {
        "kind": by.kind,
        "costs": energies,
        "passes": float(passes[by.costed_as]) if by.costed_as else 1.0,
    }


@dataclass(frozen=True)
class Routing:
    """Tables of one fold under every profile."""

    curves: pd.DataFrame
    """fold, profile, router, kind and the columns of `bridge.routing.routing_curve`."""
    choices: pd.DataFrame
    """fold, profile, router, kind, target, threshold, validation_accuracy, validation_energy; on
    this fold: given_up (of the digital accuracy), fraction, accuracy (_min, _max over chips),
    energy, saved (1 - energy / digital)."""
    baselines: pd.DataFrame
    """fold, profile, name, accuracy, energy."""


_CHOSEN = (
    *("target", "threshold", "validation_accuracy", "validation_energy", "given_up"),
    *("fraction", "accuracy", "accuracy_min", "accuracy_max", "energy", "saved"),
)


def route(
    joined: pd.DataFrame,
    costs: pd.DataFrame,
    *,
    energies: Costs,
    tolerance: float,
    fold: str = "test",
    chosen_on: str = "validation",
) -> Routing:
    """Routes one fold by every score that is there; thresholds are chosen on another fold.

    The threshold routes as few samples of the fold `chosen_on` as it can while the accuracy there
    is at least the digital model's less `tolerance`. Without such a fold no threshold is chosen,
    with a warning in the log.

    Args:
        joined: as `outcomes.join` returns it.
        costs: as `predictors.costs_table` returns it.
        energies: energy of one inference, analog and digital.
        tolerance: accuracy given up, a fraction.
        fold: where routers are tried.
        chosen_on: where thresholds are chosen.
    """
    curves, choices, baselines = [], [], []
    if not (joined["fold"] == chosen_on).any():
        log.warning("no %s fold is scored: no threshold is chosen", chosen_on)
    for profile, rows in joined.groupby("profile", sort=False):
        here = {"fold": fold, "profile": profile}
        tried, chosen = (rows[rows["fold"] == one] for one in (fold, chosen_on))
        samples, analog = over_chips(tried)
        digital = samples["digital_correct"]
        baselines.append(routing_baselines(digital, analog, energies).assign(**here))
        for name, by in routers_of(rows).items():
            score = score_of(tried, by)
            cost = charges(by, costs, energies)
            which = {**here, "router": name, "kind": by.kind}
            curve = routing_curve(score, digital, analog, indices=samples["sample"], **cost)
            curves.append(curve.assign(**which))
            if chosen.empty:
                continue
            known, known_analog = over_chips(chosen)
            right = known["digital_correct"]
            target = float(right.mean()) - tolerance
            there = score_of(chosen, by)
            threshold = choose_threshold(there, right, known_analog, target)
            validated = routed_at(threshold, there, right, known_analog, **cost)
            result = routed_at(threshold, score, digital, analog, **cost)
            choices.append(
                which
                | {
                    "target": target,
                    "threshold": threshold,
                    "validation_accuracy": validated.accuracy,
                    "validation_energy": validated.energy,
                    "given_up": float(digital.mean()) - result.accuracy,
                }
                | dataclasses.asdict(result)
            )
    first = ["fold", "profile", "router", "kind"]
    table = pd.concat(curves, ignore_index=True)
    bases = pd.concat(baselines, ignore_index=True)
    return Routing(
        table[[*first, *table.columns.difference(first, sort=False)]],
        pd.DataFrame(choices, columns=None if choices else [*first, *_CHOSEN]),
        bases[["fold", "profile", *bases.columns.difference(first, sort=False)]],
    )


def recharged(choices: pd.DataFrame, baselines: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Choices whose computed scores are charged otherwise; thresholds do not depend on it.

    Args:
        choices: as `route` returns them, or the table of `guarantees.guarantee`.
        baselines: as `route` returns them.
        costs: as `predictors.costs_table` returns it.

    Returns:
        `choices` with other energy and saved, and validation_energy where it is there, where the
        kind is "digital".
    """
    passes = costs.set_index("predictor")["forward_passes"]
    energies = baselines.pivot(index=["fold", "profile"], columns="name", values="energy")
    charged = choices.copy()
    for row in choices.index[choices["kind"] == "digital"]:
        was = choices.loc[row]
        at = energies.loc[(was["fold"], was["profile"])]
        energy = float(
            mean_energy(
                was["fraction"],
                "digital",
                Costs(analog=at["always analog"], digital=at["always digital"]),
                float(passes[ROUTERS[was["router"]].costed_as]),
            )
        )
        charged.loc[row, "energy"] = energy
        charged.loc[row, "saved"] = 1 - energy / at["always digital"]
        if "validation_energy" in charged:
            # The passes alone change, which each sample of validation takes too.
            charged.loc[row, "validation_energy"] += energy - was["energy"]
    return charged


def summary(choices: pd.DataFrame, profile: str = FULL_PROFILE) -> str:
    """What routing gives by the router that costs least on validation, in one or two sentences.

    The first is of the routers that can take a new input, the second of those that need stored
    scores of the very input; "" without choices. What is given up has its range over the chips.
    """
    rows = choices[choices["profile"] == profile]
    if rows.empty:
        return ""
    of_kind = {
        kind: some.loc[some["validation_energy"].idxmin()] for kind, some in rows.groupby("kind")
    }
    text = ""
    if "analog" in of_kind:
        best = of_kind["analog"]
        text = (
            f"Under {profile}, a router that runs every sample on the chip and by {best['router']} "
            f"{100 * best['fraction']:.1f} % of them on the digital model too (threshold chosen on "
            f"validation) {_points(best)} of the digital accuracy on the "
            f"{best['fold']} fold, and {_energy(best['saved'])}. "
        )
    if "known" in of_kind:
        best = of_kind["known"]
        text += (
            f"Where scores were stored for these very inputs, {best['router'].split(',')[0]} "
            f"{_points(best)} and {_energy(best['saved'])}."
        )
    return text.strip()


def _points(choice: pd.Series) -> str:
    verb, sign = ("gives up", 1) if choice["given_up"] >= 0 else ("gains", -1)
    mean, best, worst = (
        100 * sign * (choice["given_up"] + choice["accuracy"] - choice[of])
        for of in ("accuracy", "accuracy_max", "accuracy_min")
    )
    points = f"{verb} {mean:z.1f} points"
    if best == worst:
        return points
    return f"{points} ({min(best, worst):z.1f} to {max(best, worst):z.1f} over the chips)"


def _energy(saved: float) -> str:
    share = f"{100 * abs(saved):.0f} % of the digital energy"
    return f"saves {share}" if saved >= 0 else f"costs {share} more"


def score_of(rows: pd.DataFrame, by: RoutedBy) -> npt.NDArray:
    """A router's score, higher for more fragile samples: [samples], or [chips, samples] of a score
    that each chip gives.

    Args:
        rows: the rows of one profile and fold in `outcomes.join`'s table.
        by: the router.
    """
    samples, values = over_chips(rows, by.column)
    return by.sign * (values if by.kind == "analog" else samples[by.column].to_numpy())
