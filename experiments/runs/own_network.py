"""A user's own network in a run: made by its factory, with the weights that the run keeps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs.job import Job
from experiments.system.factories import as_function, call_factory, is_torch, sources_of
from jaxcurv.storage.checksums import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

_LONGEST = 300  # characters of a list of what does not fit

WEIGHTS = "network.safetensors"
"""The file in which a run keeps a torch module's weights."""

FUNCTION = "network.json"
"""The file in which a run keeps what tells a network in JAX from another: `factory`, `weights`
(hash of its parameters), and `logits` of a few test images `[image, class]`."""

LOGITS = "network_logits.json"
"""The file in which a run keeps the `logits` of a torch module on a few test images, `[image,
class]`: weights and code do not tell what its factory reads besides. The description has the file's
hash as `logits`; that of an earlier version's run has none until the logits change."""

_ROUNDING = 1e-4
"""Difference of logits that are equal, of the largest one: the device may be another."""


def as_network(made: nn.Module) -> nn.Module:
    """The torch module that a factory made, in float32 on the CPU, without wrappers."""
    import torch

    from bridge.weights.wrappers import unwrapped

    return unwrapped(made).to("cpu", torch.float32)


def load_weights_into(network: nn.Module, state_dict: dict[str, torch.Tensor], what: str) -> None:
    """Gives a network the weights of a file, whichever parts were in `DataParallel` or the like.

    Raises:
      ValueError: their names or shapes are others than the network's.
    """
    from bridge.weights.wrappers import named_as

    try:
        network.load_state_dict(named_as(state_dict, network.state_dict().keys()))
    except RuntimeError as error:
        said = textwrap.shorten(str(error), _LONGEST, placeholder=" ...")
        raise ValueError(f"{what} holds other weights than the network has: {said}") from error


def plain(network: nn.Module) -> nn.Module:
    """A copy whose layers have the weights that they compute with, without parametrizations."""
    from bridge.chips.plain_layers import copy_of, fold_parametrizations

    return fold_parametrizations(copy_of(network), lambda path: False).requires_grad_(False)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the state dict's tensors, which later changes of the network do not reach."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def masks_of(network: nn.Module) -> list[str]:
    """Names of the buffers that may be infinite: all but the statistics of normalisations."""
    statistics = ("running_mean", "running_var")
    return [name for name, _ in network.named_buffers() if not name.endswith(statistics)]


def require_same_logits(
    job: Job, description: dict[str, Any], network: nn.Module, images: np.ndarray
) -> None:
    """Refuses a torch module that does not compute what `train` saw.

    Args:
      job: the run.
      description: the network's.
      network: with the weights that the run keeps.
      images: those whose logits `train` kept, float32 `[n, height, width, channel]`.

    Raises:
      ValueError: its logits are others.
    """
    if (kept := kept_logits(job)) is None or logits_agree(kept, logits_in_torch(network, images)):
        return
    raise ValueError(
        f"the network of {description['factory']} has other logits than when train called it, "
        "with the same weights and code: if a file that it reads or its images have changed, run "
        "train again, and what follows; if not, let it compute the same at each call"
    )


def kept_logits(job: Job) -> np.ndarray | None:
    """What `train` kept of a torch module, `[image, class]`; None in a run of an earlier version.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        return np.asarray(read_json(job.folder / LOGITS)["logits"], np.float32)
    except FileNotFoundError:
        return None


def logits_in_torch(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits of a torch module on the CPU, float32 `[image, class]`; it is left as it was.

    Raises:
      ValueError: it fails, or its logits are not finite.
    """
    import torch

    from bridge.weights.comparison import torch_logits

    return torch_logits(
        network, torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    )


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

    made = _call_again(job, description)
    if not is_torch(made):
        raise ValueError(
            f"{description['factory']} returned a {type(made).__name__}, and a torch module when "
            "train called it: run train again, and what follows"
        )
    if state_dict is None:
        state_dict, _ = bridge.weights.load_weights(job.folder / description["checkpoint"])
    network = plain(as_network(made).eval())
    load_weights_into(network, state_dict, f"the run in {job.folder}")
    return network


def load_function(
    job: Job, description: dict[str, Any], images: np.ndarray
) -> tuple[Callable[..., Any], Any]:
    """A run's own network in JAX, as `jaxcurv.score_dataset` takes it, with its parameters.

    Args:
      job: the run.
      description: the network's.
      images: those whose logits `train` kept, float32 `[n, height, width, channel]`.

    Raises:
      FileNotFoundError: the network's file is not there.
      ImportError, ValueError: the factory is another, fails or has changed, or its network has
        other logits.
    """
    kept = read_json(job.folder / description["checkpoint"])
    made = _call_again(job, description)
    factory = description["factory"]
    if is_torch(made):
        raise ValueError(
            f"{factory} returned a torch module, and none when train called it: run train again, "
            "and what follows"
        )
    logits_fn, params = as_function(made, factory)
    if not logits_agree(np.asarray(kept["logits"]), logits_of(logits_fn, params, images)):
        raise ValueError(
            f"the network of {factory} has other logits than when train called it: if its weights "
            "or images have changed, run train again, and what follows; if not, fix its seed"
        )
    return logits_fn, params


def logits_of(logits_fn: Callable[..., Any], params: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a network in JAX, float32 `[image, class]`."""
    import jax

    from jaxcurv.engine.batch import PRECISION
    from jaxcurv.engine.model import functional

    function, weights = functional(logits_fn, params)
    with jax.default_matmul_precision(PRECISION):
        return np.asarray(jax.jit(function)(weights, images), np.float32)


def logits_agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether logits are those of one network, computed on devices that may differ."""
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max() <= _ROUNDING * np.abs(one).max())


def _call_again(job: Job, description: dict[str, Any]) -> Any:
    """What the factory of a description returns, if it and its code are as they were.

    Raises:
      ImportError, ValueError: they are not, or it fails.
    """
    factory, chosen = description["factory"], job.experiment.model.factory
    if factory != chosen:
        raise ValueError(
            f"the network in {job.folder} was made by {factory}, the settings have "
            f"{chosen or 'no factory'}: give --model.factory {factory}, or run train again"
        )
    made = call_factory(factory)
    if changed := sorted(_changed(description["sources"], sources_of(factory))):
        raise ValueError(
            f"the code of {factory} is not what train saw ({', '.join(changed)} changed): run "
            "train again, and what follows"
        )
    return made


def _changed(recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    """Modules of both that differ; what a stage imports besides is no change."""
    return [name for name in recorded if now.get(name, recorded[name]) != recorded[name]]
