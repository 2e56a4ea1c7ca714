"""A tiny network that predicts from the image alone which images fail on a run's chips.

It is fitted on the outcomes of the train fold and tried on the test fold, which chose nothing of
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import analog_only_failures
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.predictors import predictor_figure, routing_figure
from bridge.report.folds import FOLDS
from bridge.report.tables import costs as score_costs
from bridge.report.tables import on_chip, outcomes, predictors, routers
from experiments.runs.coverage import read_coverage
from experiments.runs.files import read_parquet, write_csv, write_parquet
from experiments.runs.networks import examples
from experiments.runs.records import read_record
from experiments.runs.resume import key_of
from experiments.runs.samples import positions_of
from experiments.settings.flags import Experiment, ProfileName
from experiments.studies.exported import Network, open_network_for
from experiments.studies.opening import Study, read_scored
from experiments.studies.student_tables import compare, show, verdict
from experiments.system.devices import device
from jaxcurv.data import Chosen, read, subset
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import hash_arrays, write_json

if TYPE_CHECKING:
    from bridge.routing.student import Student

_PART = 2048
"""Images that are scored from memory at once."""


@dataclass(frozen=True)
class StudentStudy:
    """A tiny network that predicts from the image alone whether the image fails on a chip."""

    profile: ProfileName = FULL_PROFILE
    """Hardware profile of the chips whose failures it learns, one that the run has simulated."""
    chips: Literal["other", "same"] = "other"
    """Chips to try it on: with `other` it is fitted on the first half of the run's chips, and it
    and every other score are tried on the rest; with `same` it is fitted and tried on all chips,
    which tells what a student of these very chips is worth."""
    budget: float = 0.05
    """Largest cost of the student, as a share of the multiply-accumulates of the network's forward
    pass; below 1."""
    epochs: int = 15
    """Passes over the images of the train fold. A tenth of these images chooses the best one."""
    limit: int | None = None
    """Largest number of digitally correct images of the train fold to fit it on; `none` takes all.
    They are kept in memory."""
    out: Path | None = None
    """Folder of the results; `none` is student/ in the run's folder."""

    def __post_init__(self) -> None:
        if self.profile == "ideal":
            raise ValueError("profile must have a non-ideality, for no sample fails under ideal")
        if not 0 < self.budget < 1:
            raise ValueError(f"budget must lie between 0 and 1; got {self.budget}")
        if self.epochs < 1 or (self.limit is not None and self.limit < _FEWEST):
            raise ValueError(
                f"epochs must be at least 1 and limit at least {_FEWEST}; got {self.epochs}, "
                f"{self.limit}"
            )


_FEWEST = 20
"""Images below which no student is fitted."""


@dataclass(frozen=True)
class Opened:
    """A run's outcomes, and the network and images that they are of."""

    network: Network
    joined: pd.DataFrame
    """Scores and outcomes of the profile's chips, as `outcomes.join` returns them."""
    fitted_on: tuple[int, ...]
    """Chips whose outcomes are learnt."""
    tried_on: tuple[int, ...]
    """Chips whose outcomes are predicted."""
    indices: npt.NDArray[np.int64]
    """Indices of the train fold's images to fit on."""
    targets: npt.NDArray[np.float64]
    """The share of `fitted_on` on which each fails."""
    macs: int
    """Multiply-accumulates of the network's forward pass."""
    budget_macs: int
    """Those of the student, at most."""
    costs: pd.DataFrame
    """Cost of the run's other scores, predictor and forward_passes."""
    energies: Any
    """Energy of one inference, analog and digital."""
    made_with: dict[str, str]
    """Versions of packages."""


