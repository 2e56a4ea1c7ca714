"""Stage `simulate`: predictions of every profile's chips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bridge.chips.profiles import Profile, to_json
from experiments.chips.opening import identity_of_network, open_network
from experiments.runs.coverage import COVERAGE
from experiments.runs.descriptions import is_of_factory, read_normalisation
from experiments.runs.files import join_parquet, write_csv
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

    def run_chip(profile: Profile, seed: int) -> list[pd.DataFrame]:
        """The table of the chip's converters, and its predictions."""
        chip = network.program(profile, seed)
        outcomes = []
        for fold, samples in folds.items():
            table = chip.predict(
                data.Normalised(samples, normalisation),
                f"chip {seed}: {profile.name}, {fold}",
                batch_size=settings.batch_size,
                keep=logit_scores,
            )
            predicted = table.drop(columns=["path", "label"], errors="ignore")
            predicted.insert(0, "fold", fold)
            outcomes.append(predicted)
        tables = [chip.converters(unseen), pd.concat(outcomes, ignore_index=True)]
        for table in tables:
            table.insert(0, "profile", profile.name)
            table.insert(1, "chip", seed)
        return tables

    profiles = settings.chosen_profiles
    places = {name: _place(job, description, profile) for name, profile in profiles.items()}
    predictions = []
    converters = []
    images = sum(map(len, folds.values()))
    expect(settings.chips * len(profiles) * images)
    for seed in range(job.experiment.seed, job.experiment.seed + settings.chips):
        for name, profile in profiles.items():
            paths = [places[name] / f"{seed}{suffix}" for suffix in (".adc.parquet", ".parquet")]
            with progress(images, f"chip {seed}: {name}"):
                ranges, _ = tables_at(paths, partial(run_chip, profile, seed))
            predictions.append(paths[1])
            if profile.adc:
                converters.append(ranges)
    outputs += [
        join_parquet(job.folder / "predictions.parquet", predictions),
        write_csv(job.folder / "adc_ranges.csv", pd.concat(converters)),
    ]
    return Outcome(outputs, network.device)


def _place(job: Job, description: dict[str, Any], profile: Profile) -> Path:
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
    return job.folder / "chips" / f"{profile.name}-{key_of(decides)}"
