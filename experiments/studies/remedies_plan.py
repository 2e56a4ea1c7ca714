"""Which remedies are tried: the kinds of chips behind them, what they cost, who answers second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.chips.averaging import mean_logits
from bridge.chips.logit_fit import fit_logits
from bridge.chips.profiles import Profile
from bridge.report.tables.on_chip import analog_share
from experiments.studies.remedies_chips import Kind, Predictions
from experiments.studies.remedies_tables import (
    Outcomes,
    Passes,
    Remedy,
    Score,
    remedies_table,
)
from jaxcurv.logit_scores import logit_scores

PLAIN = "chip"
"""The first answer that gains are over: no remedy at all."""
_FOLDS = ("test", "validation")
TUNED = "fine-tuned"
"""How first answers of the fine-tuned network begin."""
DIGITAL = "digital"
"""The answer of the digital model, to all images or as a second one."""


@dataclass(frozen=True)
class Choices:
    """What a user chooses of the remedies; see the flags `--remedies.*`."""

    shares: tuple[float, ...]
    levels: tuple[float, ...]
    reads: int
    together: int
    extra_bits: int
    adc_share: float


@dataclass(frozen=True)
class Answer:
    """An answer: the chips whose logits are averaged, and whether these are fitted."""

    kinds: tuple[Kind, ...]
    passes: Passes
    """What it takes; as a second answer, beyond the first."""
    fitted: bool = False
    replaces: bool = False
    """Whether as a second answer of all samples it makes the first needless."""


@dataclass(frozen=True)
class Plan:
    """First answers by name, and second ones of the free one of them, by name."""

    firsts: Mapping[str, Answer]
    free: str
    """The first answer with every remedy of the run's network that takes no energy."""
    seconds: Mapping[str, Answer]
    choices: Choices
    kept_digital: Mapping[float, Sequence[str]]
    """The layers that are on no tile, by the share of the work that they may take."""

    @property
    def kinds(self) -> list[Kind]:
        """Every kind of chip, once."""
        answers = [*self.firsts.values(), *self.seconds.values()]
        return list(dict.fromkeys(kind for one in answers for kind in one.kinds))

    def remedies(self, stored: Sequence[str]) -> Iterator[Remedy]:
        """What to try: each first answer alone, and with each second one.

        Args:
          stored: scores that are known before an image comes to a chip.
        """
        yield Remedy(DIGITAL)
        for first in self.firsts:
            yield Remedy(first)
            for share in self.choices.shares:
                for score in ("margin", *stored):
                    yield Remedy(first, DIGITAL, score, "share", share)
            for level in self.choices.levels:
                yield Remedy(first, DIGITAL, "margin", "risk", level)
        for second in self.seconds:
            yield Remedy(self.free, second, rule="all")
            for share in self.choices.shares:
                yield Remedy(self.free, second, "margin", "share", share)


def plan_of(
    profile: Profile,
    coverage: pd.DataFrame,
    kept_digital: Mapping[float, Sequence[str]],
    *,
    recalibrates: bool,
    choices: Choices,
    tuned: str | None = None,
) -> Plan:
    """The remedies that there are for a network on chips of a profile.

    Args:
      profile: of the chips.
      coverage: of `bridge.coverage`.
      kept_digital: the layers that stay digital, by the share of the work that they may take.
      recalibrates: whether the network has BatchNorms.
      choices: what a user chose.
      tuned: the hash of a fine-tuned network whose chips are tried too.
    """
    share = analog_share(coverage)
    once = Passes(share, 1 - share)
    free_kind = Kind(compensated=True, recalibrated=recalibrates)
    free = "compensated, recalibrated" if recalibrates else "compensated"
    firsts = {
        PLAIN: Answer((Kind(),), once),
        "fitted logits": Answer((Kind(),), once, fitted=True),
        "compensated": Answer((Kind(compensated=True),), once),
        "compensated, fitted logits": Answer((Kind(compensated=True),), once, fitted=True),
    }
    if recalibrates:
        firsts["recalibrated"] = Answer((Kind(recalibrated=True),), once)
    of_networks = {free: free_kind}
    if tuned is not None:
        of_networks[f"{TUNED}, {free}"] = replace(free_kind, network=tuned)
    for name, kind in of_networks.items():
        firsts[name] = Answer((kind,), once)
        for budget, layers in kept_digital.items():
            if layers:
                moved = _share_of(layers, coverage)
                firsts[f"{name}, {100 * budget:g} % digital"] = Answer(
                    (replace(kind, digital_layers=tuple(layers)),),
                    Passes(share - moved, 1 - share + moved),
                )
    seconds = {
        f"{choices.together} chips": Answer(
            tuple(replace(free_kind, other=number) for number in range(choices.together)),
            once * (choices.together - 1),
        )
    }
    if profile.noise_of_operations is not None or profile.out_noise is not None:
        seconds[f"{choices.reads} reads"] = Answer(
            (replace(free_kind, reads=choices.reads),), once * (choices.reads - 1)
        )
    if profile.adc is not None:
        conversions = 1 + choices.adc_share * (2**choices.extra_bits - 1)
        seconds[f"{profile.adc.bits + choices.extra_bits} ADC bits"] = Answer(
            (replace(free_kind, extra_bits=choices.extra_bits),),
            Passes(conversions * once.analog, once.digital),
            replaces=True,
        )
    return Plan(firsts, free, seconds, choices, kept_digital)


