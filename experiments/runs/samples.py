"""The samples of an experiment, by fold; chosen without decoding an image."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from experiments.settings.flags import Experiment, Fold
from jaxcurv.data import (
    Arrays,
    Chosen,
    ImageDataset,
    Normalisation,
    read,
    split_validation,
    subset,
    with_labels,
)

MEMORY = 4 * 2**30
"""Bytes of pixels that a stage keeps; where its samples have more, it decodes them batch by batch,
in every pass again."""

Samples = Arrays | Chosen
"""Samples of one fold, decoded or not."""


def choose_folds(
    dataset: ImageDataset, experiment: Experiment, wanted: Iterable[Fold]
) -> dict[Fold, Chosen]:
    """All samples of the wanted folds, in order of their stable indices.

    Train and validation divide the official training split; both keep their index within it.
    """
    wanted = set(wanted)
    folds: dict[Fold, Chosen] = {}
    if {"train", "validation"} & wanted:
        official = with_labels(dataset.train, description="read labels of train")
        train, validation = split_validation(
            official.indices, experiment.data.validation_fraction, experiment.data.split_seed
        )
        folds = {"train": Chosen(official, train), "validation": Chosen(official, validation)}
    if "test" in wanted:
        test = with_labels(dataset.test, description="read labels of test")
        folds["test"] = Chosen(test, np.argsort(test.indices))
    return {fold: samples for fold, samples in folds.items() if fold in wanted and len(samples)}


def limited(folds: Mapping[Fold, Chosen], experiment: Experiment) -> dict[Fold, Chosen]:
    """The samples that are scored and simulated, of the experiment's folds and within its limit."""
    return {
        fold: samples.take(subset(samples.indices, experiment.limit, experiment.data.split_seed))
        for fold, samples in folds.items()
        if fold in experiment.folds
    }


def read_small(folds: Mapping[Fold, Chosen]) -> Mapping[Fold, Samples]:
    """The folds in memory if all their pixels fit into `MEMORY`, else as they are.

    Their size is judged by the first image.
    """
    count = sum(map(len, folds.values()))
    first = next((samples[0]["image"] for samples in folds.values() if len(samples)), None)
    if first is None or first.nbytes * count > MEMORY:
        return folds
    return {fold: read(samples, description=f"read {fold}") for fold, samples in folds.items()}


def positions_of(indices: np.ndarray, wanted: npt.ArrayLike) -> np.ndarray:
    """Where the samples of the `wanted` indices `[m]` are among those of `indices` `[n]`.

    Raises:
      ValueError: some are not there.
    """
    order = np.argsort(indices)
    found = order[np.minimum(np.searchsorted(indices, wanted, sorter=order), len(order) - 1)]
    if len(lost := np.flatnonzero(indices[found] != wanted)):
        raise ValueError(
            f"{len(lost)} of the samples to show are not in the data set, the first at index "
            f"{np.asarray(wanted)[lost[0]]}: its images have changed since they were scored; run "
            "score and what follows again"
        )
    return found


def first_images(samples: Samples, count: int) -> np.ndarray:
    """The first `count` images, or as many as there are: uint8 `[n, height, width, channel]`."""
    positions = np.arange(min(count, len(samples)))
    return read(samples, positions, description="read the first images").images


def calibration_images(
    train: Chosen, normalisation: Normalisation, experiment: Experiment
) -> np.ndarray:
    """The training images that set the ADC ranges, normalised."""
    count = experiment.simulate.adc_calibration
    chosen = train.take(subset(train.indices, count, experiment.data.split_seed))
    return normalisation.apply(read(chosen, description="read calibration").images)
