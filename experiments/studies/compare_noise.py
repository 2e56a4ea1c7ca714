"""Whether other noise causes failures on the same samples: memories and weight noise at matched
accuracy."""

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
from bridge.chips.profiles import Profile, to_json
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

FACTORS = (0.01, 100.0)
"""The smallest and the largest factor on a noise that is tried."""

TOLERANCE = 0.005
"""An accuracy this near its target matches it."""

_HALVINGS = 8  # of a decade of factors: to 1 %

_SCALED = ("programming_noise", "read_noise", "drift", "noise")

_WEIGHT_NOISE = "wnoise"

_APART = 1000  # seeds between the chips of two names


@dataclass(frozen=True)
class CompareNoise:
    """Whether different kinds of noise, scaled to the same accuracy, cause failures on the same
    samples."""

    memories: tuple[Memory, ...] = get_args(Memory)
    """Memories to compare with each other and with weight noise. pcm has the settings
    --simulate.pcm.* but for --compare.compensation; the others have AIHWKit's defaults (hermes at
    20 s, both ReRAM at 1 s); weight noise has --simulate.wnoise.*."""
    chips: int = 5
    """Chips of each kind of noise. All have different seeds."""
    limit: int | None = None
    """Largest number of images of the test fold to use; `none` takes all."""
    target: float | None = None
    """Accuracy, between 0 and 1, that every kind of noise is scaled to by one factor on all of its
    noise; `none` takes the accuracy of the first memory, unscaled."""
    tune_limit: int = 1000
    """Largest number of images of the validation fold on which the factors are found."""
    tune_chips: int = 2
    """Chips of each kind of noise on which the factors are found."""
    compensation: Literal["none", "global"] = "global"
    """Drift compensation of the memories. With `none`, the common shrinkage of all weights may hide
    the differences between them."""
    bins: int = 20
    """Bins of equal size into which samples are sorted by margin, to find how much of the overlap
    the margin explains. Take more where failures are rare."""
    out: Path | None = None
    """Folder of the results; `none` is compare-noise/ in the run's folder."""

    def __post_init__(self) -> None:
        if not self.memories or len(set(self.memories)) < len(self.memories):
            raise ValueError(f"memories must differ and be at least one; got {self.memories}")
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
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"target is an accuracy between 0 and 1; got {self.target}")

    @property
    def profile(self) -> str:
        """Profile that the network is opened with; each memory takes the place of its noise."""
        return _WEIGHT_NOISE

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all noise that is compared."""
        return (*self.memories, _WEIGHT_NOISE)


@dataclass(frozen=True)
class Match:
    """The factor on a noise whose accuracy comes nearest to the target.

    Attributes:
      factor: the factor, within `FACTORS`.
      accuracy: accuracy on the validation images at this factor.
      target: accuracy that was to be met.
      reached: whether it is met to within `TOLERANCE`.
      breaks_at: the smallest factor tried at which the noise model gives weights that are not
        finite; None if none did.
    """

    factor: float
    accuracy: float
    target: float
    reached: bool
    breaks_at: float | None = None


def run(exported: Exported, experiment: Experiment, settings: CompareNoise, out: Path) -> None:
    """Matches the noises' accuracy, compares which samples fail and prints it.

    Leaves matched.csv (a row a noise: its factor and accuracies), overlap.csv and overlap.parquet
    (a row a pair of noises), drawn as overlap.png and overlap.svg, systematic.csv (a row a noise),
    failures.parquet (a row a digitally correct test image and chip) and settings.json. Finished
    chips are kept in pieces/ and not computed again.

    Raises:
      ValueError: the digital model is right on fewer test images than there are bins.
    """
    analyse = experiment.analyse
    interval: dict[str, Any] = {"confidence": analyse.confidence, "resamples": analyse.resamples}
    bench = Bench(exported, experiment, settings.compensation, out / "pieces")
    digital = bench.digital()
    correct = digital["correct"].to_numpy()
    if correct.sum() < settings.bins:
        raise ValueError(
            f"the digital model is right on {correct.sum()} of {len(correct)} test images, too few "
            f"for {settings.bins} bins of the margin; take more images or fewer bins"
        )
    tuning = exported.validation(settings.tune_limit)

    def tuned_accuracy(name: str, factor: float) -> float:
        # All that will be used: as measured a model is sound, beyond that a chip of many may fail.
        if factor > 1 and not bench.finite(name, factor, max(settings.chips, settings.tune_chips)):
            return np.nan
        return float(bench.correct(name, factor, settings.tune_chips, "validation", tuning).mean())

    first = settings.names[0]
    matches: dict[str, Match] = {}
    failures: dict[str, npt.NDArray[np.bool_]] = {}
    matched, systematic = [], []
    with progress(None, "compare-noise"):  # how far a search goes is not known
        target = settings.target or tuned_accuracy(first, 1.0)
        for name in settings.names:
            match = match_factor(partial(tuned_accuracy, name), target)
            analog = bench.correct(name, match.factor, settings.chips, "test", exported.test)
            matches[name], failures[name] = match, ~analog[:, correct]
            accuracy = analog.mean(axis=1)
            matched.append(
                {
                    "name": name,
                    **asdict(match),
                    "test_accuracy": accuracy.mean(),
                    "test_accuracy_min": accuracy.min(),
                    "test_accuracy_max": accuracy.max(),
                }
            )
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
            "target_is_that_of": None if settings.target else first,
            "tolerance": TOLERANCE,
            "tune_samples": len(tuning),
            "tune_chips": settings.tune_chips,
            "noises": {
                name: {
                    **asdict(match),
                    "profile": to_json(profiles[name]),
                    "seeds": list(seeds(name, experiment.seed, settings.chips)),
                }
                for name, match in matches.items()
            },
            "bins": settings.bins,
            **interval,
        },
    )
    show(noises, shares, overlap, profiles)
    print(f"{out / 'overlap.png'}, overlap.csv, matched.csv, systematic.csv and failures.parquet")


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
        time of inference."""
        simulate = self.experiment.simulate
        if name == _WEIGHT_NOISE:
            noise = replace(simulate.wnoise, sigma=factor * simulate.wnoise.sigma)
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
        """Which samples of a fold each chip classifies correctly, [chips, samples]."""

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

    def digital(self) -> pd.DataFrame:
        """The network's own outcomes on the test fold: index, correct and margin, its largest logit
        minus the second largest."""

        def tried() -> pd.DataFrame:
            table = self._predict(self.exported.network, self.exported.test, "digital")
            return table[["index", "correct", "margin"]]

        return table_at(self._of("test", len(self.exported.test)) / "digital.parquet", tried)

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
            for seed in seeds(name, self.experiment.seed, chips)
        ]

    def _of(self, what: str, samples: int) -> Path:
        origin = {**self.exported.origin, "samples": samples, "fold": what}
        return self.folder / key_of(origin)