def open_run(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    profile: str,
    chips: Literal["other", "same"],
    budget: float,
    limit: int | None,
) -> Opened:
    """Reads a run's outcomes and its network, and counts what the student may cost.

    Args:
      experiment: the run's.
      folder: the run's.
      data_dir: where data sets are; None for TFDS's default.
      profile, chips, budget, limit: as `StudentStudy` has them.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    _, description = read_scored(folder)
    joined = _joined(folder, profile)
    fitted_on, tried_on = _divided(sorted(joined["chip"].unique()), chips, folder)
    indices, targets = _targets(joined, fitted_on, limit, experiment.data.split_seed)
    _require_tested(joined, experiment.analyse.bins)
    network, versions = open_network_for(experiment, folder, data_dir)
    dataset = network.images.dataset
    table = network.programmable([]).coverage(examples(dataset, description))
    macs = int(table["macs"].sum())
    from bridge.routing.student_network import architecture_for

    budget_macs = int(budget * macs)
    architecture_for(np.shape(dataset.test[0]["image"]), budget_macs)
    costs = score_costs.of_estimators(experiment.score.estimators, description["num_classes"])
    return Opened(
        network,
        joined,
        fitted_on,
        tried_on,
        indices,
        targets,
        macs,
        budget_macs,
        predictors.costs_table(costs),
        experiment.analyse.energy.partly_analog(on_chip.analog_share(read_coverage(folder))),
        versions,
    )


def _joined(folder: Path, profile: str) -> pd.DataFrame:
    """Scores and outcomes of one profile, with flip probabilities where the run has them."""
    if read_record(folder, "simulate") is None or not (folder / "predictions.parquet").exists():
        raise FileNotFoundError(f"no finished simulate in {folder}: run simulate first")
    predictions = read_parquet(folder / "predictions.parquet")
    there = [str(name) for name in predictions["profile"].unique() if name != "ideal"]
    if profile not in there:
        raise ValueError(
            f"the run in {folder} has no chips of {profile}: give --student.profile one of "
            f"{', '.join(there)}, or run simulate with it"
        )
    predictions = predictions[predictions["profile"] == profile]
    joined = outcomes.join(read_parquet(folder / "scores.parquet"), predictions)
    for fold in ("train", "test"):
        if not (joined["fold"] == fold).any():
            raise ValueError(
                f"the run in {folder} has no outcomes of its {fold} fold: run score and simulate "
                f"with {fold} among --folds"
            )
    if read_record(folder, "flips") is not None and (folder / "flips.parquet").exists():
        joined = predictors.with_flips(joined, read_parquet(folder / "flips.parquet"))
    return joined


def _divided(
    seeds: list[int], chips: Literal["other", "same"], folder: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The chips to fit on and those to try on."""
    seeds = [int(seed) for seed in seeds]
    if chips == "same":
        return tuple(seeds), tuple(seeds)
    if len(seeds) < 2:
        raise ValueError(
            f"the run in {folder} has one chip of this profile, and --student.chips other tries "
            "the student on other chips than it was fitted on: give --student.chips same, or run "
            "simulate with --simulate.chips 2"
        )
    half = (len(seeds) + 1) // 2
    return tuple(seeds[:half]), tuple(seeds[half:])


