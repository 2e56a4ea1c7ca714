"""Scoring a data set: one row a sample, whatever the batches, the shards and the kills."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from flax import nnx

from jaxcurv import (
    Adaptive,
    Curvature,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    dataset,
    input_curvature,
    merge_scores,
    score_dataset,
)
from jaxcurv.data import Normalisation, Normalised, Sample, Source
from jaxcurv.engine import cross_entropy
from jaxcurv.estimators import Estimator
from jaxcurv.shards import merge_shards
from jaxcurv.storage.checksums import read_json
from jaxcurv.storage.lock import FolderInUse, lock
from tests.refusals import refused
from tests.terminal import Terminal, lines_of

KEY = jax.random.key(3)
ESTIMATORS: dict[str, Estimator] = {
    "curvature": FiniteDifference(probes=3),
    "hessian_trace": HessianTrace(3, step=1e-3),
    "product": HessianVector(2),
    "spectrum": GaussNewton(),
    "low_rank": LowRankGaussNewton(1, 2),
    "adaptive": Adaptive(FiniteDifference(probes=5), tolerance=0.17, max_probes=28),
}
COUNT, CLASSES = 13, 4


class ConvNet(nnx.Module):
    """A convolution with BatchNorm on `[batch, 6, 6, 2]`."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.conv = nnx.Conv(2, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.fc(jnp.mean(x, axis=(1, 2)))


@pytest.fixture(scope="module")
def model() -> ConvNet:
    model, rng = nnx.eval_shape(ConvNet), np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape = variable.shape
        if path[-1] == "kernel":
            value = rng.normal(size=shape) * 3 / np.sqrt(np.prod(shape[:-1]))
        else:
            value = np.full(shape, path[-1] in ("scale", "var"))
        variable.set_value(jnp.asarray(value, jnp.float32))
    model.eval()
    return model