def seeds(name: str, seed: int, chips: int) -> range:
    """Chip seeds for one kind of noise. Different kinds use disjoint seeds."""
    start = seed + _APART * (*get_args(Memory), _WEIGHT_NOISE).index(name)
    return range(start, start + chips)


def match_factor(accuracy: Callable[[float], float], target: float) -> Match:
    """The factor on a noise at which its accuracy is `target`, by bisection.

    From 1 by decades towards the target until it lies between two factors, then by halving their
    ratio on the logarithmic scale, until the accuracy is within `TOLERANCE` or the two are as good
    as equal. The nearest accuracy counts, of equals that of the factor nearest to 1.

    Args:
      accuracy: gives the accuracy at a factor, in [0, 1]; it falls as the factor grows, apart from
        chance. NaN, where the noise model gives none, counts as too much noise.
      target: accuracy to meet, in [0, 1].

    Raises:
      ValueError: every accuracy is NaN.
    """
    tried: dict[float, float] = {}

    def too_accurate(factor: float) -> bool:
        tried[factor] = accuracy(factor)
        return tried[factor] > target

    def met() -> bool:
        return any(abs(reached - target) <= TOLERANCE for reached in tried.values())

    start = too_accurate(1.0)
    near, bracketed = 1.0, False
    for far in (10.0, FACTORS[1]) if start else (0.1, FACTORS[0]):
        if met() or (bracketed := too_accurate(far) != start):
            break
        near = far
    for _ in range(_HALVINGS if bracketed else 0):
        if met():
            break
        # Short numbers, for they are reported.
        middle = float(f"{math.sqrt(near * far):.4g}")
        if middle in tried:
            break
        if too_accurate(middle) == start:
            near = middle
        else:
            far = middle
    broken = [factor for factor, reached in tried.items() if math.isnan(reached)]
    sound = tried.keys() - broken
    if not sound:
        raise ValueError(f"the noise model gives no finite weights at factors {sorted(tried)}")
    best = min(sound, key=lambda factor: (abs(tried[factor] - target), abs(math.log(factor))))
    return Match(best, tried[best], target, met(), min(broken, default=None))


def _not_reached(name: str, match: Match) -> str:
    sentence = (
        f"{name} does not reach {100 * match.target:.1f} % at factors from {FACTORS[0]:g} to "
        f"{FACTORS[1]:g}: nearest is {100 * match.accuracy:.1f} % at {match.factor:g}"
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
    """Prints how well the accuracies match, what is systematic, and the overlap of each pair.

    Args:
      matched: name, the fields of `Match` and test_accuracy, a row a noise.
      systematic: name and the fields of `overlap.SystematicShare`, in the same order.
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
        f"Noise matched to {100 * matched['target'].iloc[0]:.1f} % on validation images",
        f"{missed}Factor: on all noise of a memory, its drift included, or on the sigma of "
        f"{_WEIGHT_NOISE}; 1 is as set. Read after programming: {times}; drift is "
        f"{_compensated(compensation)}. Fail: share of the digitally correct test images, mean "
        "over chips. Systematic: share of the failures that come from samples failing on most "
        "chips; chance: the same, if each chip failed on each sample independently.",
        ("noise", "factor", "validation", "test", "fail", "systematic", "chance"),
    )
    for noise, share in zip(matched.itertuples(), systematic.itertuples(), strict=True):
        noises.add_row(
            noise.name,
            f"{noise.factor:.3g}" + "*" * (not noise.reached),
            *(f"{100 * value:.1f} %" for value in (noise.accuracy, noise.test_accuracy)),
            *(_number(100 * share.rate, "{:.1f} %"), _number(share.systematic)),
            _number(share.systematic_expected),
        )
    console.print(noises)
    pairs = _table(
        "Failing samples in common (Jaccard) and rank agreement (rho)",
        "Jaccard: samples failing on both chips over those failing on either. Chance: the same, if "
        "chips failed independently, each at its own rate; margin: each at its rate among samples "
        "of like margin. Explained: how much of the overlap beyond chance the margin alone gives, "
        "1 for all of it; noise may put it outside 0 to 1. rho: Spearman's, of the shares of chips "
        "on which a sample fails.",
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
