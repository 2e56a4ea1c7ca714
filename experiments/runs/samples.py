"""The samples of an experiment, by fold; chosen without decoding an image."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from bridge.report.folds import Fold
from experiments.settings.flags import Experiment
from jaxcurv.data import (
    Arrays,
    Chosen,
    ImageDataset,
    Normalisation,
    Source,
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

    Train and validation divide the official training split; both keep their index within it. For a
    network of a factory they are the data set's own where it has both.
    """
    wanted = set(wanted)
    folds: dict[Fold, Chosen] = {}
    if has_own_validation(dataset, experiment):
        assert dataset.validation is not None
        own: dict[Fold, Source] = {"train": dataset.train, "validation": dataset.validation}
        for fold in own.keys() & wanted:
            source = with_labels(own[fold], description=f"read labels of {fold}")
            folds[fold] = Chosen(source, np.argsort(source.indices))
    elif {"train", "validation"} & wanted:
        official = with_labels(dataset.train, description="read labels of train")
        train, validation = split_validation(
            official.indices, experiment.data.validation_fraction, experiment.data.split_seed
        )
        folds = {"train": Chosen(official, train), "validation": Chosen(official, validation)}
    if "test" in wanted:
        test = with_labels(dataset.test, description="read labels of test")
        folds["test"] = Chosen(test, np.argsort(test.indices))
    order: tuple[Fold, ...] = ("train", "validation", "test")
    return {fold: folds[fold] for fold in order if fold in wanted and len(folds.get(fold, ()))}


def has_own_validation(dataset: ImageDataset, experiment: Experiment) -> bool:
    """Whether validation is a split of the data set, not a part of its training split.

    Networks that are trained here keep a part of the training split out, whatever there is.
    """
    return experiment.model.factory is not None and dataset.validation is not None


def scored_samples(dataset: ImageDataset, experiment: Experiment) -> dict[Fold, Chosen]:
    """The samples that are scored and simulated.

    A factory's network has seen the whole training split: a part of it is no validation fold.
    """
    folds = set(experiment.folds)
    if experiment.model.factory is not None and not has_own_validation(dataset, experiment):
        folds.discard("validation")
    return limited(choose_folds(dataset, experiment, folds), experiment)


def limited(folds: Mapping[Fold, Chosen], experiment: Experiment) -> dict[Fold, Chosen]:
    """The samples that are scored and simulated, of the experiment's folds and within its limit."""
    return {
        fold: samples.take(
            subset(samples.indices, experiment.limit_of(fold), experiment.data.split_seed)
        )
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


def calibration_samples(dataset: ImageDataset, experiment: Experiment) -> Chosen:
    """The samples of which some set the ADC ranges: of the train fold, or what stands for it."""
    if dataset.calibration is None:
        return choose_folds(dataset, experiment, ("train",))["train"]
    source = with_labels(dataset.calibration, description="read labels for calibration")
    return Chosen(source, np.argsort(source.indices))


def calibration_images(
    train: Chosen, normalisation: Normalisation, experiment: Experiment
) -> np.ndarray:
    """Those of some samples that set the ADC ranges, normalised.

    Args:
      train: as `calibration_samples` gives them.
      normalisation: that of the network.
      experiment: says how many, and the seed of the choice.
    """
    count = experiment.simulate.adc_calibration
    chosen = train.take(subset(train.indices, count, experiment.data.split_seed))
    return normalisation.apply(read(chosen, description="read calibration").images)
