"""How accuracy changes as programmed chips age, with and without compensation of drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from bridge.analysis.failures import analog_only_failures
from bridge.checks import require_finite
from bridge.chips.profiles import Profile, to_json
from bridge.report.figures.style import (
    BLUE,
    GREEN,
    PURPLE,
    STYLE,
    VERMILLION,
    new_figure,
    write_figure,
)
from bridge.report.tables.formats import counted
from experiments.chips.protocol import Chip, Programmable
from experiments.runs.files import write_parquet
from experiments.runs.job import Job
from experiments.runs.resume import key_of, table_at
from experiments.settings.flags import Experiment
from experiments.studies.exported import Exported, open_exported, settings_in_run
from experiments.studies.opening import Study
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

Compensation = Literal["none", "global", "global_exact", "per_column"]

_MINUTE, _HOUR, _DAY, _MONTH, _YEAR = 60.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0
_LANDMARKS = (1.0, _MINUTE, _HOUR, _DAY, _MONTH, _YEAR, 10 * _YEAR)
_FIRST = 20.0
"""Seconds before which chips are seldom read."""

_LINES: dict[str, tuple[str, str, str]] = {
    "none": (VERMILLION, "o", "-"),
    "global": (BLUE, "s", "-"),
    "global_exact": (GREEN, "^", "--"),
    "per_column": (PURPLE, "D", "--"),
}


@dataclass(frozen=True)
class Drift:
    """Accuracy of the programmed chips as they age."""

    profile: Literal["pcm", "adc+pcm", "wnoise+pcm", "adc+wnoise+pcm"] = "pcm"
    """Hardware profile of the chips."""
    times: tuple[float, ...] = (0.0, 1.0, 20.0, _MINUTE, _HOUR, _DAY, _MONTH, _YEAR)
    """Times after programming at which the chips are tried, in seconds."""
    compensations: tuple[Compensation, ...] = ("none", "global")
    """Drift compensations to compare; they replace --simulate.pcm.compensation."""
    chips: int = 5
    """Chips to program, with seeds --seed, --seed + 1 and so on, the same under every
    compensation."""
    limit: int | None = 2000
    """Largest number of images of the test fold to use; `none` takes all."""
    out: Path | None = None
    """Folder of the results; `none` is drift/ in the run's folder."""

    def __post_init__(self) -> None:
        for time in self.times:
            require_finite("a time", time)
        for name in ("times", "compensations"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must differ and be at least one; got {values}")
        if self.chips < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"chips and limit must be at least 1; got {self.chips} and {self.limit}"
            )


class Trial(NamedTuple):
    """One chip at one time; its seed tells which."""

    compensation: Compensation
    chip: int
    time: float


def run(exported: Exported, experiment: Experiment, settings: Drift, out: Path) -> None:
    """Ages the chips, draws their accuracy and prints it.

    Leaves drift.parquet (a row a chip, time and compensation), drift.csv (over the chips), drawn as
    drift.png, .svg and .pdf, and settings.json. The pieces/ of a run that was interrupted, or had
    fewer chips, times or compensations, are not computed again.
    """
    confidence = experiment.analyse.confidence
    # Time and compensation are what the trials differ in.
    fresh = _operated(exported.profile, "none", 0.0)
    origin = {**exported.origin, "profile": to_json(fresh)}
    seeds = range(experiment.seed, experiment.seed + settings.chips)
    rows = age(
        exported,
        [
            Trial(compensation, seed, time)
            for seed in seeds
            for compensation in settings.compensations
            for time in sorted(settings.times)
        ],
        out / "pieces" / key_of(origin),
        batch_size=experiment.simulate.batch_size,
    )
    table = over_chips(rows, confidence)
    write_parquet(out / "drift.parquet", rows)
    draw(table, out / "drift.png", title=f"{experiment.data.title}, {settings.profile}")
    write_json(
        out / "settings.json",
        {
            **origin,
            **exported.made_with,
            "times": sorted(settings.times),
            "compensations": settings.compensations,
            "seeds": list(seeds),
            "confidence": confidence,
        },
    )
    show(table)
    print(f"{out / 'drift.png'}, drift.csv (over the chips) and drift.parquet (each chip)")


