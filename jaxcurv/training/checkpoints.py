"""Checkpoints of training: the newest epoch, to go on from, the best, to use, and others kept."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcurv.extras import needs
from jaxcurv.storage.checksums import check, hash_tree

with needs("jaxcurv.training", "train"):
    import optax
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy

_TRAINED_ELSEWHERE = 0
"""The step of a checkpoint that `keep_trained` left; epochs count from 1."""

_EARLIER = "seals"
"""The item of the checksums in checkpoints of earlier versions."""

BuildModel = Callable[[Any], nnx.Module]
"""Makes the model with a computation dtype, the same weights at every call."""


class Epoch(NamedTuple):
    """One row of the training history; losses are mean cross-entropies in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


class State(NamedTuple):
    """Everything a step changes; `rest` holds batch statistics and other non-parameters."""

    params: nnx.State
    rest: nnx.State
    optimizer: optax.OptState


def open_manager(directory: Path, keep_every: int | None = None) -> ocp.CheckpointManager:
    """Keeps the newest checkpoint, to resume from, and the best on the validation fold.

    Args:
      directory: where the orbax checkpoints are; what is not kept goes when another is saved.
      keep_every: keeps the epochs that are a multiple of it too; None keeps no others.

    Raises:
      ValueError: Orbax cannot read the metrics of those there are.
    """
    accuracy = lambda metrics: metrics["validation_accuracy"]  # noqa: E731
    policies: list[preservation_policy.PreservationPolicy] = [
        preservation_policy.LatestN(1),
        preservation_policy.BestN(get_metric_fn=accuracy, n=1),
    ]
    if keep_every is not None:
        policies.append(preservation_policy.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        best_fn=accuracy, preservation_policy=preservation_policy.AnyPreservationPolicy(policies)
    )
    try:
        return ocp.CheckpointManager(directory.absolute(), options=options)
    except ValueError as error:
        raise ValueError(
            f"the metrics of a checkpoint in {directory} are damaged ({error}): delete the folder "
            "and run again"
        ) from error


def keep_trained(model: nnx.Module, directory: Path) -> None:
    """Leaves a model that was trained elsewhere where `restore_best` finds it.

    Args:
      model: the trained model, of the structure that `restore_best` is to return; float32 weights.
      directory: where the orbax checkpoint goes; of this model alone. One that is there stays.
    """
    with ocp.CheckpointManager(directory.absolute()) as manager:  # there is no metric to track
        if manager.latest_step() is None:
            weights = nnx.to_pure_dict(nnx.state(model))
            manager.save(
                _TRAINED_ELSEWHERE,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(weights),
                    checksums=ocp.args.JsonSave({"model": hash_tree(weights)}),
                ),
            )


def restore_best(build: BuildModel, directory: Path) -> nnx.Module:
    """The model of the best validation epoch, or the one that `keep_trained` left, in float32 and
    evaluation mode.

    Args:
      build: as for `fit`; only its structure is used.
      directory: as for `fit` or `keep_trained`.

    Raises:
      FileNotFoundError: `directory` holds no checkpoint.
      ValueError: the checkpoint is damaged, or the best epoch's is gone.
    """
    with open_manager(directory) as manager:
        return read_best(manager, build)


def kept_epochs(directory: Path) -> list[int]:
    """The epochs of which there is a checkpoint, rising; none of a model trained elsewhere.

    Args:
      directory: as for `fit` or `keep_trained`.
    """
    with open_manager(directory) as manager:
        return sorted(epoch for epoch in manager.all_steps() if epoch != _TRAINED_ELSEWHERE)


def restore_epoch(build: BuildModel, directory: Path, epoch: int) -> nnx.Module:
    """The model as it was after one of the `kept_epochs`, in float32 and evaluation mode.

    Args:
      build: as for `fit`; only its structure is used.
      directory: as for `fit`.
      epoch: the epoch, from 1.

    Raises:
      FileNotFoundError: there is no checkpoint of that epoch.
      ValueError: the checkpoint is damaged.
    """
    with open_manager(directory) as manager:
        if epoch not in manager.all_steps():
            kept = ", ".join(map(str, sorted(manager.all_steps()))) or "none"
            raise FileNotFoundError(
                f"no checkpoint of epoch {epoch} in {directory}; kept are {kept}: train with "
                "keep_every to keep more"
            )
        return _read_model(manager, build, epoch)


def read_best(manager: ocp.CheckpointManager, build: BuildModel) -> nnx.Module:
    """The model as `restore_best` returns it, from an open manager.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint is damaged, or the best epoch's is gone.
    """
    return _read_model(manager, build, _best(manager))


