"""What each stage does: reads files of a run's folder, writes files into it.

A stage imports what it needs when it runs, so that a process holds either JAX or torch on an
accelerator, never both.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.artefacts import read_json, sha256, write_csv, write_json, write_parquet
from experiments.records import read_records, recorded_settings
from experiments.samples import limited, read_folds
from experiments.settings import Experiment
from jaxcurv import data

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
    scratch: Path | None = None
    """Unfinished work, of no more use once the stage is recorded."""


def load_data(job: Job) -> data.ImageDataset:
    """The experiment's data set."""
    return data.load(job.experiment.data.name, job.data_dir, job.experiment.data.image_size)


def train(job: Job) -> Outcome:
    """Trains the digital model; writes its best checkpoint, its description and its history."""
    import jax

    from jaxcurv.training import Epoch, fit

    dataset = load_data(job)
    folds = read_folds(dataset, job.experiment, ("train", "validation"))
    warn_of_idle_accelerator()
    normalisation = data.Normalisation.of(folds["train"].images)
    description = {
        **asdict(job.experiment.model),
        "num_classes": len(dataset.class_names),
        "in_channels": int(folds["train"].images.shape[-1]),
        "class_names": list(dataset.class_names),
        "normalisation": asdict(normalisation),
    }
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
    """Scores every sample with the trained digital model; writes scores.parquet."""
    import jax

    from jaxcurv import HessianTrace, score_dataset

    description = read_json(job.folder / "model.json")
    dataset = load_data(job)
    require_classes(dataset, description)
    model = load_flax(job, description)
    warn_of_idle_accelerator()
    normalisation = read_normalisation(description)
    settings, tables = job.experiment.score, []
    difference = settings.estimator
    # The trace comes from the same probes, at no further cost.
    trace = HessianTrace(difference.probes, difference.step, difference.distribution)
    pieces = job.folder / "scores" / job.fingerprint
    folds = read_folds(dataset, job.experiment, job.experiment.folds)
    for fold, samples in limited(folds, job.experiment).items():
        table = score_dataset(
            model,
            data.Normalised(samples, normalisation),
            key=jax.random.key(job.experiment.seed),
            estimators={"curvature": difference, "hessian_trace": trace},
            out=pieces / f"{fold}.parquet",
            batch_size=settings.batch_size,
            description=f"score {fold}",
        ).to_pandas()
        table.insert(0, "fold", fold)
        tables.append(table)
    path = write_parquet(job.folder / "scores.parquet", pd.concat(tables, ignore_index=True))
    return Outcome([path], jax.devices()[0].device_kind, scratch=pieces)


def export(job: Job) -> Outcome:
    """Carries the weights to PyTorch; writes weights.safetensors if the logits agree."""
    import jax
    import torch
    from flax import nnx

    import bridge

    description = read_json(job.folder / "model.json")
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

    settings = job.experiment.simulate
    twin, description = load_twin(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    folds = read_folds(dataset, job.experiment, {"train", *job.experiment.folds})
    calibration = calibration_images(folds["train"], normalisation, job.experiment)
    folds = limited(folds, job.experiment)
    unseen = normalisation.apply(folds["test"].images[: settings.calibration])

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
            )
            predicted = table.select(["index", "prediction", "correct"]).to_pandas()
            predicted.insert(0, "fold", fold)
            outcomes.append(predicted)
        return pd.concat(outcomes, ignore_index=True), ranges

    profiles = bridge.eight_profiles(settings.adc, settings.wnoise, settings.pcm, settings.clipping)
    parts = job.folder / "chips" / job.fingerprint
    predictions, converters = [], []
    for seed in range(job.experiment.seed, job.experiment.seed + settings.chips):
        for name, profile in profiles.items():
            # The last one written, so that it stands for both.
            finished = parts / f"{name}-{seed}.parquet"
            converter = parts / f"{name}-{seed}.adc.parquet"
            if not finished.exists():
                outcomes, ranges = run_chip(profile, seed)
                for path, table in ((converter, ranges), (finished, outcomes)):
                    table.insert(0, "profile", name)
                    table.insert(1, "chip", seed)
                    write_parquet(path, table)
            predictions.append(pd.read_parquet(finished))
            if profile.adc:
                converters.append(pd.read_parquet(converter))
    outputs = [
        write_parquet(job.folder / "predictions.parquet", pd.concat(predictions)),
        write_csv(job.folder / "adc_ranges.csv", pd.concat(converters)),
    ]
    return Outcome(outputs, settings.device, scratch=parts)


