"""Whether other noise causes failures on the same samples: memories, weight noise and an ADC at
matched failure rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.analysis.overlap import failure_overlap, systematic_share
from bridge.chips.memories.pcm import Hermes
from bridge.chips.memories.protocol import Memory as Device
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from bridge.chips.profiles import ADC, Profile, to_json
from bridge.report.figures.overlap import draw
from experiments.chips.protocol import Chip, Programmable
from experiments.runs.files import write_csv, write_parquet
from experiments.runs.resume import key_of, table_at
from experiments.settings.flags import Experiment
from experiments.studies.exported import Exported, open_exported
from experiments.studies.opening import Study
from jaxcurv import logit_scores
from jaxcurv.data import Normalised
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

Memory = Literal["pcm", "hermes", "reram_wan2022", "reram_cmo"]
Other = Literal["wnoise", "wnoise_mvm", "adc"]

FACTORS = (0.01, 100.0)
"""The smallest and the largest factor on a noise that is tried."""

TOLERANCE = 0.01
"""A failure rate this near its target matches it, or, of a target below 0.1, a tenth of that."""

_NEAR = 0.25  # of the tolerance, until where the search goes on: test images add their own chance

_STEPS = 8  # within a decade of factors

_LEAST_RATE = 1e-3  # rates below it are as good as none

_SCALED = ("programming_noise", "read_noise", "drift", "noise")

_NOISES = (*get_args(Memory), *get_args(Other))

_APART = 1000  # seeds between the chips of two names


@dataclass(frozen=True)
class CompareNoise:
    """Whether different kinds of noise, scaled to the same rate of failures, cause them on the same
    samples."""

    memories: tuple[Memory, ...] = get_args(Memory)
    """Memories to compare. pcm has the settings --simulate.pcm.* but for --compare.compensation;
    the others have AIHWKit's defaults (hermes at 20 s, both ReRAM at 1 s)."""
    others: tuple[Other, ...] = get_args(Other)
    """Noise to compare with the memories: wnoise, weight noise frozen into each chip; wnoise_mvm,
    drawn anew for each matrix-vector product, both with --simulate.wnoise.*; adc, the converters
    alone, with --simulate.adc.*."""
    chips: int = 5
    """Chips of each kind of noise. All have different seeds."""
    limit: int | None = None
    """Largest number of images of the test fold to use; `none` takes all."""
    failure_rate: float | None = None
    """Share of the digitally correct validation images, between 0 and 1, that fail under every kind
    of noise once it is scaled by one factor; `none` takes that of the first memory, unscaled. For
    the ADC the factor is on the quantisation step."""
    tune_limit: int = 3000
    """Largest number of images of the validation fold on which the factors are found. A rate of
    10 % among 2000 digitally correct ones has a standard error of 0.7 points on one chip."""
    tune_chips: int = 5
    """Chips of each kind of noise on which the factors are found: the first of those that are
    compared, for chips of one kind may differ by points."""
    compensation: Literal["none", "global"] = "global"
    """Drift compensation of the memories. With `none`, the common shrinkage of all weights may hide
    the differences between them."""
    bins: int = 20
    """Bins of equal size into which samples are sorted by margin, to find how much of the overlap
    the margin explains. Take more where failures are rare."""
    out: Path | None = None
    """Folder of the results; `none` is compare-noise/ in the run's folder."""

    def __post_init__(self) -> None:
        if not self.memories or len(set(self.names)) < len(self.names):
            raise ValueError(
                "memories must differ and be at least one, and others must differ; got "
                f"{self.memories} and {self.others}"
            )
        if not 2 <= self.chips <= _APART or not 1 <= self.tune_chips <= _APART:
            raise ValueError(
                f"chips must be 2 to {_APART}, to tell systematic failures from those of a chip, "
                f"and tune_chips 1 to {_APART}; got {self.chips} and {self.tune_chips}"
            )
        if min(self.tune_limit, self.bins) < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                "limit, tune_limit and bins must be at least 1; got "
                f"{self.limit}, {self.tune_limit}, {self.bins}"
            )
        if self.failure_rate is not None and not 0 < self.failure_rate < 1:
            raise ValueError(
                "failure_rate is a share of the digitally correct images, between 0 and 1; got "
                f"{self.failure_rate}"
            )

    @property
    def profile(self) -> str:
        """Profile that the network is opened with; each noise takes the place of its own."""
        return "adc" if "adc" in self.others else "wnoise"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all noise that is compared."""
        return (*self.memories, *self.others)


@dataclass(frozen=True)
class Match:
    """The factor on a noise whose failure rate comes nearest to the target.

    Attributes:
      factor: the factor, within `FACTORS`.
      failure_rate: share of the digitally correct validation images that fail at this factor.
      target: failure rate that was to be met.
      reached: whether it is met to within `TOLERANCE`.
      breaks_at: the smallest factor tried at which the noise model gives weights that are not
        finite; None if none did.
    """

    factor: float
    failure_rate: float
    target: float
    reached: bool
    breaks_at: float | None = None


def run(exported: Exported, experiment: Experiment, settings: CompareNoise, out: Path) -> None:
    """Matches the noises' failure rates, compares which samples fail and prints it.

    Leaves matched.csv (a row a noise: its factor, failure rates and accuracies), overlap.csv and
    overlap.parquet (a row a pair of noises), drawn as overlap.png, .svg and .pdf, systematic.csv
    (a row a noise of several chips), failures.parquet (a row a digitally correct test image and
    chip) and settings.json. Finished chips are kept in pieces/ and not computed again.

    Raises:
      ValueError: the digital model is right on fewer test images than there are bins, or on no
        validation image.
    """
    analyse = experiment.analyse
    interval: dict[str, Any] = {"confidence": analyse.confidence, "resamples": analyse.resamples}
    bench = Bench(exported, experiment, settings.compensation, out / "pieces")
    digital = bench.digital("test", exported.test)
    correct = digital["correct"].to_numpy()
    if correct.sum() < settings.bins:
        raise ValueError(
            f"the digital model is right on {correct.sum()} of {len(correct)} test images, too few "
            f"for {settings.bins} bins of the margin; take more images or fewer bins"
        )
    tuning = exported.validation(settings.tune_limit)
    right = bench.digital("validation", tuning)["correct"].to_numpy()
    if not right.any():
        raise ValueError(
            f"the digital model is right on none of {len(tuning)} validation images, so that no "
            "failure rate could be matched: take more with --compare.tune-limit"
        )

    def tuned_rate(name: str, factor: float) -> float:
        # All that will be used: as measured a model is sound, beyond that a chip of many may fail.
        if factor > 1 and not bench.finite(name, factor, max(settings.chips, settings.tune_chips)):
            return np.nan
        analog = bench.correct(name, factor, settings.tune_chips, "validation", tuning)
        return float(1 - analog[:, right].mean())

    first = settings.names[0]
    matches: dict[str, Match] = {}
    failures: dict[str, npt.NDArray[np.bool_]] = {}
    matched, systematic = [], []
    with progress(None, "compare-noise"):  # how far a search goes is not known
        target = settings.failure_rate or tuned_rate(first, 1.0)
        for name in settings.names:
            match = match_factor(partial(tuned_rate, name), target)
            analog = bench.correct(name, match.factor, settings.chips, "test", exported.test)
            matches[name], failures[name] = match, ~analog[:, correct]
            matched.append(matched_noise(name, match, failures[name], analog))
            if len(analog) > 1:  # what is the chip's shows between chips
                share = systematic_share(failures[name], seed=experiment.seed, **interval)
                systematic.append({"name": name, **asdict(share)})
    for name, match in matches.items():
        if not match.reached:
            print(_not_reached(name, match))
    overlap = failure_overlap(
        failures, digital["margin"][correct], bins=settings.bins, seed=experiment.seed, **interval
    )
    noises, shares = pd.DataFrame(matched), pd.DataFrame(systematic)
    write_csv(out / "matched.csv", noises)
    write_csv(out / "systematic.csv", shares)
    write_parquet(out / "overlap.parquet", overlap)
    indices = digital["index"][correct].to_numpy()
    write_parquet(out / "failures.parquet", _long(failures, indices, experiment.seed))
    title = (
        f"{experiment.data.title}, {correct.sum():,} digitally correct test images; drift "
        f"{_compensated(settings.compensation)}"
    )
    draw(overlap, out / "overlap.png", title)
    profiles = {name: bench.profile(name, match.factor) for name, match in matches.items()}
    write_json(
        out / "settings.json",
        {
            **exported.origin,
            **exported.made_with,
            "digital_accuracy": correct.mean(),
            "compensation": settings.compensation,
            "target": target,
            "target_is_that_of": None if settings.failure_rate else first,
            "tolerance": TOLERANCE,
            "tune_samples": len(tuning),
            "tune_chips": settings.tune_chips,
            "noises": {
                name: {
                    **asdict(match),
                    "profile": to_json(profiles[name]),
                    "seeds": list(seeds(name, experiment.seed, len(failures[name]))),
                }
                for name, match in matches.items()
            },
            "bins": settings.bins,
            **interval,
        },
    )
    show(noises, shares, overlap, profiles)
    print(f"{out / 'overlap.png'}, overlap.csv, matched.csv, systematic.csv and failures.parquet")


def matched_noise(
    name: str, match: Match, failed: npt.NDArray[np.bool_], correct: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """The row of a noise in matched.csv.

    Args:
      name: the noise.
      match: the factor that was found.
      failed: whether each chip fails, bool [chips, digitally correct test images].
      correct: whether each chip is right, bool [chips, test images].

    Returns:
      name, the fields of `Match`, chips, test_failure_rate and test_accuracy (means over chips,
      with _min and _max), all fractions.
    """
    rates, accuracy = failed.mean(axis=1), correct.mean(axis=1)
    return {
        "name": name,
        **asdict(match),
        "chips": len(correct),
        "test_failure_rate": rates.mean(),
        "test_failure_rate_min": rates.min(),
        "test_failure_rate_max": rates.max(),
        "test_accuracy": accuracy.mean(),
        "test_accuracy_min": accuracy.min(),
        "test_accuracy_max": accuracy.max(),
    }


@dataclass(frozen=True)
class Bench:
    """Where chips are tried; what is finished is kept."""

    exported: Exported
    experiment: Experiment
    compensation: Literal["none", "global"]
    folder: Path
    """Folder of the finished chips' tables."""

    def profile(self, name: str, factor: float) -> Profile:
        """The noise called `name` alone, all its levels times `factor`, each memory at its own
        time of inference; of an ADC the step."""
        simulate = self.experiment.simulate
        if name == "adc":
            return Profile(adc=with_step(simulate.adc, factor), clipping=simulate.clipping)
        if name in ("wnoise", "wnoise_mvm"):
            noise = replace(
                simulate.wnoise,
                sigma=factor * simulate.wnoise.sigma,
                drawn="per_chip" if name == "wnoise" else "per_mvm",
            )
            return Profile(wnoise=noise, clipping=simulate.clipping)
        memories: dict[str, Device] = {
            "pcm": simulate.pcm,
            "hermes": Hermes(),
            "reram_wan2022": ReRamWan2022(),
            "reram_cmo": ReRamCMO(),
        }
        memory = memories[name]
        levels = {
            one.name: factor * getattr(memory, one.name)
            for one in fields(memory)
            if one.name in _SCALED
        }
        chosen = None if self.compensation == "none" else self.compensation
        return Profile(
            memory=replace(memory, compensation=chosen, **levels), clipping=simulate.clipping
        )

    def finite(self, name: str, factor: float, chips: int) -> bool:
        """Whether all weights of these chips are finite numbers.

        ReRamCMO's read noise is none where noise has made a conductance negative: it goes with the
        logarithm of the conductance.
        """
        if self.profile(name, factor).memory is None:
            return True

        def checked(seed: int) -> pd.DataFrame:
            return pd.DataFrame({"finite": [self._program(name, factor, seed).is_finite()]})

        return all(
            table_at(path, partial(checked, seed))["finite"].all()
            for path, seed in self._pieces("finite", 0, name, factor, chips)
        )

    def correct(
        self, name: str, factor: float, chips: int, fold: str, samples: Normalised
    ) -> npt.NDArray[np.bool_]:
        """Which samples of a fold each chip classifies correctly, [chips, samples]; of an ADC, of
        which nothing is drawn, one chip."""

        def tried(seed: int) -> pd.DataFrame:
            label = f"{name} x {factor:g}, chip {seed}, {fold}"
            table = self._predict(self._program(name, factor, seed), samples, label)
            return table[["index", "correct"]]

        return np.array(
            [
                table_at(path, partial(tried, seed))["correct"].to_numpy(bool)
                for path, seed in self._pieces(fold, len(samples), name, factor, chips)
            ]
        )

    def digital(self, fold: str, samples: Normalised) -> pd.DataFrame:
        """The network's own outcomes on samples of a fold: index, correct and margin, its largest
        logit minus the second largest."""

        def tried() -> pd.DataFrame:
            table = self._predict(self.exported.network, samples, f"digital, {fold}")
            return table[["index", "correct", "margin"]]

        return table_at(self._of(fold, len(samples)) / "digital.parquet", tried)

    def _predict(self, which: Programmable | Chip, samples: Normalised, label: str) -> pd.DataFrame:
        batch_size = self.experiment.simulate.batch_size
        return which.predict(samples, label, batch_size=batch_size, keep=logit_scores)

    def _program(self, name: str, factor: float, seed: int) -> Chip:
        # What is not finite, `finite` and `predict` say.
        with np.errstate(invalid="ignore"):
            return self.exported.network.program(self.profile(name, factor), seed)

    def _pieces(
        self, what: str, samples: int, name: str, factor: float, chips: int
    ) -> list[tuple[Path, int]]:
        """The file of each chip, and its seed."""
        stem = f"{name}-{key_of(to_json(self.profile(name, factor)))}"
        folder = self._of(what, samples)
        return [
            (folder / f"{stem}-{seed}.parquet", seed)
            for seed in seeds(name, self.experiment.seed, 1 if name == "adc" else chips)
        ]

    def _of(self, what: str, samples: int) -> Path:
        origin = {**self.exported.origin, "samples": samples, "fold": what}
        return self.folder / key_of(origin)


