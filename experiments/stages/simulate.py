"""Stage `simulate`: predictions of every profile's chips."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bridge.chips.profiles import Profile, to_json
from experiments.runs.coverage import COVERAGE
from experiments.runs.descriptions import is_of_factory, read_normalisation
from experiments.runs.files import join_parquet, sha256, write_csv
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import examples, load_model, load_twin, require_classes
from experiments.runs.resume import key_of, tables_at
from experiments.runs.samples import (
    calibration_images,
    calibration_samples,
    first_images,
    read_small,
    scored_samples,
)
from jaxcurv import data
from jaxcurv.progress import expect, progress

if TYPE_CHECKING:
    from torch import nn

    import bridge


def simulate(job: Job) -> Outcome:
    """Runs every profile's chips on the scored samples; writes predictions and converter ranges.

    Of a user's own network also which of its products tiles compute.

    Each finished chip is kept at once in chips/: an interrupted stage goes on with the next, and
    under other settings those chips whose own settings stay are not computed again.
    """
    import jax

    import bridge
    from jaxcurv.engine.model import functional

    settings = job.experiment.simulate
    twin, description = load_twin(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    held = calibration_samples(dataset, job.experiment)
    calibration = calibration_images(held, normalisation, job.experiment)
    folds = read_small(scored_samples(dataset, job.experiment))
    unseen = normalisation.apply(first_images(folds["test"], settings.adc_calibration))
    table = job.folder / COVERAGE
    table.unlink(missing_ok=True)  # of an earlier, own network
    outputs = []
    if is_of_factory(description):
        outputs.append(write_csv(table, bridge.coverage(twin, examples(dataset, description))))

    if settings.engine == "jax":
        function, weights = functional(*load_model(job, description, dataset))
        chip_of = _in_jax(function, weights, calibration, unseen)
        device = jax.devices()[0].device_kind
    else:
        device = settings.device
        chip_of = _in_torch(twin, settings.engine, calibration, unseen, settings.device)

    def run_chip(profile: bridge.Profile, seed: int) -> list[pd.DataFrame]:
        """The ranges of the chip's converters, and its predictions."""
        ranges, predict = chip_of(profile, seed)
        outcomes = []
        for fold, samples in folds.items():
            table = predict(
                data.Normalised(samples, normalisation),
                batch_size=settings.batch_size,
                description=f"chip {seed}: {profile.name}, {fold}",
                keep=bridge.analysis.logit_scores,
            )
            predicted = table.drop(columns=["path", "label"], errors="ignore")
            predicted.insert(0, "fold", fold)
            outcomes.append(predicted)
        tables = [ranges, pd.concat(outcomes, ignore_index=True)]
        for table in tables:
            table.insert(0, "profile", profile.name)
            table.insert(1, "chip", seed)
        return tables

    profiles = settings.chosen_profiles
    places = {name: _place(job, profile) for name, profile in profiles.items()}
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
    return Outcome(outputs, device)


ChipOf = Callable[["bridge.Profile", int], tuple[pd.DataFrame, Callable[..., pd.DataFrame]]]
"""A profile's chip of a seed: the ranges of its converters, and what predicts with it."""


def _in_torch(
    twin: nn.Module,
    engine: Literal["fast", "aihwkit"],
    calibration: np.ndarray,
    unseen: np.ndarray,
    device: str,
) -> ChipOf:
    import bridge

    def chip_of(
        profile: bridge.Profile, seed: int
    ) -> tuple[pd.DataFrame, Callable[..., pd.DataFrame]]:
        chip = bridge.program(twin, profile, seed=seed, calibration=calibration, engine=engine)
        ranges = pd.DataFrame({"tile": chip.out_bounds.keys(), "range": chip.out_bounds.values()})
        share = bridge.chips.clipped_share(chip, unseen) if profile.adc else {}
        ranges["clipped_share"] = ranges["tile"].map(share)
        return ranges, partial(bridge.predict, chip, device=device)

    return chip_of


def _in_jax(
    function: Callable[..., Any], weights: Any, calibration: np.ndarray, unseen: np.ndarray
) -> ChipOf:
    import jax

    import bridge

    @cache
    def made_of(profile: bridge.Profile) -> tuple[bridge.jax_chips.Chip, Callable[..., Any]]:
        made = bridge.analog(function, weights, profile, calibration)
        return made, jax.jit(made.program)

    def chip_of(
        profile: bridge.Profile, seed: int
    ) -> tuple[pd.DataFrame, Callable[..., pd.DataFrame]]:
        made, program = made_of(profile)
        programmed = program(weights, jax.random.key(seed))
        shares = made.clipped_share(programmed, unseen) if profile.adc else {}
        rows = [
            {"tile": f"{layer}[{number}]", "range": bound, "clipped_share": shares[layer][number]}
            for layer, bounds in made.adc_ranges.items()
            for number, bound in enumerate(bounds.tolist())
        ]
        ranges = pd.DataFrame(rows, columns=["tile", "range", "clipped_share"])
        return ranges, partial(bridge.jax_chips.predict, made, programmed)

    return chip_of


def _place(job: Job, profile: Profile) -> Path:
    """The folder of a profile's finished chips: named by all that decides them but their seeds."""
    experiment = job.experiment
    decides = {
        "weights": sha256(job.folder / "weights.safetensors"),
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