def is_of_run(job: Job, description: dict[str, Any]) -> bool:
    """Whether a run's folder has the drift of its own chips: of its network and of its devices.

    Args:
      job: the run.
      description: its network's.
    """
    made = settings_in_run(job, description, "drift")
    profiles = job.experiment.simulate.every_profile.values()
    fresh = (_operated(profile, "none", 0.0) for profile in profiles if profile.memory is not None)
    return made is not None and made["profile"] in map(to_json, fresh)


def age(
    exported: Exported, trials: Sequence[Trial], folder: Path, *, batch_size: int
) -> pd.DataFrame:
    """Programs chips and tries each at its times.

    Args:
      exported: the network and the samples.
      trials: what to try; the trials of one chip and compensation follow each other.
      folder: where the result of each finished trial is kept, and looked for.
      batch_size: images at once.

    Returns:
      One row a trial: compensation, chip (its seed), time_s, samples, digitally_correct, failures
      (digital right, chip wrong), failure_rate (of the digitally correct; NaN without any),
      accuracy and digital_accuracy, the last three in [0, 1].
    """
    count = len(exported.test)
    paths = [folder / f"{which}-{seed}-{time!r}.parquet" for which, seed, time in trials]
    all_found = all(path.exists() for path in paths)

    def correct(which: Programmable | Chip, description: str) -> NDArray[np.bool_]:
        table = which.predict(exported.test, description, batch_size=batch_size)
        return table["correct"].to_numpy()

    @cache
    def digital() -> NDArray[np.bool_]:
        return correct(exported.network, "digital")

    @lru_cache(maxsize=1)
    def programmed(compensation: Compensation, seed: int) -> Chip:
        return exported.network.program(_operated(exported.profile, compensation, 0.0), seed)

    def tried(trial: Trial) -> pd.DataFrame:
        right = int(digital().sum())
        chip = programmed(trial.compensation, trial.chip).at(trial.time)
        analog = correct(
            chip, f"chip {trial.chip}, compensation {trial.compensation}, {duration(trial.time)}"
        )
        failures = int(analog_only_failures(digital(), analog).sum())
        row = {
            "compensation": trial.compensation,
            "chip": trial.chip,
            "time_s": trial.time,
            "samples": count,
            "digitally_correct": right,
            "failures": failures,
            "failure_rate": failures / right if right else np.nan,
            "accuracy": analog.mean(),
            "digital_accuracy": digital().mean(),
        }
        return pd.DataFrame([row])

    tables = []
    with progress((len(trials) + (not all_found)) * count, "drift"):
        for trial, path in zip(trials, paths, strict=True):
            with progress(count, f"chip {trial.chip}"):
                tables.append(table_at(path, partial(tried, trial)))
    return pd.concat(tables, ignore_index=True)


def _operated(profile: Profile, compensation: Compensation, time: float) -> Profile:
    assert profile.memory is not None
    chosen = None if compensation == "none" else compensation
    return replace(profile, memory=replace(profile.memory, compensation=chosen, t_inference=time))