def samples(count: int = COUNT) -> list[Sample]:
    """Indices are scattered and out of order, as in a split of a larger data set."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 6, 6, 2)).astype(np.float32)
    return [
        Sample(image=image, label=int(rng.integers(CLASSES)), index=(7 * n + 3) % 64)
        for n, image in enumerate(images)
    ]


def changed(position: int, **entries: Any) -> list[Any]:
    source: list[Any] = samples()
    source[position] = {**source[position], **entries}
    return source


def score(model: Any, source: Sequence[Any] | None = None, **changed: Any) -> pd.DataFrame:
    settings: dict[str, Any] = {"key": KEY, "estimators": ESTIMATORS, "batch_size": 4} | changed
    return score_dataset(model, samples() if source is None else source, **settings)


@pytest.fixture(scope="module")
def table(model: ConvNet) -> pd.DataFrame:
    return score(model)


def test_the_table_has_one_typed_row_a_sample_in_the_source_s_order(table: pd.DataFrame) -> None:
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        "index": "int64",
        "label": "int32",
        "prediction": "int32",
        "correct": "bool",
        "loss": "float32",
        "gradient_norm": "float32",
        "el2n": "float32",
        "entropy": "float32",
        "least_confidence": "float32",
        "margin": "float32",
        "label_margin": "float32",
        "curvature": "float32",
        "curvature_standard_error": "float32",
        "hessian_trace": "float32",
        "hessian_trace_standard_error": "float32",
        "product": "float32",
        "product_standard_error": "float32",
        "product_frobenius_norm": "float32",
        "spectrum": "float32",
        "spectrum_standard_error": "float32",
        "spectrum_frobenius_norm": "float32",
        "spectrum_top_eigenvalue": "float32",
        "low_rank": "float32",
        "low_rank_standard_error": "float32",
        "low_rank_top_eigenvalue": "float32",
        "low_rank_residual_trace": "float32",
        "adaptive": "float32",
        "adaptive_standard_error": "float32",
        "adaptive_probes": "int32",
    }
    source = samples()
    assert isinstance(source, Source)
    assert table["index"].tolist() == [sample["index"] for sample in source]
    assert table["label"].tolist() == [sample["label"] for sample in source]
    correct = table["prediction"].to_numpy() == table["label"].to_numpy()
    assert table["correct"].tolist() == correct.tolist()
    assert 0 < correct.sum() < COUNT
    assert np.all(table["curvature"].to_numpy() > 0)
    assert len(set(table["adaptive_probes"].tolist())) > 1


def test_the_attributes_say_how_it_was_scored(table: pd.DataFrame) -> None:
    found = table.attrs
    assert found["estimators"]["adaptive"] == {
        "name": "Adaptive",
        "estimator": {
            "name": "FiniteDifference",
            "step": 1e-3,
            "probes": 5,
            "distribution": "rademacher",
        },
        "tolerance": 0.17,
        "max_probes": 28,
    }
    assert list(found["estimators"]) == list(ESTIMATORS)
    assert found["precision"] == "highest"
    assert found["matrix"] == "Hessian"
    assert found["samples"] == COUNT
    assert found["batch_sizes"] == [4]
    assert found["devices"] == [jax.devices()[0].device_kind]
    assert found["jax"] == [jax.__version__]
    # pandas copies it at every operation: two checksums a column, but nothing for each sample.
    assert len(json.dumps(found)) < 3000


def test_rows_are_those_of_input_curvature(model: ConvNet, table: pd.DataFrame) -> None:
    batch = samples()[4:8]

    def alone(estimator: Estimator) -> Curvature:
        return input_curvature(
            model,
            np.stack([sample["image"] for sample in batch]),
            np.array([sample["label"] for sample in batch]),
            indices=np.array([sample["index"] for sample in batch]),
            key=KEY,
            estimator=estimator,
        )

    for name, estimator in ESTIMATORS.items():
        result, expected = alone(estimator), table[4:8]
        # Other things are computed beside it in one program: roundings may differ.
        close = {"rtol": 1e-3, "atol": 1e-6}
        np.testing.assert_allclose(expected[name], result.score, **close)
        np.testing.assert_allclose(
            expected[f"{name}_standard_error"], result.standard_error, **close
        )
        np.testing.assert_array_equal(expected["prediction"], result.prediction)
        np.testing.assert_allclose(expected["gradient_norm"], result.gradient_norm, rtol=1e-5)
        np.testing.assert_allclose(expected["loss"], result.loss, rtol=1e-5)
        if isinstance(estimator, Adaptive):
            np.testing.assert_array_equal(expected["adaptive_probes"], result.probes)
        if result.eigenvalues is not None:
            np.testing.assert_allclose(
                expected[f"{name}_top_eigenvalue"], result.eigenvalues[:, 0], **close
            )


@pytest.mark.parametrize("count", [COUNT, 5], ids=["reversed", "fewer, so more padding"])
def test_order_and_padding_change_nothing_at_all(
    model: ConvNet, table: pd.DataFrame, count: int
) -> None:
    other = score(model, samples()[:count][::-1])
    assert other[::-1].reset_index(drop=True).equals(table[:count])


def test_another_batch_size_changes_roundings_only(model: ConvNet, table: pd.DataFrame) -> None:
    some = {name: ESTIMATORS[name] for name in ("curvature", "spectrum")}
    other = score(model, estimators=some, batch_size=5)
    assert other["index"].equals(table["index"])
    for name in some:
        one, two = (t[name].to_numpy() for t in (table, other))
        assert np.median(np.abs(one / two - 1)) < 1e-4
        np.testing.assert_allclose(one, two, rtol=1e-2)


# --- on disk


def test_a_finished_table_is_read_and_not_computed_again(
    model: ConvNet, table: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    assert score(model, out=out).equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    content, source = out.read_bytes(), Reading(samples())
    assert score(model, source, out=out).equals(table)
    assert set(source.read) <= {0, 1, 2, 3, COUNT - 1}  # what tells that it is the same data
    assert out.read_bytes() == content


class Reading(Sequence[Any]):
    """A source that notes which samples are read."""

    def __init__(self, source: Sequence[Any]):
        self.source, self.read = source, list[int]()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: Any) -> Any:
        self.read.append(position)
        return self.source[position]


def shard_file(out: Path, start: int) -> Path:
    """The file of the shard that begins at a position."""
    (path,) = out.with_name(f"{out.name}.parts").glob(f"{start:012d}-*.parquet")
    return path


def test_shards_merge_to_the_same_bytes(
    model: ConvNet, table: pd.DataFrame, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "scores.parquet"
    score(model, out=whole)
    with pytest.raises(FileNotFoundError, match=r"neither .*scores\.parquet nor .*parts"):
        merge_scores(out)
    tables = [score(model, out=out, shard=(i, 3)) for i in (2, 0)]
    with pytest.raises(ValueError, match=r"1 of 4 shards .* the first from sample 4 on"):
        merge_scores(out)
    tables.append(score(model, out=out, shard=(1, 3)))
    assert sum(map(len, tables)) == COUNT
    empty = score(model, out=out, shard=(7, 8))  # there are only four shards
    assert len(empty) == 0
    assert empty.dtypes.equals(table.dtypes)
    assert empty.attrs["estimators"] == table.attrs["estimators"]
    leftover = tmp_path / "copy"
    shutil.copytree(tmp_path / "scores.parquet.parts", leftover)
    assert merge_scores(out).equals(table)
    assert merge_scores(out).equals(table)
    assert out.read_bytes() == whole.read_bytes()
    assert score(model, out=out, shard=(0, 3)).equals(tables[1])

    # Killed between the table and the removal of its shards.
    leftover.rename(tmp_path / "scores.parquet.parts")
    shard_file(out, 4).unlink()
    again = shutil.copytree(tmp_path / "scores.parquet.parts", tmp_path / "again")
    assert merge_scores(out).equals(table)
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == [out.name, whole.name]
    again.rename(tmp_path / "scores.parquet.parts")
    assert score(model, out=out).equals(table)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, whole.name]


def test_a_table_in_another_s_hands_is_refused_until_it_is_whole(
    model: ConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, held = tmp_path / "scores.parquet", []

    def merge(path: Path) -> pa.Table:
        held.extend(path.name for path in tmp_path.glob(".*.lock"))
        with pytest.raises(FolderInUse, match=r"scores\.parquet is in use by process"):
            score(model, out=out)
        return merge_shards(path)

    monkeypatch.setattr(dataset, "merge_shards", merge)
    score(model, out=out)
    assert held == [".scores.parquet.shard-0-of-1.lock"]
    out.unlink()
    score(model, out=out, shard=(0, 1))
    with (
        lock(tmp_path, name=".scores.parquet.merge.lock"),
        pytest.raises(FolderInUse, match=r"scores\.parquet is in use by process"),
    ):
        merge_scores(out)
    merge_scores(out)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


@pytest.mark.parametrize("merged", ["after it", "before it"])
def test_a_shard_that_is_merged_beside_it_has_its_rows(
    model: ConvNet,
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged: str,
) -> None:
    out, compute = tmp_path / "scores.parquet", dataset._compute_on_disk
    first = score(model, out=out, shard=(0, 2))

    def compute_and_merge(*arguments: Any, **named: Any) -> None:
        if merged == "before it":
            merge_scores(out)
        compute(*arguments, **named)
        merge_scores(out)

    if merged == "before it":
        score(model, out=out, shard=(1, 2))
        monkeypatch.setattr(dataset, "_compute", None)  # nothing is computed again
    monkeypatch.setattr(dataset, "_compute_on_disk", compute_and_merge)
    second = score(model, out=out, shard=(1, 2))
    both = pd.concat([first, second]).sort_values("index", ignore_index=True)
    assert both.equals(table.sort_values("index", ignore_index=True))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_merge_in_other_hands_is_waited_for(
    model: ConvNet, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "scores.parquet", []

    def merge(path: Path) -> pa.Table:
        asked.append(path)
        if len(asked) == 1:
            raise FolderInUse("another merges")
        return merge_shards(path)

    monkeypatch.setattr(dataset, "merge_shards", merge)
    monkeypatch.setattr(dataset, "_POLL_SECONDS", 0.01)
    assert score(model, out=out).equals(table)
    assert asked == [out, out]


def test_shards_without_their_record_are_refused(model: ConvNet, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    score(model, out=out, shard=(0, 1), key=jax.random.key(4))
    (tmp_path / "scores.parquet.parts" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has shards but no run\.json: delete it"):
        score(model, out=out)


def test_settings_may_be_numbers_of_numpy(model: ConvNet, table: pd.DataFrame) -> None:
    one = {"curvature": FiniteDifference(np.float64(1e-3), 3)}
    assert score(model, estimators=one)["curvature"].equals(table["curvature"])


@pytest.mark.parametrize(
    ("changed", "named", "finished"),
    [
        ({"key": jax.random.key(4)}, "key", True),
        ({"batch_size": 5}, "batch_size_a_device", False),
        ({"estimators": {"curvature": FiniteDifference(probes=4)}}, "estimators", False),
    ],
)
def test_a_file_of_other_settings_is_refused(
    model: ConvNet, tmp_path: Path, changed: Mapping[str, Any], named: str, finished: bool
) -> None:
    out = tmp_path / "scores.parquet"
    score(model, out=out, shard=(0, 1))
    if finished:
        merge_scores(out)
    with pytest.raises(ValueError, match=f"belongs to other settings .*{named}.* differ"):
        score(model, out=out, **changed)


def test_other_data_or_weights_are_refused(model: ConvNet, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    score(model, out=out)
    image = samples()[0]["image"]
    for position in (3, COUNT - 1):
        with pytest.raises(ValueError, match="has the scores of other images"):
            score(model, changed(position, image=image), out=out)
    other = nnx.clone(model)
    other.fc.kernel[...] *= 1.5
    with pytest.raises(
        ValueError, match=r"belongs to other settings \(weights, logits, losses, logits_in"
    ):
        score(other, out=out)


def test_two_losses_of_one_name_are_told_apart(model: ConvNet, tmp_path: Path) -> None:
    def scaled(factor: float) -> Any:
        def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
            return factor * cross_entropy(logits, labels)

        return loss

    settings = {"out": tmp_path / "scores.parquet", "estimators": {"a": FiniteDifference(probes=1)}}
    score(model, loss=scaled(1), **settings)
    with pytest.raises(
        ValueError, match=r"belongs to other settings \(losses, loss_gradient differ"
    ):
        score(model, loss=scaled(2), **settings)


def test_a_file_that_holds_no_scores_is_refused(model: ConvNet, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    out.write_text("mine")
    with pytest.raises(ValueError, match="exists and is no whole table of scores"):
        score(model, out=out)
    assert out.read_text() == "mine"
    with pytest.raises(ValueError, match="is a folder"):
        score(model, out=tmp_path)


KILLED = """
import signal, sys, time, jax, numpy as np
from jaxcurv import FiniteDifference, score_dataset

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

