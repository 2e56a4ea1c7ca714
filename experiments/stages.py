"""What each stage does: reads files of a run's folder, writes files into it.

A stage imports what it needs when it runs, so that a process holds either JAX or torch on an
accelerator, never both.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.artefacts import join_parquet, read_parquet, sha256, write_csv, write_parquet
from experiments.descriptions import (
    read_description,
    read_normalisation,
    require_description,
)
from experiments.records import read_record, read_records, recorded_settings
from experiments.samples import (
    calibration_images,
    choose_folds,
    first_images,
    limited,
    read_small,
)
from experiments.settings import Experiment, Model
from jaxcurv import data
from jaxcurv.sealed import write_json

if TYPE_CHECKING:
    from flax import nnx

    import bridge


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    experiment: Experiment
    folder: Path
    data_dir: Path | None
    fingerprint: str
    """Of the stage's settings and inputs; names the folders of unfinished work."""


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves."""

    outputs: list[Path]
    device: str
    measured: dict[str, float] = field(default_factory=dict)
    """What took how long, for the stage's record: no table holds a duration."""
    scratch: Path | None = None
    """Unfinished work, of no more use once the stage is recorded."""


def load_data(job: Job) -> data.ImageDataset:
    """The experiment's data set."""
    return data.load(job.experiment.data.name, job.data_dir, job.experiment.data.preprocessing)


def train(job: Job) -> Outcome:
    """Trains the digital model; writes its best checkpoint, its description and its history."""
    import jax

    from jaxcurv.training import Epoch, fit

    dataset = load_data(job)
    chosen = choose_folds(dataset, job.experiment, ("train", "validation"))
    folds = {
        fold: data.read(samples, description=f"read {fold}") for fold, samples in chosen.items()
    }
    warn_of_idle_accelerator()
    images = folds["train"].images
    normalisation = job.experiment.data.normalisation or data.Normalisation.of(images)
    normalisation.require_channels(images.shape)
    description = describe(
        job.experiment.model, dataset, in_channels=images.shape[-1], normalisation=normalisation
    )
    checkpoints = job.folder / "checkpoints" / job.fingerprint
    history = fit(
        lambda dtype: build_flax(description, job.experiment.seed, dtype),
        folds["train"],
        folds["validation"],
        normalisation,
        job.experiment.train,
        seed=job.experiment.seed,
        directory=checkpoints,
    )
    description["checkpoint"] = checkpoints.relative_to(job.folder).as_posix()
    outputs = [
        write_json(job.folder / "model.json", description),
        write_csv(job.folder / "history.csv", pd.DataFrame(history, columns=Epoch._fields)),
        checkpoints,
    ]
    return Outcome(outputs, jax.devices()[0].device_kind)