def over_chips(rows: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """The mean over chips with its interval, and the range of the chips.

    With m the mean and s the standard deviation of n chips' values, and t the quantile of Student's
    distribution of n - 1 degrees of freedom at (1 + confidence) / 2, the interval is
    `m -+ t s / sqrt(n)`, cut to [0, 1]: it covers the choice of the chip, not that of the samples.

    Args:
      rows: as `age` returns them.
      confidence: confidence level of the intervals, between 0 and 1.

    Returns:
      One row a compensation and time: compensation, time_s, chips, samples, digitally_correct,
      digital_accuracy, and for accuracy and failure_rate the mean and its _low, _high (NaN for one
      chip), _min and _max over chips; fractions.
    """
    groups = rows.groupby(["compensation", "time_s"], sort=False)
    table = groups.agg(
        chips=("chip", "size"),
        samples=("samples", "first"),
        digitally_correct=("digitally_correct", "first"),
        digital_accuracy=("digital_accuracy", "first"),
    )
    chips = table["chips"]
    quantile = student.ppf((1 + confidence) / 2, chips - 1)
    for name in ("accuracy", "failure_rate"):
        values = groups[name]
        half = quantile * values.std() / np.sqrt(chips)
        table[name] = values.mean()
        table[f"{name}_low"] = (table[name] - half).clip(lower=0.0)
        table[f"{name}_high"] = (table[name] + half).clip(upper=1.0)
        table[f"{name}_min"], table[f"{name}_max"] = values.min(), values.max()
    return table.reset_index()


def draw(table: pd.DataFrame, path: Path, title: str) -> Path:
    """Accuracy against time: a line a compensation, its band the interval over chips.

    Args:
      table: as `over_chips` returns it.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      title: its beginning.
    """
    first = table.iloc[0]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=5.4, height=3.2)
        axis = figure.subplots()
        axis.axhline(100 * first["digital_accuracy"], color="black", linestyle=":", label="digital")
        for compensation, line in table.groupby("compensation", sort=False):
            colour, marker, dashes = _LINES[str(compensation)]
            axis.plot(
                line["time_s"],
                100 * line["accuracy"],
                dashes,
                color=colour,
                marker=marker,
                markeredgewidth=0,
                label=f"compensation: {compensation}",
                zorder=3,
            )
            axis.fill_between(
                line["time_s"],
                100 * line["accuracy_low"],
                100 * line["accuracy_high"],
                color=colour,
                alpha=0.18,
                lw=0,
            )
        axis.set_xscale("symlog", linthresh=1, linscale=0.4)
        earliest, latest = table["time_s"].min(), table["time_s"].max()
        axis.set_xlim(earliest / 2 if earliest else -0.3, 2 * latest + 0.3)
        ticks = sorted(
            {earliest, latest, *(t for t in _LANDMARKS if 4 * earliest < t < latest / 4)}
        )
        axis.set_xticks(ticks, [duration(time) for time in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("Time after programming")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(f"Accuracy (% of {first['samples']:,} test images)")
        axis.set_title(f"{title}: mean of {counted(first['chips'], 'chip')}")
        axis.legend()
        return write_figure(figure, path, table)


def verdict(folder: Path) -> str:
    """What finished drift says, in a sentence: accuracy without compensation at each time from 20 s
    on, and its range with compensation; "" without its table.

    Args:
      folder: where `run` left it.
    """
    if not (folder / "drift.csv").exists():
        return ""
    table = pd.read_csv(folder / "drift.csv")
    late = table[table["time_s"] >= _FIRST]
    table = late if len(late) else table
    said = []
    for compensation, rows in table.groupby("compensation", sort=False):
        accuracy = 100 * rows["accuracy"]
        if compensation == "none":
            times = map(duration, rows["time_s"])
            each = [f"{one:.0f} % at {at}" for one, at in zip(accuracy, times, strict=True)]
            said.append(f"not compensated, {', '.join(each)}")
            continue
        low, high = f"{accuracy.min():.0f}", f"{accuracy.max():.0f}"
        between = f"{low} to {high} %" if low != high else f"{low} %"
        said.append(f"with {compensation.replace('_', ' ')} compensation, {between}")
    digital = 100 * table["digital_accuracy"].iloc[0]
    return (
        f"Accuracy as the chips age: {'; '.join(said)} (mean of "
        f"{counted(table['chips'].iloc[0], 'chip')}; digital {digital:.0f} %)"
    )


def show(table: pd.DataFrame) -> None:
    """Prints the accuracy over chips, a row a time."""
    first = table.iloc[0]
    printed = Table(
        title=f"Accuracy, % of {first['samples']:,} test images; {counted(first['chips'], 'chip')}",
        caption=f"Mean and interval over chips; digital {100 * first['digital_accuracy']:.1f} %.",
        box=box.SIMPLE_HEAD,
        min_width=60,  # of the title
        padding=(0, 1, 0, 0),
    )
    for name in ("time", *table["compensation"].unique()):
        printed.add_column(name, justify="right", no_wrap=True)
    for time, row in table.groupby("time_s"):
        values = 100 * row[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy()
        cells = (
            f"{mean:.1f}" + ("" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]")
            for mean, low, high in values
        )
        printed.add_row(duration(float(time)), *cells)
    Console(highlight=False).print(printed)


def duration(seconds: float) -> str:
    """A time in the largest unit that fits, such as "20 s", "1 h", "30 d" or "1 y" (365 d)."""
    for unit, size in (("y", _YEAR), ("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds else "0"


STUDY = Study(
    "drift",
    Drift,
    open_exported,
    run,
    opened_with=("profile", "limit"),
    of=("train", "export"),
    beside=("simulate",),
)
