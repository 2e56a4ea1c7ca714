"""Stage `report`: the figures and the HTML page."""

from __future__ import annotations

import shlex
from dataclasses import asdict

import numpy as np
import pandas as pd

from experiments.runs.files import read_parquet
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.records import read_record, read_records, recorded_settings
from experiments.runs.samples import (
    choose_folds,
)
from experiments.stages.analyse import ANALYSED, read_joined
from jaxcurv import data


def report(job: Job) -> Outcome:
    """Draws the figures and writes report.html."""
    from experiments.figures import analysis, paper, scores, training
    from experiments.figures.overlap import draw
    from experiments.report.page import write_report
    from experiments.settings.presets import command_line
    from experiments.tables import failure_rates, outcomes, predictors, routers
    from jaxcurv.data.images import encode_png

    settings = job.experiment
    dataset = load_data(job)
    joined = read_joined(job)
    tables = {name: read_parquet(job.folder / f"{name}.parquet") for name in ANALYSED}
    scored = read_record(job.folder, "score")
    measured = {} if scored is None else scored["measured"]
    costs = pd.read_csv(job.folder / "costs.csv")
    costs["seconds_per_image"] = costs["predictor"].map(measured)
    seconds = predictors.costs_table(costs)[["predictor", "seconds_per_image"]]
    flips = read_parquet(job.folder / "flips.parquet")
    test = choose_folds(dataset, settings, ("test",))["test"]

    def images(rows: pd.DataFrame) -> np.ndarray:
        positions = np.searchsorted(test.indices, rows["index"].to_numpy())
        return data.read(test, positions, description="read shown images").images

    folder = job.folder / "figures"
    scored = joined.loc[joined["fold"] == "test", "index"].nunique()
    rows = paper.gallery_rows(joined, count=min(8, scored // 2))
    routed = tables["routing"], tables["routing_baselines"], tables["routing_choices"]
    drawn = [
        paper.figure_one(tables["deciles"], folder / "figure_one.png"),
        paper.figure_one(
            tables["deciles"], folder / "figure_one_correct.png", denominator="correct"
        ),
        analysis.predictor_figure(tables["predictors"], folder / "predictors.png"),
        analysis.calibration_figure(
            tables["calibration"], tables["calibration_errors"], folder / "calibration.png"
        ),
        analysis.routing_figure(*routed, folder / "routing.png"),
        paper.gallery(rows, images(rows), dataset.class_names, folder / "gallery.png"),
        scores.score_histogram(joined, folder / "score_histogram.png"),
    ]
    if settings.model.weights is None:
        history = pd.read_csv(job.folder / "history.csv")
        drawn.append(training.training_curve(history, folder / "training_curve.png"))
    if len(overlap := tables["overlap"]):
        title = "Profiles of this run, test fold"
        drawn.append(draw(overlap, folder / "overlap.png", title))
    vulnerable = failure_rates.vulnerable(joined, flips)
    thumbnails = [encode_png(image) for image in images(vulnerable)]
    names = dict(enumerate(dataset.class_names))
    vulnerable.insert(2, "class_name", vulnerable.pop("label").map(names))
    for column in ("digital_prediction", "analog_prediction"):
        vulnerable[column] = vulnerable[column].map(names)
    per_class = tables["per_class"]
    per_class.insert(0, "class_name", per_class.pop("label").map(names))
    drift = job.folder / "drift" / "drift.png"
    page = write_report(
        job.folder / "report.html",
        title=f"{settings.model.architecture} of width {settings.model.width} on "
        f"{settings.data.name}",
        settings=recorded_settings(job.folder),
        stages=[record for record in read_records(job.folder) if record["name"] != "report"],
        confidence=settings.analyse.confidence,
        verdict=predictors.verdict(tables["predictors"]),
        routing_summary=routers.summary(tables["routing_choices"]),
        vulnerable=vulnerable,
        thumbnails=thumbnails,
        reproduce=[f"python -m experiments run {shlex.join(command_line(asdict(settings)))}"],
        figures=drawn,
        drift_figure=drift if drift.exists() else None,
        drift_seconds=settings.simulate.pcm.t_inference,
        ideal_agreement=outcomes.ideal_agreement(joined),
        **(
            tables | {"predictors": tables["predictors"].merge(seconds, on="predictor", how="left")}
        ),
    )
    return Outcome([page, folder], "cpu")
