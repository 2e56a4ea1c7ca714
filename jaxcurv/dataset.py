"""Scoring a whole data set: one compiled shape, one row a sample, nothing lost when killed."""

import contextlib
import json
import operator
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from jaxcurv.curvature import Curvature, inspect, on_jumps, reduce, refine
from jaxcurv.data.adapters import Converted, Keys, SourceLike, as_source
from jaxcurv.data.reading import Batch, read_batch
from jaxcurv.data.sources import Source, path_column, samples_at
from jaxcurv.engine import own_estimators
from jaxcurv.engine.batch import PRECISION, Raw, collect, dispatch
from jaxcurv.engine.checks import check_batch, check_indices, check_key, check_labels
from jaxcurv.engine.derivatives import warn_of_samples, warn_of_ties, warn_of_zeros
from jaxcurv.engine.devices import device_count, over_devices, place
from jaxcurv.engine.inspection import answers_to_eight, check_same_in_batch, losses_by_eight
from jaxcurv.engine.losses import Loss, are_classes, cross_entropy
from jaxcurv.engine.model import LogitsFn, Problem, check_params, functional
from jaxcurv.engine.probes import default_key
from jaxcurv.estimators import (
    Adaptive,
    Estimator,
    FiniteDifference,
    OwnEstimator,
    check_estimator,
    describe,
)
from jaxcurv.progress import progress
from jaxcurv.reuse import Finished, find_finished
from jaxcurv.score_tables import (
    as_stored,
    frame_of_scores,
    image_checksums,
    shard_metadata,
    table_metadata,
)
from jaxcurv.settings import is_whole, plain
from jaxcurv.shards import Shards, check_name, merge_shards, read_finished
from jaxcurv.storage.checksums import hash_tree, read_json, write_json
from jaxcurv.storage.lock import FolderInUse, lock

if TYPE_CHECKING:
    import pandas as pd

_SHARD, _SHARDS = 1024, 16
"""Samples a shard, computed again after a kill; fewer where a source has too few for 16 shards."""

_AUTO, _AUTO_CPU = 256, 64
"""Samples a batch."""

_IN_FLIGHT = 2
"""Batches computing while the host prepares the next; more would only hold memory."""

_LOOKED_AT = 12
"""Samples that are read to see whether labels are whole numbers."""

_POLL_SECONDS = 0.2

_SUFFIXES = ("standard_error", "probes", "frobenius_norm", "top_eigenvalue", "residual_trace")

_SAMPLE_COLUMNS = (
    *("index", "label", "prediction", "correct", "loss", "gradient_norm", "checkpoint"),
    *("el2n", "entropy", "least_confidence", "margin", "label_margin"),
)

_SAMPLE_COLUMNS_NO_CLASSES = ("index", "label", "loss", "gradient_norm", "checkpoint")

T = TypeVar("T")


