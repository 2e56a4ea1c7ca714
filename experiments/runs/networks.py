"""The networks of a run: the trained one in Flax, the exported one in PyTorch."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from experiments.runs.descriptions import require_description
from experiments.runs.job import Job
from jaxcurv import data

if TYPE_CHECKING:
    from flax import nnx


def build_flax(description: dict[str, Any], seed: int, dtype: Any) -> nnx.Module:
    """The Flax network of a description, freshly initialised."""
    from flax import nnx

    from jaxcurv import models

    make = {"resnet18": models.ResNet18, "resnet50": models.ResNet50}[description["architecture"]]
    return make(**_dimensions(description), dtype=dtype, rngs=nnx.Rngs(seed))


def abstract_flax(description: dict[str, Any]) -> nnx.Module:
    """The Flax network of a description in float32, shapes without values: no weight is drawn."""
    import jax.numpy as jnp
    from flax import nnx

    return nnx.eval_shape(lambda: build_flax(description, 0, jnp.float32))


def load_flax(job: Job, description: dict[str, Any]) -> nnx.Module:
    """The trained network, in evaluation mode.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is not of the network described.
    """
    from jaxcurv.training.checkpoints import restore_best

    checkpoint = job.folder / description["checkpoint"]
    try:
        return restore_best(
            lambda dtype: build_flax(description, job.experiment.seed, dtype), checkpoint
        )
    except ValueError as error:
        what = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{checkpoint} holds another network than model.json describes, or is damaged: {what}; "
            "run train again"
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
      ValueError: the file is damaged, or its tensors are not those of the network it describes.
    """
    import torch

    import bridge

    path = job.folder / "weights.safetensors"
    state_dict, header = bridge.weights.load_weights(path)
    description = require_description(header, path)
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
