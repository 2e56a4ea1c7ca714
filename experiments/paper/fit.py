"""`fit-paper`: chips fitted on the paper's rows of some finished runs, and tried on others'.

Everything that is tabled is computed from per-sample outcomes that are kept, by `tabulate`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_PROFILE, Profile, from_json, to_json
from bridge.report.folds import Fold
from bridge.report.tables.outcomes import DENOMINATORS
from bridge.report.tables.paper_values import TABLE_ONE
from experiments.chips.protocol import Programmable
from experiments.paper import search
from experiments.paper.search import SHIPPED, Chips, Reading, Step
from experiments.runs.files import read_parquet, require_writable, sha256, write_csv, write_parquet
from experiments.runs.records import read_record, recorded_settings
from experiments.runs.resume import key_of, table_at
from experiments.runs.samples import Samples, calibration_images, choose_folds, limited, read_small
from experiments.settings.flags import Experiment, require_device_name
from experiments.settings.presets import PRESETS
from experiments.studies.exported import read_network
from experiments.system.devices import require_device
from experiments.system.environment import package_versions
from experiments.system.errors import at_work
from jaxcurv import logit_scores
from jaxcurv.data import Normalisation, Normalised, subset
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import read_json, write_json
from jaxcurv.storage.lock import lock

_FOLDS: tuple[Fold, ...] = ("train", "test")
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class FitPaper:
    """Finds the chip settings whose failures come nearest to the paper's Table I."""

    fit: tuple[str, ...] = ("cifar10_resnet18_small", "cifar100_resnet18_small")
    """Presets of the finished runs to fit on."""
    predict: tuple[str, ...] = ("cifar10_resnet50_small", "cifar100_resnet50_small")
    """Presets of other finished runs on which the fitted chip is tried as it is."""
    runs: Path = Path("runs")
    """Folder that has the finished runs, each in a folder named after its preset."""
    data_dir: Path | None = None
    """Folder of the data sets; `none` is $TFDS_DATA_DIR if that is set, else
    ~/tensorflow_datasets."""
    share: float = 0.4
    """Fraction of the scored samples of each fold on which the search is made, above 0 and at most
    1. The fitted chip is then tried on all of them."""
    search_chips: int = 2
    """Chips to program for each setting in the search."""
    chips: int = 3
    """Chips to program with the fitted settings, with seeds from that of the run upwards and the
    preset's name as --simulate.stream, so that no two runs' chips share random numbers."""
    device: str = "cpu"
    """Device for PyTorch: cpu, cuda or cuda:N."""
    out: Path = Path("runs/fit_paper")
    """Folder of the results. An interrupted search goes on from what is there."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        named = (*self.fit, *self.predict)
        if unknown := [name for name in named if name not in PRESETS]:
            raise ValueError(f"unknown preset {unknown[0]!r}; the presets are {', '.join(PRESETS)}")
        if not self.fit:
            raise ValueError("--fit needs one preset at least")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"{twice[0]} stands twice in --fit and --predict: name it once")
        if unpublished := [name for name in named if model_of(name) not in TABLE_ONE]:
            raise ValueError(f"the paper's Table I has no row for {unpublished[0]}")
        if min(self.search_chips, self.chips) < 1:
            raise ValueError(
                "--search-chips and --chips must be at least 1; got "
                f"{self.search_chips} and {self.chips}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"--share must be in (0, 1]; got {self.share}")
        require_device_name(self.device)


def model_of(preset: str) -> tuple[str, str]:
    """Architecture and data set of a preset, as `TABLE_ONE` names them."""
    experiment = PRESETS[preset].experiment
    return experiment.model.architecture, experiment.data.name


@dataclass(frozen=True, eq=False)
class Run:
    """What a finished run's chips are programmed from and tried on."""

    preset: str
    network: Programmable
    samples: Mapping[Fold, Samples]
    """The scored samples of train and test."""
    normalisation: Normalisation
    experiment: Experiment
    scores: pd.DataFrame
    """Scores of these samples, as `read_scores` gives them."""
    origin: dict[str, Any]
    """What outcomes depend on besides the chip, as JSON holds it."""


