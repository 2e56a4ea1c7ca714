"""The exported network of a run, and images to try its chips on, for what works beside the stages.

Of the run's folder only `weights.safetensors` is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.artefacts import sha256
from experiments.pipeline import package_versions, require_device, require_writable
from experiments.samples import read_folds
from experiments.settings import Experiment
from experiments.stages import Job, build_torch, load_data, require_classes
from jaxcurv.data import Normalisation, Normalised, subset

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
    calibration: NDArray[np.float32] | None
    """Training images that set the converters' ranges, where these are calibrated."""
    origin: dict[str, Any]
    """What the results depend on besides the profile and the chips' seeds, as JSON holds it."""


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
    weights = folder / "weights.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"no {weights.name} in {folder}: run export first")
    require_writable(out)

    import bridge

    state_dict, description = bridge.load_weights(weights)
    network = build_torch(description).eval()
    network.load_state_dict(state_dict)
    profiles = bridge.eight_profiles(settings.adc, settings.wnoise, settings.pcm, settings.clipping)
    chosen = profiles[profile]
    calibrated = chosen.adc is not None and chosen.adc.range == "calibrated"
    dataset = load_data(Job(experiment, folder, data_dir, fingerprint=""))
    require_classes(dataset, description)
    folds = read_folds(dataset, experiment, ("train", "test") if calibrated else ("test",))
    statistics = description["normalisation"]
    normalisation = Normalisation(tuple(statistics["mean"]), tuple(statistics["std"]))
    seed, calibration = experiment.data.split_seed, None
    if calibrated:
        train = folds["train"]
        calibration = normalisation.apply(
            train.images[subset(train.indices, settings.calibration, seed)]
        )
    test = folds["test"].take(subset(folds["test"].indices, limit, seed))
    return Exported(
        network,
        chosen,
        Normalised(test, normalisation),
        calibration,
        {
            "data": asdict(experiment.data),
            "model": {key: value for key, value in description.items() if key != "class_names"},
            "weights_sha256": sha256(weights),
            "samples": len(test),
            "calibration": settings.calibration if calibrated else None,
            "device": settings.device,
            "versions": versions,
        },
    )
