"""A user's own network in the place of training."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.chips.opening import EXPORTED
from experiments.runs.descriptions import describe_own
from experiments.runs.files import sha256
from experiments.runs.frameworks import in_jax
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import examples
from experiments.runs.own_network import (
    FUNCTION,
    LOGITS,
    WEIGHTS,
    as_network,
    kept_logits,
    load_weights_into,
    logits_agree,
    logits_of,
    masks_of,
    plain,
    weights_of,
)
from experiments.runs.samples import scored_samples
from experiments.settings.flags import Data
from experiments.stages.analyse import ANALYSED, ANALYSED_SCORES
from experiments.stages.pretrained import choose_normalisation
from experiments.system.factories import as_function, call_factory, is_torch, sources_of
from jaxcurv import data
from jaxcurv.storage.checksums import hash_tree, read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn


def take_own(job: Job) -> Outcome:
    """Does what `train` does, without training: keeps a factory's network and its description.

    A torch module's weights are kept, and the logits of a few images. A network in JAX, which has
    chips under `--simulate.engine jax` alone, leaves what tells it from another, and torch is not
    imported. Everything that would stop a later stage for the network's sake is tried on a few
    images.

    Raises:
      ImportError, ValueError: the factory fails, gives another network at each call, or one that is
        in training mode, has other classes than the images, cannot be scored or, a torch module,
        has no layer to put on chips; or there are too few images.
      OSError: weights or images cannot be read.
    """
    factory = job.experiment.model.factory
    assert factory is not None
    dataset = load_data(job)
    _require_samples(dataset, job)
    made = call_factory(factory)
    take = _take_network if is_torch(made) else _take_function
    description, path = take(job, made, factory, dataset)
    (job.folder / "history.csv").unlink(missing_ok=True)  # of an earlier, trained model
    outputs = [write_json(job.folder / "model.json", description), path]
    if "logits" in description:
        outputs.append(job.folder / LOGITS)
    return Outcome(outputs, "cpu")


def _take_network(
    job: Job, made: nn.Module, factory: str, dataset: data.ImageDataset
) -> tuple[dict[str, Any], Path]:
    """Keeps a torch module's weights; returns its description and their file."""
    import bridge
    from bridge.chips.evaluation import require_eval

    settings = job.experiment
    network = as_network(made)
    require_eval(network, f"the network of {factory}")
    origin: dict[str, Any] = {}
    if settings.model.weights is not None:
        checkpoint = bridge.weights.load_checkpoint(settings.model.weights)
        load_weights_into(network, checkpoint.state_dict, settings.model.weights)
        origin = checkpoint.origin
    network = plain(network)
    description = _describe(job, factory, dataset, origin)
    images = examples(dataset, description)
    logits = _logits(network, images, factory)
    _require_classes(logits, dataset, factory)
    again = plain(as_network(call_factory(factory)))
    state_dict = weights_of(network)
    load_weights_into(again, state_dict, f"the first network of {factory}")
    if not logits_agree(logits, _logits(again, images, factory)):
        raise ValueError(
            f"{factory} made two networks whose logits differ although their state dicts are the "
            "same: keep what it draws or computes in parameters or buffers (register_buffer), or "
            "fix its seed"
        )
    in_flax = bridge.to_jax(network, images)
    if in_jax(job.experiment):
        _require_tiles(*in_flax, images, factory)
    else:
        bridge.program(network, bridge.PROFILES["ideal"], seed=0, calibration=images)
        bridge.coverage(network, images)
    for name in (FUNCTION, *_WITHOUT_CHIPS):  # left by a network in JAX, whose folder this was
        (job.folder / name).unlink(missing_ok=True)
    path = job.folder / WEIGHTS
    header = {"factory": factory}
    same_weights = _holds(path, state_dict, header)
    if not same_weights:
        bridge.weights.save_weights(path, state_dict, header, masks=masks_of(network))
    if origin:
        kept = {key: one for key, one in origin.items() if key not in ("class_names", "header")}
        description["origin"] = kept
    description["checkpoint"] = path.name
    return _with_logits(job, description, logits, same_weights), path


