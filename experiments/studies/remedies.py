"""What to do about failures: accuracy against energy of every remedy, as chips age."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.checks import require_between_0_and_1, require_finite
from bridge.chips.profiles import to_json
from bridge.chips.sensitive_layers import most_sensitive
from bridge.report.figure_files import BESIDE
from bridge.report.folds import Fold
from bridge.report.tables.formats import counted, with_interval
from bridge.routing.costs import Costs
from bridge.routing.guarantees import calibration_size
from experiments.runs.files import write_csv, write_parquet
from experiments.runs.job import Job
from experiments.runs.resume import key_of
from experiments.settings.flags import Experiment
from experiments.studies import remedies_deciles
from experiments.studies import remedies_figures as figures
from experiments.studies.drift import duration
from experiments.studies.exported import settings_in_run
from experiments.studies.opening import Study
from experiments.studies.remedies_chips import (
    OWN,
    Bench,
    digital_predictions,
    layers_alone,
    predictions,
)
from experiments.studies.remedies_opened import Opened, open_remedies
from experiments.studies.remedies_plan import Choices, outcomes_table, plan_of
from experiments.studies.remedies_tables import (
    cheapest_within,
    energies,
    frontiers,
    told,
)
from jaxcurv.storage.checksums import read_json, write_json

_DAY, _YEAR = 86400.0, 365 * 86400.0
_WITHIN = 0.01
"""How far below the digital accuracy is near enough for the verdict."""
_CHOSEN_ON: Mapping[Fold, str] = {
    "validation": "validation images",
    "test": "test images that were set apart",
}


@dataclass(frozen=True)
class Remedies:
    """What each remedy buys, and at which energy: compensation, recalibration, repeated reads,
    several chips, precision, and routing of fragile images."""

    profile: Literal["pcm", "adc+pcm", "wnoise+pcm", "adc+wnoise+pcm"] = "adc+wnoise+pcm"
    """Hardware profile of the chips; compensation of drift is one of the remedies. With
    --simulate.wnoise.drawn per_mvm repeated reads are one too."""
    times: tuple[float, ...] = (20.0, _DAY, _YEAR)
    """Times after programming at which the chips are tried, in seconds."""
    chips: int = 5
    """Chips of every remedy, the same ones, with seeds that follow each other."""
    first: int | None = None
    """Seed of the first chip; `none` takes --seed. A student is tried on chips that it was not
    fitted on, and else left out."""
    limit: int | None = 2000
    """Largest number of images of the test fold; `none` takes all."""
    validation_limit: int | None = 1000
    """Largest number of images of the validation fold, on which thresholds, sensitive layers and
    the frontier are chosen; `none` takes all. Where the network was trained on all other images
    they are taken from the test fold, and are not among the images of --remedies.limit."""
    measured: int = 128
    """Images of the train fold on which a chip measures its BatchNorm statistics, or the scale and
    shift of its logits."""
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    """Shares of the images that get a second answer, those that score highest."""
    levels: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    """Guaranteed routing: the largest expected shares of all images that stay on the chip and
    fail. A chip whose digital layers the validation images chose has no guarantee by them."""
    digital_macs: tuple[float, ...] = (0.05, 0.2)
    """Shares of the multiply-accumulates that the most sensitive layers may take to the digital
    side."""
    reads: int = 4
    """Reads of one chip whose logits are averaged, where noise is drawn at each operation."""
    together: int = 2
    """Chips whose logits are averaged."""
    extra_bits: int = 2
    """Bits that the ADC has more for a second answer."""
    adc_share: float = 0.5
    """Share of an analog pass's energy that is the ADC's, which doubles with each bit."""
    analog_costs: tuple[float, ...] = (0.05, 0.1, 0.3)
    """Energies of an analog pass, those of a digital one being 1, for which the frontier is
    drawn, beside that of --analyse.energy.*."""
    tuned: str | None = None
    """Weights of a network that finetune left, whose chips are tried too; `none` tries the run's
    network alone. The digital model stays the run's, and so do the layers that are kept digital."""
    out: Path | None = None
    """Folder of the results; `none` is remedies/ in the run's folder."""

    def __post_init__(self) -> None:
        for time in self.times:
            require_finite("a time", time)
        for cost in self.analog_costs:
            require_finite("an analog cost", cost, positive=True)
        for name in ("shares", "levels", "digital_macs"):
            for value in getattr(self, name):
                require_between_0_and_1(f"each of {name}", value)
        for name in ("times", "analog_costs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must differ and be at least one; got {values}")
        for name, least in (
            *(("chips", 1), ("measured", 2), ("reads", 2), ("together", 2), ("extra_bits", 1)),
            *(("limit", 2), ("validation_limit", 2)),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")
        if self.first is not None and self.first < 0:
            raise ValueError(f"first must not be negative; got {self.first}")
        if not 0 <= self.adc_share <= 1:
            raise ValueError(f"adc_share must lie in [0, 1]; got {self.adc_share}")

    @property
    def choices(self) -> Choices:
        """What the plan takes of the settings."""
        return Choices(
            *(self.shares, self.levels, self.reads, self.together),
            *(self.extra_bits, self.adc_share),
        )


def run(opened: Opened, experiment: Experiment, settings: Remedies, out: Path) -> None:
    """Tries every remedy on the same chips and images, and says what lies on the frontier.

    Leaves remedies.parquet and remedies.csv (a row a remedy and time), frontier.csv (those that
    none beats, at each cost of an analog pass), drawn as remedies.png, .svg and .pdf; layers.csv
    (what each layer alone costs); where the run has scored the images deciles.csv (failures of
    each first answer by decile of curvature), drawn as deciles.png; and settings.json. The logits
    of every kind of chip are kept in pieces/ and not computed again.
    """
    network = opened.networks[OWN]
    bench = Bench(
        opened.networks,
        opened.profile,
        opened.folds,
        opened.seeds,
        experiment.simulate.batch_size,
        out / "pieces" / key_of(opened.origin),
    )
    times = sorted(settings.times)
    coverage = network.coverage(bench.images("measured", 2))
    failures = layers_alone(bench, times[0])
    plan = plan_of(
        opened.profile,
        coverage,
        {share: most_sensitive(failures, coverage, share) for share in settings.digital_macs},
        recalibrates=network.batch_norms > 0,
        choices=replace(settings.choices, levels=_promised(settings.levels, opened)),
        tuned=next((name for name in opened.networks if name != OWN), None),
    )
    digital = digital_predictions(bench)
    made = predictions(bench, plan.kinds, times)
    confidence, energy = experiment.analyse.confidence, experiment.analyse.energy
    tables = [
        outcomes_table(
            plan,
            {kind: made[kind, time] for kind in plan.kinds},
            digital,
            opened.scores,
            confidence=confidence,
        ).assign(time_s=time)
        for time in times
    ]
    table = _with_time_first(tables)
    table = table.assign(energy=energies(table, energy))
    ratios = sorted({*settings.analog_costs, energy.analog / energy.digital})
    best = frontiers(table, ["time_s"], [Costs(analog=ratio) for ratio in ratios])
    accuracy = {fold: float(right.mean()) for fold, right in digital.right().items()}
    title = f"{experiment.data.title}, {experiment.model.title}, {settings.profile}"
    write_parquet(out / "remedies.parquet", table)
    write_csv(out / "layers.csv", failures)
    write_csv(out / "frontier.csv", best)
    pictures = [
        figures.draw(table, best, accuracy["test"], energy, out / "remedies.png", title=title)
    ]
    if opened.curvature is not None:
        by_decile = _with_time_first(
            remedies_deciles.deciles_table(
                *(plan, {kind: made[kind, time] for kind in plan.kinds}, digital),
                *(opened.curvature, opened.folds["test"].indices),
                confidence=confidence,
            ).assign(time_s=time)
            for time in times
        )
        pictures.append(remedies_deciles.draw(by_decile, out / "deciles.png", title=title))
    else:
        for kind in (".png", *BESIDE):  # of an earlier command, whose images had scores
            (out / "deciles").with_suffix(kind).unlink(missing_ok=True)
    write_json(
        out / "settings.json",
        {
            **opened.origin,
            **opened.made_with,
            "profile": to_json(opened.profile),
            "profile_name": settings.profile,
            "times": times,
            "seeds": list(bench.seeds),
            "chosen_on": opened.chosen_on,
            "choices": asdict(settings.choices),
            "digital_layers": {f"{share:g}": kept for share, kept in plan.kept_digital.items()},
            "digital_accuracy": accuracy,
            "energy": asdict(energy),
            "confidence": confidence,
        },
    )
    show(table, best, accuracy, energy, opened.chosen_on)
    print(f"{', '.join(map(str, pictures))}, remedies.csv, frontier.csv and remedies.parquet")


def _with_time_first(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "time_s", table.pop("time_s"))
    return table


def is_of_run(job: Job, description: dict[str, Any]) -> bool:
    """Whether a run's folder has remedies that were tried on its own network and devices.

    Args:
      job: the run.
      description: its network's.
    """
    made = settings_in_run(job, description, "remedies")
    if made is None:
        return False
    profile = job.experiment.simulate.every_profile.get(made["profile_name"])
    return profile is not None and made["profile"] == to_json(profile)


def frontier_of(folder: Path) -> pd.DataFrame:
    """The frontier of finished remedies at the energies that they were run with.

    Args:
      folder: where `run` left them.
    """
    energy = read_json(folder / "settings.json")["energy"]
    words = dict.fromkeys(("second", "score"), str)
    best = pd.read_csv(folder / "frontier.csv", dtype=words).fillna(dict.fromkeys(words, ""))
    return best[np.isclose(best["analog_cost"], energy["analog"] / energy["digital"])]


def verdicts(folder: Path) -> list[str]:
    """What finished remedies say, a sentence for each time at the energies that they were run with.

    Args:
      folder: where `run` left them.
    """
    made = read_json(folder / "settings.json")
    chips = counted(len(made["seeds"]), "chip")
    ways = pd.read_csv(folder / "remedies.csv").groupby("time_s").size()
    chosen_on = made.get("chosen_on", "validation")
    return [
        f"{made['profile_name']}, {duration(float(str(time)))} after programming ({chips}). "
        + verdict(rows, int(ways[time]), made["digital_accuracy"], chosen_on)
        for time, rows in frontier_of(folder).groupby("time_s")
    ]


def _promised(levels: Sequence[float], opened: Opened) -> tuple[float, ...]:
    """The levels that the validation images suffice for; says which ones they do not."""
    count = len(opened.folds["validation"])
    kept = tuple(level for level in levels if calibration_size(level) <= count)
    if missing := [level for level in levels if level not in kept]:
        print(
            f"{count} validation images promise no failures below "
            f"{', '.join(f'{100 * level:g} %' for level in missing)}: left out; "
            f"{calibration_size(min(missing))} would do",
            file=sys.stderr,
        )
    return kept


def show(
    table: pd.DataFrame,
    best: pd.DataFrame,
    accuracy: Mapping[str, float],
    energy: Costs,
    chosen_on: Fold,
) -> None:
    """Prints for each time every first answer alone, and the frontier at the run's energies."""
    console = Console(highlight=False)
    cost = energy.analog / energy.digital
    for time, rows in table.groupby("time_s"):
        console.print(
            _printed(
                rows[rows["rule"].isin(["none", "all"])],
                f"{duration(float(str(time)))} after programming: chips alone",
                energy.digital,
            )
        )
        of_time = best[(best["time_s"] == time) & (best["analog_cost"] == cost)]
        if not of_time.empty:
            console.print(_printed(of_time, "the frontier", 1.0))
            console.print(verdict(of_time, len(rows), accuracy, chosen_on))
    first = table.iloc[0]
    console.print(
        "Accuracy in %, gain over the plain chip in points, with "
        f"{counted(table['time_s'].nunique(), 'time')}, {counted(first['chips'], 'chip')} and "
        f"{first['samples']:,} test images; digital {100 * accuracy['test']:.1f} %. Energy: a "
        f"digital pass is 1, an analog one {cost:g}.\n"
        f"Thresholds and the frontier are chosen on {_CHOSEN_ON[chosen_on]}."
    )
    if first["chips"] == 1:
        print("One chip tells nothing of others: intervals are for other images alone.")


def _printed(rows: pd.DataFrame, title: str, unit: float) -> Table:
    printed = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    printed.add_column("remedy")
    for name in ("energy", "accuracy", "gain"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        printed.add_row(
            told(row),
            f"{row['energy'] / unit:.3f}",
            _interval(row, "accuracy"),
            _interval(row, "gain"),
        )
    return printed


def _interval(row: Mapping[Any, Any] | pd.Series, name: str) -> str:
    value, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
    return with_interval(value, low, high, ".1f")


def verdict(
    of_time: pd.DataFrame,
    ways: int,
    accuracy: Mapping[str, float],
    chosen_on: Fold = "validation",
) -> str:
    """Which remedy comes within a point of the digital model at the least energy, in a sentence.

    Args:
      of_time: the frontier at one time and cost.
      ways: how many remedies it was chosen among, the digital model among them.
      accuracy: the digital model's by fold.
      chosen_on: the run's fold that the validation images are of.
    """
    row = cheapest_within(of_time, accuracy["validation"], _WITHIN)
    if row is None:
        return f"None of {ways} ways comes within {100 * _WITHIN:g} point of the digital accuracy."
    short = _interval(row, "short")
    return (
        f"Cheapest of {ways} ways within {100 * _WITHIN:g} point of the digital accuracy on "
        f"{_CHOSEN_ON[chosen_on]}: {told(row)}, at {row['energy']:.3f} of its energy; on test "
        f"images {short} points below."
    )


STUDY = Study(
    "remedies",
    Remedies,
    open_remedies,
    run,
    opened_with=("profile", "limit", "validation_limit", "measured", "first", "chips", "tuned"),
    of=("train", "export"),
    beside=("simulate",),
)
