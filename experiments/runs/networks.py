"""The networks of a run: the digital one in JAX, the exported one in PyTorch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs.descriptions import (
    framework_in,
    is_of_factory,
    read_normalisation,
    require_description,
)
from experiments.runs.files import sha256
from experiments.runs.job import Job
from experiments.runs.own_network import load_function, load_own, require_same_logits, weights_of
from experiments.runs.samples import first_images
from jaxcurv import data

if TYPE_CHECKING:
    from flax import nnx

    from jaxcurv.training.checkpoints import BuildModel


def build_flax(description: dict[str, Any], seed: int, dtype: Any) -> nnx.Module:
    """The Flax network of a description, freshly initialised."""
    from flax import nnx

    from jaxcurv import models

    make = {"resnet18": models.ResNet18, "resnet50": models.ResNet50}[description["architecture"]]
    return make(**_dimensions(description), dtype=dtype, rngs=nnx.Rngs(seed))


def builder(description: dict[str, Any], seed: int, given: nnx.Module | None) -> BuildModel:
    """Makes the network that training begins with: of given weights, or freshly initialised."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    def build(dtype: Any) -> nnx.Module:
        if given is None:
            return build_flax(description, seed, dtype)
        model = nnx.eval_shape(lambda: build_flax(description, seed, dtype))
        # Arrays of its own: those of a training are donated to its first step.
        nnx.update(model, jax.tree.map(jnp.array, nnx.state(given)))
        return model

    return build


def abstract_flax(description: dict[str, Any]) -> nnx.Module:
    """The Flax network of a description in float32, shapes without values: no weight is drawn."""
    import jax.numpy as jnp
    from flax import nnx

    return nnx.eval_shape(lambda: build_flax(description, 0, jnp.float32))


EXAMPLES = 4
"""Images on which a factory's network is exported to JAX and compared."""


def load_model(
    job: Job, description: dict[str, Any], dataset: data.ImageDataset
) -> tuple[Any, dict[str, Any] | None]:
    """The digital network in JAX and its weights, as `jaxcurv.score_dataset` takes them.

    Returns:
      An NNX module, which has its weights, and None; for a torch module of a factory a function of
      parameters and images, and the parameters by their names in PyTorch; for another network of a
      factory what it returns.

    Raises:
      FileNotFoundError: the weights are not there.
      ValueError: they are not of the network described, or JAX cannot take the factory's.
    """
    if not is_of_factory(description):
        return load_flax(job, description), None
    images = examples(dataset, description)
    if framework_in(description) == "jax":
        return load_function(job, description, images)
    import bridge

    network = load_own(job, description)
    require_same_logits(job, description, network, images)
    return bridge.to_jax(network, images)


def examples(dataset: data.ImageDataset, description: dict[str, Any]) -> np.ndarray:
    """A few normalised test images, float32 `[n, height, width, channel]`."""
    images = first_images(data.Chosen(dataset.test, np.arange(len(dataset.test))), EXAMPLES)
    return read_normalisation(description).apply(images)


def digital_weights(
    job: Job, description: dict[str, Any], model: Any
) -> tuple[Any, Mapping[str, Any]]:
    """The digital network in PyTorch, in evaluation mode, and its state dict.

    Args:
      job: the run.
      description: the network's.
      model: what `load_model` gave first.
    """
    import bridge

    if is_of_factory(description):
        network = load_own(job, description)
        return network, weights_of(network)
    state_dict = bridge.to_torch(model)
    network = build_torch(description)
    network.load_state_dict(state_dict)
    return network.eval(), state_dict


def identity_of_model(job: Job, description: dict[str, Any]) -> Any:
    """What tells a run's digital network from any other, as JSON holds it."""
    weights = sha256(job.folder / description["checkpoint"])
    if not is_of_factory(description):
        return weights
    logits = {"logits": description["logits"]} if "logits" in description else {}
    factory = {"factory": description["factory"], **description["sources"]}
    return {"weights": weights, **factory, **logits}


def load_flax(job: Job, description: dict[str, Any], epoch: int | None = None) -> nnx.Module:
    """The trained network, in evaluation mode.

    Args:
      job: the run.
      description: the network's.
      epoch: one of the epochs that training kept; None for the best.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is not of the network described.
    """
    from jaxcurv.training.checkpoints import restore_best, restore_epoch

    def build(dtype: Any) -> nnx.Module:
        return build_flax(description, job.experiment.seed, dtype)

    checkpoint = job.folder / description["checkpoint"]
    try:
        if epoch is not None:
            return restore_epoch(build, checkpoint, epoch)
        return restore_best(build, checkpoint)
    except ValueError as error:
        what = textwrap.shorten(str(error), 600, placeholder=" ...")
        cure = "run train again"
        if epoch is not None:  # the hash of all checkpoints is in the records of later stages
            cure = "then run train, which trains no kept epoch again, and what follows it"
        raise ValueError(
            f"{checkpoint} holds another network than model.json describes, or is damaged: {what}; "
            f"{cure}"
        ) from error


def build_torch(description: dict[str, Any]) -> Any:
    """The PyTorch twin of a description."""
    import bridge

    make = {"resnet18": bridge.weights.resnet18, "resnet50": bridge.weights.resnet50}
    return make[description["architecture"]](**_dimensions(description))


def load_twin(job: Job) -> tuple[Any, dict[str, Any]]:
    """The exported network in PyTorch, in evaluation mode, and its description.

    Raises:
      FileNotFoundError: nothing was exported.
      ImportError, ValueError: the file is damaged, its tensors are not those of the network it
        describes, or a factory is not as it was.
    """
    import torch

    import bridge

    path = job.folder / "weights.safetensors"
    state_dict, header = bridge.weights.load_weights(path)
    description = require_description(header, path)
    if is_of_factory(description):
        return load_own(job, description, dict(state_dict)), description
    try:
        with torch.device("meta"):  # the tensors, not the header, say how much memory it takes
            twin = build_torch(description)
        # Within the file they lie unaligned, and PyTorch's sums there may differ in the last bit.
        twin.load_state_dict({n: t.clone() for n, t in state_dict.items()}, assign=True)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{path} holds other tensors than the network in its header has: {what}; run export "
            "again"
        ) from error
    return twin.eval(), description


def _dimensions(description: dict[str, Any]) -> dict[str, Any]:
    return {key: description[key] for key in ("num_classes", "stem", "width", "in_channels")}


def require_classes(dataset: data.ImageDataset, description: dict[str, Any]) -> None:
    """Refuses a data set whose labels are not those that the model was trained on.

    Raises:
      ValueError: the class names differ.
    """
    if list(dataset.class_names) != description["class_names"]:
        raise ValueError(
            f"mismatched labels: the model knows {len(description['class_names'])} classes, "
            f"{dataset.name} has {len(dataset.class_names)} or names them otherwise; use the data "
            "set that the model was trained on"
        )
