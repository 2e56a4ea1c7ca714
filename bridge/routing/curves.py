"""Routing: which samples are worth the digital model, and what that costs. NumPy in, tables out.

A routed sample gets the digital answer, right or wrong, the others the chip's. Every curve begins
at the chip's accuracy and ends at the digital model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.checks import (
    chips_of,
    require_count,
    require_finite,
    same_length,
    sample_indices,
    scores_of_chips,
    vector,
)
from bridge.routing.costs import Costs
from jaxcurv.rows import require_same_rows
from jaxcurv.settings import plain

Kind = Literal["analog", "known", "digital", "student"]
"""Where a score comes from, and so what it costs (`mean_energy`)."""


def mean_energy(
    fraction: npt.ArrayLike, kind: Kind, costs: Costs = Costs(), passes: float = 1.0
) -> npt.NDArray[np.float64]:
    """Energy a sample, with f the fraction routed, a and d the costs and k the passes.

    - analog: the score is made from the chip's own logits, so that every sample runs on the chip:
      a + f d. It saves energy while f < 1 - a / d.
    - known: the score of this very input was stored before: (1 - f) a + f d. It saves energy
      while f < 1, if a < d.
    - digital: the score takes k digital forward passes of every sample, which leave the digital
      answer behind: k d + (1 - f) a. With k >= 1 it never costs less than d, the digital model
      alone.
    - student: the score takes another network (`Student`) on every sample, which costs k of a
      digital forward pass and answers nothing: k d + (1 - f) a + f d. It saves energy while
      f < 1 - k d / (d - a), if a < d.
    """
    f = np.asarray(fraction, np.float64)
    if kind == "analog":
        return costs.analog + f * costs.digital
    if kind == "known":
        return (1 - f) * costs.analog + f * costs.digital
    if kind == "digital":
        passes = require_finite("passes", passes)
        if passes < 1:
            raise ValueError(
                f"passes must be at least 1, of which the digital answer comes; got {passes}"
            )
        return passes * costs.digital + (1 - f) * costs.analog
    if kind == "student":
        passes = require_finite("passes", passes)
        return passes * costs.digital + (1 - f) * costs.analog + f * costs.digital
    raise ValueError(f"kind is analog, known, digital or student, got {kind!r}")


def routing_curve(
    score: npt.ArrayLike,
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    *,
    kind: Kind = "known",
    costs: Costs = Costs(),
    passes: float = 1.0,
    points: int = 101,
    indices: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Accuracy and energy against the fraction of the samples that is routed, highest scores first.

    A routed sample gets the digital answer, right or wrong: the curve ends at the digital accuracy.
    A row may part samples of equal scores, which no threshold does: where they tie, `routed_at`
    routes more at the row's threshold than the row.

    >>> digital = [True, True, True, False]
    >>> analog = [True, True, False, False]
    >>> curve = routing_curve([0.1, 0.2, 0.9, 0.5], digital, analog, points=3)
    >>> curve[["fraction", "accuracy", "energy", "random_accuracy", "oracle_accuracy"]]
       fraction  accuracy  energy  random_accuracy  oracle_accuracy
    0       0.0      0.50    0.10            0.500             0.50
    1       0.5      0.75    0.55            0.625             0.75
    2       1.0      0.75    1.00            0.750             0.75

    Args:
        score: real [samples]; or [chips, samples] where each chip gives its own, each of which then
            routes its own samples. Higher is more fragile.
        digital_correct: bool [samples].
        analog_correct: bool [samples], or [chips, samples].
        kind: where the score comes from.
        costs: energy of one inference.
        passes: digital forward passes that a score of kind "digital" or "student" takes; of the
            latter its multiply-accumulates over those of the digital model.
        points: rows of the table; fewer where the samples are fewer.
        indices: int [samples], unique and stable; breaks ties. Positions if None.

    Returns:
        One row a fraction, evenly spaced from 0 to 1 and rounded to whole samples: fraction,
        threshold (of the score of the last sample routed; inf where none is; NaN where chips have
        scores of their own), accuracy (mean over chips), accuracy_min, accuracy_max (over chips),
        energy (`mean_energy`), random_accuracy (as many samples drawn at random, expected) and
        oracle_accuracy (those first that the digital model rescues, those last that it spoils).

    Raises:
        ValueError: for NaN, other dtypes or shapes, and fewer than two points.
    """
    require_same_rows(score=score, indices=indices)
    scores, digital, analog = _checked(score, digital_correct, analog_correct)
    points = require_count("points", points, least=2)
    samples = len(digital)
    tie = sample_indices(indices, samples)
    routed = np.unique(np.rint(np.linspace(0, samples, points)).astype(int))
    gain = digital.astype(int) - analog.astype(int)
    order = np.stack([np.lexsort((tie, -one)) for one in scores])
    fractions = routed / samples
    accuracy = _accuracies(analog, gain, np.broadcast_to(order, gain.shape), routed)
    oracle = _accuracies(analog, gain, np.argsort(-gain, axis=1, kind="stable"), routed)
    always_analog, always_digital = analog.mean(), digital.mean()
    ordered = np.append(np.inf, scores[0][order[0]])
    return pd.DataFrame(
        {
            "fraction": fractions,
            "threshold": ordered[routed] if len(scores) == 1 else np.nan,
            "accuracy": accuracy.mean(axis=0),
            "accuracy_min": accuracy.min(axis=0),
            "accuracy_max": accuracy.max(axis=0),
            "energy": mean_energy(fractions, kind, costs, passes),
            "random_accuracy": (1 - fractions) * always_analog + fractions * always_digital,
            "oracle_accuracy": oracle.mean(axis=0),
        }
    )


