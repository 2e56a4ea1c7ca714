"""Weights that were trained elsewhere, in the place of training or to start it from."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.runs.descriptions import describe
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import abstract_flax
from experiments.settings.flags import Data, Experiment
from jaxcurv import data
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    from flax import nnx

    import bridge

_LONGEST = 300  # characters of a list of what does not fit
_PREPROCESSING = {
    "resize_size": "--data.resize-size",
    "crop_size": "--data.image-size",
    "interpolation": "--data.interpolation",
}
"""What published weights say of their images, and the flag for it."""


class Given(NamedTuple):
    """A network with weights that were trained elsewhere."""

    network: nnx.Module
    """In evaluation mode, float32."""
    description: dict[str, Any]
    """`describe` of it, with the normalisation that it was trained with."""
    origin: dict[str, Any]
    """Where the weights come from, as `bridge.weights.Checkpoint` has it."""


def weights_file(weights: str) -> Path | None:
    """The file of given weights, of a folder that of an exported run; None for published ones."""
    path = Path(weights)
    if path.is_dir():
        path /= "weights.safetensors"
    return path if path.is_file() else None


def take_over(job: Job) -> Outcome:
    """Does what `train` does, without training: writes the checkpoint and its description.

    There is no history of it.

    Raises:
      ValueError, OSError, ModuleNotFoundError: as for `load_given`.
    """
    from jaxcurv.training.checkpoints import keep_trained

    weights = job.experiment.model.weights
    assert weights is not None
    given = load_given(job.experiment, load_data(job), weights, "--model.weights")
    checkpoints = job.own_folder("checkpoints")
    keep_trained(given.network, checkpoints)
    description = given.description
    description["checkpoint"] = checkpoints.relative_to(job.folder).as_posix()
    description["origin"] = {
        key: value
        for key, value in given.origin.items()
        if key not in ("class_names", "header")  # the data set's names are there, and long
    }
    (job.folder / "history.csv").unlink(missing_ok=True)  # of an earlier, trained model
    return Outcome([write_json(job.folder / "model.json", description), checkpoints], "cpu")


def load_given(
    experiment: Experiment, dataset: data.ImageDataset, weights: str, flag: str
) -> Given:
    """The network of the settings with weights that were trained elsewhere.

    Args:
      experiment: the settings.
      dataset: its images.
      weights: a file, the folder of an exported run, or a published name.
      flag: the one that they were given by, for errors.

    Raises:
      ValueError: the weights are not those of the network, the data set or the preprocessing that
        the settings say, or their normalisation is not known.
      FileNotFoundError: a folder has none.
      OSError, ModuleNotFoundError: they cannot be read; see `bridge.weights.load_checkpoint`.
    """
    import bridge

    if (file := weights_file(weights)) is None and Path(weights).is_dir():
        raise FileNotFoundError(
            f"the folder {weights} has no weights.safetensors ({flag}): run export there first, or "
            "give a file of weights"
        )
    checkpoint = bridge.weights.load_checkpoint(weights if file is None else file)
    settings = experiment.data
    require_preprocessing(settings, checkpoint.origin, weights)
    normalisation = choose_normalisation(settings, checkpoint.origin, weights)
    classes, channels = _dimensions(checkpoint, weights)
    if classes != len(dataset.class_names):
        raise ValueError(
            f"{weights} tells {classes} classes apart, {dataset.name} has "
            f"{len(dataset.class_names)}: give the data set that it was trained on (--data.name), "
            f"or weights that were trained on this one ({flag})"
        )
    of_images = dataset.test[0]["image"].shape[-1]
    if not channels == of_images == len(normalisation.mean):
        raise ValueError(
            f"{weights} takes {channels} channels, the images of {dataset.name} have {of_images}, "
            f"mean and std {len(normalisation.mean)}: all must be equal"
        )
    description = describe(
        experiment.model, dataset, in_channels=channels, normalisation=normalisation
    )
    return Given(_onto_flax(checkpoint, description, weights), description, checkpoint.origin)


def require_preprocessing(settings: Data, origin: dict[str, Any], weights: str) -> None:
    """Refuses images that are prepared otherwise than for the published weights.

    Args:
      settings: the data settings.
      origin: as `bridge.weights.Checkpoint` has it; a file's says nothing of images.
      weights: their name, for the error.

    Raises:
      ValueError: both preprocessings, and the flags that give the published one.
    """
    published = origin.get("preprocessing")
    if published is None:
        return
    wanted = {
        key: value[0] if isinstance(value, list) else value for key, value in published.items()
    }
    chosen = {
        "resize_size": settings.resize_size or settings.image_size,
        "crop_size": settings.image_size,
        "interpolation": settings.interpolation,
    }
    differing = [key for key in _PREPROCESSING if wanted[key] != chosen[key]]
    if differing:
        raise ValueError(
            f"{weights} was published for images of "
            + ", ".join(f"{key} {wanted[key]}" for key in _PREPROCESSING)
            + "; the settings say "
            + ", ".join(f"{key} {chosen[key]}" for key in differing)
            + ": give "
            + " ".join(f"{_PREPROCESSING[key]} {wanted[key]}" for key in differing)
        )


def choose_normalisation(
    settings: Data, origin: dict[str, Any], weights: str
) -> data.Normalisation:
    """The normalisation that weights were trained with: as the settings say, or as published.

    A file that `bridge.weights.save_weights` wrote may tell it in its header.

    Raises:
      ValueError: nothing tells it, or the settings differ from what was published.
    """
    given = settings.normalisation
    header = origin.get("header")
    told = origin.get("normalisation") or (
        header.get("normalisation") if isinstance(header, dict) else None
    )
    if told is None:
        if given is None:
            raise ValueError(
                f"{weights} does not say how its images were normalised: give --data.mean and "
                "--data.std, a value for each channel on the scale 0..1"
            )
        return given
    published = data.Normalisation(tuple(told["mean"]), tuple(told["std"]))
    if given is not None and given != published:
        raise ValueError(
            f"{weights} was published with mean {published.mean} and std {published.std}; the "
            f"settings say {given.mean} and {given.std}: give --data.mean "
            f"{' '.join(map(str, published.mean))} --data.std {' '.join(map(str, published.std))}"
        )
    return published


def _dimensions(checkpoint: bridge.weights.Checkpoint, weights: str) -> tuple[int, int]:
    """Classes and channels of a ResNet's weights."""
    from bridge.weights.wrappers import without_wrappers

    tensors = checkpoint.state_dict
    plain = without_wrappers(tensors, lightning=True)
    given = {new: name for name, new in plain.items()}
    head, stem = (tensors.get(given.get(name, "")) for name in ("fc.weight", "conv1.weight"))
    if head is None or stem is None or head.ndim != 2 or stem.ndim != 4:
        names = textwrap.shorten(", ".join(tensors), _LONGEST, placeholder=" ...")
        raise ValueError(
            f"{weights} holds no ResNet with torchvision's names: it has no linear layer fc or no "
            f"convolution conv1; its names are {names}"
        )
    return head.shape[0], stem.shape[1]


def _onto_flax(
    checkpoint: bridge.weights.Checkpoint, description: dict[str, Any], weights: str
) -> nnx.Module:
    """The Flax network of a description with a checkpoint's weights."""
    import bridge

    try:
        return bridge.from_torch(checkpoint.state_dict, abstract_flax(description))
    except ValueError as error:
        what = textwrap.shorten(str(error), _LONGEST, placeholder=" ...")
        raise ValueError(
            f"cannot take {weights} over as a {description['architecture']} of width "
            f"{description['width']} with the {description['stem']} stem: {what} "
            "(--model.architecture, --model.width and --model.stem say what network it is)"
        ) from error
