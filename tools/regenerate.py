"""Tables, figures and the page of results once more, from the archived per-sample tables alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from bridge.report.figure_files import BESIDE
from bridge.report.figures import paper
from bridge.report.figures.predictors import calibration_figure, predictor_figure
from bridge.report.tables import failure_rates, outcomes
from bridge.report.tables.costs import of_estimators
from bridge.report.tables.predictors import calibrate, compare, costs_table
from bridge.report.tables.routers import recharged
from experiments.paper.fit import tabulate
from experiments.runs.files import read_parquet, write_csv, write_parquet
from experiments.runs.records import recorded_settings
from experiments.settings.flags import Score
from experiments.studies import rescore
from experiments.system.errors import at_work
from jaxcurv.estimators import FiniteDifference
from jaxcurv.storage.checksums import read_json
from jaxcurv.storage.files import write_whole
from jaxcurv.storage.lock import lock
from tools import results_page
from tools.archive import read_samples, reduce_colours


def regenerate(results: Path, into: Path, say: Callable[[str], None] = print) -> None:
    """Makes every table, figure and the page from what is archived.

    A fit to the paper whose runs are archived no more, as they were, is left out of the page.

    Args:
      results: folder of the archived results.
      into: the page of which the marked part is replaced.
      say: prints one line of progress.

    Raises:
      FileNotFoundError: nothing is archived.
      ValueError: that page has no place for the results.
      FolderInUse: another process writes there.
      WorkFailed: a file is missing, a fit was left out, or what failed else.
    """
    results_page.require_place(into)
    runs = [path.parent for path in sorted(results.glob("*/predictions.parquet"))]
    if not runs:
        raise FileNotFoundError(f"no archived run in {results}: `python -m tools archive` first")
    with lock(results), at_work():
        for run in runs:
            say(f"{run.name}: tables and figures")
            regenerate_run(run)
        fits, errors = [], []
        for path in sorted(results.glob("fit_paper_*/fit.json")):
            try:
                tabulate(path.parent, results)
            except (OSError, ValueError) as error:
                errors.append(error)
            else:
                fits.append(path.parent)
        written = results_page.write(results, into, fits)
        say(f"{written} and the marked part of {into}")
        if errors:
            raise errors[0]


def regenerate_run(place: Path) -> None:
    """Makes costs.csv, deciles.csv, table_one.csv, predictors.csv, calibration.csv (the last two of
    the test fold) and their figures once more.

    From scores.parquet, predictions.parquet and flips.parquet (its test fold) alone; how, say
    stages/ and model.json beside them. In routing_choices.csv, and in routing_guarantees.csv where
    that is, the computed scores are charged as costs.csv has it. And variants.csv of rescore/,
    where that is.

    Raises:
      FileNotFoundError: one of these is missing.
    """
    for name in ("stages", "model.json"):
        if not (place / name).exists():
            raise FileNotFoundError(f"{place} lacks {name}: archive the run again, or remove it")
    settings = recorded_settings(place)
    analyse, model, scored = (settings[name] for name in ("analyse", "model", "score"))
    estimators = Score(FiniteDifference(**scored["estimator"]), tuple(scored["compare"])).estimators
    classes = read_json(place / "model.json")["num_classes"]
    costs = costs_table(of_estimators(estimators, classes))[["predictor", "forward_passes"]]
    scores, predictions, flips = read_samples(place)
    joined = outcomes.join(scores, predictions)
    common = {"bins": analyse["bins"], "confidence": analyse["confidence"]}
    deciles = failure_rates.failure_tables(joined, **common)
    predictors = compare(
        joined[joined["fold"] == "test"],
        costs,
        flips,
        resamples=analyse["resamples"],
        **common,
    )
    calibration, errors = calibrate(
        joined[joined["fold"] == "test"], flips, confidence=analyse["confidence"]
    )
    named = model.get("factory") or model["architecture"], settings["data"]["name"]
    table_one = failure_rates.table_one(joined, deciles, model=named)
    write_csv(place / "costs.csv", costs)
    baselines = pd.read_csv(place / "routing_baselines.csv")
    for name in ("choices", "guarantees"):
        path = place / f"routing_{name}.csv"
        if name == "choices" or path.exists():  # earlier versions made no guarantees
            write_csv(path, recharged(pd.read_csv(path), baselines, costs))
    for name, table in (
        ("deciles", deciles),
        ("table_one", table_one),
        ("predictors", predictors),
    ):
        write_csv(place / f"{name}.csv", table)
        write_parquet(place / f"{name}.parquet", table)
    write_csv(place / "calibration.csv", calibration)
    write_csv(place / "calibration_errors.csv", errors)
    drawn = [
        calibration_figure(calibration, errors, place / "figures" / "calibration.png"),
        paper.figure_one(deciles, place / "figures" / "figure_one.png"),
        paper.figure_one(
            deciles, place / "figures" / "figure_one_correct.png", denominator="correct"
        ),
        predictor_figure(
            predictors, place / "figures" / "predictors.png", profile=analyse["profile"]
        ),
    ]
    if (rescored := place / "rescore" / "scores.parquet").exists():
        variants = rescore.tabulate(read_parquet(rescored), predictions, **common)
        write_csv(place / "rescore" / "variants.csv", variants)
        drawn.append(rescore.draw(variants, place / "rescore" / "rescore.png"))
    for path in drawn:  # their tables are there already
        for form in BESIDE:
            path.with_suffix(form).unlink()
        write_whole(path, partial(reduce_colours, path))