def score(job: Job) -> Outcome:
    """Scores every sample with the trained digital model; writes scores.parquet and costs.csv.

    The samples that the model gets wrong are scored once more with its own prediction as the label,
    as a deployed router would have to: the columns that end in "_label_free". The others' are those
    of their label.
    """
    import jax

    from experiments import prediction
    from experiments.costs import seconds_per_image
    from jaxcurv import score_dataset
    from jaxcurv.engine import Batch
    from jaxcurv.estimators import forward_passes

    description = read_description(job.folder)
    dataset = load_data(job)
    require_classes(dataset, description)
    model = load_flax(job, description)
    warn_of_idle_accelerator()
    normalisation = read_normalisation(description)
    settings = job.experiment.score
    pieces = job.folder / "scores" / job.fingerprint
    chosen = limited(choose_folds(dataset, job.experiment, job.experiment.folds), job.experiment)
    folds = read_small(chosen)

    def scored(samples: data.Source, name: str, estimators: Any) -> pd.DataFrame:
        return score_dataset(
            model,
            data.Normalised(samples, normalisation),
            key=jax.random.key(job.experiment.seed),
            estimators=estimators,
            out=pieces / f"{name.replace(' ', '_')}.parquet",
            batch_size=settings.batch_size,
            description=f"score {name}",
        ).to_pandas()

    tables = []
    for fold, samples in folds.items():
        table = scored(samples, fold, settings.estimators)
        again = table
        if len(wrong := np.flatnonzero(~table["correct"])):
            predicted = table["prediction"].to_numpy()[wrong]
            again_wrong = samples.take(wrong)
            relabelled = data.Labelled(again_wrong, predicted, again_wrong.indices)
            estimators = {"curvature": settings.estimator}
            once_more = scored(relabelled, f"{fold} without labels", estimators)
            once_more.index = pd.Index(wrong)
            again = table.copy()
            again.loc[wrong, once_more.columns] = once_more
        for name in prediction.NEED_LABEL:
            table[f"{name}{prediction.LABEL_FREE}"] = again[name]
        table.insert(0, "fold", fold)
        tables.append(table)
    scores = pd.concat(tables, ignore_index=True)

    images = first_images(folds["test"], settings.batch_size)
    rows = np.arange(settings.batch_size) % len(images)  # a small fold fills a batch several times
    batch = Batch(
        normalisation.apply(images[rows]), folds["test"].labels[rows], np.arange(len(rows))
    )
    passes = {"loss": 1.0, "gradient_norm": 2.0} | {
        name: forward_passes(estimator, len(dataset.class_names))
        for name, estimator in settings.estimators.items()
    }
    costs = pd.DataFrame({"predictor": passes.keys(), "forward_passes": passes.values()})
    outputs = [
        write_parquet(job.folder / "scores.parquet", scores),
        write_csv(job.folder / "costs.csv", costs),
    ]
    measured = seconds_per_image(model, batch, settings.estimators)
    return Outcome(outputs, jax.devices()[0].device_kind, measured, scratch=pieces)


def export(job: Job) -> Outcome:
    """Carries the weights to PyTorch; writes weights.safetensors if the logits agree."""
    import jax
    import torch
    from flax import nnx

    import bridge

    description = read_description(job.folder)
    model = load_flax(job, description)
    state_dict = bridge.to_torch(model)
    twin = build_torch(description)
    twin.load_state_dict(state_dict)
    dataset = load_data(job)
    require_classes(dataset, description)
    samples = data.read(dataset.test, range(min(64, len(dataset.test))), description="read test")
    normalisation = read_normalisation(description)
    images = normalisation.apply(samples.images)
    with jax.default_matmul_precision("highest"):
        flax_logits = np.asarray(nnx.jit(lambda model, x: model(x))(model, images))
    predicted = bridge.predict(
        twin.eval(), data.Normalised(samples, normalisation), description="export"
    )
    torch_logits = np.stack(predicted["logits"].to_numpy())
    error = float(np.abs(flax_logits - torch_logits).max() / np.abs(flax_logits).max())
    if not error < 1e-4:
        raise ValueError(
            f"logits of Flax and PyTorch differ by {error:.1e} relative (at most 1e-4 is allowed): "
            "weights not exported"
        )
    header = {
        **description,
        "checkpoint_sha256": sha256(job.folder / description["checkpoint"]),
        "data": job.experiment.data.name,
        "logits_relative_error": error,
    }
    path = job.folder / "weights.safetensors"
    bridge.save_weights(path, state_dict, header)
    return Outcome([path], f"cpu, torch {torch.__version__}")


def simulate(job: Job) -> Outcome:
    """Runs every profile's chips on the scored samples; writes predictions and converter ranges.

    Each finished chip is kept at once, so that an interrupted stage goes on with the next.
    """
    import bridge
    from bridge.logits import logit_scores

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
                keep=logit_scores,
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


ANALYSED = (
    *("deciles", "table_one", "predictors", "calibration", "calibration_errors"),
    *("routing", "routing_choices", "routing_baselines", "per_class", "overlap", "systematic"),
)
"""The tables of a run, each as Parquet and CSV."""


