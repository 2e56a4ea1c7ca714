"""Scoring a data set: one row a sample, whatever the batches."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx

from jaxcurv import FiniteDifference, input_curvature, score_dataset
from jaxcurv.data import Sample, Source

KEY = jax.random.key(3)
ESTIMATOR = FiniteDifference(probes=3)
COUNT, CLASSES = 13, 4


class ConvNet(nnx.Module):
    """Two convolutions with BatchNorm on `[batch, 6, 6, 2]`."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 8, (3, 3), strides=2, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv1(x)))
        x = jax.nn.relu(self.conv2(x))
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


def score(model: Any, source: Sequence[Any], batch_size: int = 8) -> pa.Table:
    return score_dataset(model, source, key=KEY, estimator=ESTIMATOR, batch_size=batch_size)


@pytest.fixture(scope="module")
def table(model: ConvNet) -> pa.Table:
    return score(model, samples())


def test_the_table_has_one_typed_row_a_sample_in_the_source_s_order(table: pa.Table) -> None:
    assert {field.name: str(field.type) for field in table.schema} == {
        "index": "int64",
        "label": "int32",
        "prediction": "int32",
        "correct": "bool",
        "loss": "float",
        "curvature": "float",
        "curvature_standard_error": "float",
        "hessian_trace": "float",
        "hessian_trace_standard_error": "float",
        "gradient_norm": "float",
    }
    source = samples()
    assert isinstance(source, Source)
    assert table["index"].to_pylist() == [sample["index"] for sample in source]
    assert table["label"].to_pylist() == [sample["label"] for sample in source]
    correct = table["prediction"].to_numpy() == table["label"].to_numpy()
    assert table["correct"].to_pylist() == correct.tolist()
    assert 0 < correct.sum() < COUNT
    assert np.all(table["curvature"].to_numpy() > 0)


def test_the_metadata_say_how_it_was_scored(table: pa.Table) -> None:
    assert json.loads(table.schema.metadata[b"jaxcurv"]) == {
        "estimator": {"name": "FiniteDifference", "step": 1e-3, "probes": 3},
        "precision": "highest",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def test_rows_are_those_of_input_curvature(model: ConvNet, table: pa.Table) -> None:
    batch = samples()[:8]
    result = input_curvature(
        model,
        np.stack([sample["image"] for sample in batch]),
        np.array([sample["label"] for sample in batch]),
        indices=np.array([sample["index"] for sample in batch]),
        key=KEY,
        estimator=ESTIMATOR,
    )
    for column, field in (
        ("curvature", "score"),
        ("curvature_standard_error", "standard_error"),
        ("hessian_trace", "hessian_trace"),
        ("hessian_trace_standard_error", "hessian_trace_standard_error"),
        ("gradient_norm", "gradient_norm"),
        ("loss", "loss"),
        ("prediction", "prediction"),
    ):
        np.testing.assert_array_equal(table[column].to_numpy()[:8], getattr(result, field))


@pytest.mark.parametrize("count", [COUNT, 5], ids=["reversed", "fewer, so more padding"])
def test_order_and_padding_change_nothing_at_all(
    model: ConvNet, table: pa.Table, count: int
) -> None:
    other = score(model, samples()[:count][::-1])
    assert other.take(np.arange(count)[::-1]).equals(table.slice(0, count))


def test_another_batch_size_changes_roundings_only(model: ConvNet, table: pa.Table) -> None:
    other = score(model, samples(), batch_size=5)
    assert other["index"].equals(table["index"])
    one, two = (t["curvature"].to_numpy() for t in (table, other))
    assert np.median(np.abs(one / two - 1)) < 1e-4
    np.testing.assert_allclose(one, two, rtol=1e-2)


def test_a_nan_image_in_a_later_batch_is_named(model: ConvNet) -> None:
    image = np.full((6, 6, 2), np.nan, np.float32)
    index = samples()[10]["index"]
    with pytest.raises(ValueError, match=f"NaN or infinity, the first at index {index};"):
        score(model, changed(10, image=image))


@pytest.mark.parametrize(("label", "span"), [(CLASSES, r"\.\.4$"), (-1, r"got -1\.\.")])
def test_a_label_without_a_logit_is_refused_in_a_later_batch(
    model: ConvNet, label: int, span: str
) -> None:
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 4\).*{span}"):
        score(model, changed(12, label=label))


@pytest.mark.parametrize("position", [1, 12], ids=["same batch", "later batch"])
def test_a_repeated_index_is_refused(model: ConvNet, position: int) -> None:
    with pytest.raises(ValueError, match="two samples share index 3; indices must differ"):
        score(model, changed(position, index=samples()[0]["index"]))


def test_images_that_are_not_normalised_are_refused(model: ConvNet) -> None:
    source = [{**s, "image": np.zeros((6, 6, 2), np.uint8)} for s in samples()]
    with pytest.raises(ValueError, match="normalised as the model expects; got uint8"):
        score(model, source)


@pytest.mark.parametrize(("count", "batch_size"), [(0, 8), (3, 0)])
def test_nothing_to_score_is_refused(model: ConvNet, count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"{count} samples in batches of {batch_size}"):
        score(model, samples()[:count], batch_size=batch_size)


def test_a_model_in_training_mode_is_refused(model: ConvNet) -> None:
    in_training = nnx.clone(model)
    in_training.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        score(in_training, samples())
