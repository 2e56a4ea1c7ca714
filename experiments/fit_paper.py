"""`fit-paper`: chips fitted on the paper's rows of some finished runs, and tried on others'.

Everything that is tabled is computed from per-sample outcomes that are kept, by `tabulate`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bridge.profiles import Profile, from_json, to_json
from experiments import paper_fit
from experiments.analysis import DENOMINATORS, FULL_PROFILE
from experiments.artefacts import read_json, sha256, write_csv, write_json, write_parquet
from experiments.paper import TABLE_ONE
from experiments.paper_fit import Chips, Reading, Step
from experiments.pipeline import package_versions, require_device, require_writable
from experiments.presets import PRESETS
from experiments.samples import Samples, calibration_images, choose_folds, limited, read_small
from experiments.settings import Experiment, Fold
from jaxcurv.data import Normalisation, Normalised, subset

if TYPE_CHECKING:
    from torch import nn

_FOLDS: tuple[Fold, ...] = ("train", "test")
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class FitPaper:
    """Chips whose failures come nearest to the paper's Table I, within named settings."""

    fit: tuple[str, ...] = ("cifar10_resnet18_small", "cifar100_resnet18_small")
    """Presets of finished runs to fit on."""
    predict: tuple[str, ...] = ("cifar10_resnet50_small", "cifar100_resnet50_small")
    """Presets of finished runs to try the fitted chip on; it is not changed for them."""
    runs: Path = Path("runs")
    """Folder with the finished runs' folders, each of its preset's name."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    limit: int = 4000
    """Samples of each fold to search on; the fitted chip is tried on all that are scored."""
    search_chips: int = 2
    """Chips of each setting in the search."""
    chips: int = 3
    """Chips of the fitted setting; chip k has seed SEED + k."""
    device: str = "cpu"
    """Where torch runs: cpu, cuda or cuda:N."""
    out: Path = Path("runs/fit_paper")
    """Folder of the results; an interrupted search goes on from what is there."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        named = (*self.fit, *self.predict)
        if unknown := [name for name in named if name not in PRESETS]:
            raise ValueError(f"unknown preset {unknown[0]!r}; the presets are {', '.join(PRESETS)}")
        if not self.fit or len(set(named)) < len(named):
            raise ValueError("fit on one preset at least; no preset twice")
        if unpublished := [name for name in named if model_of(name) not in TABLE_ONE]:
            raise ValueError(f"the paper's Table I has no row for {unpublished[0]}")
        if min(self.search_chips, self.chips) < 1 or self.limit < 10:
            raise ValueError(
                "at least one chip and ten samples, one a decile, are needed; got "
                f"{self.search_chips}, {self.chips} and {self.limit}"
            )


def model_of(preset: str) -> tuple[str, str]:
    """Architecture and data set of a preset, as `TABLE_ONE` names them."""
    experiment = PRESETS[preset].experiment
    return experiment.model.architecture, experiment.data.name


@dataclass(frozen=True, eq=False)
class Run:
    """What a finished run's chips are programmed from and tried on."""

    preset: str
    network: nn.Module
    calibration: NDArray[np.float32]
    samples: Mapping[Fold, Samples]
    """Those of train and of test that are scored."""
    normalisation: Normalisation
    experiment: Experiment
    origin: str
    """What outcomes depend on besides chips and samples, hashed."""


def run(options: FitPaper) -> None:
    """Searches, tries the fitted chip everywhere, tables and prints.

    Raises:
      ValueError, OSError, ModuleNotFoundError: a run is missing or does not match its data.
    """
    versions = package_versions(("torch", "aihwkit", "safetensors"))
    require_device(options.device, "--device")
    require_writable(options.out)
    runs = {name: open_run(name, options) for name in (*options.fit, *options.predict)}
    scores = {name: read_scores(options.runs / name) for name in runs}
    pieces = options.out / "pieces"

    def outcomes(one: Run, chip: Profile, chips: int, limit: int | None) -> pd.DataFrame:
        key = hashlib.sha256(f"{one.origin}{to_json(chip)}{chips}{limit}".encode()).hexdigest()[:16]
        path = pieces / f"{one.preset}-{key}.parquet"
        if not path.exists():
            write_parquet(path, _simulate(one, chip, chips, limit, options.device))
        return pd.read_parquet(path)

    searched: dict[str, pd.DataFrame] = {}
    with tqdm(desc="fit", unit="chip settings") as progress:

        def evaluate(chip: Profile) -> pd.DataFrame:
            found = {}
            for name in options.fit:
                table = outcomes(runs[name], chip, options.search_chips, options.limit)
                searched[name] = _beside(searched.get(name), table, cell_of(chip))
                found[model_of(name)] = with_scores(table, scores[name])
            misfits = paper_fit.misfits(found, TABLE_ONE)
            progress.set_postfix(misfit=f"{misfits['misfit'].min():.2f}")
            progress.update()
            return misfits

        steps = paper_fit.descend(evaluate)
    fitted = paper_fit.best(steps)
    for name, table in searched.items():
        write_parquet(options.out / "search" / f"{name}.parquet", table)
    for name, one in runs.items():
        table = outcomes(one, fitted.chip, options.chips, None)
        write_parquet(options.out / "fitted" / f"{name}.parquet", table)
    write_json(
        options.out / "fit.json",
        {
            "fit": options.fit,
            "predict": options.predict,
            "limit": options.limit,
            "search_chips": options.search_chips,
            "chips": options.chips,
            "device": options.device,
            "versions": versions,
            "weights": {name: sha256(options.runs / name / _WEIGHTS) for name in runs},
            "steps": [
                {"step": step.number, "change": step.change, "chip": to_json(step.chip)}
                for step in steps
            ],
        },
    )
    show(tabulate(options.out, options.runs))
    print(f"{options.out / 'table.csv'} and search.csv")


