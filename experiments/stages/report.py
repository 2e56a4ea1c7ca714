"""Stage `report`: the figures and the HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bridge.report.page.contents import ReportContents, RunTables
from bridge.report.tables.compensation import Beside
from experiments.runs.coverage import read_coverage
from experiments.runs.descriptions import read_description
from experiments.runs.files import read_parquet
from experiments.runs.frameworks import MISSING, cure, why_no_chips
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.records import read_record, read_records, recorded_settings
from experiments.runs.remembered import recall_run
from experiments.runs.samples import (
    calibration_samples,
    choose_folds,
    positions_of,
    scored_samples,
)
from experiments.stages.analyse import (
    ANALYSED,
    ANALYSED_SCORES,
    read_analysed,
    read_costs,
    read_digital,
    read_joined,
)
from jaxcurv import data

_Images = Callable[[pd.DataFrame], np.ndarray]
"""The images of rows of the test fold, uint8 [rows, height, width, channels]."""


def report(job: Job) -> Outcome:
    """Draws the figures and writes report.html."""
    from bridge.report.page.page import write_report
    from bridge.report.tables import compensation, outcomes, predictors, routers
    from experiments.studies import drift, remedies
    from jaxcurv.data.images import encode_png

    settings = job.experiment
    dataset = load_data(job)
    images = _images_of_test(dataset, job)
    joined = read_joined(job)
    analysed = read_analysed(job)
    profiles, profile = settings.simulate.every_profile, settings.analyse.profile
    beside = compensation.shown_beside(analysed["deciles"], profiles, profile=profile)
    figures = _draw(job, joined, analysed, images, dataset.class_names, beside)
    description = read_description(job.folder)
    if aged := drift.is_of_run(job, description):
        figures.append(job.folder / "drift" / "drift.png")
    if tried := remedies.is_of_run(job, description):
        figures.append(job.folder / "remedies" / "remedies.png")
    tables = _tables(job, joined, analysed, dataset.class_names)
    assert tables.vulnerable is not None
    contents = ReportContents(
        title=f"{settings.model.title} on {settings.data.title}",
        notes=_notes(job, dataset),
        settings=_shown_settings(job),
        stages=[record for record in read_records(job.folder) if record["name"] != "report"],
        confidence=settings.analyse.confidence,
        tables=tables,
        profile=profile,
        beside=beside,
        uncompensated=compensation.is_uncompensated(profiles[profile]),
        drift_seconds=settings.simulate.pcm.t_inference,
        ideal_agreement=outcomes.ideal_agreement(joined),
        comparison=predictors.verdict(analysed["predictors"], profile=profile),
        routing_summary=routers.summary(analysed["routing_choices"], profile),
        remedies=remedies.verdicts(job.folder / "remedies") if tried else (),
        figures=figures,
        thumbnails=[encode_png(image) for image in images(tables.vulnerable)],
        drift=drift.verdict(job.folder / "drift") if aged else "",
        commands=commands_of_page(job),
        reproduce=_reproduce(job),
    )
    page = write_report(job.folder / "report.html", contents)
    return Outcome([page, job.folder / "figures"], "cpu")


def report_scores(job: Job) -> Outcome:
    """Draws the figures and writes report.html of a run without chips."""
    from bridge.report.figures import paper, scores
    from bridge.report.page.page import write_report
    from bridge.report.tables import digital
    from jaxcurv.data.images import encode_png

    settings = job.experiment
    dataset = load_data(job)
    images = _images_of_test(dataset, job)
    samples = read_digital(job)
    tables = {name: read_parquet(job.folder / f"{name}.parquet") for name in ANALYSED_SCORES}
    rows = paper.gallery_rows(samples, count=min(8, (samples["fold"] == "test").sum() // 2))
    folder = job.folder / "figures"
    width = settings.figures.inches
    figures = [
        scores.score_histogram(samples, folder / "score_histogram.png", width=width),
        paper.gallery(
            rows, images(rows), dataset.class_names, folder / "gallery_digital.png", width=width
        ),
    ]
    names = dict(enumerate(dataset.class_names))
    for name, place in (("per_class", 0), ("highest", 2)):
        tables[name].insert(place, "class_name", tables[name].pop("label").map(names))
    costs = tables["score_costs"]
    tables["score_costs"] = costs.merge(_seconds(job), on="predictor", how="left")
    contents = ReportContents(
        title=f"{settings.model.title} on {settings.data.title}",
        notes=_notes(job, dataset, chips=False),
        settings=_shown_settings(job, chips=False),
        stages=[record for record in read_records(job.folder) if record["name"] != "report"],
        confidence=settings.analyse.confidence,
        tables=RunTables(**tables),
        summary=digital.summary(tables["accuracy"]),
        figures=figures,
        thumbnails=[encode_png(image) for image in images(tables["highest"])],
        commands=commands_of_page(job),
        reproduce=_reproduce(job),
    )
    page = write_report(job.folder / "report.html", contents)
    return Outcome([page, folder], "cpu")


def _images_of_test(dataset: data.ImageDataset, job: Job) -> _Images:
    test = choose_folds(dataset, job.experiment, ("test",))["test"]

    def images(rows: pd.DataFrame) -> np.ndarray:
        positions = positions_of(test.indices, rows["index"].to_numpy())
        return data.read(test, positions, description="read shown images").images

    return images


def _reproduce(job: Job) -> list[str]:
    from experiments.settings.presets import command_line

    return [f"python -m experiments run {shlex.join(command_line(asdict(job.experiment)))}"]


def commands_of_page(job: Job) -> dict[str, str]:
    """What makes each table and figure of the page, by the name of its file."""
    from bridge.report.tables.compensation import counterparts
    from experiments.settings.presets import OWN

    remembered = recall_run(job.folder)
    name = (remembered and remembered.preset) or "PRESET"
    own = job.experiment.model.factory is not None

    def of(command: str, flags: str = "") -> str:
        preset = f"{name} "
        if own:  # these two commands also take a user's own tables, and ask which is meant
            preset = f"{OWN} " if command in ("analyse", "score") else ""
        return f"python -m experiments {command} {preset}--out DIR{flags}"

    figures = (
        *("verdict", "predictors", "calibration", "routing", "overlap", "score_histogram"),
        *("training_curve", "gallery_digital"),
    )
    settings = job.experiment
    narrow, some = settings.figures.width != "double", settings.figures.profiles
    width = f" --figures.width {settings.figures.width}" if narrow else ""
    profiles = f" --figures.profiles {' '.join(some)}" if some else ""
    figure_one = f"python -m experiments figure-one DIR{width}{profiles}"
    gallery = f"python -m experiments gallery DIR --profile {settings.analyse.profile}{width}"
    found = {f"{name}.csv": of("analyse") for name in (*ANALYSED, *ANALYSED_SCORES)}
    found |= {f"{name}.png": of("report") for name in figures}
    found |= {name: of(name) for name in ("drift", "remedies")}
    found |= {f"{name}.png": of(name) for name in ("drift", "remedies")}
    found |= {
        "coverage.csv": of("simulate"),
        "vulnerable.csv": of("report"),
        "figure_one.png": figure_one,
        "figure_one_correct.png": f"{figure_one} --denominator correct",
        "gallery.png": gallery,
    }
    if others := counterparts(settings.analyse.profile, settings.simulate.every_profile):
        both = dict.fromkeys((*settings.simulate.profiles, others[0]))
        found["compensate"] = of("run", f" --simulate.profiles {' '.join(both)}")
    else:
        found["compensate"] = of("run", " --simulate.pcm.compensation global")
    return found


def _seconds(job: Job) -> pd.DataFrame:
    """What each score took: predictor and seconds_per_image."""
    from bridge.report.tables import predictors

    scored = read_record(job.folder, "score")
    measured = {} if scored is None else scored["measured"]
    costs = read_costs(job)
    costs["seconds_per_image"] = costs["predictor"].map(measured)
    return predictors.costs_table(costs)[["predictor", "seconds_per_image"]]


def _shown_settings(job: Job, *, chips: bool = True) -> dict[str, Any]:
    """The settings that made the run; of a user's own network not those of training a ResNet, and
    without chips no profile."""
    settings = recorded_settings(job.folder)
    if not chips:
        settings["analyse"].pop("profile", None)
    if job.experiment.model.factory is not None:
        settings.pop("train", None)
        for name in ("architecture", "stem", "width"):
            settings["model"].pop(name, None)
    return settings


def _notes(job: Job, dataset: data.ImageDataset, *, chips: bool = True) -> list[str]:
    """What is to be said of a network and images of the user's own; nothing of a preset's."""
    settings = job.experiment
    if settings.model.factory is None:
        return []
    description = read_description(job.folder)
    scored = scored_samples(dataset, settings)
    normalisation = description["normalisation"]
    notes = [] if chips else [_missing(job)]
    notes.append(
        f"The network is what {settings.model.factory} returns; it was not trained here. It is "
        f"given (pixel / 255 - mean) / std, with the mean {_listed(normalisation['mean'])} and the "
        f"standard deviation {_listed(normalisation['std'])} of each channel. The images are those "
        f"of {settings.data.name}."
    )
    calibrated = len(calibration_samples(dataset, settings))
    calibration = min(settings.simulate.adc_calibration, calibrated)
    if dataset.calibration is not None:
        tested = len(scored["test"])
        some = "" if tested == len(dataset.test) else f", of which {tested:,} are scored (--limit)"
        validated = len(scored.get("validation", ()))
        thresholds = ", on which routing thresholds are chosen," if chips else ","
        validation = (
            f"{validated:,} the validation fold{thresholds}"
            if validated
            else "the validation fold is left out (--folds),"
        )
        kept = (
            f", of which {calibration:,} set the ranges of the converters and none is scored"
            if chips
            else " to calibrate chips, if the network had any, and not scored"
        )
        notes.append(
            f"The folder has no train and test. Of its images {len(dataset.test):,} are the test "
            f"fold{some}, {validation} and "
            f"{calibrated:,} are kept apart{kept} (--data.validation-fraction, "
            "--data.split-seed). If the network was trained on some of these images, it is more "
            "accurate on them than on others, and curvature is lower."
        )
    elif chips:
        notes.append(f"{calibration:,} images of train set the ranges of the converters.")
        if "validation" not in scored and "validation" in settings.folds:
            apart = choose_folds(dataset, settings, ("validation",))["validation"]
            notes.append(
                "There is no validation fold: a part of train would promise too much, for the "
                f"network was trained on it, and {len(apart):,} images of train are not scored "
                "(--data.validation-fraction). Routing thresholds need one: a folder val beside "
                "test."
            )
    return notes


def _missing(job: Job) -> str:
    """What the page of a run without chips lacks, why, and what to do about it."""
    factory = job.experiment.model.factory
    why, what_to_do = (
        f"{words[0].upper()}{words[1:]}" for words in (why_no_chips(factory), cure(factory))
    )
    return (
        f"{why}. So no chip was simulated, and these sections are missing: {MISSING}. {what_to_do}."
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _tables(
    job: Job,
    joined: pd.DataFrame,
    analysed: Mapping[str, pd.DataFrame],
    class_names: Sequence[str],
) -> RunTables:
    """The tables that the page shows: durations beside costs, names in place of labels."""
    from bridge.report.tables import failure_rates

    names = dict(enumerate(class_names))
    vulnerable = failure_rates.vulnerable(
        joined,
        read_parquet(job.folder / "flips.parquet"),
        profile=job.experiment.analyse.profile,
    )
    vulnerable.insert(2, "class_name", vulnerable.pop("label").map(names))
    for column in ("digital_prediction", "analog_prediction"):
        vulnerable[column] = vulnerable[column].map(names)
    per_class = analysed["per_class"].copy()
    per_class.insert(0, "class_name", per_class.pop("label").map(names))
    shown = {
        "coverage": read_coverage(job.folder),
        "predictors": analysed["predictors"].merge(_seconds(job), on="predictor", how="left"),
        "per_class": per_class,
        "vulnerable": vulnerable,
    }
    return RunTables(**{**analysed, **shown})


def _draw(
    job: Job,
    joined: pd.DataFrame,
    analysed: Mapping[str, pd.DataFrame],
    images: _Images,
    class_names: Sequence[str],
    beside: Beside | None,
) -> list[Path]:
    """The figures of the run, in the order of the page."""
    from bridge.report.figures import paper, predictors, scores, training
    from bridge.report.figures.overlap import draw
    from bridge.report.figures.verdict import verdict_figure
    from bridge.report.figures.widths import SINGLE

    folder = job.folder / "figures"
    scored = joined.loc[joined["fold"] == "test", "index"].nunique()
    profile = job.experiment.analyse.profile
    rows = paper.gallery_rows(joined, count=min(8, scored // 2), profile=profile)
    deciles = analysed["deciles"]
    width, some = job.experiment.figures.inches, job.experiment.figures.profiles
    routed = analysed["routing"], analysed["routing_baselines"], analysed["routing_choices"]
    drawn = [
        verdict_figure(
            deciles,
            folder / "verdict.png",
            fold="test",
            profile=profile,
            beside=beside,
            width=SINGLE,
        ),
        paper.figure_one(deciles, folder / "figure_one.png", profiles=some, width=width),
        paper.figure_one(
            deciles,
            folder / "figure_one_correct.png",
            denominator="correct",
            profiles=some,
            width=width,
        ),
        predictors.predictor_figure(
            analysed["predictors"], folder / "predictors.png", profile=profile, width=width
        ),
        predictors.calibration_figure(
            analysed["calibration"],
            analysed["calibration_errors"],
            folder / "calibration.png",
            profiles=some,
            width=width,
        ),
        predictors.routing_figure(*routed, folder / "routing.png", profile=profile, width=width),
        paper.gallery(rows, images(rows), class_names, folder / "gallery.png", width=width),
        scores.score_histogram(
            joined, folder / "score_histogram.png", profile=profile, width=width
        ),
    ]
    if job.experiment.model.trained:
        history = pd.read_csv(job.folder / "history.csv")
        drawn.append(training.training_curve(history, folder / "training_curve.png", width=width))
    overlap = analysed["overlap"]
    if some:
        overlap = overlap[overlap["first"].isin(some) & overlap["second"].isin(some)]
    if len(overlap):
        title = "Profiles of this run, test fold"
        drawn.append(draw(overlap, folder / "overlap.png", title, width=width))
    return drawn
