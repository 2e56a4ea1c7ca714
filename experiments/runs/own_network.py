"""A user's own network in a run: made by its factory, with the weights that the run keeps."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from experiments.runs.job import Job
from experiments.system.factories import call_factory, is_torch, sources_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_LONGEST = 300  # characters of a list of what does not fit

WEIGHTS = "network.safetensors"
"""The file in which a run keeps the network's weights."""


def call_network(factory: str) -> nn.Module:
    """The torch module that a factory makes, in float32 on the CPU.

    Raises:
      ImportError: the factory's module cannot be imported.
      ValueError: it cannot be called, or returns no torch module.
    """
    import torch

    from bridge.weights.wrappers import unwrapped

    made = call_factory(factory)
    if not is_torch(made):
        raise ValueError(
            f"{factory} returned a {type(made).__name__}: the whole path needs a torch module, "
            "which goes onto chips; the scores of an NNX module or a function are computed by "
            f"python -m experiments score --model {factory} --data FOLDER"
        )
    return unwrapped(made).to("cpu", torch.float32)


def load_weights_into(network: nn.Module, state_dict: dict[str, torch.Tensor], what: str) -> None:
    """Gives a network the weights of a file.

    Raises:
      ValueError: their names or shapes are others than the network's.
    """
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        said = textwrap.shorten(str(error), _LONGEST, placeholder=" ...")
        raise ValueError(f"{what} holds other weights than the network has: {said}") from error


def plain(network: nn.Module) -> nn.Module:
    """A copy whose layers have the weights that they compute with, without parametrizations."""
    from bridge.chips.plain_layers import copy_of, fold_parametrizations

    return fold_parametrizations(copy_of(network), lambda path: False).requires_grad_(False)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the state dict's tensors: tied ones, which share memory, cannot be stored."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def masks_of(network: nn.Module) -> list[str]:
    """Names of the buffers that may be infinite: all but the statistics of normalisations."""
    statistics = ("running_mean", "running_var")
    return [name for name, _ in network.named_buffers() if not name.endswith(statistics)]


def load_own(
    job: Job, description: dict[str, Any], state_dict: dict[str, torch.Tensor] | None = None
) -> nn.Module:
    """A run's own network with the weights that the run keeps, in evaluation mode.

    Args:
      job: the run.
      description: the network's.
      state_dict: its weights, where they have been read; None reads them.

    Raises:
      FileNotFoundError: the weights are not there.
      ImportError, ValueError: the factory is another, fails or has changed, or the weights are
        damaged or of another network.
    """
    import bridge

    factory, chosen = description["factory"], job.experiment.model.factory
    if factory != chosen:
        raise ValueError(
            f"the network in {job.folder} was made by {factory}, the settings have "
            f"{chosen or 'no factory'}: give --model.factory {factory}, or run train again"
        )
    network = call_network(factory)
    if changed := sorted(_changed(description["sources"], sources_of(factory))):
        raise ValueError(
            f"the code of {factory} is not what train saw ({', '.join(changed)} changed): run "
            "train again, and what follows"
        )
    if state_dict is None:
        state_dict, _ = bridge.weights.load_weights(job.folder / description["checkpoint"])
    network = plain(network.eval())
    load_weights_into(network, state_dict, f"the run in {job.folder}")
    return network


def _changed(recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    """Modules of both that differ; what a stage imports besides is no change."""
    return [name for name in recorded if now.get(name, recorded[name]) != recorded[name]]