class Slow:
    def __len__(self): return int(sys.argv[3])
    def __getitem__(self, position):
        if sys.argv[2] == "slow": time.sleep(0.05)
        image = np.random.default_rng(position).normal(size=5).astype(np.float32)
        return {"image": image, "label": position % 3, "index": position}

weights = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
score_dataset(lambda w, x: jax.nn.relu(x) @ w, Slow(), key=jax.random.key(0), params=weights,
              estimators={"curvature": FiniteDifference(probes=2)}, batch_size=4, out=sys.argv[1])
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_was_ended_goes_on_and_leaves_the_same_bytes(
    by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "scores.parquet", tmp_path / "whole.parquet"
    run = [sys.executable, "-c", KILLED, out, "slow", "64"]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "scores.parquet.parts"
    while len(list(parts.glob("0*.parquet"))) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(by)
    _, said = process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    if by == signal.SIGINT:
        *_, last = said.splitlines()
        assert last == f"{4 * len(kept)} of 64 samples are kept: the same call goes on"
    assert not out.exists()
    assert 5 <= len(kept) < 16
    for path in (out, whole):
        monkeypatch.setattr(sys, "argv", ["", str(path), "fast", "64"])
        with contextlib.redirect_stderr(Terminal()) as terminal:
            exec(KILLED, {})
        found = f" ({4 * len(kept)} from before)" if path == out else ""
        (line,) = lines_of(terminal.getvalue())
        assert line.startswith(f"score: 64 images{found}, ")
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_a_damaged_shard_is_named(model: ConvNet, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    score(model, out=out, shard=(0, 1))
    shard = shard_file(out, 4)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .* delete or replace"):
        merge_scores(out)


# --- several checkpoints


def test_checkpoints_are_scored_with_the_same_probes(
    model: ConvNet, table: pd.DataFrame, tmp_path: Path
) -> None:
    other = nnx.clone(model)
    other.fc.kernel[...] *= 1.5
    both = score(model, checkpoints=[other, nnx.state(model)], out=tmp_path / "scores.parquet")
    assert both["checkpoint"].tolist() == [0, 1] * COUNT
    assert both["index"].tolist() == np.repeat(table["index"], 2).tolist()
    first, last = (both[n::2].reset_index(drop=True) for n in (0, 1))
    assert last.drop(columns="checkpoint").equals(table)
    assert first.drop(columns="checkpoint").equals(score(other))

    average = score(model, checkpoints=[other, model], average=True)
    assert average.columns.equals(table.columns)
    for name in ("curvature", "curvature_standard_error", "loss", "spectrum_top_eigenvalue"):
        pairs = both[name].to_numpy().reshape(COUNT, 2)
        np.testing.assert_allclose(average[name], pairs.mean(axis=1), rtol=1e-6)
    for name in ("prediction", "correct"):
        assert average[name].equals(table[name])
    spent = both["adaptive_probes"].to_numpy().reshape(COUNT, 2)
    assert average["adaptive_probes"].tolist() == spent.sum(axis=1).tolist()


@pytest.mark.parametrize("written", [False, True])
def test_checkpoints_that_are_one_are_refused_with_a_cure_that_works(written: bool) -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    kernel = np.array(model.kernel[...])
    images, labels = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6)
    kept, copies = [], []
    for _ in range(2):
        kept.append((kernel,) if written else nnx.state(model))
        copies.append(jax.tree.map(jnp.copy, kept[-1]))
        model.kernel[...] = model.kernel[...] * 2
        kernel *= 2
    graph = nnx.graphdef(model)

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return x @ params[0] if written else nnx.merge(graph, params)(x)

    with pytest.raises(ValueError, match=r"checkpoints\[0\] and checkpoints\[1\] are the same"):
        score_dataset(logits, (images, labels % 3), checkpoints=kept)
    table = score_dataset(logits, (images, labels % 3), checkpoints=copies)
    norms = table.groupby("checkpoint")["gradient_norm"].mean()
    assert norms[0] != norms[1]


@jax.tree_util.register_pytree_node_class
class Halves:
    """Weights that are made anew whenever they are asked for."""

    def __init__(self, doubled: Any) -> None:
        self.doubled = doubled

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self.doubled / 2,), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any]) -> tuple[Any]:
        return leaves


