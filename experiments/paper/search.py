"""What the paper leaves open about the chip, fitted on its ResNet-18 rows and tried on ResNet-50's.

The search is a steepest descent over named settings: every single change of the present chip is
tried, the best is taken, until none is better. Its first step holds the effect of each setting
alone, seen from the shipped defaults. Fold and denominator cost nothing to vary: they are chosen
with the chip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.analysis.failures import failure_table
from bridge.chips.memories.pcm import PCM
from bridge.chips.profiles import FULL_PROFILE, PROFILES, Clipping, Profile
from bridge.report.folds import Fold
from bridge.report.tables.outcomes import DENOMINATORS

FOLDS: dict[str, tuple[Fold, ...]] = {
    "test": ("test",),
    "train": ("train",),
    "train and test": ("train", "test"),
}
"""Which scored samples the deciles may be cut among; train is without validation. Together they are
in the proportion in which the run scored them."""

SHIPPED = PROFILES[FULL_PROFILE]
"""The full profile as it is where nothing is set."""


def changes(chip: Profile) -> Iterator[tuple[str, Profile]]:
    """Every chip that differs from this one in one setting, with what is changed.

    Drift time from right after programming to a day; weight noise from a quarter to two and a half
    times the default, of either kind, frozen or at each operation; the converter's range calibrated
    on the largest output or on a percentile of them, or AIHWKit's default of 12; weights unclipped
    or clipped at 2.5 or 3 standard deviations.
    """
    assert chip.adc is not None
    assert chip.wnoise is not None
    assert isinstance(chip.memory, PCM)
    others: list[tuple[str, Profile]] = []
    for seconds in (0.0, 1.0, 5.0, 20.0, 60.0, 3600.0, 86400.0):
        memory = replace(chip.memory, t_inference=seconds)
        others.append((f"drift time {seconds:g} s", replace(chip, memory=memory)))
    for sigma in (0.005, 0.01, 0.02, 0.03, 0.05):
        noise = replace(chip.wnoise, sigma=sigma)
        others.append((f"weight noise {100 * sigma:g} %", replace(chip, wnoise=noise)))
    for kind in ("constant", "pcm_read"):
        noise = replace(chip.wnoise, kind=kind)
        others.append((f"weight noise {kind}", replace(chip, wnoise=noise)))
    for drawn in ("per_chip", "per_mvm"):
        noise = replace(chip.wnoise, drawn=drawn)
        others.append((f"weight noise {drawn}", replace(chip, wnoise=noise)))
    for name, adc in (
        ("calibrated", replace(chip.adc, range="calibrated", percentile=100.0)),
        ("99.9th percentile", replace(chip.adc, range="calibrated", percentile=99.9)),
        ("fixed at 12", replace(chip.adc, range=12.0, percentile=100.0)),
    ):
        others.append((f"ADC range {name}", replace(chip, adc=adc)))
    for name, clipping in (
        ("none", Clipping()),
        ("3 sigma", Clipping("layer_gaussian", sigma=3.0)),
        ("2.5 sigma", Clipping("layer_gaussian", sigma=2.5)),
    ):
        others.append((f"clipping {name}", replace(chip, clipping=clipping)))
    yield from ((name, other) for name, other in others if other != chip)


@dataclass(frozen=True)
class Reading:
    """How Table I's cells may have been counted."""

    fold: str
    """One of `FOLDS`."""
    denominator: str
    """"all" samples of a decile, or its digitally "correct" ones."""


READINGS = tuple(Reading(fold, denominator) for fold in FOLDS for denominator in DENOMINATORS)


@dataclass(frozen=True)
class Chips:
    """What one setting's chips make of a run's samples.

    Attributes:
      samples: fold, index, curvature and correct (bool, of the digital model); `[samples]`.
      correct: bool `[chips, samples]`, of the chips.
    """

    samples: pd.DataFrame
    correct: NDArray[np.bool_]