def run(options: FitPaper) -> None:
    """Searches, tries the fitted chip everywhere, tables and prints.

    Raises:
      ValueError, OSError, ModuleNotFoundError: a run is missing, is not the preset's or does not
        match its data.
      WorkFailed: the search failed.
    """
    versions = package_versions(("torch", "aihwkit", "safetensors"))
    require_device(options.device, "--device")
    require_writable(options.out)
    with lock(options.out):
        runs = {name: open_run(name, options, versions) for name in options.fit + options.predict}
        with at_work():
            _search_and_try(options, runs)
            show(tabulate(options.out, options.runs))
    print(f"{options.out / 'table.csv'} and search.csv")


def _search_and_try(options: FitPaper, runs: Mapping[str, Run]) -> None:
    """Leaves fit.json, search/ and fitted/; every outcome is kept at once in pieces/."""

    def outcomes(one: Run, chip: Profile, chips: int, share: float) -> pd.DataFrame:
        decides = {k: v for k, v in one.origin.items() if k not in ("device", "versions")}
        key = key_of([decides, to_json(chip), chips, share], digits=16)
        path = options.out / "pieces" / f"{one.preset}-{key}.parquet"
        return table_at(path, lambda: _simulate(one, chip, chips, share))

    searched: dict[str, pd.DataFrame] = {}
    with progress(None, "fit", "setting") as shown:

        def evaluate(chip: Profile) -> pd.DataFrame:
            found = {}
            for name in options.fit:
                table = outcomes(runs[name], chip, options.search_chips, options.share)
                searched[name] = _beside(searched.get(name), table, cell_of(chip))
                found[model_of(name)] = with_scores(table, runs[name].scores)
            misfits = search.misfits(found, TABLE_ONE)
            shown.note(f"misfit {misfits['misfit'].min():.2f}")
            shown.update()
            return misfits

        steps = search.descend(evaluate)
    fitted = search.best(steps)
    for name, table in searched.items():
        write_parquet(options.out / "search" / f"{name}.parquet", table)
    samples = {name: sum(map(len, one.samples.values())) for name, one in runs.items()}
    with progress(options.chips * sum(samples.values()), "fitted"):
        for name, one in runs.items():
            with progress(options.chips * samples[name], name):
                table = outcomes(one, fitted.chip, options.chips, 1.0)
            write_parquet(options.out / "fitted" / f"{name}.parquet", table)
    write_json(
        options.out / "fit.json",
        {
            "fit": options.fit,
            "predict": options.predict,
            "share": options.share,
            "search_chips": options.search_chips,
            "chips": options.chips,
            "runs": {name: one.origin for name, one in runs.items()},
            "steps": [
                {"step": step.number, "change": step.change, "chip": to_json(step.chip)}
                for step in steps
            ],
        },
    )


def open_run(preset: str, options: FitPaper, versions: dict[str, str]) -> Run:
    """Reads the network, the images and the scores of a finished run.

    Raises:
      FileNotFoundError: the run is not there or not finished.
      ValueError: it is not of the preset's settings, its files are not of one run, or its data set
        is another.
    """
    folder = options.runs / preset
    experiment = PRESETS[preset].experiment
    require_finished(preset, folder)
    # The rows of Table I are compared as independent.
    own = replace(experiment.simulate, device=options.device, stream=preset)
    network = read_network(replace(experiment, simulate=own), folder, options.data_dir)
    images = network.images
    folds = choose_folds(images.dataset, experiment, _FOLDS)
    chosen = limited(folds, experiment)
    scores = read_scores(folder)
    indices = {}
    for fold, samples in chosen.items():
        indices[fold] = hashlib.sha256(samples.indices.tobytes()).hexdigest()
        known = scores.loc[scores["fold"] == fold, "index"]
        if missing := len(samples) - int(np.isin(samples.indices, known).sum()):
            raise ValueError(f"{missing} samples of {preset}'s {fold} fold have no score")
    return Run(
        preset,
        network.programming(
            images.dataset, calibration_images(folds["train"], images.normalisation, experiment)
        ),
        read_small(chosen),
        images.normalisation,
        experiment,
        scores,
        {
            "weights": sha256(folder / _WEIGHTS),
            "data": experiment.data.deciding,
            "indices": indices,
            "calibration": experiment.simulate.adc_calibration,
            "seed": experiment.seed,
            "stream": preset,
            "device": options.device,
            "versions": versions,
        },
    )


