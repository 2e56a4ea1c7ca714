"""What a study is as a command, and the images of the run that it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from bridge.report.folds import Fold
from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import sha256
from experiments.runs.job import Job, load_data
from experiments.runs.networks import require_classes
from experiments.runs.records import read_record
from experiments.runs.samples import (
    calibration_samples,
    choose_folds,
    has_own_validation,
    read_small,
)
from experiments.settings.flags import Experiment
from jaxcurv.data import Chosen, ImageDataset, Normalisation, Normalised, subset

Settings = TypeVar("Settings")

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Study(Generic[Settings, Opened]):
    """A command that works on what a run left, in a folder of its own."""

    prefix: str
    """What its flags begin with, `--PREFIX.`."""
    settings: type[Settings]
    """Frozen dataclass of its flags, each with a default; among them `out`."""
    open: Callable[..., Opened]
    """Checks and reads what is needed, given experiment, run's folder and folder of the data sets,
    and by keyword what `opened_with` names; writes nothing."""
    run: Callable[[Opened, Experiment, Settings, Path], object]
    """Works on what `open` returned and leaves the results in `out`."""
    opened_with: tuple[str, ...]
    """The settings that `open` takes."""
    of: tuple[str, ...]
    """The stages whose results it works on: it takes their settings."""
    beside: tuple[str, ...] = ()
    """The stages beside whose results its own stand: it takes their settings too, unless `out` is a
    folder of its own."""


@dataclass(frozen=True)
class Images:
    """A run's data set, for the network that was trained on it."""

    experiment: Experiment
    dataset: ImageDataset
    normalisation: Normalisation

    def fold(self, fold: Fold) -> Chosen:
        """All samples of a fold, not decoded.

        Raises:
          ValueError: the data set has none.
        """
        found = choose_folds(self.dataset, self.experiment, (fold,))
        if fold not in found:
            raise ValueError(
                f"{self.experiment.data.title} has no {fold} images, which this study needs"
            )
        return found[fold]

    def some(self, fold: Fold, most: int | None) -> Normalised:
        """At most `most` samples of a fold, None for all; in memory where they fit."""
        return self._some(self.fold(fold), fold, most)

    @property
    def has_validation(self) -> bool:
        """Whether there are images beside the test fold that the network was not trained on."""
        own = has_own_validation(self.dataset, self.experiment)
        return own or self.experiment.model.factory is None

    def test_in_two(self, most: int | None, rest: int | None) -> tuple[Normalised, Normalised]:
        """Two parts of the test fold without a common sample, of at most so many each.

        Where there are too few for both, both have about half of them.
        """
        samples, seed = self.fold("test"), self.experiment.data.split_seed
        half = len(samples) // 2
        second = subset(samples.indices, half if rest is None else min(rest, half), seed)
        others = np.setdiff1d(np.arange(len(samples)), second)
        first = others[subset(samples.indices[others], most, seed)]
        return tuple(  # type: ignore[return-value]
            Normalised(read_small({"test": samples.take(chosen)})["test"], self.normalisation)
            for chosen in (first, second)
        )

    def calibrating(self, most: int) -> Normalised:
        """At most `most` samples of those that chips are calibrated on; in memory where they
        fit."""
        return self._some(calibration_samples(self.dataset, self.experiment), "train", most)

    def _some(self, samples: Chosen, fold: Fold, most: int | None) -> Normalised:
        chosen = samples.take(subset(samples.indices, most, self.experiment.data.split_seed))
        return Normalised(read_small({fold: chosen})[fold], self.normalisation)


def open_images(job: Job, description: dict[str, Any]) -> Images:
    """Opens the data set of a run.

    Args:
      job: the run.
      description: its network's.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: it is not the one that the network was trained on.
    """
    dataset = load_data(job)
    require_classes(dataset, description)
    return Images(job.experiment, dataset, read_normalisation(description))


def read_scored(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's finished scores were recorded with, and the network that they are of.

    Returns:
      The record of the stage `score`, and the network's description.

    Raises:
      FileNotFoundError: there is no trained network, or it has not been scored.
      ValueError: the scores are of another network than the one that is there.
    """
    if not (folder / "model.json").exists():
        raise FileNotFoundError(f"no model.json in {folder}: run train first")
    record = read_record(folder, "score")
    if record is None or not (folder / "scores.parquet").exists():
        raise FileNotFoundError(f"no finished score in {folder}: run score first")
    description = read_description(folder)
    checkpoint = description["checkpoint"]
    if not (folder / checkpoint).exists():
        raise FileNotFoundError(f"no {checkpoint} in {folder}: run train first")
    if record["inputs"].get(checkpoint) != sha256(folder / checkpoint):
        raise ValueError(
            f"the scores in {folder} are not of its {checkpoint}: run score and what follows again"
        )
    return record, description
