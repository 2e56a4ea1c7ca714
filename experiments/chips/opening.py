"""The network of a run as what its chips are programmed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.chips.protocol import Programmable
from experiments.runs.descriptions import is_of_factory, read_description
from experiments.runs.files import sha256
from experiments.runs.frameworks import in_jax
from experiments.runs.job import Job
from experiments.runs.networks import (
    abstract_flax,
    build_torch,
    examples,
    identity_of_model,
    load_model,
    load_twin,
)
from experiments.runs.own_network import require_same_logits
from experiments.settings.flags import Experiment
from jaxcurv.data import ImageDataset

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

Programming = Callable[[ImageDataset, np.ndarray | None], Programmable]
"""From a network's data set, and the images that set its ADC ranges where they are calibrated, to
what its chips are programmed with."""


EXPORTED = "weights.safetensors"
"""The file of a run's network in PyTorch."""


def engine_packages(experiment: Experiment) -> tuple[str, ...]:
    """What a run's chips need."""
    return ("jax", "flax") if in_jax(experiment) else ("torch", "aihwkit", "safetensors")


def open_network(job: Job) -> tuple[dict[str, Any], Programming]:
    """What a run says of its network, and what makes it programmable, for the engine of its
    settings.

    Raises:
      FileNotFoundError: its weights are not there.
      ImportError, ValueError: they are damaged or of another network; of JAX, and of a network
        that does not compute what `train` saw, when called.
    """
    if not in_jax(job.experiment):
        twin, description = load_twin(job)

        def make_in_torch(dataset: ImageDataset, calibration: np.ndarray | None) -> Programmable:
            if is_of_factory(description):
                require_same_logits(job, description, twin, examples(dataset, description))
            return _in_torch(job.experiment, description, twin, calibration)

        return description, make_in_torch
    description = read_description(job.folder)

    def make_in_jax(dataset: ImageDataset, calibration: np.ndarray | None) -> Programmable:
        model = load_model(job, description, dataset)
        images = examples(dataset, description) if calibration is None else calibration
        return _in_jax(job.experiment, model, images)

    return description, make_in_jax


def with_weights(
    experiment: Experiment, description: dict[str, Any], model: nnx.Module
) -> Programming:
    """What makes a Flax network programmable that has a run's structure and weights of its own.

    Args:
      experiment: the run's settings, whose engine computes the chips.
      description: that of the run's network, which is none of a factory.
      model: the network, in evaluation mode.
    """

    def make(dataset: ImageDataset, calibration: np.ndarray | None) -> Programmable:
        if in_jax(experiment):
            images = examples(dataset, description) if calibration is None else calibration
            return _in_jax(experiment, (model, None), images)
        import bridge

        twin = build_torch(description)
        twin.load_state_dict(bridge.to_torch(model))
        return _in_torch(experiment, description, twin.eval(), calibration)

    return make


def _in_torch(
    experiment: Experiment,
    description: dict[str, Any],
    twin: nn.Module,
    calibration: np.ndarray | None,
) -> Programmable:
    from experiments.chips.in_torch import TorchNetwork

    settings = experiment.simulate
    assert settings.engine != "jax"
    flax = None if is_of_factory(description) else abstract_flax(description)
    return TorchNetwork(twin, settings.engine, settings.device, calibration, flax, settings.stream)


def _in_jax(experiment: Experiment, model: tuple[Any, Any], images: np.ndarray) -> Programmable:
    from experiments.chips.in_jax import JaxNetwork
    from jaxcurv.engine.model import functional

    return JaxNetwork(*functional(*model), images, experiment.simulate.stream)


def identity_of_network(job: Job, description: dict[str, Any]) -> Any:
    """What tells the network of a run's chips from any other, as JSON holds it."""
    if in_jax(job.experiment):
        return identity_of_model(job, description)
    return sha256(job.folder / EXPORTED)