def test_checkpoints_that_are_made_when_asked_for_are_not_one() -> None:
    images, labels = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6)
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    table = score_dataset(
        lambda params, x: x @ params[0],
        (images, labels % 3),
        checkpoints=[Halves(weights), Halves(2 * weights)],
    )
    norms = table.groupby("checkpoint")["gradient_norm"].mean()
    assert norms[0] != norms[1]


def test_probabilities_are_told_of_once() -> None:
    images, labels = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6)
    with pytest.warns(UserWarning, match="gives probabilities") as told:
        score_dataset(
            lambda w, x: jax.nn.softmax(x @ w), (images, labels % 3), params=images[:4, :3]
        )
    assert len(told) == 1


def test_checkpoints_and_params_are_refused(model: ConvNet) -> None:
    for wrong in ({"checkpoints": []}, {"checkpoints": [model], "params": {}}):
        with pytest.raises(ValueError, match="checkpoints take the place of params"):
            score(model, **wrong)


# --- several devices, little memory

SHARED = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh
from jaxcurv import FiniteDifference, LowRankGaussNewton, dataset, score_dataset
from jaxcurv.storage.checksums import read_json, read_table

rng = np.random.default_rng(0)
weights = rng.normal(size=(5, 3)).astype(np.float32)
source = [{"image": image, "label": n % 3, "index": 5 * n}
          for n, image in enumerate(rng.normal(size=(6, 5)).astype(np.float32))]