def score_dataset(
    logits_fn: LogitsFn | nnx.Module,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    key: Key[Array, ""] | None = None,
    params: Any = None,
    checkpoints: Sequence[Any] | None = None,
    average: bool = False,
    estimators: Mapping[str, Estimator] = {"curvature": FiniteDifference()},
    loss: Loss = cross_entropy,
    out: str | os.PathLike[str] | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    shard: tuple[int, int] | None = None,
    description: str = "score",
) -> "pd.DataFrame":
    """Scores every sample of a source.

    >>> images = np.array([[3.0, 0.0], [0.5, 0.0]], np.float32)  # the two logits themselves
    >>> trace = {"trace": jaxcurv.GaussNewton()}
    >>> table = jaxcurv.score_dataset(lambda images: images, (images, [0, 0]), estimators=trace)
    >>> table[["index", "correct", "loss", "trace"]].round(3)  # tr H = 2 p (1 - p)
       index  correct   loss  trace
    0      0     True  0.049   0.09
    1      1     True  0.474   0.47

    With `out`, finished shards of up to 1,024 samples are kept in `OUT.parts/`: the same call goes
    on after a kill and leaves the very same table. Several processes may divide the work, each
    reading its own shards only: those of `jax.distributed`, after which each returns the one table,
    or independent ones that are given a `shard` each, to be joined by `merge_scores`.

    A source that has grown or changed is scored where it is new, and `out` becomes the table that
    scoring it in one go would have left. A finished row is used again for the same index and label
    where the source tells `indices` and `labels`, else for the same position. Up to twelve such
    samples, the first ones among them, are read again: it is a ValueError if index, label, image or
    loss are not those that were scored. So a label that the source tells is never overlooked; an
    image that changed under its index may be. Rows of samples that the source no longer has stay in
    `OUT.parts/` until they are asked for again, and a line says so.

    Samples at which the model jumps, so that a finite difference measures that and not curvature,
    are counted in one warning, of those that this call computes. Scores without a step that are all
    0, where gradients are not, are warned of, and so are samples that are tied at 0, if at least
    two and a tenth of all are.

    Args:
      logits_fn, key, params, loss: as for `input_curvature`.
      source: the samples, as anything that `jaxcurv.data.as_source` takes: a pair of arrays
        (images, labels), a torch `Dataset` or `DataLoader`, a data set of Hugging Face, or rows
        `{"image": float [...], "label": int, "index": int}`. Images normalised as the model
        expects; read in a thread of its own. Where it also has `indices [len]` and `labels [len]`,
        those are checked before any compute, or else shard by shard and the indices once more at
        the end; its `paths [len]` become a column.
      keys: what its rows call image, label and index, such as `{"image": "img"}`; not the random
        `key`.
      checkpoints: in place of `params`, or of the weights of an NNX module: several weights, all
        scored with the same probes. The table then has a row for each sample and checkpoint.
        Arrays that two of them share entirely are refused: keep copies, not `nnx.state(model)`,
        which follows its model.
      average: one row a sample instead, its scores, errors, losses and norms averaged over the
        checkpoints (the errors are correlated: their average is an upper bound), its probes summed,
        its prediction that of the last one. All checkpoints lie on the device at once.
      estimators: what is computed, by column name; those with the same probes share them. One of
        your own is an `OwnEstimator`.
      out: file of the table, `NAME.parquet`. What was begun with other settings or weights is
        refused, as is a table that another program wrote or changed. Weights that a plain function
        closes over, and settings of a model or loss, are told apart only by what they give: logits
        of ten fixed random images and losses of two (1e-4 of the largest), gradients of two (1e-2),
        and losses of samples that are read again (1e-3). Better give `params`.
      batch_size: samples a batch; the last one is padded, so that one shape compiles. "auto" is 64
        for each device of a CPU and 256 on an accelerator. A table that was begun with a number
        goes on with as many samples a device, on any number of devices: the last bits of a score
        depend on that number.
        Halved where memory does not suffice, which is recorded and kept when a run goes on.
      mesh: devices that share each batch; by default all of this process's. On a CPU, one a core
        makes better use of them: JAX_NUM_CPU_DEVICES in the environment.
      shard: (i, n), to score every n-th shard from the i-th on, i from 0.
      description: a few words for the progress bar.

    Returns:
      A DataFrame with the columns index (int64), path (text, where the source has `paths`), label
      and prediction (int32), correct (bool), and as float32 loss, gradient_norm, those of
      `jaxcurv.logit_scores`, and for each estimator NAME and NAME_standard_error (and, where the
      estimator has them, NAME_probes (int32), NAME_frobenius_norm, NAME_top_eigenvalue,
      NAME_residual_trace), in the source's order. Its `attrs` say what was scored, how and on
      what. With `shard`, the rows of those shards. Where labels are no classes (see `loss` of
      `input_curvature`), label is int32 or float32, or an array of several, and there is neither
      prediction, correct nor what `jaxcurv.logit_scores` gives.

    Raises:
      ValueError: an empty source, one that `as_source` refuses, duplicate indices, an `out` that is
        no `.parquet` or belongs to other settings, samples or images, or what `input_curvature`
        refuses; no row is written before the first batch has passed.
      OSError: `out` cannot be written, or another process scores the same shards of it.
    """
    key = default_key() if key is None else key
    check_key(key)
    batch_size = plain(batch_size)
    turn = (jax.process_index(), jax.process_count()) if shard is None else plain(shard)
    _check_arguments(estimators, batch_size, turn, out)
    source = as_source(source, keys=keys, classes=loss is cross_entropy)
    if len(source) == 0:
        raise ValueError("nothing to score: the source has no samples")
    model, weights = _weights(logits_fn, params, checkpoints)
    sharding = over_devices(mesh)
    devices = device_count(sharding)
    size = _first_batch_size(batch_size, devices)
    if hasattr(source, "indices"):
        check_indices([source.indices])
    few = read_batch(source, range(min(4, len(source))), classes=loss is cross_entropy)
    if loss is not cross_entropy and few.labels.dtype.kind in "iu" and _some_are_floats(source):
        few = few._replace(labels=few.labels.astype(np.float32))
    check_batch(*few, loss)
    inspection = inspect(Problem(model, loss), weights[0], few, estimators)
    problem = inspection.problem
    if hasattr(source, "labels"):
        check_labels(np.asarray(source.labels), inspection.logits.shape[1], loss)
    classes = are_classes(few.labels, inspection.logits.shape[1])
    unit = _AUTO if batch_size == "auto" else size
    identity = {
        "estimators": {name: describe(estimator) for name, estimator in estimators.items()},
        "loss": getattr(loss, "__qualname__", type(loss).__qualname__),
        "precision": PRECISION,
        "matrix": inspection.matrix,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "samples": len(source),
        "data": hash_tree([*few, *_last(source, loss), *_known(source)]),
        "checkpoints": len(weights),
        "average": average,
        "weights": hash_tree(weights),
        **_answers(problem, weights[0], _fixed(few)),
        **_answers_in_range(problem, weights[0], few.images),
        **_own_answers(estimators, problem.loss, _fixed(few), inspection.logits),
        "batch_size_a_device": "auto" if batch_size == "auto" else size // devices,
        "columns": [
            *(_SAMPLE_COLUMNS if classes else _SAMPLE_COLUMNS_NO_CLASSES),
            *path_column(source, [0]),
        ],
        "shard_length": unit * max(1, min(_SHARD, len(source) // _SHARDS) // unit),
    }
    # As it is read back; settings may be NumPy's numbers.
    identity = json.loads(json.dumps(identity, default=lambda number: number.item()))
    run = _Run(
        problem=problem,
        weights=[place(one, sharding) for one in weights],
        long=checkpoints is not None and not average,
        source=source,
        image_shape=few.images.shape[1:],
        few_labels=few.labels,
        loss=loss,
        key=key,
        estimators=inspection.estimators,
        matrix=inspection.matrix,
        classes=inspection.logits.shape[1],
        sharding=sharding,
        length=identity["shard_length"],
        description=description,
        before=Finished(np.full(len(source), -1)),
    )
    mine = list(range(0, len(source), run.length)[turn[0] :: turn[1]])
    if out is None:
        made: dict[int, pa.Table] = {}
        _compute(run, mine, size, made.__setitem__)
        if not inspection.warned:
            warn_of_samples(run.looked_at)
        table = _joined(identity, list(made.values()))
    else:
        path, name = Path(out), f"{turn[0]}-of-{turn[1]}"
        part, finished = None, read_finished(path, identity)
        if finished is not None:
            Shards(path, identity).remove_left()
        else:
            # Not among the shards, which are removed while it is held.
            with lock(path.parent, name=f".{path.name}.shard-{name}.lock", of=path):
                finished = read_finished(path, identity)  # by another process, meanwhile
                if finished is None:
                    shards = Shards(path, identity)
                    try:
                        _compute_on_disk(run, mine, size, shards, record=f"batch-{name}.json")
                        if not inspection.warned:
                            warn_of_samples(run.looked_at)
                        if shard is None:
                            finished = _joined_by_all(shards)
                        else:
                            tables = [shards.read(start) for start in mine]
                            part = _joined(identity, tables or [_no_rows(run, few, size)])
                    except FileNotFoundError:  # merged, meanwhile, by who found them all
                        finished = read_finished(path, identity)
                        if finished is None:
                            raise
        if part is None:
            assert finished is not None
            part = finished if shard is None else finished.take(run.table_rows(mine))
        table = part
    frame = frame_of_scores(table)
    found = {one: (frame[one], frame[f"{one}_standard_error"]) for one in estimators}
    if not warn_of_zeros(estimators, found, frame["gradient_norm"]) and not inspection.warned:
        warn_of_ties(estimators, found, frame["index"])
    return frame


def _check_arguments(
    estimators: Mapping[str, Estimator],
    batch_size: int | str,
    turn: tuple[int, int],
    out: str | os.PathLike[str] | None,
) -> None:
    if batch_size != "auto" and (not is_whole(batch_size) or batch_size < 1):
        raise ValueError(f"batch_size must be auto or at least 1; got {batch_size!r}")
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(
            'give estimators by name, a mapping {"curvature": FiniteDifference()}; got '
            + ("an empty one" if isinstance(estimators, Mapping) else type(estimators).__name__)
        )
    for name, estimator in estimators.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"an estimator's name is its column's, a text; got {name!r}")
        check_estimator(estimator)
    names = [*_SAMPLE_COLUMNS, "path", *estimators]
    own = [f"{name}_{suffix}" for name in estimators for suffix in _SUFFIXES]
    if taken := sorted(name for name in estimators if [*names, *own].count(name) > 1):
        raise ValueError(f"an estimator cannot be named {', '.join(taken)}: the table has that")
    if (
        not isinstance(turn, tuple)
        or [is_whole(part) for part in turn] != [True, True]
        or not 0 <= turn[0] < turn[1]
    ):
        raise ValueError(f"shard must be (i, n) with 0 <= i < n; got {turn}")
    if turn[1] > 1 and out is None:
        raise ValueError(f"{turn[1]} processes need one file that all of them see: give out")
    if out is not None:
        if Path(out).is_dir():
            raise ValueError(f"{out} is a folder: give the name of a file")
        check_name(Path(out))


def _weights(
    logits_fn: LogitsFn | nnx.Module, params: Any, checkpoints: Sequence[Any] | None
) -> tuple[Callable[[Any, Array], Array], list[Any]]:
    """The model as a function, and the weights to score it with."""
    if checkpoints is None:
        model, weights = functional(logits_fn, params)
        return model, [weights]
    if params is not None or not checkpoints:
        raise ValueError("checkpoints take the place of params, and must be at least one")
    model, states = logits_fn, list(checkpoints)
    if isinstance(logits_fn, nnx.Module):
        model, _ = functional(logits_fn, None)
        states = [nnx.state(one) if isinstance(one, nnx.Module) else one for one in checkpoints]
    for number, one in enumerate(states):
        check_params(one, f"checkpoints[{number}]")
    forms = {str(jax.tree.map(jnp.shape, one)) for one in states}
    if len(forms) > 1:
        raise ValueError("checkpoints must hold arrays of the same names and shapes: one model's")
    _refuse_one_for_two(states)
    return model, states


def _refuse_one_for_two(states: Sequence[Any]) -> None:
    """Refuses checkpoints whose arrays are the very same, and so of the last step alone."""
    seen: dict[tuple[int, ...], int] = {}
    # All are held: an array that is made for the comparison may else lie where the last one lay.
    for number, arrays in enumerate([jax.tree.leaves(one) for one in states]):
        first = seen.setdefault(tuple(map(id, arrays)), number)
        if first != number:
            raise ValueError(
                f"checkpoints[{first}] and checkpoints[{number}] are the same arrays, as where "
                "nnx.state(model) was kept, which follows its model, or arrays that were written "
                "to: keep a copy at each checkpoint, jax.tree.map(jnp.copy, nnx.state(model))"
            )


def _fixed(few: Batch) -> Batch:
    """Two random images of this shape, the same whatever the data."""
    # Always two: of one, `inspect` would make both.
    images = np.random.default_rng(0).random((2, *few.images.shape[1:]), np.float32)
    labels = np.zeros(2, np.int32)
    if few.labels.ndim > 1 or few.labels.dtype.kind not in "iu":
        labels = np.stack([np.zeros_like(few.labels[0]), np.ones_like(few.labels[0])])
    return Batch(images.astype(few.images.dtype), labels, np.arange(2))


def _answers(problem: Problem, params: Any, fixed: Batch) -> dict[str, Any]:
    """What tells apart models, and losses, that look alike from outside; whatever the data.

    Returns:
      `logits` `[2, classes]` of two fixed random images, and their `losses` `[2, 2]`; empty where
      the model cannot take them. Of a loss of the user's own its gradient, too.
    """
    try:
        found = inspect(problem, params, fixed, {})
    except ValueError:
        return {"logits": [], "losses": []}
    answers = {"logits": found.logits.tolist(), "losses": found.losses.tolist()}
    if problem.loss is not cross_entropy:
        answers["loss_gradient"] = found.loss_gradient.tolist()
    return answers


def _answers_in_range(problem: Problem, params: Any, images: np.ndarray) -> dict[str, Any]:
    """What tells apart models that agree on the two fixed images, whose entries lie in [0, 1).

    Returns:
      logits `[8, classes]` of fixed images of normal numbers, which are of both signs and about as
      large as the data's, and 16 random sums of each of two gradients there, which an own
      derivative rule or a `stop_gradient` changes alone; an entry that is not finite is 0. Empty
      where the model fails on them.
    """
    name = next(one for one, (_, most) in _RANGES.items() if np.abs(images).max() <= most)
    normal = np.random.default_rng(1).normal(size=(8, *images.shape[1:])) * _RANGES[name][0]
    try:
        with jax.default_matmul_precision(PRECISION):
            logits, gradients = answers_to_eight(problem.model, params, normal.astype(images.dtype))
    except (ValueError, jax.errors.JaxRuntimeError):
        return {name: []}
    finite = np.where(np.isfinite(gradients), gradients, 0).reshape(2, -1).astype(np.float64)
    signs = np.random.default_rng(2).choice([-1, 1], (finite.shape[1], 16))
    return {
        name: np.where(np.isfinite(logits), logits, 0).tolist(),
        name.replace("logits", "gradient"): (finite @ signs).tolist(),
    }


_RANGES = {"logits_in_range": (2, 16), "logits_in_wide_range": (128, np.inf)}
"""Entries of an identity, with the standard deviation of their images, and the largest pixel for
which they stand. Other first samples rarely need the other one, and then it is not compared."""


def _own_answers(
    estimators: Mapping[str, Estimator], loss: Loss, fixed: Batch, logits: np.ndarray
) -> dict[str, Any]:
    """What tells apart estimators of the user's own whose fields are equal, if there are any."""
    scores = {
        name: own_estimators.answers(one, loss, fixed, logits)
        for name, one in estimators.items()
        if isinstance(one, OwnEstimator)
    }
    return {"own_scores": scores} if scores else {}


def _last(source: Source, loss: Loss) -> Batch:
    return read_batch(source, [len(source) - 1], classes=loss is cross_entropy)


def _some_are_floats(source: Source) -> bool:
    """Whether any label is a float, as far as a source tells, has them in memory, or a few show."""
    if hasattr(source, "labels"):
        return np.asarray(source.labels).dtype.kind == "f"
    items = getattr(source, "items", source)
    if isinstance(items, list | tuple):
        label = source.label if isinstance(source, Converted) else operator.itemgetter("label")
        try:
            labels: Any = list(map(label, items))
        except (LookupError, TypeError):
            return False  # which is told when it is read
    else:
        positions = np.linspace(0, len(source) - 1, _LOOKED_AT).astype(np.int64)
        labels = [sample["label"] for sample in samples_at(source, np.unique(positions))]
    return any(np.asarray(one).dtype.kind == "f" for one in labels)


def _first_batch_size(wanted: int | Literal["auto"], devices: int) -> int:
    """The batch size to begin with; each device gets as many samples."""
    if wanted == "auto":
        if jax.default_backend() == "cpu":
            return _AUTO_CPU * devices  # equal batches on each: a score's last bits depend on it
        return -(-_AUTO // devices) * devices
    if wanted % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices; got {wanted}")
    return wanted


def _known(source: Any) -> list[np.ndarray]:
    """What a source tells of all its samples without reading them."""
    return [
        np.asarray(getattr(source, name)) for name in ("indices", "labels") if hasattr(source, name)
    ]


def _joined_by_all(shards: Shards) -> pa.Table:
    """The whole table, once every process has finished its shards; the first one makes it.

    The processes meet in the files, for their work may end hours apart, which a collective does
    not wait for. One that dies ends the others by JAX's own heartbeat.
    """
    alone, first = jax.process_count() == 1, jax.process_index() == 0
    while (table := read_finished(shards.out, shards.identity)) is None:
        if alone or (first and all(map(shards.finished, shards.starts()))):
            with contextlib.suppress(FolderInUse):  # which merges them
                merged = merge_shards(shards.out)
                shards.check_list(merged)
                return merged
        time.sleep(_POLL_SECONDS)
    return table


def _joined(identity: Mapping[str, Any], tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of shards, at least one, as one."""
    check_indices(np.unique(table["index"]) for table in tables)
    table = pa.concat_tables(tables)
    return table.replace_schema_metadata(table_metadata(identity, tables))


@dataclass(frozen=True)
class _Run:
    """What is scored; fixed while shards come and go."""

    problem: Problem
    weights: list[Any]
    long: bool
    """A row for each sample and checkpoint, not their average."""
    source: Source
    image_shape: tuple[int, ...]
    few_labels: np.ndarray
    """Those of the first samples, whose kind the others have."""
    loss: Loss
    """As it was given; that of the problem is the one that is compiled."""
    key: Array
    estimators: Mapping[str, Estimator]
    matrix: str
    classes: int
    sharding: NamedSharding | None
    length: int
    description: str

    before: Finished
    """Rows that are not computed, for there are some of these samples."""
    looked_at: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Indices of each shard that was computed, and whether the model jumps there."""

    def samples(self, start: int) -> range:
        """Positions of a shard's samples."""
        return range(start, min(start + self.length, len(self.source)))

    def missing(self, start: int) -> np.ndarray:
        """Positions of a shard's samples that are to be computed."""
        return start + np.flatnonzero(self.before.numbers[start : start + self.length] < 0)

    def rows(self, start: int) -> int:
        """How many samples of a shard are to be computed."""
        return len(self.missing(start))

    def table_rows(self, starts: Sequence[int]) -> np.ndarray:
        """Where shards lie in the whole table."""
        each = len(self.weights) if self.long else 1
        spans = [np.arange(each * s, each * self.samples(s).stop) for s in starts]
        return np.concatenate([np.empty(0, np.int64), *spans])


def _compute_on_disk(
    run: _Run, mine: Sequence[int], batch_size: int, shards: Shards, *, record: str
) -> None:
    """Scores what is not finished, at the batch size that an earlier try ended with."""
    shards.check_folder()
    run = replace(run, before=find_finished(shards, run.source, partial(_losses, run)))
    shards.begin()
    path, devices = shards.folder / record, device_count(run.sharding)
    if path.exists():
        batch_size = read_json(path)["batch_size_a_device"] * devices
    for start in filter(shards.finished, mine):
        shards.read(start)  # a damaged one is told now and not at the end
    todo = [start for start in mine if not shards.finished(start)]
    if todo and read_finished(shards.out, shards.identity) is not None:
        return  # they are in the table, which another process has merged meanwhile

    def keep(size: int) -> None:
        write_json(path, {"batch_size_a_device": size // devices})

    def write(start: int, computed: pa.Table | None) -> None:
        samples = run.samples(start)
        table = run.before.completed(samples.start, samples.stop, computed)
        # A file may have moved since its image was scored.
        for name, values in path_column(run.source, samples).items():
            values = pa.array(np.repeat(values, shards.rows_a_sample))
            table = table.set_column(table.column_names.index(name), name, values)
        shards.write(start, table)

    for start in todo:
        if not run.rows(start):
            write(start, None)
    done = sum(len(run.samples(start)) for start in mine) - sum(map(run.rows, todo))
    todo = [start for start in todo if run.rows(start)]
    try:
        _compute(run, todo, batch_size, write, done=done, halved=keep)
    except KeyboardInterrupt as interruption:
        kept = sum(len(run.samples(start)) for start in mine if shards.finished(start))
        told = sum(len(run.samples(start)) for start in mine)
        interruption.add_note(f"{kept:,} of {told:,} samples are kept: the same call goes on")
        raise


def _losses(run: _Run, batch: Batch) -> tuple[np.ndarray, float]:
    """Losses of a batch as the table has them, `[batch, rows a sample]`, and the largest logit."""
    largest, columns = 0.0, []
    with jax.default_matmul_precision(PRECISION):
        for weights in run.weights:
            losses, logit = losses_by_eight(run.problem, weights, batch)
            columns.append(losses)
            largest = max(largest, logit)
    losses = np.stack(columns, axis=1)
    return (losses if run.long else losses.mean(axis=1, keepdims=True)), largest


def _compute(
    run: _Run,
    starts: Sequence[int],
    batch_size: int,
    write: Callable[[int, pa.Table], None],
    *,
    done: int = 0,
    halved: Callable[[int], None] = lambda size: None,
) -> None:
    """Scores shards in order and hands each to `write`; out of memory, with half the batch."""
    todo = list(starts)
    total = done + sum(map(run.rows, starts))
    with progress(total, run.description, initial=done) as shown:
        while todo:
            try:
                for start, table in _scored(run, list(todo), batch_size, shown.update):
                    write(start, table)
                    todo.remove(start)
            except jax.errors.JaxRuntimeError as error:
                devices = device_count(run.sharding)
                smaller = batch_size // 2 // devices * devices
                # XLA says so by its code, or in words where a program fails to start.
                full = re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE)
                if not full:
                    raise
                if smaller == 0:
                    raise MemoryError("out of memory with one sample a device") from error
                shown.write(f"out of memory with batches of {batch_size}: going on with {smaller}")
                batch_size = smaller
                halved(batch_size)
                shown.update(total - sum(map(run.rows, todo)) - shown.count)


def _scored(
    run: _Run, starts: Sequence[int], batch_size: int, update: Callable[[int], object]
) -> Iterator[tuple[int, pa.Table]]:
    """Shards in order, each with the table of what was computed; batches of the next compute while
    one is reduced."""
    keep_images = any(isinstance(e, Adaptive) for e in run.estimators.values())

    def dispatched() -> Iterator[tuple[int, np.ndarray, Batch, list[Raw]]]:
        first = True
        for start, read, batch in _batches(run, starts, batch_size):
            pending = [
                dispatch(
                    run.problem, weights, batch, run.key, run.estimators, sharding=run.sharding
                )
                for weights in run.weights
            ]
            if first:
                first = False
                with jax.default_matmul_precision(PRECISION):
                    for weights, one in zip(run.weights, pending, strict=True):
                        check_same_in_batch(run.problem, weights, batch, jax.device_get(one.loss))
            yield start, read, batch if keep_images else _without_images(batch), pending

    batches: list[Batch] = []
    parts: list[list[Raw]] = []
    checksums: list[np.ndarray] = []
    for start, read, batch, pending in _ahead(dispatched(), _IN_FLIGHT):
        rows = len(read)
        checksums.append(read)
        parts.append([_rows(collect(one, batch.indices), rows) for one in pending])
        batches.append(batch.take(np.arange(rows)))
        update(rows)
        if sum(len(b.labels) for b in batches) == run.rows(start):
            whole = Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
            raws = [_concatenated(one) for one in zip(*parts, strict=True)]
            check_indices([whole.indices])
            device = jax.devices()[0].device_kind
            made = {"devices": [device], "jax": [jax.__version__], "batch_sizes": [batch_size]}
            metadata = shard_metadata(made, np.concatenate(checksums), start=start)
            named = path_column(run.source, run.missing(start))
            table, jumped = _table(run, whole, named, raws, batch_size)
            yield start, table.replace_schema_metadata(metadata)
            run.looked_at.append((whole.indices, jumped))
            batches, parts, checksums = [], [], []


def _ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The items, `count` of them taken before the first is handed on."""
    taken: deque[T] = deque()
    for item in items:
        taken.append(item)
        if len(taken) > count:
            yield taken.popleft()
    yield from taken


def _batches(
    run: _Run, starts: Sequence[int], batch_size: int
) -> Iterator[tuple[int, np.ndarray, Batch]]:
    """Batches of one shape, read by a thread of their own, each with the checksums of its images;
    what follows those is padding."""
    spans = (
        (start, run.missing(start)[first : first + batch_size])
        for start in starts
        for first in range(0, run.rows(start), batch_size)
    )

    def read(positions: np.ndarray) -> tuple[Batch, np.ndarray]:
        batch = read_batch(
            run.source, positions.tolist(), shape=run.image_shape,
            classes=run.loss is cross_entropy,
        )  # fmt: skip
        return batch, image_checksums(batch.images)

    with ThreadPoolExecutor(1) as reader:
        pending = ((start, reader.submit(read, span)) for start, span in spans)
        for start, future in _ahead(pending, _IN_FLIGHT):
            batch, checksums = future.result()
            batch = _as_first(batch, run.few_labels)
            check_batch(*batch, run.loss)
            _check_same_kind(batch, run.few_labels)
            check_labels(batch.labels, run.classes, run.loss)
            # Repeats the last sample, so that padding is as harmless as any other.
            padded = np.minimum(np.arange(batch_size), len(checksums) - 1)
            yield start, checksums, batch.take(padded)


def _as_first(batch: Batch, few: np.ndarray) -> Batch:
    """Whole numbers as floats where the first labels are: Python's 1, 2 and 0.5 are of one kind."""
    if few.dtype.kind == "f" and batch.labels.dtype.kind in "iu":
        return batch._replace(labels=batch.labels.astype(few.dtype))
    return batch


def _check_same_kind(batch: Batch, few: np.ndarray) -> None:
    """Refuses labels of another shape or kind than the first ones."""
    if batch.labels.shape[1:] == few.shape[1:] and batch.labels.dtype.kind == few.dtype.kind:
        return
    broken = np.zeros(len(batch.labels), bool)
    if batch.labels.dtype.kind == "f":  # of whole numbers and floats NumPy makes floats
        broken = (batch.labels % 1 != 0).reshape(len(batch.labels), -1).any(axis=1)
    first = int(np.argmax(broken))
    raise ValueError(
        f"labels must be of one kind; those of the first samples are {few.dtype} {few.shape[1:]}, "
        f"that of index {batch.indices[first]} is {batch.labels[first].tolist()}, "
        f"{batch.labels.dtype} {batch.labels.shape[1:]}: give numbers that are no classes as "
        "floats, all of them, and another out where one was begun with whole numbers"
    )


def _without_images(batch: Batch) -> Batch:
    return batch._replace(images=np.empty((len(batch.labels), 0), batch.images.dtype))


def _rows(raw: Raw, count: int) -> Raw:
    return jax.tree.map(lambda array: array[:count], raw)


def _concatenated(raws: Sequence[Raw]) -> Raw:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *raws)


def _table(
    run: _Run,
    batch: Batch,
    named: Mapping[str, np.ndarray],
    raws: Sequence[Raw],
    batch_size: int,
) -> tuple[pa.Table, np.ndarray]:
    """A shard's table from the samples' files and the draws of every checkpoint, and whether each
    sample is on a jump of the model at any of them."""
    columns, jumped = [], np.zeros(len(batch.labels), bool)
    for weights, raw in zip(run.weights, raws, strict=True):
        adapted = refine(
            raw, run.problem, weights, batch, run.key, run.estimators,
            batch_size=batch_size, sharding=run.sharding,
        )  # fmt: skip
        curvatures = reduce(raw, run.estimators, adapted, run.matrix)
        columns.append(_columns(batch, named, raw, curvatures))
        jumped |= on_jumps(raw, adapted)
    if run.long:
        for number, one in enumerate(columns):
            one["checkpoint"] = np.full(len(batch.labels), number, np.int32)
        merged = {
            name: np.concatenate(np.stack([one[name] for one in columns], axis=1))
            for name in columns[0]
        }
    else:
        merged = {name: _averaged(name, [one[name] for one in columns]) for name in columns[0]}
    return pa.table({name: _arrow(values) for name, values in merged.items()}), jumped


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _no_rows(run: _Run, few: Batch, batch_size: int) -> pa.Table:
    """The table of a process that got no shard: the columns of the others'; nothing is computed."""
    shapes = jax.eval_shape(
        lambda: dispatch(run.problem, run.weights[0], few, run.key, run.estimators)
    )
    one = few.take(np.arange(1))
    row = jax.tree.map(lambda array: np.ones((1, *array.shape[1:]), array.dtype), shapes)
    raws = [collect(row, one.indices)] * len(run.weights)
    table, _ = _table(run, one, path_column(run.source, [0]), raws, batch_size)
    made: dict[str, list[Any]] = {"devices": [], "jax": [], "batch_sizes": []}
    return table.slice(0, 0).replace_schema_metadata(
        shard_metadata(made, np.empty(0, np.uint32), start=None)
    )


def _averaged(name: str, values: list[np.ndarray]) -> np.ndarray:
    """Mean over checkpoints of what is measured, sum of the probes, the last one's of the rest."""
    if name.endswith("_probes"):
        return np.sum(values, axis=0, dtype=values[0].dtype)
    if name == "label" or not np.issubdtype(values[0].dtype, np.floating):
        return values[-1]
    return np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype)


def _predicted(batch: Batch, raw: Raw) -> dict[str, np.ndarray]:
    if raw.prediction is None:
        return {}
    return {
        "prediction": raw.prediction.astype(np.int32),
        "correct": raw.prediction == batch.labels,
    }


def _columns(
    batch: Batch,
    named: Mapping[str, np.ndarray],
    raw: Raw,
    curvatures: Mapping[str, Curvature],
) -> dict[str, np.ndarray]:
    columns = {
        "index": batch.indices.astype(np.int64),
        **named,
        "label": as_stored(batch.labels),
        **_predicted(batch, raw),
        "loss": raw.loss,
        "gradient_norm": raw.gradient_norm,
        **raw.logit_scores,
    }
    for name, curvature in curvatures.items():
        columns[name] = curvature.score
        columns[f"{name}_standard_error"] = curvature.standard_error
        if isinstance(curvature.estimator, Adaptive):
            columns[f"{name}_probes"] = curvature.probes.astype(np.int32)
        if curvature.frobenius_norm is not None:
            columns[f"{name}_frobenius_norm"] = curvature.frobenius_norm
        if curvature.eigenvalues is not None:
            columns[f"{name}_top_eigenvalue"] = curvature.eigenvalues[:, 0]
        if curvature.residual_trace is not None:
            columns[f"{name}_residual_trace"] = curvature.residual_trace
    return columns