def _read_model(manager: ocp.CheckpointManager, build: BuildModel, epoch: int) -> nnx.Module:
    graphdef, state = nnx.split(evaluation_model(build))
    try:
        saved = _read(manager, epoch, model=_target(nnx.to_pure_dict(state)))
    except ValueError as error:
        if epoch == manager.latest_step():
            raise
        # Without it, training would go on from the latest and never have this epoch again.
        raise ValueError(
            f"an earlier epoch's checkpoint {manager.directory / str(epoch)} is damaged or of "
            "another version: put a whole one in its place, or delete "
            f"{manager.directory} and run again"
        ) from error
    nnx.replace_by_pure_dict(state, saved["model"])
    return nnx.merge(graphdef, state)


def _best(manager: ocp.CheckpointManager) -> int:
    """The epoch to restore, by the newest checkpoint's history; Orbax's metrics have no checksum.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the newest is damaged, or the best is gone.
    """
    latest = manager.latest_step()
    if latest is None:
        raise FileNotFoundError(f"no checkpoint in {manager.directory}; train the model first")
    if latest == _TRAINED_ELSEWHERE:
        return latest
    history = _read(manager, latest, history=ocp.args.JsonRestore())["history"]
    accuracy = max(row["validation_accuracy"] for row in history)
    best = [row["epoch"] for row in history if row["validation_accuracy"] == accuracy]
    kept = [epoch for epoch in best if epoch in manager.all_steps()]  # one of equals, or two
    if not kept:
        raise ValueError(
            f"the best epoch's checkpoint {manager.directory / str(best[-1])} is gone: put it "
            f"back, or delete {manager.directory} and run again"
        )
    return kept[-1]


def evaluation_model(build: BuildModel) -> nnx.Module:
    """The float32 model in evaluation mode, shapes without values."""
    model = nnx.eval_shape(lambda: build(jnp.float32))
    model.eval()
    return model


def save(manager: ocp.CheckpointManager, state: State, history: list[Epoch]) -> None:
    """Saves the checkpoint of the last epoch in `history`, with a checksum for each part."""
    content = {
        "model": nnx.to_pure_dict(nnx.merge_state(state.params, state.rest)),
        "optimizer": state.optimizer,
        "history": [row._asdict() for row in history],
    }
    manager.save(
        len(history),
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(content["model"]),
            optimizer=ocp.args.StandardSave(content["optimizer"]),
            history=ocp.args.JsonSave(content["history"]),
            checksums=ocp.args.JsonSave({name: hash_tree(part) for name, part in content.items()}),
        ),
        metrics=history[-1]._asdict(),
    )


def restore(manager: ocp.CheckpointManager, epoch: int, state: State) -> tuple[State, list[Epoch]]:
    """State and history that `save` left after an epoch.

    Args:
      manager: gives access to the checkpoints.
      epoch: the epoch, from 1.
      state: gives structure, shapes and dtypes; no values are needed.

    Raises:
      ValueError: the checkpoint is damaged, or of another version or network.
    """
    model = nnx.merge_state(state.params, state.rest)
    saved = _read(
        manager,
        epoch,
        model=_target(nnx.to_pure_dict(model)),
        optimizer=_target(state.optimizer),
        history=ocp.args.JsonRestore(),
    )
    nnx.replace_by_pure_dict(model, saved["model"])
    params, rest = nnx.split_state(model, nnx.Param, ...)
    return (
        State(params, rest, saved["optimizer"]),
        [Epoch(**row) for row in saved["history"]],
    )


def _target(shapes: Any) -> ocp.args.StandardRestore:
    """Restores onto this process's device, whichever the checkpoint was written from."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return ocp.args.StandardRestore(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )
    )


def _read(manager: ocp.CheckpointManager, step: int, **parts: Any) -> dict[str, Any]:
    """Parts of a checkpoint, compared with their checksums.

    Raises:
      ValueError: it is damaged, or of another version.
    """
    path = manager.directory / str(step)
    try:
        if "model" in parts:
            _require_shapes(Path(path / "model"), parts["model"].item)
        item = _EARLIER if Path(path / _EARLIER).exists() else "checksums"
        restored = {**parts, item: ocp.args.JsonRestore()}
        saved = manager.restore(step, args=ocp.args.Composite(**restored))
        checksums = dict(saved[item] or {})
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # nothing is wrong with the file
    except Exception as error:  # from KeyError to tensorstore's own, for a damaged file
        raise ValueError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}): it is "
            "damaged or of another version; delete it and run again"
        ) from error
    for name in parts:
        check(path, checksums.get(name), partial(hash_tree, saved[name]))
    return {name: saved[name] for name in parts}


def _require_shapes(path: Path, wanted: Any) -> None:
    """A ValueError where weights are stored for another network.

    Orbax would say so too, but leaves tasks behind that complain later, on another thread.
    """
    stored = _shapes(ocp.StandardCheckpointHandler().metadata(path).tree)
    for name, shape in _shapes(wanted).items():
        if stored.get(name) != shape:
            raise ValueError(f"{name} is stored as {stored.get(name)}, the network has {shape}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the leaves by path; Orbax stores the places in a list as strings."""
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