estimators = {"curvature": FiniteDifference(probes=2), "low_rank": LowRankGaussNewton(1, 2)}

@jax.jit
def model(weights, images):
    return jax.nn.relu(images) @ weights

def score(**settings):
    return score_dataset(model, source, key=jax.random.key(0), params=weights,
                         **{"estimators": estimators} | settings)

assert len(jax.devices()) == 2
one_device = Mesh(np.array(jax.devices()[:1]), ("batch",))
# As many samples on each device, so that the very same bits come out.
assert score(batch_size=4).equals(score(batch_size=2, mesh=one_device))
one = {"curvature": FiniteDifference(probes=2)}
tables = [score(estimators=one), score(estimators=one, mesh=one_device)]
sizes = [each.attrs["batch_sizes"] for each in tables]
assert sizes == [[128], [64]], sizes
assert tables[0].equals(tables[1])
try:
    score(batch_size=3)
except ValueError as error:
    assert "multiple of the 2 devices; got 3" in str(error)
else:
    raise AssertionError("3 images were shared by 2 devices")

# What counts is what each device computes, and not how many there are.
out = Path(sys.argv[1], "scores.parquet")
first = score(batch_size=2, mesh=one_device, out=out)
compute, computed = dataset._compute, []
dataset._compute = lambda run, starts, *more, **named: computed.extend(starts)
assert score(batch_size=4, out=out).equals(first)
assert computed == []
try:
    score(batch_size=2, out=out)
