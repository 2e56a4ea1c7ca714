"""Stage `train`: the digital model."""

from __future__ import annotations

import pandas as pd

from experiments.runs.descriptions import describe
from experiments.runs.files import write_csv
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import build_flax
from experiments.runs.samples import choose_folds
from experiments.system.devices import warn_of_idle_accelerator
from jaxcurv import data
from jaxcurv.storage.checksums import write_json


def train(job: Job) -> Outcome:
    """Trains the digital model; writes its best checkpoint, its description and its history."""
    import jax

    from jaxcurv.training.checkpoints import Epoch
    from jaxcurv.training.loop import fit

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
    checkpoints = job.own_folder("checkpoints")
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