def _targets(
    joined: pd.DataFrame, chips: tuple[int, ...], limit: int | None, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Digitally correct images of the train fold, and on what share of the chips each fails."""
    train = joined[(joined["fold"] == "train") & joined["chip"].isin(chips)]
    samples, analog = outcomes.over_chips(train)
    digital = samples["digital_correct"].to_numpy(bool)
    share = analog_only_failures(digital, analog).mean(axis=0)[digital]
    indices = samples["index"].to_numpy(np.int64)[digital]
    chosen = subset(indices, limit, seed)
    indices, share = indices[chosen], share[chosen]
    if len(indices) < _FEWEST:
        raise ValueError(
            f"{len(indices)} images of the train fold are digitally correct, too few to fit a "
            f"student: score and simulate more of them (--limit-train), at least {_FEWEST}"
        )
    if np.ptp(share) == 0:
        raise ValueError(
            f"{'no' if share[0] == 0 else 'every'} digitally correct image of the train fold fails "
            "under this profile: there is nothing to learn; choose another with --student.profile"
        )
    return indices, share


def _require_tested(joined: pd.DataFrame, bins: int) -> None:
    test = joined[(joined["fold"] == "test") & joined["digital_correct"]]
    if (count := test["sample"].nunique()) < bins:
        raise ValueError(
            f"{count} images of the test fold are digitally correct, fewer than --analyse.bins "
            f"{bins}: score and simulate more of them (--limit)"
        )


def run(opened: Opened, experiment: Experiment, settings: StudentStudy, out: Path) -> None:
    """Fits a student, tries it beside the run's other scores and prints the result.

    Leaves student.safetensors (`bridge.routing.load_student`; it takes uint8 images),
    student.parquet (fold, index and student, its score, of every scored image), student.csv (a row
    a score), drawn as student.png, .svg and .pdf, routing.csv, drawn as routing.png, .svg and
    .pdf, routing_choices.csv, and settings.json. A fitted student is kept in pieces/ and not
    fitted again.
    """
    from bridge.routing.student_files import save_student

    origin = {
        **opened.network.origin,
        "profile": settings.profile,
        "fitted_on": list(opened.fitted_on),
        "samples": len(opened.indices),
        "outcomes": hash_arrays({"index": opened.indices, "share": opened.targets}),
        "budget_macs": opened.budget_macs,
        "epochs": settings.epochs,
        "seed": experiment.seed,
    }
    keys = opened.joined[["fold", "index"]].drop_duplicates(ignore_index=True)
    with progress(settings.epochs * len(opened.indices) + len(keys), "student"):
        student = _fitted(opened, settings.epochs, experiment.seed, out, key_of(origin))
        scores = _scores(opened, student, keys)
    save_student(out / "student.safetensors", student)
    write_parquet(out / "student.parquet", scores)
    joined = opened.joined.merge(scores, on=["fold", "index"], validate="many_to_one")
    joined = joined[joined["chip"].isin(opened.tried_on)]
    passes = student.macs / opened.macs
    own = pd.DataFrame({"predictor": [routers.STUDENT], "forward_passes": [passes]})
    costs = pd.concat([opened.costs, own], ignore_index=True)
    table = compare(joined[joined["fold"] == "test"], costs, settings.profile, experiment.analyse)
    routed = routers.route(
        joined, costs, energies=opened.energies, tolerance=experiment.analyse.tolerance
    )
    predictor_figure(table, out / "student.png", profile=settings.profile)
    routing_figure(
        routed.curves,
        routed.baselines,
        routed.choices,
        out / "routing.png",
        profile=settings.profile,
    )
    write_csv(out / "routing_choices.csv", routed.choices)
    write_json(
        out / "settings.json",
        {
            **origin,
            "tried_on": list(opened.tried_on),
            "macs": opened.macs,
            "student_macs": student.macs,
            "student": {
                "shape": list(student.architecture.shape),
                "pooling": student.architecture.pooling,
                "widths": list(student.architecture.widths),
            },
            "held_out_loss": student.held_out_loss,
            "constant_loss": student.constant_loss,
            "confidence": experiment.analyse.confidence,
            "device": device(),
            "versions": opened.made_with,
        },
    )
    trained, tried = (
        f"{len(some)} chip{'s' * (len(some) > 1)}" for some in (opened.fitted_on, opened.tried_on)
    )
    same = opened.fitted_on == opened.tried_on
    show(
        table,
        f"{settings.profile}, test fold, {table['samples'].iloc[0]:,} digitally correct images "
        f"on {tried}",
    )
    print(
        f"Student fitted on {len(opened.indices):,} digitally correct images of the train fold and "
        f"{'the same' if same else 'the other'} {trained}: {student.macs:,} of the network's "
        f"{opened.macs:,} multiply-accumulates."
    )
    if student.held_out_loss >= student.constant_loss:
        print(
            "On the tenth of them that chose the epoch it is no better than a constant: it has "
            "learnt nothing that carries over."
        )
    for sentence in verdict(table, routed.choices):
        print(sentence)
    print(f"{out / 'student.png'}, routing.png, student.csv, student.parquet, student.safetensors")


def _fitted(opened: Opened, epochs: int, seed: int, out: Path, key: str) -> Student:
    """The student of these settings, fitted if it is not kept."""
    from bridge.routing.student import fit_student
    from bridge.routing.student_files import load_student, save_student

    path = out / "pieces" / f"{key}.safetensors"
    if path.exists():
        return load_student(path)
    train = _chosen(opened.network, "train", opened.indices)
    student = fit_student(
        read(train, description="read train").images,
        opened.targets,
        budget_macs=opened.budget_macs,
        seed=seed,
        epochs=epochs,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_student(path, student)
    return student


def _scores(opened: Opened, student: Student, keys: pd.DataFrame) -> pd.DataFrame:
    """fold, index and the student's score of every scored image."""
    tables = []
    with progress(len(keys), "student's scores") as shown:
        for fold in FOLDS:
            rows = keys[keys["fold"] == fold]
            if rows.empty:
                continue
            samples = _chosen(opened.network, fold, rows["index"].to_numpy())
            parts = []
            for start in range(0, len(samples), _PART):
                some = np.arange(start, min(start + _PART, len(samples)))
                parts.append(student(read(samples, some, description=f"read {fold}").images))
                shown.update(len(some))
            tables.append(rows.assign(student=np.concatenate(parts)))
    return pd.concat(tables, ignore_index=True)


def _chosen(network: Network, fold: Any, indices: npt.NDArray[np.int64]) -> Chosen:
    samples = network.images.fold(fold)
    return samples.take(positions_of(samples.indices, indices))


STUDY = Study(
    "student",
    StudentStudy,
    open_run,
    run,
    opened_with=("profile", "chips", "budget", "limit"),
    of=("train", "score", "export", "moments", "flips", "simulate"),
)