def _share_of(layers: Sequence[str], coverage: pd.DataFrame) -> float:
    """The share of all multiply-accumulates that layers have on tiles."""
    there = (coverage["place"] == "analog") & coverage["layer"].isin(list(layers))
    return float(coverage["macs"][there].sum()) / float(coverage["macs"].sum())


def outcomes_table(
    plan: Plan,
    made: Mapping[Kind, Predictions],
    digital: Predictions,
    stored: Mapping[str, Score],
    *,
    confidence: float,
) -> pd.DataFrame:
    """The table of `remedies_table` of a plan at one time.

    Args:
      plan: what to try.
      made: predictions of each kind of chip.
      digital: those of the digital model, as of one chip.
      stored: scores that are there before a chip runs, by name.
      confidence: confidence level of the intervals.
    """
    labels = digital.labels
    first: dict[str, Outcomes] = {}
    second: dict[tuple[str, str], Outcomes] = {}
    scores: dict[tuple[str, str], Score] = {}
    right = {fold: some[0] for fold, some in digital.right().items()}
    chips = len(next(iter(made.values())).logits["test"])
    exactly = Outcomes(
        {fold: np.broadcast_to(some, (chips, len(some))) for fold, some in right.items()},
        Passes(0.0, 1.0),
    )
    first[DIGITAL] = exactly
    for name, answer in plan.firsts.items():
        logits = _logits(answer, made, digital)
        first[name] = _outcomes(answer, logits, labels)
        scores[name, "margin"] = Score({fold: _fragility(some) for fold, some in logits.items()})
        scores |= {(name, which): score for which, score in stored.items()}
        second[name, DIGITAL] = exactly
    for name, answer in plan.seconds.items():
        logits = _logits(answer, made, digital)
        second[plan.free, name] = _outcomes(answer, logits, labels)
    return remedies_table(
        plan.remedies(list(stored)),
        first,
        second,
        scores,
        right,
        plain=PLAIN,
        free=plan.free,
        confidence=confidence,
    )


def first_answer(
    plan: Plan, name: str, made: Mapping[Kind, Predictions], digital: Predictions
) -> Outcomes:
    """What a first answer makes of the test and validation images.

    Args:
      plan: what was tried.
      name: the answer's.
      made: predictions of each kind of chip at one time.
      digital: those of the digital model, as of one chip.
    """
    answer = plan.firsts[name]
    return _outcomes(answer, _logits(answer, made, digital), digital.labels)


def _outcomes(
    answer: Answer,
    logits: Mapping[str, NDArray[np.float32]],
    labels: Mapping[str, NDArray[np.int64]],
) -> Outcomes:
    return Outcomes(Predictions(logits, labels).right(), answer.passes, answer.replaces)


def _logits(
    answer: Answer, made: Mapping[Kind, Predictions], digital: Predictions
) -> dict[str, NDArray[np.float32]]:
    """The answer's logits [chips, samples, class] of the test and validation images."""
    some = [made[kind].logits for kind in answer.kinds]
    averaged = {fold: mean_logits([one[fold] for one in some]) for fold in some[0]}
    if not answer.fitted:
        return {fold: averaged[fold] for fold in _FOLDS}
    (target,) = digital.logits["measured"]
    fits = [fit_logits(of_chip, target) for of_chip in averaged["measured"]]
    return {
        fold: np.stack([fit(one) for fit, one in zip(fits, averaged[fold], strict=True)])
        for fold in _FOLDS
    }


def _fragility(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The margin with its sign changed, [chips, samples]."""
    return np.stack([-logit_scores(one)["margin"].astype(np.float64) for one in logits])
