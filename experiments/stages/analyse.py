"""Stage `analyse`: the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.runs.coverage import read_coverage
from experiments.runs.descriptions import read_description
from experiments.runs.files import read_parquet, write_csv, write_parquet
from experiments.runs.job import Job, Outcome

ANALYSED = (
    *("deciles", "table_one", "predictors", "calibration", "calibration_errors"),
    *("routing", "routing_choices", "routing_guarantees", "routing_baselines"),
    *("per_class", "overlap", "systematic"),
)
"""The tables of a run, each as Parquet and CSV."""

ANALYSED_SCORES = ("accuracy", "score_deciles", "score_costs", "per_class", "highest")
"""Those of a run without chips."""


def analyse(job: Job) -> Outcome:
    """Joins scores and predictions; writes the tables of `ANALYSED`."""
    from bridge.report.tables import failure_rates, guarantees, on_chip, predictors, routers
    from bridge.report.tables.profile_overlap import profile_overlap

    settings = job.experiment.analyse
    joined = read_joined(job)
    costs = predictors.costs_table(read_costs(job))
    flips = read_parquet(job.folder / "flips.parquet")
    interval: dict[str, Any] = {"confidence": settings.confidence, "resamples": settings.resamples}
    deciles = failure_rates.failure_tables(
        joined, bins=settings.bins, confidence=settings.confidence
    )
    network = job.experiment.model
    model = network.factory or network.architecture, job.experiment.data.title
    calibration, errors = predictors.calibrate(joined, flips, settings.confidence)
    flipped = predictors.with_flips(joined, flips)
    energies = settings.energy.partly_analog(on_chip.analog_share(read_coverage(job.folder)))
    routed = routers.route(flipped, costs, energies=energies, tolerance=settings.tolerance)
    tables = {
        "deciles": deciles,
        "table_one": failure_rates.table_one(joined, deciles, model=model),
        "predictors": predictors.compare(joined, costs, flips, bins=settings.bins, **interval),
        "calibration": calibration,
        "calibration_errors": errors,
        "routing": routed.curves,
        "routing_choices": routed.choices,
        "routing_guarantees": guarantees.guarantee(flipped, costs, energies=energies),
        "routing_baselines": routed.baselines,
        "per_class": failure_rates.per_class(joined, profile=settings.profile),
    }
    tables["overlap"], tables["systematic"] = profile_overlap(joined, "test", **interval)
    return _written(job, {name: tables[name] for name in ANALYSED})


def analyse_scores(job: Job) -> Outcome:
    """Writes the tables of `ANALYSED_SCORES`, for a run without chips."""
    from bridge.report.tables import digital

    samples = read_digital(job)
    tables = {
        "accuracy": digital.accuracy(samples),
        "score_deciles": digital.score_deciles(samples, job.experiment.analyse.bins),
        "score_costs": digital.score_costs(samples, read_costs(job)),
        "per_class": digital.per_class(samples),
        "highest": digital.highest(samples),
    }
    return _written(job, {name: tables[name] for name in ANALYSED_SCORES})


def _written(job: Job, tables: Mapping[str, pd.DataFrame]) -> Outcome:
    outputs = []
    for name, table in tables.items():
        outputs.append(write_parquet(job.folder / f"{name}.parquet", table))
        outputs.append(write_csv(job.folder / f"{name}.csv", table))
    return Outcome(outputs, "cpu")


def read_analysed(job: Job) -> dict[str, pd.DataFrame]:
    """The run's tables of `ANALYSED`; routing_guarantees only where it is, for `analyse` of earlier
    versions made none.

    Raises:
      FileNotFoundError: analyse has not run.
      ValueError: a table is damaged.
    """
    guaranteed = (job.folder / "routing_guarantees.parquet").exists()
    return {
        name: read_parquet(job.folder / f"{name}.parquet")
        for name in ANALYSED
        if guaranteed or name != "routing_guarantees"
    }


def read_costs(job: Job) -> pd.DataFrame:
    """What the run's scores cost, as `costs.of_estimators` returns it.

    Raises:
      FileNotFoundError: train has not run.
      ValueError: its description of the network is damaged.
    """
    from bridge.report.tables import costs

    classes = read_description(job.folder)["num_classes"]
    return costs.of_estimators(job.experiment.score.estimators, classes)


def read_joined(job: Job) -> pd.DataFrame:
    """Scores and predictions of the run, as `outcomes.join` joins them.

    Raises:
      FileNotFoundError: score or simulate has not run.
      ValueError: a table is damaged, or scores and predictions do not fit each other.
    """
    from bridge.report.tables import outcomes

    return outcomes.join(
        read_parquet(job.folder / "scores.parquet"),
        read_parquet(job.folder / "predictions.parquet"),
    )


def read_digital(job: Job) -> pd.DataFrame:
    """Scores of the run, as `outcomes.digital_outcomes` returns them.

    Raises:
      FileNotFoundError: score has not run.
      ValueError: the table is damaged.
    """
    from bridge.report.tables import outcomes

    return outcomes.digital_outcomes(read_parquet(job.folder / "scores.parquet"))
