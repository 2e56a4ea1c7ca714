"""The network of a run, its scored images and settings of chips, for the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bridge.chips.profiles import Profile
from bridge.report.folds import FOLDS, Fold
from experiments.chips.protocol import Programmable
from experiments.runs.files import read_parquet
from experiments.runs.records import read_record
from experiments.runs.resume import key_of
from experiments.runs.samples import Samples, positions_of, read_small
from experiments.settings.flags import Experiment, Simulate
from experiments.settings.restore import restore
from experiments.studies.chip_settings import named_settings
from experiments.studies.exported import Network, open_network_for
from experiments.studies.opening import read_scored
from jaxcurv.data import Normalisation


@dataclass(frozen=True)
class Scored:
    """A run's network, its scored images and the settings of its chips."""

    source: Network
    """The run's network and its data set."""
    network: Programmable
    """What the chips are programmed with: that network, for the engine of the settings."""
    settings: Mapping[str, Profile]
    """Profiles by the settings' names."""
    scores: pd.DataFrame
    """The run's scores, sorted by fold and index."""
    flips: Mapping[str, pd.Series]
    """Flip probabilities in the order of `scores`, of the settings that the run has them of."""
    folds: Mapping[Fold, Samples]
    """The images in the order of `scores`."""
    normalisation: Normalisation
    calibration: int
    """How many images set calibrated ADC ranges."""
    class_names: Sequence[str]
    origin: dict[str, Any]
    """What decides the outcomes besides a chip's profile and seed, as JSON holds it."""
    made_with: dict[str, Any]
    """Device and package versions, as JSON holds them."""


def open_scored(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    profiles: tuple[str, ...],
    flag: str,
) -> Scored:
    """Reads a run's network, its scores and the images that they are of.

    Args:
      experiment: settings of the run, those of its chips among them.
      folder: folder of the run.
      data_dir: where data sets are; None for TFDS's default.
      profiles: the settings.
      flag: the flag that gave them, for messages.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    simulate = experiment.simulate
    settings = named_settings(profiles, simulate, flag)
    read_scored(folder)
    network, versions = open_network_for(experiment, folder, data_dir)
    scores = read_parquet(folder / "scores.parquet")
    scores = pd.concat(
        [scores[scores["fold"] == fold].sort_values("index") for fold in FOLDS], ignore_index=True
    )
    chosen = {}
    for fold, rows in scores.groupby("fold", sort=False):
        samples = network.images.fold(fold)
        chosen[fold] = samples.take(positions_of(samples.indices, rows["index"].to_numpy()))
        if not np.array_equal(chosen[fold].labels, rows["label"]):
            raise ValueError(
                f"the labels of the {fold} images are not those in {folder / 'scores.parquet'}: "
                "run score again, on the data set as it is now"
            )
    programmable = network.programmable(settings.values())
    return Scored(
        network,
        programmable,
        settings,
        scores,
        _flips(folder, scores, settings),
        read_small(chosen),
        network.images.normalisation,
        simulate.adc_calibration,
        network.images.dataset.class_names,
        {
            **network.origin,
            "samples": {fold: len(samples) for fold, samples in chosen.items()},
            "indices": key_of(scores["index"].tolist()),
            "engine": simulate.engine,
            "stream": simulate.stream,
        },
        {"device": programmable.device, "versions": versions},
    )


def _flips(
    folder: Path, scores: pd.DataFrame, settings: Mapping[str, Profile]
) -> dict[str, pd.Series]:
    """The run's flip probabilities of the settings whose devices and time are its own."""
    record, train = (read_record(folder, name) for name in ("flips", "train"))
    if record is None or train is None or not (folder / "flips.parquet").exists():
        return {}
    if any(train["outputs"].get(file, made) != made for file, made in record["inputs"].items()):
        return {}  # of a network that was there before
    simulate = restore(Simulate(), record["settings"]["simulate"])
    flips = read_parquet(folder / "flips.parquet")
    found = {}
    for name, profile in settings.items():
        of_run = name.partition("@")[0]
        rows = flips[flips["profile"] == of_run]
        joined = scores[["fold", "index"]].merge(rows, on=["fold", "index"], how="left")
        if simulate.every_profile[of_run] == profile and joined["probability"].notna().all():
            found[name] = joined["probability"]
    return found
