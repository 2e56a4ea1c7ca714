"""The network of a run and the images to try its chips on, for the studies.

The run's folder needs only `weights.safetensors`, or for chips in JAX what `train` left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chips.profiles import Profile
from experiments.chips.opening import (
    EXPORTED,
    Programming,
    engine_packages,
    identity_of_network,
    open_network,
)
from experiments.chips.protocol import Programmable
from experiments.runs.frameworks import in_jax
from experiments.runs.job import Job
from experiments.runs.samples import calibration_images, calibration_samples
from experiments.settings.flags import Experiment
from experiments.studies.opening import Images, open_images
from experiments.system.devices import require_device
from experiments.system.environment import package_versions
from jaxcurv.data import Normalised
from jaxcurv.storage.checksums import read_json


@dataclass(frozen=True)
class Exported:
    """What chips are programmed with and tried on."""

    network: Programmable
    """The digital model."""
    profile: Profile
    """The chips' profile, as the settings of the simulation make it."""
    test: Normalised
    """Samples of the test fold."""
    validation: Callable[[int | None], Normalised]
    """Reads at most so many samples of the validation fold, None for all: to choose settings on."""
    origin: dict[str, Any]
    """What decides the results besides the profile and the chips' seeds, as JSON holds it."""
    made_with: dict[str, Any]
    """Device and package versions, as JSON holds them."""


@dataclass(frozen=True)
class Network:
    """A run's network and what its images are."""

    programming: Programming
    description: dict[str, Any]
    """What the run says of the network."""
    images: Images
    identity: Any
    """What tells it from any other, as JSON holds it."""

    def programmable(self, profiles: Iterable[Profile]) -> Programmable:
        """The digital model, with images to calibrate ADC ranges on where a profile needs them."""
        return self.programming(self.images.dataset, self.calibration(profiles))

    def calibration(self, profiles: Iterable[Profile]) -> np.ndarray | None:
        """Normalised images to calibrate ADC ranges on; None where no profile needs them."""
        if not any(profile.needs_calibration for profile in profiles):
            return None
        experiment = self.images.experiment
        held = calibration_samples(self.images.dataset, experiment)
        return calibration_images(held, self.images.normalisation, experiment)

    @property
    def origin(self) -> dict[str, Any]:
        """What decides what its chips give besides their settings, seeds and images, as JSON holds
        it."""
        return {
            "data": self.images.experiment.data.deciding,
            "model": {key: one for key, one in self.description.items() if key != "class_names"},
            "weights_sha256": self.identity,
        }


def read_network(experiment: Experiment, folder: Path, data_dir: Path | None) -> Network:
    """Reads a run's network and opens its data set.

    Raises:
      FileNotFoundError: the network is not there, or there is no such data set.
      ValueError: the data set is not the one that the network was trained on.
    """
    stage, file = ("train", "model.json") if in_jax(experiment) else ("export", EXPORTED)
    if not (folder / file).exists():
        raise FileNotFoundError(
            f"no {file} in {folder}: run {stage} first, or give the run's folder with --out"
        )
    job = Job(experiment, folder, data_dir)
    description, programming = open_network(job)
    images = open_images(job, description)
    return Network(programming, description, images, identity_of_network(job, description))


def open_network_for(
    experiment: Experiment, folder: Path, data_dir: Path | None
) -> tuple[Network, dict[str, str]]:
    """Reads a run's network, once all else that its chips need is there.

    Returns:
      The network, and the versions of the packages that decide what its chips give.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    versions = package_versions((*engine_packages(experiment), "scipy", "matplotlib"))
    require_device(experiment.simulate.device)
    network = read_network(experiment, folder, data_dir)
    return network, versions


def settings_in_run(job: Job, description: dict[str, Any], study: str) -> dict[str, Any] | None:
    """What a study in a run's folder was made with, if it has a picture and is of that run.

    Args:
      job: the run.
      description: its network's.
      study: its name, that of its folder and of its picture.

    Returns:
      Its settings.json; None where it is not there, or of another network, engine or stream.
    """
    folder = job.folder / study
    if not (folder / "settings.json").exists() or not (folder / f"{study}.png").exists():
        return None
    made: dict[str, Any] = read_json(folder / "settings.json")
    if (made.get("engine") == "jax") is not in_jax(job.experiment):
        return None  # its identity is another kind of hash
    if made.get("stream") != job.experiment.simulate.stream:
        return None
    return made if made["weights_sha256"] == identity_of_network(job, description) else None


def open_exported(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    profile: str,
    limit: int | None,
) -> Exported:
    """Reads a run's network and the images for it.

    Args:
      experiment: settings of the run: how the data are divided, what the devices are like.
      folder: folder of the run.
      data_dir: where data sets are; None for TFDS's default.
      profile: its name.
      limit: at most this many samples of the test fold; None for all.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    settings = experiment.simulate
    network, versions = open_network_for(experiment, folder, data_dir)
    chosen = settings.every_profile[profile]
    test = network.images.some("test", limit)
    programmable = network.programmable([chosen])
    origin = {
        **network.origin,
        "samples": len(test),
        "calibration": settings.adc_calibration if chosen.needs_calibration else None,
    }
    if in_jax(experiment):  # other results keep their names
        origin["engine"] = settings.engine
    if settings.stream is not None:
        origin["stream"] = settings.stream
    return Exported(
        programmable,
        chosen,
        test,
        partial(network.images.some, "validation"),
        origin,
        {"device": programmable.device, "versions": versions},
    )
