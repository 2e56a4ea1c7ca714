"""Stage `score`: curvature and cheaper scores of every sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import write_parquet
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import identity_of_model, load_model, require_classes
from experiments.runs.resume import key_of
from experiments.runs.samples import first_images, read_small, scored_samples
from experiments.system.devices import use_every_core, warn_of_idle_accelerator
from jaxcurv import data
from jaxcurv.estimators import describe
from jaxcurv.progress import expect, progress


def score(job: Job) -> Outcome:
    """Scores every sample with the trained digital model; writes scores.parquet.

    The samples that the model gets wrong are scored once more with its own prediction as the label,
    as a deployed router would have to: the columns that end in "_label_free". The others' are those
    of their label.

    Finished scores are kept in scores/: with a larger --limit only the new samples are scored.
    """
    import jax

    from bridge.report.tables import predictors
    from experiments.stages.costs import seconds_per_image
    from jaxcurv import score_dataset
    from jaxcurv.data.reading import Batch

    use_every_core()
    description = read_description(job.folder)
    dataset = load_data(job)
    require_classes(dataset, description)
    model, params = load_model(job, description, dataset)
    warn_of_idle_accelerator()
    normalisation = read_normalisation(description)
    settings = job.experiment.score
    # Every device computes batches of the same shape, however many there are: a score's last bits
    # depend on it.
    batch_size = settings.batch_size * len(jax.local_devices())
    place = _place(job, identity_of_model(job, description))
    folds = read_small(scored_samples(dataset, job.experiment))

    def scored(samples: data.Source, name: str, estimators: Any) -> pd.DataFrame:
        with progress(len(samples), name):
            return score_dataset(
                model,
                data.Normalised(samples, normalisation),
                params=params,
                key=jax.random.key(job.experiment.seed),
                estimators=estimators,
                out=place / f"{name.replace(' ', '_')}.parquet",
                batch_size=batch_size,
                description=name,
            )

    expect(sum(map(len, folds.values())))
    tables = []
    for fold, samples in folds.items():
        table = scored(samples, fold, settings.estimators)
        again = table
        if len(wrong := np.flatnonzero(~table["correct"])):
            predicted = table["prediction"].to_numpy()[wrong]
            again_wrong = samples.take(wrong)
            relabelled = data.Labelled(again_wrong, predicted, again_wrong.indices)
            estimators = {"curvature": settings.estimator}
            expect(len(wrong))
            once_more = scored(relabelled, f"{fold} without labels", estimators)
            once_more.index = pd.Index(wrong)
            again = table.copy()
            again.loc[wrong, once_more.columns] = once_more
        for name in predictors.NEED_LABEL:
            table[f"{name}{predictors.LABEL_FREE}"] = again[name]
        table.insert(0, "fold", fold)
        tables.append(table)
    scores = pd.concat(tables, ignore_index=True)

    images = first_images(folds["test"], batch_size)
    rows = np.arange(batch_size) % len(images)  # a small fold fills a batch several times
    batch = Batch(
        normalisation.apply(images[rows]), folds["test"].labels[rows], np.arange(len(rows))
    )
    outputs = [write_parquet(job.folder / "scores.parquet", scores)]
    measured = seconds_per_image(model, params, batch, settings.estimators)
    return Outcome(outputs, jax.devices()[0].device_kind, measured)


def _place(job: Job, model: Any) -> Path:
    """The folder of the finished scores: named by all that decides them but which samples."""
    experiment = job.experiment
    decides = {
        "weights": model,
        "data": experiment.data.deciding,
        "images": dict(job.images),
        "seed": experiment.seed,
        "batch_size": experiment.score.batch_size,
        "estimators": {name: describe(one) for name, one in experiment.score.estimators.items()},
    }
    return job.folder / "scores" / key_of(decides)
