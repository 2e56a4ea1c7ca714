"""Stage `simulate`: predictions of every profile's chips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.runs.descriptions import read_normalisation
from experiments.runs.files import join_parquet, read_parquet, write_csv, write_parquet
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import load_twin, require_classes
from experiments.runs.samples import (
    calibration_images,
    choose_folds,
    first_images,
    limited,
    read_small,
)
from jaxcurv import data

if TYPE_CHECKING:
    import bridge


def simulate(job: Job) -> Outcome:
    """Runs every profile's chips on the scored samples; writes predictions and converter ranges.

    Each finished chip is kept at once, so that an interrupted stage goes on with the next.
    """
    import bridge

    settings = job.experiment.simulate
    twin, description = load_twin(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    chosen = choose_folds(dataset, job.experiment, {"train", *job.experiment.folds})
    calibration = calibration_images(chosen["train"], normalisation, job.experiment)
    folds = read_small(limited(chosen, job.experiment))
    unseen = normalisation.apply(first_images(folds["test"], settings.calibration))

    def run_chip(profile: bridge.Profile, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        chip = bridge.program(twin, profile, seed=seed, calibration=calibration)
        ranges = pd.DataFrame({"tile": chip.out_bounds.keys(), "range": chip.out_bounds.values()})
        share = bridge.clipped_share(chip, unseen) if profile.adc else {}
        ranges["clipped_share"] = ranges["tile"].map(share)
        outcomes = []
        for fold, samples in folds.items():
            table = bridge.predict(
                chip,
                data.Normalised(samples, normalisation),
                batch_size=settings.batch_size,
                device=settings.device,
                description=f"chip {seed}: {profile.name}, {fold}",
                keep=bridge.logit_scores,
            )
            predicted = table.drop_columns("label").to_pandas()
            predicted.insert(0, "fold", fold)
            outcomes.append(predicted)
        return pd.concat(outcomes, ignore_index=True), ranges

    profiles = bridge.eight_profiles(settings.adc, settings.wnoise, settings.pcm, settings.clipping)
    parts = job.folder / "chips" / job.fingerprint
    predictions: list[Path] = []
    converters = []
    for seed in range(job.experiment.seed, job.experiment.seed + settings.chips):
        for name, profile in profiles.items():
            # The last one written, so that it stands for both.
            finished = parts / f"{name}-{seed}.parquet"
            converter = parts / f"{name}-{seed}.adc.parquet"
            if finished.exists():
                read_parquet(finished)  # a damaged one is told now and not at the end
            else:
                outcomes, ranges = run_chip(profile, seed)
                for path, table in ((converter, ranges), (finished, outcomes)):
                    table.insert(0, "profile", name)
                    table.insert(1, "chip", seed)
                    write_parquet(path, table)
            predictions.append(finished)
            if profile.adc:
                converters.append(read_parquet(converter))
    outputs = [
        join_parquet(job.folder / "predictions.parquet", predictions),
        write_csv(job.folder / "adc_ranges.csv", pd.concat(converters)),
    ]
    return Outcome(outputs, settings.device, scratch=parts)