def routing_baselines(
    digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike, costs: Costs = Costs()
) -> pd.DataFrame:
    """What not routing gives: name ("always analog", "always digital"), accuracy and energy.

    Args, Raises: as for `routing_curve`.
    """
    _, digital, analog = _checked(None, digital_correct, analog_correct)
    return pd.DataFrame(
        {
            "name": ["always analog", "always digital"],
            "accuracy": [analog.mean(), digital.mean()],
            "energy": [costs.analog, costs.digital],
        }
    )


@dataclass(frozen=True)
class RoutingResult:
    """What a threshold gives, from `routed_at`; fractions, means over chips.

    Attributes:
      fraction: share of the samples that is routed.
      accuracy: accuracy of the routed and the other samples together.
      accuracy_min: accuracy of the worst chip.
      accuracy_max: accuracy of the best chip.
      energy: mean energy of a sample.
      saved: share of the digital model's energy that is saved; negative where routing costs more.
    """

    fraction: float
    accuracy: float
    accuracy_min: float
    accuracy_max: float
    energy: float
    saved: float


def routed_at(
    threshold: float,
    score: npt.ArrayLike,
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    *,
    kind: Kind = "known",
    costs: Costs = Costs(),
    passes: float = 1.0,
) -> RoutingResult:
    """Routes the samples whose score is at least a threshold.

    Args:
        threshold: inf routes none but samples whose score is inf, -inf all.
        score, digital_correct, analog_correct, kind, costs, passes: as for `routing_curve`.

    Raises:
        ValueError: for NaN, other dtypes or shapes.
    """
    scores, digital, analog = _checked(score, digital_correct, analog_correct)
    threshold = plain(threshold)
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN; choose one, inf to route nothing")
    routed = np.broadcast_to(scores >= threshold, analog.shape)
    accuracy = np.where(routed, digital, analog).mean(axis=1)
    fraction = float(routed.mean())
    energy = float(mean_energy(fraction, kind, costs, passes))
    return RoutingResult(
        fraction,
        float(accuracy.mean()),
        float(accuracy.min()),
        float(accuracy.max()),
        energy,
        1 - energy / costs.digital,
    )


def choose_threshold(
    score: npt.ArrayLike,
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    target: float,
) -> float:
    """The highest threshold whose accuracy, the mean over chips, is at least the target.

    Choose it on validation samples and check it on others (`routed_at`): there it gives less more
    often than not, for it is the highest that suffices where it was chosen. The fewer samples, the
    more; with some hundreds expect a point of accuracy, or aim higher.

    >>> analog = [False, False, True]  # 1/3 without the digital model, 2/3 with it at one sample
    >>> choose_threshold([0.9, 0.5, 0.1], [True, True, True], analog, target=0.6)
    0.9

    Args:
        score, digital_correct, analog_correct: as for `routing_curve`.
        target: a fraction.

    Returns:
        inf where the chip alone is good enough; else a score that occurs. A sample whose score is
        inf is routed by every threshold.

    Raises:
        ValueError: no threshold reaches the target, NaN, other dtypes or shapes.
    """
    scores, digital, analog = _checked(score, digital_correct, analog_correct)
    if np.isnan(target):
        raise ValueError("the target accuracy is NaN; give a fraction")
    gain = (digital.astype(int) - analog.astype(int)) * np.ones_like(scores, int)
    values = np.broadcast_to(scores, gain.shape).ravel()
    order = np.argsort(-values, kind="stable")
    right = analog.sum() + np.append(0, np.cumsum(gain.ravel()[order]))
    # A threshold takes all samples of its score: only the last of equal ones can be it.
    ordered = values[order]
    # None routed is a threshold of inf, which takes those of infinite score.
    possible = np.append(ordered[0] < np.inf, np.append(ordered[1:] != ordered[:-1], True))
    accuracy = right / gain.size
    # Counts over a count: a target of the very accuracy must not fail for its rounding.
    enough = np.flatnonzero(possible & (accuracy >= target - 1e-12))
    if not len(enough):
        best = accuracy[possible].max()
        raise ValueError(
            f"no threshold reaches an accuracy of {target:.4f} on these samples; the best is "
            f"{best:.4f}: lower the target"
        )
    return float(np.append(np.inf, ordered)[enough[0]])


def _accuracies(
    analog: npt.NDArray[np.bool_],
    gain: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    routed: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """[chips, counts]: accuracy once the first so many of the order are routed."""
    gained = np.cumsum(np.take_along_axis(gain, order, axis=1), axis=1)
    gained = np.concatenate([np.zeros((len(gain), 1), int), gained], axis=1)
    return (analog.sum(axis=1, keepdims=True) + gained[:, routed]) / analog.shape[1]


def _checked(
    score: npt.ArrayLike | None, digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Scores [1 or chips, samples], digital [samples] and analog [chips, samples]."""
    require_same_rows(score=score, digital_correct=digital_correct, analog_correct=analog_correct)
    digital = vector("digital_correct", digital_correct, "b", "bools")
    analog = chips_of("analog_correct", analog_correct)
    scores = scores_of_chips(np.zeros(len(digital)) if score is None else score, len(analog))
    same_length(score=scores, digital_correct=digital, analog_correct=analog)
    if not len(digital):
        raise ValueError("no samples to route; give at least one")
    return scores, digital, analog