def analyse(job: Job) -> Outcome:
    """Joins scores and predictions; writes the tables of `ANALYSED`."""
    from experiments import analysis, prediction, routing
    from experiments.overlap import profile_overlap

    settings = job.experiment.analyse
    joined = _joined(job)
    costs = prediction.costs_table(pd.read_csv(job.folder / "costs.csv"))
    flips = read_parquet(job.folder / "flips.parquet")
    interval: dict[str, Any] = {"confidence": settings.confidence, "resamples": settings.resamples}
    deciles = analysis.failure_tables(joined, bins=settings.bins, **interval)
    model = job.experiment.model.architecture, job.experiment.data.name
    calibration, errors = prediction.calibrate(joined, flips, **interval)
    routed = routing.route(
        prediction.with_flips(joined, flips),
        costs,
        energies=settings.energy,
        tolerance=settings.tolerance,
    )
    tables = {
        "deciles": deciles,
        "table_one": analysis.table_one(joined, deciles, model=model),
        "predictors": prediction.compare(joined, costs, flips, bins=settings.bins, **interval),
        "calibration": calibration,
        "calibration_errors": errors,
        "routing": routed.curves,
        "routing_choices": routed.choices,
        "routing_baselines": routed.baselines,
        "per_class": analysis.per_class(joined),
    }
    tables["overlap"], tables["systematic"] = profile_overlap(joined, "test", **interval)
    outputs = []
    for name in ANALYSED:
        table = tables[name]
        outputs.append(write_parquet(job.folder / f"{name}.parquet", table))
        outputs.append(write_csv(job.folder / f"{name}.csv", table))
    return Outcome(outputs, "cpu")


def report(job: Job) -> Outcome:
    """Draws the figures and writes report.html."""
    from experiments import analysis, analysis_figures, compare_noise, figures, prediction, routing
    from experiments.presets import command_line
    from experiments.report import write_report
    from jaxcurv.data.images import encode_png

    settings = job.experiment
    dataset = load_data(job)
    joined = _joined(job)
    tables = {name: read_parquet(job.folder / f"{name}.parquet") for name in ANALYSED}
    scored = read_record(job.folder, "score")
    measured = {} if scored is None else scored["measured"]
    costs = pd.read_csv(job.folder / "costs.csv")
    costs["seconds_per_image"] = costs["predictor"].map(measured)
    seconds = prediction.costs_table(costs)[["predictor", "seconds_per_image"]]
    flips = read_parquet(job.folder / "flips.parquet")
    test = choose_folds(dataset, settings, ("test",))["test"]

    def images(rows: pd.DataFrame) -> np.ndarray:
        positions = np.searchsorted(test.indices, rows["index"].to_numpy())
        return data.read(test, positions, description="read shown images").images

    folder = job.folder / "figures"
    scored = joined.loc[joined["fold"] == "test", "index"].nunique()
    rows = figures.gallery_rows(joined, count=min(8, scored // 2))
    routed = tables["routing"], tables["routing_baselines"], tables["routing_choices"]
    drawn = [
        figures.figure_one(tables["deciles"], folder / "figure_one.png"),
        figures.figure_one(
            tables["deciles"], folder / "figure_one_correct.png", denominator="correct"
        ),
        analysis_figures.predictor_figure(tables["predictors"], folder / "predictors.png"),
        analysis_figures.calibration_figure(
            tables["calibration"], tables["calibration_errors"], folder / "calibration.png"
        ),
        analysis_figures.routing_figure(*routed, folder / "routing.png"),
        figures.gallery(rows, images(rows), dataset.class_names, folder / "gallery.png"),
        figures.score_histogram(joined, folder / "score_histogram.png"),
    ]
    if settings.model.weights is None:
        history = pd.read_csv(job.folder / "history.csv")
        drawn.append(figures.training_curve(history, folder / "training_curve.png"))
    if len(overlap := tables["overlap"]):
        title = "Profiles of this run, test fold"
        drawn.append(compare_noise.draw(overlap, folder / "overlap.png", title))
    vulnerable = analysis.vulnerable(joined, flips)
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
        verdict=prediction.verdict(tables["predictors"]),
        routing_summary=routing.summary(tables["routing_choices"]),
        vulnerable=vulnerable,
        thumbnails=thumbnails,
        reproduce=[f"python -m experiments run {shlex.join(command_line(asdict(settings)))}"],
        figures=drawn,
        drift_figure=drift if drift.exists() else None,
        drift_seconds=settings.simulate.pcm.t_inference,
        ideal_agreement=analysis.ideal_agreement(joined),
        **(
            tables | {"predictors": tables["predictors"].merge(seconds, on="predictor", how="left")}
        ),
    )
    return Outcome([page, folder], "cpu")


def _joined(job: Job) -> pd.DataFrame:
    from experiments import analysis

    return analysis.join(
        read_parquet(job.folder / "scores.parquet"),
        read_parquet(job.folder / "predictions.parquet"),
    )


def describe(
    model: Model,
    dataset: data.ImageDataset,
    *,
    in_channels: int,
    normalisation: data.Normalisation,
) -> dict[str, Any]:
    """What builds a network anew and says what it is for, as JSON holds it."""
    return {
        "architecture": model.architecture,
        "stem": model.stem,
        "width": model.width,
        "num_classes": len(dataset.class_names),
        "in_channels": in_channels,
        "class_names": list(dataset.class_names),
        "normalisation": asdict(normalisation),
    }


def build_flax(description: dict[str, Any], seed: int, dtype: Any) -> nnx.Module:
    """The Flax network of a description, freshly initialised."""
    from flax import nnx

    from jaxcurv import models

    make = {"resnet18": models.ResNet18, "resnet50": models.ResNet50}[description["architecture"]]
    return make(**_dimensions(description), dtype=dtype, rngs=nnx.Rngs(seed))


def load_flax(job: Job, description: dict[str, Any]) -> nnx.Module:
    """The trained network, in evaluation mode.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is not of the network described.
    """
    from jaxcurv.training import restore_best

    checkpoint = job.folder / description["checkpoint"]
    try:
        return restore_best(
            lambda dtype: build_flax(description, job.experiment.seed, dtype), checkpoint
        )
    except ValueError as error:
        what = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{checkpoint} holds another network than model.json describes, or is damaged: {what}; "
            "run train again"
        ) from error


