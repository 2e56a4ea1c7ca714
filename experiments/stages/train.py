"""Stage `train`: the digital model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.runs.descriptions import describe, read_normalisation
from experiments.runs.files import write_csv
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import builder
from experiments.runs.samples import choose_folds
from experiments.stages.pretrained import load_given
from experiments.system.devices import warn_of_idle_accelerator
from jaxcurv import data
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    from flax import nnx

    from jaxcurv.training.steps import Perturb

_EXAMPLES = 4
"""Images by which the chip of noise-aware training knows the network."""


def train(job: Job) -> Outcome:
    """Trains the digital model; writes its best checkpoint, its description and its history."""
    import jax

    from jaxcurv.training.checkpoints import Epoch
    from jaxcurv.training.loop import fit

    dataset = load_data(job)
    chosen = choose_folds(dataset, job.experiment, ("train", "validation"))
    start = job.experiment.train.start
    given = None if start is None else load_given(job.experiment, dataset, start, "--train.start")
    folds = {
        fold: data.read(samples, description=f"read {fold}") for fold, samples in chosen.items()
    }
    warn_of_idle_accelerator()
    images = folds["train"].images
    if given is None:
        normalisation = job.experiment.data.normalisation or data.Normalisation.of(images)
        normalisation.require_channels(images.shape)
        description = describe(
            job.experiment.model, dataset, in_channels=images.shape[-1], normalisation=normalisation
        )
    else:
        description = given.description
        normalisation = read_normalisation(description)
    build = builder(description, job.experiment.seed, given and given.network)
    checkpoints = job.own_folder("checkpoints")
    history = fit(
        build,
        folds["train"],
        folds["validation"],
        normalisation,
        job.experiment.train,
        seed=job.experiment.seed,
        directory=checkpoints,
        perturb=_noise(job, build, normalisation.apply(images[:_EXAMPLES])),
    )
    description["checkpoint"] = checkpoints.relative_to(job.folder).as_posix()
    outputs = [
        write_json(job.folder / "model.json", description),
        write_csv(job.folder / "history.csv", pd.DataFrame(history, columns=Epoch._fields)),
        checkpoints,
    ]
    return Outcome(outputs, jax.devices()[0].device_kind)


def _noise(job: Job, build: Callable[[Any], nnx.Module], images: np.ndarray) -> Perturb | None:
    """What weights get at each step of noise-aware training; None for training without noise."""
    profile = job.experiment.training_noise
    if profile is None:
        return None
    import jax.numpy as jnp

    from bridge.jax_chips import training_noise

    return training_noise(build(jnp.float32), profile, images)
