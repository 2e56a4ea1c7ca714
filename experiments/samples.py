"""The samples of an experiment, by fold."""

from collections.abc import Iterable

import numpy as np

from experiments.settings import Experiment, Fold
from jaxcurv.data import Arrays, ImageDataset, read, split_validation, subset


def read_folds(
    dataset: ImageDataset, experiment: Experiment, wanted: Iterable[Fold]
) -> dict[Fold, Arrays]:
    """All samples of the wanted folds, in order of their stable indices.

    Train and validation divide the official training split; both keep their index within it.
    """
    folds: dict[Fold, Arrays] = {}
    if {"train", "validation"} & set(wanted):
        official = read(dataset.train, description="read train")
        train, validation = split_validation(
            official.indices, experiment.data.validation_fraction, experiment.data.split_seed
        )
        folds = {"train": official.take(train), "validation": official.take(validation)}
    if "test" in wanted:
        test = read(dataset.test, description="read test")
        folds["test"] = test.take(np.argsort(test.indices))
    return {fold: samples for fold, samples in folds.items() if fold in wanted and len(samples)}


def limited(folds: dict[Fold, Arrays], experiment: Experiment) -> dict[Fold, Arrays]:
    """The samples that are scored and simulated, of the experiment's folds and within its limit."""
    return {
        fold: samples.take(subset(samples.indices, experiment.limit, experiment.data.split_seed))
        for fold, samples in folds.items()
        if fold in experiment.folds
    }