def require_finished(preset: str, folder: Path) -> None:
    """Refuses a run that is not finished, whose stages do not belong together, or that was made
    with other settings than the preset's.

    Raises:
      FileNotFoundError: a stage has not finished, or what it left is gone.
      ValueError: the rest.
    """
    again = f"python -m experiments run {preset} --simulate.stream {preset} --out {folder}"
    left = {"score": "scores.parquet", "export": _WEIGHTS, "simulate": "predictions.parquet"}
    records = {}
    for stage, name in left.items():
        record = read_record(folder, stage)
        if record is None or not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}: {again}")
        if sha256(folder / name) != record["outputs"][name]:
            raise ValueError(f"{folder / name} is not as {stage} wrote it: {again}")
        records[stage] = record
    if records["simulate"]["inputs"][_WEIGHTS] != records["export"]["outputs"][_WEIGHTS]:
        raise ValueError(f"the predictions in {folder} are not of its {_WEIGHTS}: {again}")
    trained = [
        {path: digest for path, digest in records[stage]["inputs"].items() if path != _WEIGHTS}
        for stage in ("score", "export")
    ]
    if trained[0] != trained[1]:
        raise ValueError(f"scores and {_WEIGHTS} in {folder} are of two trainings: {again}")
    recorded = recorded_settings(folder)
    wanted = json.loads(json.dumps(asdict(PRESETS[preset].experiment)))
    for key in ("data", "model", "score", "folds", "limit", "limit_train", "seed", "simulate"):
        apart = (
            {name for name in wanted[key] if wanted[key][name] != recorded[key].get(name)}
            if isinstance(wanted[key], dict)
            else {key}
            if wanted[key] != recorded.get(key)
            else set()
        ) - {"device", "batch_size", "stream"}
        if apart:
            raise ValueError(
                f"the run in {folder} was made with another {', '.join(sorted(apart))} than the "
                f"preset's: {again}"
            )
    simulate = PRESETS[preset].experiment.simulate
    own = Profile(simulate.adc, simulate.wnoise, simulate.pcm, simulate.clipping)
    if own != SHIPPED:
        raise ValueError(f"{preset} has chips of its own; the search begins with the shipped ones")


