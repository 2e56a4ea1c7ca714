"""A network that the study finetune left, from its file, for chips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.chips.opening import with_weights
from experiments.chips.protocol import Programmable
from experiments.runs.descriptions import is_of_factory
from experiments.runs.frameworks import in_jax
from experiments.runs.networks import abstract_flax
from experiments.settings.flags import Experiment
from experiments.studies.exported import Network
from jaxcurv.data import ImageDataset

if TYPE_CHECKING:
    import torch
    from flax import nnx


def tuned_network(
    experiment: Experiment, network: Network, path: Path, calibration: np.ndarray | None
) -> tuple[Programmable, dict[str, Any]]:
    """A fine-tuned network of a run.

    Args:
      experiment: the run's settings.
      network: the run's, which it was fine-tuned from.
      path: its file, of finetune/weights/.
      calibration: normalised images to calibrate ADC ranges on; None where none are needed.

    Returns:
      The network for chips, and the header of its file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, or no fine-tuned network of this run.
    """
    import bridge

    description = network.description
    if is_of_factory(description):
        raise ValueError(
            f"{path} cannot be a fine-tuned network of this run: finetune trains the residual "
            f"networks of --model.*, not {description['factory']}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: give a file of finetune/weights/ in the run's folder, or "
            "--remedies.tuned none"
        )
    state_dict, header = bridge.weights.load_weights(path)
    begun_from = header.get("finetune", {}).get("from")
    own = network.identity if in_jax(experiment) else description.get("checkpoint_sha256")
    if begun_from is None or begun_from != own:
        raise ValueError(
            f"{path} is no network that finetune made of this run's: give a file of "
            "finetune/weights/ in the run's folder, or --remedies.tuned none"
        )
    structure = abstract_flax(description)
    structure.eval()
    dataset = network.images.dataset
    return on_chips(experiment, description, structure, state_dict, dataset, calibration), header


def on_chips(
    experiment: Experiment,
    description: dict[str, Any],
    structure: nnx.Module,
    state_dict: Mapping[str, torch.Tensor],
    dataset: ImageDataset,
    calibration: np.ndarray | None,
) -> Programmable:
    """A network of a run's structure with other weights, for chips.

    Args:
      experiment: the run's settings, whose engine computes the chips.
      description: that of the run's network.
      structure: that network's shapes, in evaluation mode.
      state_dict: the weights.
      dataset: the run's.
      calibration: normalised images to calibrate ADC ranges on; None where none are needed.
    """
    import bridge

    model = bridge.from_torch(state_dict, structure)
    return with_weights(experiment, description, model)(dataset, calibration)