def ends(chips: Chips, reading: Reading) -> pd.DataFrame:
    """The analog-only failure rates of the first and the last decile, in percent.

    Args:
      chips: the chips of one run.
      reading: deciles are cut among the samples of its folds together.

    Returns:
      Two rows, "d1" and "d10" (the index), with rate, low and high; NaN where the run lacks a fold
      of the reading, or the decile has no digitally correct sample.
    """
    if not set(FOLDS[reading.fold]) <= set(chips.samples["fold"]):
        return pd.DataFrame(np.nan, index=["d1", "d10"], columns=["rate", "low", "high"])
    kept = chips.samples["fold"].isin(FOLDS[reading.fold]).to_numpy()
    samples = chips.samples[kept].reset_index(drop=True)
    fold_first = samples.groupby("fold", sort=True).ngroup() * (samples["index"].max() + 1)
    table = failure_table(
        samples["curvature"],
        samples["correct"],
        chips.correct[:, kept],
        indices=samples["index"] + fold_first,
    )
    name = f"rate_of_{reading.denominator}"
    chosen = 100 * table.iloc[[0, -1]][[name, f"{name}_low", f"{name}_high"]]
    chosen.columns = pd.Index(["rate", "low", "high"])
    chosen.index = pd.Index(["d1", "d10"])
    return chosen


def misfits(
    runs: Mapping[tuple[str, str], Chips], paper: Mapping[tuple[str, str], tuple[float, float]]
) -> pd.DataFrame:
    """How far one setting is from the paper's Table I, for each reading.

    Args:
      runs: the chips on each model, by architecture and data set.
      paper: D1 and D10 of each, in percent.

    Returns:
      One row a reading: fold, denominator, for each model D1 and D10 in percent
      ("resnet18 cifar10 d1"), and misfit, the mean of their absolute differences from the paper's
      in percentage points.
    """
    rows = []
    for reading in READINGS:
        row: dict[str, object] = {"fold": reading.fold, "denominator": reading.denominator}
        off = []
        for model, chips in runs.items():
            for (name, rate), published in zip(
                ends(chips, reading)["rate"].items(), paper[model], strict=True
            ):
                row[f"{' '.join(model)} {name}"] = rate
                off.append(abs(rate - published))
        rows.append(row | {"misfit": float(np.mean(off))})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Step:
    """One setting that was tried."""

    number: int
    """0 for the start; those of one step differ from one chip in one setting each."""
    change: str
    """What differs from the best chip of the step before."""
    chip: Profile
    misfits: pd.DataFrame
    """A row a reading, as the function `misfits` returns it."""

    @property
    def misfit(self) -> float:
        """Misfit of the best reading, in percentage points; NaN ones (see `ends`) are left out."""
        return float(self.misfits["misfit"].min())

    @property
    def reading(self) -> Reading:
        """The reading of the smallest misfit."""
        best = self.misfits.loc[self.misfits["misfit"].idxmin()]
        return Reading(best["fold"], best["denominator"])


def descend(
    evaluate: Callable[[Profile], pd.DataFrame],
    start: Profile = SHIPPED,
    neighbours: Callable[[Profile], Iterator[tuple[str, Profile]]] = changes,
) -> list[Step]:
    """Steepest descent over single changes.

    Args:
      evaluate: a chip's `misfits`; asked once for each chip.
      start: where to begin.
      neighbours: the chips that differ in one setting.

    Returns:
      Every chip that was tried, in order; `best` finds the fitted one.
    """
    present = Step(0, "as shipped", start, evaluate(start))
    steps, known = [present], {start}
    while True:
        tried = []
        for change, chip in neighbours(present.chip):
            if chip not in known:
                known.add(chip)
                tried.append(Step(present.number + 1, change, chip, evaluate(chip)))
        steps += tried
        better = min(tried, key=lambda step: step.misfit, default=present)
        if not better.misfit < present.misfit:
            return steps
        present = better


def best(steps: Sequence[Step]) -> Step:
    """The step of the smallest misfit; of equals the first."""
    return min(steps, key=lambda step: step.misfit)