def open_run(preset: str, options: FitPaper) -> Run:
    """Reads the network and the images of a finished run.

    Raises:
      FileNotFoundError: the run is not there or not finished.
      ValueError: its data set is another.
    """
    from experiments import stages

    folder = options.runs / preset
    for name in (_WEIGHTS, "scores.parquet", "predictions.parquet"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"no {name} in {folder}: python -m experiments run {preset} --out {folder}"
            )
    experiment = PRESETS[preset].experiment
    job = stages.Job(experiment, folder, options.data_dir, fingerprint="")
    network, description = stages.load_twin(job)
    dataset = stages.load_data(job)
    stages.require_classes(dataset, description)
    normalisation = stages.read_normalisation(description)
    folds = choose_folds(dataset, experiment, _FOLDS)
    samples = read_small(limited(folds, experiment))
    calibration = calibration_images(folds["train"], normalisation, experiment)
    return Run(
        preset,
        network,
        calibration,
        samples,
        normalisation,
        experiment,
        sha256(folder / _WEIGHTS),
    )


def _simulate(one: Run, chip: Profile, chips: int, limit: int | None, device: str) -> pd.DataFrame:
    """fold, index, and for each chip, named by its number, whether it is right."""
    import bridge

    seed = one.experiment.seed
    made = [
        bridge.program(one.network, chip, seed=seed + number, calibration=one.calibration)
        for number in range(chips)
    ]
    tables = []
    for fold, samples in one.samples.items():
        positions = subset(samples.indices, limit, one.experiment.data.split_seed)
        outcomes = [
            bridge.predict(
                chip,
                Normalised(samples.take(positions), one.normalisation),
                batch_size=one.experiment.simulate.batch_size,
                device=device,
                description=f"{one.preset}, {fold}, chip {number}",
            ).to_pandas()
            for number, chip in enumerate(made)
        ]
        table = pd.DataFrame({"fold": fold, "index": outcomes[0]["index"]})
        for number, outcome in enumerate(outcomes):
            table[str(number)] = outcome["correct"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def cell_of(chip: Profile) -> str:
    """A short name for a chip's settings."""
    return hashlib.sha256(json.dumps(to_json(chip)).encode()).hexdigest()[:8]


def _beside(table: pd.DataFrame | None, outcomes: pd.DataFrame, cell: str) -> pd.DataFrame:
    keys = ["fold", "index"]
    named = outcomes.rename(columns={name: f"{cell}/{name}" for name in outcomes.columns[2:]})
    return named if table is None else table.merge(named, on=keys, validate="one_to_one")


def read_scores(folder: Path) -> pd.DataFrame:
    """fold, index, curvature and correct of a run."""
    return pd.read_parquet(
        folder / "scores.parquet", columns=["fold", "index", "curvature", "correct"]
    )


def with_scores(outcomes: pd.DataFrame, scores: pd.DataFrame) -> Chips:
    """Outcomes (fold, index and a bool column a chip) beside the scores of the same samples.

    Raises:
      ValueError: a sample has no score.
    """
    chips = list(outcomes.columns[2:])
    table = outcomes.merge(scores, on=["fold", "index"], how="left", validate="one_to_one")
    if missing := int(table["curvature"].isna().sum()):
        raise ValueError(f"{missing} samples have no score: scores and outcomes are of other runs")
    samples = table[["fold", "index", "curvature", "correct"]].astype({"correct": bool})
    return Chips(samples, table[chips].to_numpy(bool).T)


def shipped_outcomes(folder: Path) -> pd.DataFrame:
    """Those of the run's own chips under the full profile: fold, index and a column a chip."""
    predictions = pd.read_parquet(
        folder / "predictions.parquet", filters=[("profile", "==", FULL_PROFILE)]
    )
    wide = predictions.pivot(index=["fold", "index"], columns="chip", values="correct")
    wide.columns = wide.columns.map(str)
    return wide.reset_index()


def tabulate(out: Path, runs: Path) -> pd.DataFrame:
    """Makes search.csv and table.csv from the outcomes that are kept, and returns the latter.

    Args:
      out: as `run` left it.
      runs: folder of the runs' folders, with their scores and predictions.

    Returns:
      One row a preset: preset, architecture, width, data, role ("fitted" or "predicted"), paper_d1
      and paper_d10; shipped_all_d1 and others: of the shipped chip on test, of all and of the
      digitally correct samples; fitted_d1 and fitted_d10 of the fitted chip under the fitted
      reading; each with _low and _high, in percent; shipped_error and fitted_error, the mean
      absolute difference of D1 and D10 from the paper's in percentage points (shipped: of all); and
      fold and denominator, the fitted reading.
    """
    kept = read_json(out / "fit.json")
    names = [*kept["fit"], *kept["predict"]]
    scores = {name: read_scores(runs / name) for name in names}
    searched = {name: pd.read_parquet(out / "search" / f"{name}.parquet") for name in kept["fit"]}
    steps = []
    for entry in kept["steps"]:
        chip = from_json(entry["chip"])
        found = {}
        for name, table in searched.items():
            columns = [one for one in table.columns if one.startswith(cell_of(chip) + "/")]
            outcomes = table[["fold", "index", *columns]]
            found[model_of(name)] = with_scores(outcomes, scores[name])
        misfits = paper_fit.misfits(found, TABLE_ONE)
        steps.append(Step(entry["step"], entry["change"], chip, misfits))
    write_csv(out / "search.csv", _flat(steps))
    reading = paper_fit.best(steps).reading
    rows = []
    for name in names:
        model = model_of(name)
        shipped = with_scores(shipped_outcomes(runs / name), scores[name])
        fitted = with_scores(pd.read_parquet(out / "fitted" / f"{name}.parquet"), scores[name])
        row: dict[str, Any] = {
            "preset": name,
            "architecture": model[0],
            "width": PRESETS[name].experiment.model.width,
            "data": model[1],
            "role": "fitted" if name in kept["fit"] else "predicted",
            "digital_accuracy": 100 * _accuracy(scores[name]),
        }
        row |= dict(zip(("paper_d1", "paper_d10"), TABLE_ONE[model], strict=True))
        for what, chips, how in (
            *((f"shipped_{of}", shipped, Reading("test", of)) for of in DENOMINATORS),
            ("fitted", fitted, reading),
        ):
            for end, rates in paper_fit.ends(chips, how, resamples=1000).iterrows():
                for suffix, value in zip(("", "_low", "_high"), rates, strict=True):
                    row[f"{what}_{end}{suffix}"] = value
        for what, prefix in (("shipped", "shipped_all"), ("fitted", "fitted")):
            off = (abs(row[f"{prefix}_{end}"] - row[f"paper_{end}"]) for end in ("d1", "d10"))
            row[f"{what}_error"] = float(np.mean(list(off)))
        rows.append(row | {"fold": reading.fold, "denominator": reading.denominator})
    table = pd.DataFrame(rows)
    write_csv(out / "table.csv", table)
    return table


def _accuracy(scores: pd.DataFrame) -> float:
    return float(scores.loc[scores["fold"] == "test", "correct"].mean())


def _flat(steps: Sequence[Step]) -> pd.DataFrame:
    tables = []
    for step in steps:
        table = step.misfits.copy()
        for position, (name, value) in enumerate(
            {"step": step.number, "change": step.change, "cell": cell_of(step.chip)}.items()
        ):
            table.insert(position, name, value)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def show(table: pd.DataFrame) -> None:
    """Prints `tabulate`'s table."""
    first = table.iloc[0]
    printed = Table(
        title="Table I: the paper's, the shipped chip's, the fitted chip's",
        caption=f"{FULL_PROFILE}, % analog-only failures in D1 and D10. Shipped: test, of all "
        f"samples; fitted: {first['fold']}, of {DENOMINATORS[first['denominator']]}. In brackets "
        "the mean difference from the paper in percentage points.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("run", "role", "paper", "shipped", "fitted"):
        printed.add_column(name)
    for row in table.to_dict("records"):
        cells = [
            f"{row[f'{what}_d1']:.2f}, {row[f'{what}_d10']:.2f}"
            for what in ("paper", "shipped_all", "fitted")
        ]
        cells[1] += f" ({row['shipped_error']:.1f})"
        cells[2] += f" ({row['fitted_error']:.1f})"
        printed.add_row(row["preset"], row["role"], *cells)
    Console(highlight=False).print(printed)