def build_torch(description: dict[str, Any]) -> Any:
    """The PyTorch twin of a description."""
    import bridge

    make = {"resnet18": bridge.resnet18, "resnet50": bridge.resnet50}[description["architecture"]]
    return make(**_dimensions(description))


def load_twin(job: Job) -> tuple[Any, dict[str, Any]]:
    """The exported network in PyTorch, in evaluation mode, and its description.

    Raises:
      FileNotFoundError: nothing was exported.
      ValueError: the file is damaged, or its tensors are not those of the network it describes.
    """
    import torch

    import bridge

    path = job.folder / "weights.safetensors"
    state_dict, header = bridge.load_weights(path)
    description = require_description(header, path)
    try:
        with torch.device("meta"):  # the tensors, not the header, say how much memory it takes
            twin = build_torch(description)
        # Within the file they lie unaligned, and PyTorch's sums there may differ in the last bit.
        twin.load_state_dict({n: t.clone() for n, t in state_dict.items()}, assign=True)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{path} holds other tensors than the network in its header has: {what}; run export "
            "again"
        ) from error
    return twin.eval(), description


def _dimensions(description: dict[str, Any]) -> dict[str, Any]:
    return {key: description[key] for key in ("num_classes", "stem", "width", "in_channels")}


def require_classes(dataset: data.ImageDataset, description: dict[str, Any]) -> None:
    """Refuses a data set whose labels are not those that the model was trained on.

    Raises:
      ValueError: the class names differ.
    """
    if list(dataset.class_names) != description["class_names"]:
        raise ValueError(
            f"mismatched labels: the model knows {len(description['class_names'])} classes, "
            f"{dataset.name} has {len(dataset.class_names)} or names them otherwise; use the data "
            "set that the model was trained on"
        )


def warn_of_idle_accelerator() -> None:
    """Says so when a GPU or TPU is there and JAX runs on the CPU."""
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    for device, kind, extra in (
        ("/dev/nvidia0", "an NVIDIA GPU", "cuda13"),
        ("/dev/accel0", "a TPU", "tpu"),
    ):
        if Path(device).exists():
            print(
                f"warning: {kind} is present, but JAX runs on the CPU; for the accelerator: "
                f'pip install ".[{extra}]" in the checkout',
                file=sys.stderr,
            )