def _with_logits(
    job: Job, description: dict[str, Any], logits: np.ndarray, same_weights: bool
) -> dict[str, Any]:
    """Keeps a torch module's logits; the description, with what tells other logits.

    That of a run of an earlier version, whose network is the same as far as it kept of it, stays
    as it is, so that what follows is not computed once more: its logits count from now on.
    """
    path, before = job.folder / LOGITS, None
    with suppress(ValueError):  # damaged
        before = kept_logits(job)
    other = before is not None and not logits_agree(before, logits)
    if before is None or other:
        write_json(path, {"logits": logits.tolist()})
    as_in_json = json.loads(json.dumps(description))
    if same_weights and not other and _described(job) == as_in_json:
        return description
    return description | {"logits": sha256(path)}


def _described(job: Job) -> dict[str, Any] | None:
    """What the folder says of its network; None where it says nothing that can be read."""
    try:
        return read_json(job.folder / "model.json")
    except (FileNotFoundError, ValueError):
        return None


_WITHOUT_CHIPS = (
    *(
        f"{table}.{kind}"
        for table in sorted(set(ANALYSED_SCORES) - set(ANALYSED))
        for kind in ("csv", "parquet")
    ),
    *(f"figures/gallery_digital.{kind}" for kind in ("png", "svg", "csv")),
)
"""Files that only a run without chips has."""


def _take_function(
    job: Job, made: Any, factory: str, dataset: data.ImageDataset
) -> tuple[dict[str, Any], Path]:
    """Keeps what tells an NNX module or a function from another, without torch.

    Returns its description and the file.
    """
    settings = job.experiment
    logits_fn, params = as_function(made, factory)
    if settings.model.weights is not None:
        raise ValueError(
            f"--model.weights {settings.model.weights} is for a torch module, and {factory} "
            f"returns a {type(made).__name__}: load the weights in the factory, and leave the flag "
            "out (--model.weights none)"
        )
    if (job.folder / EXPORTED).exists():
        raise ValueError(
            f"{job.folder} holds the chips of a torch module, and {factory} returns a "
            f"{type(made).__name__}: choose another folder with --out"
        )
    description = _describe(job, factory, dataset, {}) | {"framework": "jax"}
    images = examples(dataset, description)
    _inspect(job, logits_fn, params, images)
    logits = logits_of(logits_fn, params, images)
    _require_classes(logits, dataset, factory)
    path = job.folder / FUNCTION
    kept = {"factory": factory, "weights": _hash_of(logits_fn, params)}
    again = as_function(call_factory(factory), factory)
    same = logits_agree(logits, logits_of(*again, images))
    if not same or _hash_of(*again) != kept["weights"]:
        raise ValueError(
            f"{factory} made two networks whose {'parameters' if same else 'logits'} differ: fix "
            "its seed, or load its weights from a file"
        )
    if in_jax(settings):
        _require_tiles(logits_fn, params, images, factory)
        for name in _WITHOUT_CHIPS:  # left by this network, when it had no chips
            (job.folder / name).unlink(missing_ok=True)
    if not _describes(path, kept, logits):
        write_json(path, kept | {"logits": logits.tolist()})
    (job.folder / LOGITS).unlink(missing_ok=True)  # of a torch module, whose folder this was
    return description | {"checkpoint": path.name}, path


def _require_tiles(logits_fn: Any, params: Any, images: np.ndarray, factory: str) -> None:
    """Refuses a network that does not go onto chips in JAX.

    Raises:
      ValueError: it has no product of parameters, or such as no tile takes.
    """
    from bridge.chips.profiles import PROFILES
    from bridge.jax_chips import analog
    from jaxcurv.engine.model import functional

    function, weights = functional(logits_fn, params)
    try:
        analog(function, weights, PROFILES["ideal"], images)
    except ValueError as error:
        cure = (
            f"; a function that closes over its weights hides them: let {factory} return "
            "(function, params)"
        )
        raise ValueError(
            f"the network of {factory} does not go onto chips: {error}{cure * (weights is None)}"
        ) from error


def _describe(
    job: Job, factory: str, dataset: data.ImageDataset, origin: dict[str, Any]
) -> dict[str, Any]:
    channels = int(dataset.test[0]["image"].shape[-1])
    return describe_own(
        factory,
        sources_of(factory),
        dataset,
        in_channels=channels,
        normalisation=own_normalisation(job.experiment.data, origin, channels),
    )