def seeds(name: str, seed: int, chips: int) -> range:
    """Chip seeds for one kind of noise. Different kinds use disjoint seeds."""
    start = seed + _APART * _NOISES.index(name)
    return range(start, start + chips)


def with_step(adc: ADC, factor: float) -> ADC:
    """The ADC whose step is `factor` times as large, and whose range is not smaller.

    So that nothing more saturates: the range grows with the step, and a finer step has more bits.
    With b bits the step is `range / (2**(b - 1) - 1)`.

    Raises:
      ValueError: such a step would take more than 23 bits.
    """
    codes = 2 ** (adc.bits - 1) - 1
    for bits in range(adc.bits, 24):
        wider = factor * (2 ** (bits - 1) - 1) / codes
        if wider >= 1:
            if adc.range == "calibrated":
                return replace(adc, bits=bits, headroom=wider * adc.headroom)
            return replace(adc, bits=bits, range=wider * adc.range)
    raise ValueError(
        f"an ADC of {adc.bits} bits with {factor:g} of its step would have more than 23: take "
        "fewer with --simulate.adc.bits"
    )


def match_factor(rate: Callable[[float], float], target: float) -> Match:
    """The factor on a noise at which its failure rate is `target`, by false position.

    From 1 by decades towards the target until it lies between two factors. Between these the
    logarithm of the rate is taken as a straight line in that of the factor, again and again, until
    the rate is as near as the search can tell. The nearest rate counts, of equals that of the
    factor nearest to 1.

    Args:
      rate: gives the failure rate at a factor, in [0, 1]; it grows with the factor, apart from
        chance. NaN, where the noise model gives none, counts as too much noise.
      target: rate to meet, above 0 and at most 1.

    Raises:
      ValueError: every rate is NaN, or the target is 0.
    """
    if not target > 0:
        raise ValueError(
            "no validation image fails that the others could be matched to: give a rate with "
            "--compare.failure-rate"
        )
    tried: dict[float, float] = {}
    tolerance = min(TOLERANCE, target / 10)

    def too_low(factor: float) -> bool:
        tried[factor] = rate(factor)
        return tried[factor] < target

    def nearest() -> float:
        return min((abs(one - target) for one in tried.values() if one == one), default=math.inf)

    start = too_low(1.0)
    near, bracketed = 1.0, False
    for far in (10.0, FACTORS[1]) if start else (0.1, FACTORS[0]):
        if nearest() <= _NEAR * tolerance or (bracketed := too_low(far) != start):
            break
        near = far
    for _ in range(_STEPS if bracketed else 0):
        middle = _between(near, far, tried, target)
        if nearest() <= _NEAR * tolerance or middle in tried:
            break
        if too_low(middle) == start:
            near = middle
        else:
            far = middle
    broken = [factor for factor, found in tried.items() if math.isnan(found)]
    sound = tried.keys() - broken
    if not sound:
        raise ValueError(f"the noise model gives no finite weights at factors {sorted(tried)}")
    best = min(sound, key=lambda factor: (abs(tried[factor] - target), abs(math.log(factor))))
    return Match(best, tried[best], target, nearest() <= tolerance, min(broken, default=None))


