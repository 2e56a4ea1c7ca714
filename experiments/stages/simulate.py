"""Stage `simulate`: predictions of every profile's chips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from bridge.chips.profiles import Profile, to_json
from experiments.chips.opening import identity_of_network, open_network
from experiments.runs.coverage import COVERAGE
from experiments.runs.descriptions import is_of_factory, read_normalisation
from experiments.runs.files import join_parquet, read_parquet, write_csv
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import examples, require_classes
from experiments.runs.resume import key_of, tables_at
from experiments.runs.samples import (
    calibration_images,
    calibration_samples,
    first_images,
    read_small,
    scored_samples,
)
from jaxcurv import data, logit_scores
from jaxcurv.progress import expect, progress


def simulate(job: Job) -> Outcome:
    """Runs every profile's chips on the scored samples; writes predictions and converter ranges.

    Of a user's own network also which of its products tiles compute.

    Each finished chip is kept at once in chips/: an interrupted stage goes on with the next, and
    under other settings those chips whose own settings stay are not computed again.
    """
    settings = job.experiment.simulate
    description, programming = open_network(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    held = calibration_samples(dataset, job.experiment)
    network = programming(dataset, calibration_images(held, normalisation, job.experiment))
    folds = read_small(scored_samples(dataset, job.experiment))
    unseen = normalisation.apply(first_images(folds["test"], settings.adc_calibration))
    table = job.folder / COVERAGE
    table.unlink(missing_ok=True)  # of an earlier, own network
    outputs = []
    if is_of_factory(description):
        outputs.append(write_csv(table, network.coverage(examples(dataset, description))))

    def run_chips(
        name: str, profile: Profile, seeds: Sequence[int]
    ) -> dict[int, list[pd.DataFrame]]:
        """For each chip the table of its converters, and its predictions."""
        chips = [network.program(profile, seed) for seed in seeds]
        outcomes: list[list[pd.DataFrame]] = [[] for _ in seeds]
        for fold, samples in folds.items():
            tables = network.predict_chips(
                chips,
                data.Normalised(samples, normalisation),
                f"{name}, {fold}",
                batch_size=settings.batch_size,
                keep=logit_scores,
            )
            for of_chip, table in zip(outcomes, tables, strict=True):
                predicted = table.drop(columns=["path", "label"], errors="ignore")
                predicted.insert(0, "fold", fold)
                of_chip.append(predicted)
        found = {}
        for seed, chip, of_chip in zip(seeds, chips, outcomes, strict=True):
            found[seed] = [chip.converters(unseen), pd.concat(of_chip, ignore_index=True)]
            for table in found[seed]:
                table.insert(0, "profile", name)
                table.insert(1, "chip", seed)
        return found

    def chips_of(
        name: str, profile: Profile, seeds: Sequence[int]
    ) -> dict[int, list[pd.DataFrame]]:
        """As `run_chips`; of a profile that draws nothing one chip is run, and is all of them."""
        if not profile.draws_nothing:
            return run_chips(name, profile, seeds)
        finished = [files for seed in every_seed if _all_there(files := _files(places[name], seed))]
        if finished:
            tables = [read_parquet(file) for file in finished[0]]
        else:
            tables = run_chips(name, profile, seeds[:1])[seeds[0]]
        return {seed: [table.assign(chip=seed) for table in tables] for seed in seeds}

    def count_of(profile: Profile, seeds: Sequence[int]) -> int:
        """Images that chips take, of a profile that draws nothing the first chip alone."""
        only = int(seeds[0] == every_seed[0])
        return images * (only if profile.draws_nothing else len(seeds))

    profiles = settings.chosen_profiles
    places = {name: _place(job, description, name, profile) for name, profile in profiles.items()}
    images = sum(map(len, folds.values()))
    every_seed = range(job.experiment.seed, job.experiment.seed + settings.chips)
    expect(sum(count_of(profile, every_seed) for profile in profiles.values()))
    ranges: dict[tuple[int, str], pd.DataFrame] = {}
    heaviest = max(profiles.values(), key=_parts)
    at_once = network.at_once(heaviest, settings.batch_size)
    for seeds in _grouped(every_seed, at_once):
        for name, profile in profiles.items():
            place = places[name]
            missing = [one for one in seeds if not _all_there(_files(place, one))]
            made = cache(partial(chips_of, name, profile, tuple(missing)))
            with progress(count_of(profile, seeds), f"{_named(seeds)}: {name}"):
                for seed in seeds:
                    files = _files(place, seed)
                    ranges[seed, name], _ = tables_at(files, lambda: made()[seed])  # noqa: B023
    order = [(seed, name) for seed in every_seed for name in profiles]
    predictions = [_files(places[name], seed)[1] for seed, name in order]
    converters = [ranges[seed, name] for seed, name in order if profiles[name].adc]
    outputs += [
        join_parquet(job.folder / "predictions.parquet", predictions),
        write_csv(job.folder / "adc_ranges.csv", pd.concat(converters)),
    ]
    return Outcome(outputs, network.device)


def _parts(profile: Profile) -> tuple[bool, bool, bool]:
    """Sorts profiles by the memory that their chips take."""
    return (
        profile.noise_of_operations is not None,
        profile.adc is not None,
        profile.memory is not None,
    )


def _grouped(seeds: range, size: int) -> list[range]:
    return [seeds[first : first + size] for first in range(0, len(seeds), size)]


def _named(seeds: range) -> str:
    return f"chip {seeds[0]}" if len(seeds) == 1 else f"chips {seeds[0]} to {seeds[-1]}"


def _files(place: Path, seed: int) -> list[Path]:
    """The files of a finished chip in its profile's folder: its converters, its predictions."""
    return [place / f"{seed}{suffix}" for suffix in (".adc.parquet", ".parquet")]


def _all_there(files: Sequence[Path]) -> bool:
    return all(map(Path.exists, files))


def _place(job: Job, description: dict[str, Any], name: str, profile: Profile) -> Path:
    """The folder of a profile's finished chips: named by all that decides them but their seeds."""
    experiment = job.experiment
    decides = {
        "weights": identity_of_network(job, description),
        "profile": to_json(profile),
        "data": experiment.data.deciding,
        "images": dict(job.images),
        "folds": experiment.folds,
        "limit": experiment.limit,
        "calibration": experiment.simulate.adc_calibration if profile.adc else None,
    }
    if experiment.simulate.engine != "fast":  # chips of before keep their key
        decides["engine"] = experiment.simulate.engine
    if experiment.limit_train is not None:  # chips of before keep their key
        decides["limit_train"] = experiment.limit_train
    if experiment.simulate.stream is not None:  # chips of before keep their key
        decides["stream"] = experiment.simulate.stream
    return job.folder / "chips" / f"{name}-{key_of(decides)}"