def _simulate(one: Run, chip: Profile, chips: int, share: float) -> pd.DataFrame:
    """fold, index, and for each chip, named by its number, whether it is right."""
    seed = one.experiment.seed
    made = [one.network.program(chip, seed + number) for number in range(chips)]
    tables = []
    for fold, samples in one.samples.items():
        count = round(share * len(samples))
        positions = subset(samples.indices, count, one.experiment.data.split_seed)
        outcomes = [
            programmed.predict(
                Normalised(samples.take(positions), one.normalisation),
                f"{one.preset}, {fold}, chip {number}",
                batch_size=one.experiment.simulate.batch_size,
                keep=logit_scores,
            )
            for number, programmed in enumerate(made)
        ]
        table = pd.DataFrame({"fold": fold, "index": outcomes[0]["index"]})
        for number, outcome in enumerate(outcomes):
            table[str(number)] = outcome["correct"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def cell_of(chip: Profile) -> str:
    """A short name for a chip's settings."""
    return key_of(to_json(chip), digits=8)


def _beside(table: pd.DataFrame | None, outcomes: pd.DataFrame, cell: str) -> pd.DataFrame:
    keys = ["fold", "index"]
    named = outcomes.rename(columns={name: f"{cell}/{name}" for name in outcomes.columns[2:]})
    return named if table is None else table.merge(named, on=keys, validate="one_to_one")


def read_scores(folder: Path) -> pd.DataFrame:
    """fold, index, curvature and correct of a run."""
    return read_parquet(folder / "scores.parquet")[["fold", "index", "curvature", "correct"]]


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
    """Outcomes of the run's own chips under the full profile: fold, index and a column a chip."""
    predictions = read_parquet(folder / "predictions.parquet")
    predictions = predictions[predictions["profile"] == FULL_PROFILE]
    wide = predictions.pivot(index=["fold", "index"], columns="chip", values="correct")
    wide.columns = wide.columns.map(str)
    return wide.reset_index()


def tabulate(out: Path, runs: Path) -> pd.DataFrame:
    """Makes search.csv and table.csv from the outcomes that are kept, and returns the latter.

    Args:
      out: as `run` left it.
      runs: folder of the runs' folders, with their scores, predictions and records.

    Returns:
      One row a preset: preset, architecture, width, data, role ("fitted" or "predicted"),
      digital_accuracy (test, percent), paper_d1 and paper_d10; the same two of the shipped chip on
      test, of all samples (shipped_all_d1) and of the digitally correct (shipped_correct_d1), of
      the shipped chip under the fitted reading (shipped_same_d1), and of the fitted chip under it
      (fitted_d1), each with _low and _high, in percent; shipped_error (of all), same_error and
      fitted_error, the mean absolute difference of the two from the paper's in percentage points;
      and fold and denominator, the fitted reading.

    Raises:
      ValueError: a run is not the one that the chips were tried on.
    """
    kept = read_json(out / "fit.json")
    names = [*kept["fit"], *kept["predict"]]
    for name in names:
        record = read_record(runs / name, "export")
        if record is None or record["outputs"][_WEIGHTS] != kept["runs"][name]["weights"]:
            raise ValueError(f"{out} is not of the run in {runs / name}: run fit-paper again")
    scores = {name: read_scores(runs / name) for name in names}
    searched = {name: read_parquet(out / "search" / f"{name}.parquet") for name in kept["fit"]}
    steps = []
    for entry in kept["steps"]:
        chip = from_json(entry["chip"])
        found = {}
        for name, table in searched.items():
            columns = [one for one in table.columns if one.startswith(cell_of(chip) + "/")]
            outcomes = table[["fold", "index", *columns]]
            found[model_of(name)] = with_scores(outcomes, scores[name])
        misfits = search.misfits(found, TABLE_ONE)
        steps.append(Step(entry["step"], entry["change"], chip, misfits))
    write_csv(out / "search.csv", _flat(steps))
    reading = search.best(steps).reading
    rows = []
    for name in names:
        settings = recorded_settings(runs / name)
        model = settings["model"]["architecture"], settings["data"]["name"]
        shipped = with_scores(shipped_outcomes(runs / name), scores[name])
        fitted = with_scores(read_parquet(out / "fitted" / f"{name}.parquet"), scores[name])
        row: dict[str, Any] = {
            "preset": name,
            "architecture": model[0],
            "width": settings["model"]["width"],
            "data": model[1],
            "role": "fitted" if name in kept["fit"] else "predicted",
            "digital_accuracy": 100 * _accuracy(scores[name]),
        }
        row |= dict(zip(("paper_d1", "paper_d10"), TABLE_ONE[model], strict=True))
        for what, chips, how in (
            *((f"shipped_{of}", shipped, Reading("test", of)) for of in DENOMINATORS),
            ("shipped_same", shipped, reading),
            ("fitted", fitted, reading),
        ):
            for end, rates in search.ends(chips, how).iterrows():
                for suffix, value in zip(("", "_low", "_high"), rates, strict=True):
                    row[f"{what}_{end}{suffix}"] = value
        for what, prefix in (
            ("shipped", "shipped_all"),
            ("same", "shipped_same"),
            ("fitted", "fitted"),
        ):
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
    reading = f"{first['fold']}, of {DENOMINATORS[first['denominator']]}"
    printed = Table(
        title="Table I: the paper's, the shipped chip's, the fitted chip's",
        caption=f"{FULL_PROFILE}, % analog-only failures in D1 and D10. Shipped: test, of all "
        f"samples; as fitted, and fitted: {reading}. In brackets the mean "
        "difference from the paper in percentage points.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("run", "role", "paper", "shipped", "shipped, as fitted", "fitted"):
        printed.add_column(name)
    for row in table.to_dict("records"):
        cells = [
            f"{row[f'{what}_d1']:.2f}, {row[f'{what}_d10']:.2f}"
            for what in ("paper", "shipped_all", "shipped_same", "fitted")
        ]
        for place, error in enumerate(("shipped", "same", "fitted"), 1):
            cells[place] += f" ({row[f'{error}_error']:.1f})"
        printed.add_row(row["preset"], row["role"], *cells)
    Console(highlight=False).print(printed)