def _between(near: float, far: float, rates: Mapping[float, float], target: float) -> float:
    """Where a straight line between the logarithms at two factors meets the target; their middle
    where a rate is NaN. A short number, for it is reported."""
    ends = [math.log(max(rates[factor], _LEAST_RATE)) for factor in (near, far)]
    share = 0.5
    if not math.isnan(sum(ends)) and ends[0] != ends[1]:
        met = (math.log(max(target, _LEAST_RATE)) - ends[0]) / (ends[1] - ends[0])
        share = min(max(met, 0.1), 0.9)  # so that both ends close in
    return float(f"{near ** (1 - share) * far**share:.4g}")


def _not_reached(name: str, match: Match) -> str:
    sentence = (
        f"{name} does not reach failures of {100 * match.target:.1f} % at factors from "
        f"{FACTORS[0]:g} to {FACTORS[1]:g}: nearest is {100 * match.failure_rate:.1f} % at "
        f"{match.factor:g}"
    )
    if match.breaks_at is not None:
        sentence += f" (at {match.breaks_at:g} its model gives no finite weights)"
    return sentence


def _long(
    failures: Mapping[str, npt.NDArray[np.bool_]], indices: npt.NDArray, seed: int
) -> pd.DataFrame:
    """A row a name, chip (its seed) and digitally correct sample."""
    return pd.concat(
        [
            pd.DataFrame({"index": indices, "name": name, "chip": chip, "failed": failed})
            for name, chips in failures.items()
            for chip, failed in zip(seeds(name, seed, len(chips)), chips, strict=True)
        ],
        ignore_index=True,
    )