except ValueError as error:
    assert "(batch_size_a_device differ)" in str(error)
else:
    raise AssertionError("rows of two batch sizes stand in one table")
dataset._compute = compute

# A halved batch stays that of each device.
dispatch = dataset.dispatch

def full(problem, params, batch, *more, **named):
    if len(batch.labels) > 1:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return dispatch(problem, params, batch, *more, **named)

out = Path(sys.argv[1], "halved.parquet")
dataset.dispatch = full
score(batch_size=2, mesh=one_device, out=out, shard=(0, 2))
dataset.dispatch = dispatch
record = read_json(Path(f"{out}.parts", "batch-0-of-2.json"))
assert record == {"batch_size_a_device": 1}, record
for path in Path(f"{out}.parts").glob("0*.parquet"):
    path.unlink()
score(batch_size=4, out=out, shard=(0, 2))
parts = [read_table(path) for path in Path(f"{out}.parts").glob("0*.parquet")]
sizes = [json.loads(part.schema.metadata[b"jaxcurv"])["batch_sizes"] for part in parts]
assert sizes == [[2]], sizes
"""


def on_devices(
    code: str, count: int, dump: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code on so many devices of the CPU; its compiled programs are written to `dump`."""
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a cached program is not written
    flags = f"--xla_force_host_platform_device_count={count} --xla_dump_to={dump}"
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flags} --xla_dump_hlo_as_text"
    return subprocess.run(
        [sys.executable, "-c", code, dump],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def check_no_program_waits(dump: Path, devices: int) -> None:
    """A collective among the programs would wait for devices that compute other batches."""
    programs = {path.name: path.read_text() for path in dump.glob("*after_optimizations.txt")}
    assert any(f"num_partitions={devices}" in text for text in programs.values())
    collective = re.compile(r"\b(all-(reduce|gather|to-all)|collective-permute|reduce-scatter)\b")
    assert [name for name, text in programs.items() if collective.search(text)] == []
    # A batched LAPACK call waits for threads of XLA's pool while it holds one: on as many devices
    # as there are threads, all wait for ever.
    assert [name for name, text in programs.items() if "lapack" in text] == []


def test_two_devices_share_each_batch_and_never_wait_for_each_other(tmp_path: Path) -> None:
    done = on_devices(SHARED, 2, tmp_path)
    assert done.returncode == 0, done.stderr
    check_no_program_waits(tmp_path, 2)


def test_out_of_memory_goes_on_with_half_the_batch(
    model: ConvNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The size is recorded, and kept when the run goes on."""
    dispatch, sizes = dataset.dispatch, []

    def full(problem: Any, params: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        sizes.append(len(batch.labels))
        if len(batch.labels) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return dispatch(problem, params, batch, *arguments, **named)

    out, settings = tmp_path / "scores.parquet", {"estimators": {"a": FiniteDifference(probes=1)}}
    monkeypatch.setattr(dataset, "dispatch", full)
    score(model, out=out, shard=(0, 2), **settings)
    assert "out of memory with batches of 4: going on with 2" in capsys.readouterr().err
    parts = tmp_path / "scores.parquet.parts"
    assert read_json(parts / "batch-0-of-2.json") == {"batch_size_a_device": 2}
    sizes.clear()
    score(model, out=out, shard=(0, 2), **settings)
    assert sizes == []
    (parts / "batch-0-of-2.json").rename(parts / "batch-0-of-1.json")
    whole = score(model, out=out, **settings)
    assert set(sizes) == {2}
    assert whole.attrs["batch_sizes"] == [2]


# --- what is refused


def test_a_nan_image_in_a_later_batch_is_named(model: ConvNet) -> None:
    image = np.full((6, 6, 2), np.nan, np.float32)
    index = samples()[10]["index"]
    with pytest.raises(ValueError, match=f"NaN or infinity, the first at index {index};"):
        score(model, changed(10, image=image))


@pytest.mark.parametrize(
    ("label", "message"),
    [(CLASSES, r"labels must lie in \[0, 4\).*\.\.4$"), (-1, "label must not be negative; got -1")],
)
def test_a_label_without_a_logit_is_refused_in_a_later_batch(
    model: ConvNet, label: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(model, changed(12, label=label))


@pytest.mark.parametrize("position", [1, 5, 12], ids=["same batch", "same shard", "later shard"])
def test_a_repeated_index_is_refused(model: ConvNet, position: int) -> None:
    with pytest.raises(ValueError, match="two samples share index 3; indices must differ"):
        score(model, changed(position, index=samples()[0]["index"]))


def test_a_source_that_has_its_indices_is_refused_before_any_is_read(model: ConvNet) -> None:
    class Indexed(Reading):
        indices = np.array([3, 4, 3])

    source = Indexed(samples()[:3])
    with pytest.raises(ValueError, match="two samples share index 3; indices must differ"):
        score(model, source)
    assert source.read == []


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_images_that_are_not_normalised_are_refused(model: ConvNet) -> None:
    source = [{**s, "image": np.zeros((6, 6, 2), np.uint8)} for s in samples()]
    cure = (
        r"normalised as the model expects; got uint8 \(jaxcurv\.data\.Normalised\(source, jaxcurv"
    )
    with pytest.raises(ValueError, match=cure):
        score(model, source)
    normalisation = Normalisation((0.5,) * 2, (0.25,) * 2)
    assert len(score(model, Normalised(source, normalisation))) == COUNT


def test_a_source_may_be_arrays_a_torch_data_set_or_rows_with_other_names(model: ConvNet) -> None:
    own = samples(6)
    images, labels = np.stack([one["image"] for one in own]), np.array([s["label"] for s in own])
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    settings = {"estimators": {"curvature": FiniteDifference(probes=2)}}
    expected = score(model, [{**one, "index": n} for n, one in enumerate(own)], **settings)
    for source in ((images, labels), torch.utils.data.TensorDataset(*tensors)):
        assert score(model, source, **settings).equals(expected)
    named = [{"img": one["image"], "fine_label": one["label"]} for one in own]
    names = {"image": "img", "label": "fine_label"}
    assert score(model, named, keys=names, **settings).equals(expected)
    with pytest.raises(ValueError, match=r"got a generator: give list\(samples\)"):
        score(model, (one for one in own))
    # Labels of arrays are known at once.
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\).*\.\.4$"):
        score(model, (images, np.array([0, 1, 2, 3, 0, CLASSES])))


def test_the_key_is_key_0_unless_given(model: ConvNet) -> None:
    settings = {"estimators": {"curvature": FiniteDifference(probes=2)}, "batch_size": 4}
    expected = score(model, samples(4), key=jax.random.key(0), **settings)
    found = score_dataset(model, samples(4), **settings)
    pd.testing.assert_frame_equal(found, expected)
    assert found.attrs == expected.attrs


def test_labels_that_a_source_tells_are_checked_before_any_compute(model: ConvNet) -> None:
    class Labelled(Reading):
        labels = np.array([0, 1, 2, 3, 0, CLASSES])

    source = Labelled(samples()[:6])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\).*\.\.4$"):
        score(model, source)
    assert set(source.read) <= {0, 1, 2, 3}


def test_images_of_several_shapes_are_refused(model: ConvNet) -> None:
    image = np.zeros((6, 5, 2), np.float32)
    with pytest.raises(
        ValueError,
        match=r"images must have one shape; image \d+, at position \d+, is float32 \(6, 5, 2\)",
    ):
        score(model, changed(9, image=image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": (3, 3)}, r"shard must be \(i, n\) with 0 <= i < n; got \(3, 3\)"),
        ({"shard": (0, 2)}, "2 processes need one file that all of them see: give out"),
        ({"estimators": {}}, "give estimators by name"),
        ({"estimators": {"loss": FiniteDifference()}}, "cannot be named loss"),
        (
            {"estimators": {"a": FiniteDifference(), "a_standard_error": GaussNewton()}},
            "cannot be named a_standard_error",
        ),
        ({"key": jax.random.key(0, impl="rbg")}, "impl='threefry2x32'"),
    ],
)
def test_impossible_settings_are_refused(
    model: ConvNet, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(model, **settings)


def test_nothing_to_score_is_refused(model: ConvNet) -> None:
    with pytest.raises(ValueError, match="nothing to score: the source has no samples"):
        score(model, [])
    with pytest.raises(ValueError, match="batch_size must be auto or at least 1; got 0"):
        score(model, samples()[:3], batch_size=0)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (FiniteDifference(), "FiniteDifference"),
        ([FiniteDifference()], "list"),
        (None, "NoneType"),
        ({}, "an empty one"),
        ("curvature", "str"),
    ],
)
def test_estimators_without_names_are_refused(model: ConvNet, given: Any, got: str) -> None:
    with refused(rf"a mapping {{.curvature.: FiniteDiff.*; got {got}$"):
        score(model, samples()[:3], estimators=given)


def test_a_model_in_training_mode_is_refused(model: ConvNet) -> None:
    in_training = nnx.clone(model)
    in_training.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        score(in_training, samples())
