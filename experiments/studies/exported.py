"""The exported network of a run and the images to try its chips on, for the studies.

The run's folder needs only `weights.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.runs.files import require_writable, sha256
from experiments.runs.job import Job
from experiments.runs.networks import load_twin
from experiments.runs.samples import calibration_images, calibration_samples
from experiments.settings.flags import Experiment
from experiments.studies.opening import Images, open_images
from experiments.system.devices import require_device
from experiments.system.environment import package_versions
from jaxcurv.data import Normalised

if TYPE_CHECKING:
    from torch import nn

    import bridge


@dataclass(frozen=True)
class Exported:
    """What chips are programmed from and tried on."""

    network: nn.Module
    """The digital model, in evaluation mode."""
    profile: bridge.Profile
    """The chips' profile, as the settings of the simulation make it."""
    test: Normalised
    """Samples of the test fold."""
    validation: Callable[[int | None], Normalised]
    """Reads at most so many samples of the validation fold, None for all: to choose settings on."""
    calibration: NDArray[np.float32] | None
    """Training images that set the ADC ranges, where these are calibrated."""
    origin: dict[str, Any]
    """What decides the results besides the profile and the chips' seeds, as JSON holds it."""
    made_with: dict[str, Any]
    """Device and package versions, as JSON holds them."""


@dataclass(frozen=True)
class Network:
    """A run's exported network and what its images are."""

    digital: nn.Module
    """The network, in evaluation mode."""
    description: dict[str, Any]
    """What the header of `weights.safetensors` says of the network."""
    images: Images


def open_network(experiment: Experiment, folder: Path, data_dir: Path | None) -> Network:
    """Reads a run's exported network and opens its data set.

    Raises:
      FileNotFoundError: nothing was exported, or there is no such data set.
      ValueError: the data set is not the one that the network was trained on.
    """
    weights = folder / "weights.safetensors"
    if not weights.exists():
        raise FileNotFoundError(
            f"no {weights.name} in {folder}: run export first, or give the run's folder with --out"
        )
    job = Job(experiment, folder, data_dir)
    network, description = load_twin(job)
    return Network(network, description, open_images(job, description))


def open_exported(
    experiment: Experiment,
    folder: Path,
    out: Path,
    data_dir: Path | None,
    *,
    profile: str,
    limit: int | None,
) -> Exported:
    """Reads a run's exported network and the images for it.

    Args:
      experiment: settings of the run: how the data are divided, what the devices are like.
      folder: folder of the run.
      out: folder of the results, proven to be writable.
      data_dir: where data sets are; None for TFDS's default.
      profile: one of the eight, by name.
      limit: at most this many samples of the test fold; None for all.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    settings = experiment.simulate
    versions = package_versions(("torch", "aihwkit", "safetensors", "scipy", "matplotlib"))
    require_device(settings.device)
    network = open_network(experiment, folder, data_dir)
    require_writable(out)
    images = network.images

    chosen = settings.every_profile[profile]
    calibrated = chosen.adc is not None and chosen.adc.range == "calibrated"
    described = {key: one for key, one in network.description.items() if key != "class_names"}
    calibration = None
    if calibrated:
        held = calibration_samples(images.dataset, experiment)
        calibration = calibration_images(held, images.normalisation, experiment)
    test = images.some("test", limit)
    return Exported(
        network.digital,
        chosen,
        test,
        partial(images.some, "validation"),
        calibration,
        {
            "data": experiment.data.deciding,
            "model": described,
            "weights_sha256": sha256(folder / "weights.safetensors"),
            "samples": len(test),
            "calibration": settings.adc_calibration if calibrated else None,
        },
        {"device": settings.device, "versions": versions},
    )