def _compensated(compensation: str | None) -> str:
    return "not compensated" if compensation in (None, "none") else f"compensated ({compensation})"


def show(
    matched: pd.DataFrame,
    systematic: pd.DataFrame,
    overlap: pd.DataFrame,
    profiles: Mapping[str, Profile],
) -> None:
    """Prints how well the failure rates match, what is systematic, and the overlap of each pair.

    Args:
      matched: name, the fields of `Match`, test_failure_rate and test_accuracy, a row a noise.
      systematic: name and the fields of `overlap.SystematicShare`, a row a noise of several chips.
      overlap: as `overlap.failure_overlap` returns it.
      profiles: each noise's profile by name; they tell when memories are read, and whether their
        drift is compensated.
    """
    console = Console(highlight=False)
    memories = {name: one.memory for name, one in profiles.items() if one.memory is not None}
    compensation = next((one.compensation for one in memories.values()), None)
    times = ", ".join(f"{name} {one.t_inference:,.10g} s" for name, one in memories.items())
    missed = "" if matched["reached"].all() else "* target not reached: the nearest factor. "
    noises = _table(
        f"Noise matched to failures of {100 * matched['target'].iloc[0]:.1f} % (validation)",
        f"{missed}Factor: on all noise of a memory, its drift included, on the sigma of weight "
        "noise (wnoise frozen into each chip, wnoise_mvm drawn at each operation), or on the step "
        f"of the adc; 1 is as set. Read after programming: {times}; drift is "
        f"{_compensated(compensation)}. Fail: share of the digitally correct images, mean over "
        "chips. Systematic: share of the failures on test images that come from samples failing on "
        "most chips; chance: the same, if each chip failed on each sample independently; an adc "
        "draws nothing, so that all its chips are one.",
        ("noise", "factor", "fail: validation", "test", "accuracy", "systematic", "chance"),
    )
    shares = systematic.set_index("name")
    for noise in matched.itertuples():
        share = shares.loc[noise.name] if noise.name in shares.index else None
        noises.add_row(
            noise.name,
            f"{noise.factor:.3g}" + "*" * (not noise.reached),
            *(
                f"{100 * value:.1f} %"
                for value in (noise.failure_rate, noise.test_failure_rate, noise.test_accuracy)
            ),
            *(
                "-" if share is None else _number(share[what])
                for what in ("systematic", "systematic_expected")
            ),
        )
    console.print(noises)
    pairs = _table(
        "Failing samples in common (Jaccard) and rank agreement (rho)",
        "Jaccard: samples failing on both chips over those failing on either. Chance: the same, if "
        "chips failed independently, each at its own rate; margin: each at its rate among samples "
        "of like margin. Explained: how much of the overlap beyond chance the margin alone gives, "
        "1 for all of it; noise may put it outside 0 to 1. rho: Spearman's, of the shares of chips "
        "on which a sample fails; lower with the one chip of an adc, whose shares are 0 or 1.",
        ("noises", "Jaccard", "chance", "margin", "explained", "rho"),
    )
    for row in overlap.itertuples():
        pairs.add_row(
            f"{row.first}, {'itself' if row.first == row.second else row.second}",
            f"{_number(row.jaccard)} [{_number(row.jaccard_low)}, {_number(row.jaccard_high)}]",
            *map(_number, (row.jaccard_chance, row.jaccard_margin, row.explained, row.spearman)),
        )
    console.print(pairs)
    if reasons := sorted({reason for reason in overlap["reason"] if reason}):
        print(f"Undefined where: {'; '.join(reasons)}.")


def _table(title: str, caption: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _number(value: float, form: str = "{:.2f}") -> str:
    return "-" if np.isnan(value) else form.format(value)


STUDY = Study(
    "compare",
    CompareNoise,
    open_exported,
    run,
    opened_with=("profile", "limit"),
    of=("train", "export"),
    beside=("simulate",),
)
