"""The exported network of a run, and images to try its chips on, for what works beside the stages.

Of the run's folder only `weights.safetensors` is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.runs.descriptions import read_normalisation
from experiments.runs.devices import require_device
from experiments.runs.environment import package_versions
from experiments.runs.files import require_writable, sha256
from experiments.runs.job import Job, load_data
from experiments.runs.networks import load_twin, require_classes
from experiments.runs.samples import calibration_images, choose_folds, read_small
from experiments.settings.experiment import Experiment, Fold
from jaxcurv.data import ImageDataset, Normalisation, Normalised, subset

if TYPE_CHECKING:
    from torch import nn

    import bridge


@dataclass(frozen=True)
class Exported:
    """What chips are programmed from and tried on."""

    network: nn.Module
    """The digital model, in evaluation mode."""
    profile: bridge.Profile
    """As the settings of the simulation make it."""
    test: Normalised
    """Samples of the test fold."""
    validation: Callable[[int | None], Normalised]
    """Reads at most so many samples of the validation fold, None for all: to choose settings on."""
    calibration: NDArray[np.float32] | None
    """Training images that set the converters' ranges, where these are calibrated."""
    origin: dict[str, Any]
    """What the results depend on besides the profile and the chips' seeds, as JSON holds it."""


@dataclass(frozen=True)
class Network:
    """A run's exported network and what its images are."""

    digital: nn.Module
    """In evaluation mode."""
    description: dict[str, Any]
    """As `weights.safetensors` has it."""
    dataset: ImageDataset
    normalisation: Normalisation


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
    job = Job(experiment, folder, data_dir, fingerprint="")
    network, description = load_twin(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    return Network(network, description, dataset, read_normalisation(description))


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
      experiment: the run's; says how the data are divided and what the profile's devices are like.
      folder: the run's.
      out: where results will go: proven to be writable.
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

    import bridge

    dataset, normalisation = network.dataset, network.normalisation
    profiles = bridge.eight_profiles(settings.adc, settings.wnoise, settings.pcm, settings.clipping)
    chosen = profiles[profile]
    calibrated = chosen.adc is not None and chosen.adc.range == "calibrated"
    described = {key: one for key, one in network.description.items() if key != "class_names"}
    calibration = None
    if calibrated:
        train = choose_folds(dataset, experiment, ("train",))["train"]
        calibration = calibration_images(train, normalisation, experiment)

    def some(fold: Fold, most: int | None) -> Normalised:
        samples = choose_folds(dataset, experiment, (fold,))[fold]
        chosen = samples.take(subset(samples.indices, most, experiment.data.split_seed))
        return Normalised(read_small({fold: chosen})[fold], normalisation)

    test = some("test", limit)
    return Exported(
        network.digital,
        chosen,
        test,
        partial(some, "validation"),
        calibration,
        {
            "data": asdict(experiment.data),
            "model": described,
            "weights_sha256": sha256(folder / "weights.safetensors"),
            "samples": len(test),
            "calibration": settings.calibration if calibrated else None,
            "device": settings.device,
            "versions": versions,
        },
    )