def _inspect(job: Job, logits_fn: Any, params: Any, images: np.ndarray) -> None:
    """Refuses a network that cannot be scored.

    Raises:
      ValueError: it fails, mixes samples, is random or has no derivative.
    """
    from jaxcurv.curvature import inspect
    from jaxcurv.data.reading import Batch
    from jaxcurv.engine.losses import cross_entropy
    from jaxcurv.engine.model import Problem, functional

    numbers = np.arange(len(images))
    batch = Batch(images, np.zeros(len(images), np.int32), numbers)
    try:
        function, weights = functional(logits_fn, params)
        problem = Problem(function, cross_entropy)
        inspect(problem, weights, batch, job.experiment.score.estimators)
    except ValueError as error:
        fails = str(error).startswith("the model fails on")
        cure = (
            ". --data.image-size resizes images, and --data.mean and --data.std with one value "
            "each make them gray"
        )
        raise ValueError(
            f"the network of {job.experiment.model.factory} cannot be scored: {error}{cure * fails}"
        ) from error


def _hash_of(logits_fn: Any, params: Any) -> str:
    from jaxcurv.engine.model import functional

    _, weights = functional(logits_fn, params)
    return hash_tree(weights)


def _describes(path: Path, kept: dict[str, Any], logits: np.ndarray) -> bool:
    """Whether a file is of this network: written anew, its logits may differ in the last bit."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return False
    return {name: found.get(name) for name in kept} == kept and logits_agree(
        np.asarray(found["logits"]), logits
    )


def _holds(path: Path, state_dict: dict[str, torch.Tensor], header: dict[str, Any]) -> bool:
    """Whether a file has these weights: written anew, its bytes would differ."""
    import torch

    import bridge

    try:
        found, its_header = bridge.weights.load_weights(path)
    except (FileNotFoundError, ValueError):
        return False
    return (
        its_header == header
        and found.keys() == state_dict.keys()
        and all(torch.equal(found[name], one) for name, one in state_dict.items())
    )


def own_normalisation(settings: Data, origin: dict[str, Any], channels: int) -> data.Normalisation:
    """As the settings or the weights' file say; else mean 0 and standard deviation 1.

    Raises:
      ValueError: settings and file differ, or have not one value for each channel.
    """
    header = origin.get("header")
    told = "normalisation" in origin or (isinstance(header, dict) and "normalisation" in header)
    if settings.normalisation is None and not told:
        return data.Normalisation((0.0,) * channels, (1.0,) * channels)
    found = choose_normalisation(settings, origin, "the file of --model.weights")
    if len(found.mean) != channels:
        raise ValueError(
            f"mean and std have {len(found.mean)} values, the images {channels} channels: give "
            "--data.mean and --data.std one value a channel"
        )
    return found


def _require_samples(dataset: data.ImageDataset, job: Job) -> None:
    """Refuses fewer test images than the tables have bins."""
    tested = len(scored_samples(dataset, job.experiment)["test"])
    bins = job.experiment.analyse.bins
    if tested < bins:
        raise ValueError(
            f"{tested} images of {dataset.name} are tested, which cannot fill {bins} bins: give "
            "more images, or fewer --analyse.bins"
        )


def _logits(network: nn.Module, images: np.ndarray, factory: str) -> np.ndarray:
    """The network's logits, float32 `[image, class]`.

    Raises:
      ValueError: it fails, gives no logits, or none that are finite.
    """
    import torch

    height, width, channels = images.shape[1:]
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    try:
        with torch.no_grad():
            logits = network(batch.clone())  # which it may change in place
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"the network of {factory} fails on images of {height}x{width} pixels and {channels} "
            f"channels ({type(error).__name__}: {error}): --data.image-size resizes them, and "
            "--data.mean and --data.std with one value each make them gray"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(images):
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"the network of {factory} gives {what} for {len(images)} images: wrap it in a module "
            "that returns its logits [batch, class] alone"
        )
    if not logits.isfinite().all():
        raise ValueError(
            f"logits of the network of {factory} are not finite: check its weights, and "
            "--data.mean and --data.std"
        )
    return logits.float().numpy()


def _require_classes(logits: np.ndarray, dataset: data.ImageDataset, factory: str) -> None:
    if logits.shape[1] != len(dataset.class_names):
        raise ValueError(
            f"the network of {factory} tells {logits.shape[1]} classes apart, {dataset.name} has "
            f"{len(dataset.class_names)} ({', '.join(dataset.class_names[:3])}, ...): give a "
            "folder for each of its classes, in the sorted order of their names"
        )