def analyse(job: Job) -> Outcome:
    """Joins scores and predictions; writes the decile table, Table I and the correlations."""
    from experiments import analysis

    settings = job.experiment.analyse
    joined = _joined(job)
    deciles = analysis.decile_tables(joined, bins=settings.bins, confidence=settings.confidence)
    correlations = analysis.correlations(
        joined, confidence=settings.confidence, resamples=settings.resamples
    )
    tables = {
        "deciles": deciles,
        "table_one": analysis.table_one(deciles),
        "correlations": correlations,
    }
    outputs = []
    for name, table in tables.items():
        outputs.append(write_parquet(job.folder / f"{name}.parquet", table))
        outputs.append(write_csv(job.folder / f"{name}.csv", table))
    return Outcome(outputs, "cpu")


def report(job: Job) -> Outcome:
    """Draws the figures and writes report.html."""
    from experiments import analysis, figures
    from experiments.report import write_report

    dataset = load_data(job)
    joined = _joined(job)
    deciles = pd.read_parquet(job.folder / "deciles.parquet")
    folder = job.folder / "figures"
    test = read_folds(dataset, job.experiment, ("test",))["test"]
    scored = joined.loc[joined["fold"] == "test", "index"].nunique()
    rows = figures.gallery_rows(joined, count=min(8, scored // 2))
    images = test.images[np.searchsorted(test.indices, rows["index"].to_numpy())]
    drawn = [
        figures.figure_one(deciles, folder / "figure_one.png"),
        figures.figure_one(deciles, folder / "figure_one_correct.png", denominator="correct"),
        figures.gallery(rows, images, dataset.class_names, folder / "gallery.png"),
        figures.score_histogram(joined, folder / "score_histogram.png"),
        figures.training_curve(
            pd.read_csv(job.folder / "history.csv"), folder / "training_curve.png"
        ),
    ]
    page = write_report(
        job.folder / "report.html",
        title=f"{job.experiment.model.architecture} on {job.experiment.data.name}",
        settings=recorded_settings(job.folder),
        stages=[record for record in read_records(job.folder) if record["name"] != "report"],
        deciles=deciles,
        correlations=pd.read_parquet(job.folder / "correlations.parquet"),
        figures=drawn,
        drift_seconds=job.experiment.simulate.pcm.t_inference,
        ideal_agreement=analysis.ideal_agreement(joined),
    )
    return Outcome([page, folder], "cpu")


def _joined(job: Job) -> pd.DataFrame:
    from experiments import analysis

    return analysis.join(
        pd.read_parquet(job.folder / "scores.parquet"),
        pd.read_parquet(job.folder / "predictions.parquet"),
    )


def build_flax(description: dict[str, Any], seed: int, dtype: Any) -> nnx.Module:
    """The Flax network of a description, freshly initialised."""
    from flax import nnx

    from jaxcurv import models

    make = {"resnet18": models.ResNet18, "resnet50": models.ResNet50}[description["architecture"]]
    return make(**_dimensions(description), dtype=dtype, rngs=nnx.Rngs(seed))


def load_flax(job: Job, description: dict[str, Any]) -> nnx.Module:
    """The trained network, in evaluation mode."""
    from jaxcurv.training import restore_best

    return restore_best(
        lambda dtype: build_flax(description, job.experiment.seed, dtype),
        job.folder / description["checkpoint"],
    )


def build_torch(description: dict[str, Any]) -> Any:
    """The PyTorch twin of a description."""
    import bridge

    make = {"resnet18": bridge.resnet18, "resnet50": bridge.resnet50}[description["architecture"]]
    return make(**_dimensions(description))


def load_twin(job: Job) -> tuple[Any, dict[str, Any]]:
    """The exported network in PyTorch, in evaluation mode, and its description."""
    import bridge

    state_dict, description = bridge.load_weights(job.folder / "weights.safetensors")
    twin = build_torch(description)
    twin.load_state_dict(state_dict)
    return twin.eval(), description


def read_normalisation(description: dict[str, Any]) -> data.Normalisation:
    """The normalisation that a network was trained with."""
    statistics = description["normalisation"]  # JSON has lists
    return data.Normalisation(tuple(statistics["mean"]), tuple(statistics["std"]))


def calibration_images(
    train: data.Arrays, normalisation: data.Normalisation, experiment: Experiment
) -> np.ndarray:
    """The training images that set the converters' ranges, normalised."""
    count = experiment.simulate.calibration
    chosen = data.subset(train.indices, count, experiment.data.split_seed)
    return normalisation.apply(train.images[chosen])


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
