"""Whether guaranteed thresholds keep what they promise, on 500 calibration sets of simulated data.

`-s` prints every cell: what is promised, the samples or chips, the level, the mean risk with three
standard errors, its part of the level, the share of sets whose risk is beyond the level, and the
mean share that stays.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from bridge.routing import calibration_size, guaranteed_threshold, risk_at
from bridge.routing.guarantees import ShareOf
from tests.crossed_chips import Population

pytestmark = pytest.mark.long

SETS = 500
CONFIDENCE = 0.95
BEYOND = 1 - CONFIDENCE + 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / SETS)


@dataclass(frozen=True)
class Found:
    """Risks of the thresholds of many calibration sets, and the shares that stay."""

    risks: NDArray[np.float64]
    stays: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.risks.mean())

    @property
    def error(self) -> float:
        """Three standard errors of the mean."""
        return float(3 * self.risks.std(ddof=1) / math.sqrt(len(self.risks)))

    def beyond(self, level: float) -> float:
        return float((self.risks > level).mean())

    def line(self, *what: object, level: float) -> str:
        cell = " | ".join(map(str, what))
        return (
            f"| {cell} | {level:g} | {self.mean:.5f} +- {self.error:.5f} | {self.mean / level:.2f} "
            f"| {self.beyond(level):.3f} | {self.stays.mean():.2f} |"
        )


def _rising(score: NDArray) -> NDArray:
    return expit(2 * score - 3)  # 12 % in all


def _of_no_use(score: NDArray) -> NDArray:
    return np.full_like(score, 0.12)


def _lowest_fail(score: NDArray) -> NDArray:
    """Fails at the lowest scores too: among those that stay the share falls, and rises again."""
    return np.where(score < -2, 0.3, expit(2 * score - 3))


SCORES = {"rising": _rising, "of no use": _of_no_use, "lowest fail": _lowest_fail}


class Samples:
    """A population with normal scores, rounded, and losses of a probability that they decide."""

    def __init__(
        self, fails: Callable[[NDArray], NDArray], *, digits: int = 9, fractions: bool = False
    ) -> None:
        rng = np.random.default_rng(1)
        score = np.sort(rng.standard_normal(200_000))
        self.scores = score.round(digits)
        self.losses = (rng.random(len(score)) < fails(score)).astype(float)
        if fractions:
            self.losses *= rng.random(len(score))
        self._lost = np.append(0, self.losses.cumsum())

    def found(
        self, level: float, calibration: int, confidence: float | None = None, of: ShareOf = "all"
    ) -> Found:
        """Thresholds of sets that are drawn from the population, with its risk at each."""
        rng = np.random.default_rng([calibration, round(1000 * level)])
        thresholds = np.empty(SETS)
        for one in range(SETS):
            drawn = rng.integers(len(self.scores), size=calibration)
            thresholds[one] = guaranteed_threshold(
                self.scores[drawn], self.losses[drawn], level, confidence, of
            )
        stay = np.searchsorted(self.scores, thresholds, side="right")
        lost = self._lost[stay]
        risks = lost / len(self.scores) if of == "all" else lost / np.maximum(stay, 1)
        return Found(risks, stay / len(self.scores))

    def least_of_stays(self) -> float:
        """The smallest share of failures among those that stay, where a twentieth or more does."""
        stay = np.arange(len(self.scores) // 20, len(self.scores) + 1)
        return float((self._lost[stay] / stay).min())


@pytest.mark.parametrize(
    ("kind", "digits"), [*((kind, 9) for kind in SCORES), ("rising", 1)], ids=str
)
def test_conformal_thresholds_hold_in_the_mean(kind: str, digits: int) -> None:
    samples = Samples(SCORES[kind], digits=digits)
    lines, idle = [], {}
    for level in (0.005, 0.01, 0.02, 0.05):
        for calibration in (250, 1000, 5000):
            found = samples.found(level, calibration)
            lines.append(found.line("mean", kind, digits, calibration, level=level))
            assert found.mean <= level + found.error, lines[-1]
            if calibration * level >= 5:
                idle[lines[-1]] = found.mean / level
    print("", *lines, sep="\n")
    assert min(idle.values()) > 0.5


def test_on_random_splits_the_others_fail_as_promised() -> None:
    """Splits some samples, without drawing any twice."""
    samples = Samples(_rising)
    rng = np.random.default_rng(2)
    indices = rng.choice(len(samples.scores), 3000, replace=False)
    for level in (0.01, 0.05):
        risks, stays = [], []
        for _ in range(SETS):
            chosen, others = np.split(rng.permutation(indices), [1000])
            threshold = guaranteed_threshold(samples.scores[chosen], samples.losses[chosen], level)
            risks.append(
                risk_at(
                    threshold,
                    samples.scores[others],
                    samples.losses[others],
                    indices=others,
                    calibrated_on=chosen,
                )
            )
            stays.append((samples.scores[others] <= threshold).mean())
        found = Found(np.array(risks), np.array(stays))
        print("", found.line("splits", "rising", 1000, level=level))
        assert level / 2 < found.mean <= level + found.error


@pytest.mark.parametrize("confidence", [None, CONFIDENCE])
def test_losses_between_0_and_1_hold_as_well(confidence: float | None) -> None:
    found = Samples(_rising, fractions=True).found(0.02, 2000, confidence)
    print("", found.line("fractions", confidence, 2000, level=0.02))
    assert found.mean > 0.01
    if confidence is None:
        assert found.mean <= 0.02 + found.error
    else:
        assert found.beyond(0.02) <= BEYOND


@pytest.mark.parametrize("kind", list(SCORES))
def test_with_a_confidence_few_sets_are_beyond(kind: str) -> None:
    samples = Samples(SCORES[kind])
    lines, idle = [], {}
    for level in (0.01, 0.02, 0.05):
        for calibration in (500, 1000, 5000):
            found = samples.found(level, calibration, CONFIDENCE)
            lines.append(found.line("0.95", kind, calibration, level=level))
            assert found.beyond(level) <= BEYOND, lines[-1]
            if calibration * level >= 20:
                idle[lines[-1]] = found.mean / level
    print("", *lines, sep="\n")
    assert min(idle.values()) > 0.5


@pytest.mark.parametrize("kind", [*SCORES, "just beyond"])
def test_among_those_that_stay_few_sets_are_beyond(kind: str) -> None:
    """Where the share is beyond the level at every threshold, each that passes is wrong."""
    lines, idle = [], {}
    for level in (0.02, 0.05, 0.1):
        samples = Samples(SCORES.get(kind, partial(np.full_like, fill_value=1.02 * level)))
        for calibration in (500, 1000, 5000):
            found = samples.found(level, calibration, CONFIDENCE, "stays")
            lines.append(found.line("of stays", kind, calibration, level=level))
            assert found.beyond(level) <= BEYOND, lines[-1]
            if calibration == 5000 and samples.least_of_stays() < level / 2:
                idle[lines[-1]] = found.mean / level
    print("", *lines, sep="\n")
    assert min(idle.values(), default=1) > 0.5
    assert len(idle) == {"rising": 3, "lowest fail": 1}.get(kind, 0)


def test_too_few_promise_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Samples(_rising).found(0.01, calibration_size(0.01) - 1)
    assert found.stays.max() == 0


@pytest.mark.parametrize(("level", "chips"), [(0.01, 400), (0.02, 200), (0.05, 80)])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_new_chips_hold_in_the_mean(level: float, chips: int, spread: float) -> None:
    """Chips and samples are crossed; new chips run the calibrated samples, and others.

    With samples of its own for each chip, the promise is for other samples too; with shared ones
    the error of few samples adds to it.
    """
    population = Population(rate=0.02, spread=spread, difficulty=1.0, slope=1.5, slope_spread=0.2)
    samples, new = 400, 20
    rng = np.random.default_rng(7)
    risks: dict[str, list[float]] = {
        name: [] for name in ("same samples", "other samples", "own samples, others")
    }
    stays = []
    for _ in range(SETS):
        score, failed = population.draw(rng, chips + new, 2 * samples)
        failed, fresh = failed[:chips], failed[chips:]
        threshold = guaranteed_threshold(score[:samples], failed[:, :samples], level)
        stays.append((score <= threshold).mean())
        risks["same samples"].append(risk_at(threshold, score[:samples], fresh[:, :samples]))
        risks["other samples"].append(risk_at(threshold, score[samples:], fresh[:, samples:]))
        # Each chip takes some of the samples that no other chip takes.
        few = samples // chips
        its = np.arange(chips * few).reshape(chips, few)
        threshold = guaranteed_threshold(score[its], np.take_along_axis(failed, its, 1), level)
        risks["own samples, others"].append(risk_at(threshold, score[samples:], fresh[:, samples:]))
    print()
    for name, values in risks.items():
        found = Found(np.array(values), np.array(stays))
        line = found.line("chips", name, chips, samples, spread, level=level)
        print(line)
        if name != "other samples":
            assert found.mean <= level + found.error, line
        else:  # not promised: what so many samples add
            assert found.mean <= 1.1 * level + found.error, line
        if name != "own samples, others":  # whose few samples tell little
            assert found.mean > 0.5 * level, line
