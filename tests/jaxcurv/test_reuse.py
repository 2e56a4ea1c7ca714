"""Scoring a source that has grown, shrunk or changed: what is scored again, and what never is."""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from jaxcurv import (
    Adaptive,
    FiniteDifference,
    HessianVector,
    dataset,
    merge_scores,
    score_dataset,
    shards,
)
from jaxcurv.engine import cross_entropy
from jaxcurv.shards import merge_shards
from jaxcurv.storage.checksums import read_json, write_json

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(5, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(40, 5)).astype(np.float32)
ESTIMATORS = {
    "curvature": FiniteDifference(probes=2),
    "adaptive": Adaptive(FiniteDifference(probes=5), tolerance=0.17, max_probes=28),
}


def network(weights: Any, images: Any) -> Any:
    return jax.nn.relu(images) @ weights


class Told(Sequence[Any]):
    """Samples whose indices and labels are told without reading them."""

    def __init__(self, samples: Sequence[Any]):
        self.samples = samples
        self.indices = np.array([sample["index"] for sample in samples])
        self.labels = np.array([sample["label"] for sample in samples])
        self.paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: Any) -> Any:
        return self.samples[position]


def samples(numbers: Sequence[int]) -> list[Any]:
    return [{"image": IMAGES[n], "label": n % 3, "index": 7 * n} for n in numbers]


def score(source: Any, out: Path | None = None, **changed: Any) -> pd.DataFrame:
    settings = {"key": jax.random.key(1), "params": WEIGHTS, "estimators": ESTIMATORS}
    model = changed.pop("model", network)
    return score_dataset(model, source, out=out, **(settings | {"batch_size": 4} | changed))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Tells the numbers of the samples that were scored since it was last asked."""
    dispatch, seen = dataset.dispatch, set[int]()

    def watched(problem: Any, params: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        seen.update(batch.indices.tolist())
        return dispatch(problem, params, batch, *arguments, **named)

    def taken() -> list[int]:
        numbers = sorted(index // 7 for index in seen)
        seen.clear()
        return numbers

    monkeypatch.setattr(dataset, "dispatch", watched)
    return taken


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.parquet"


def in_one_go(numbers: Sequence[int], tmp_path: Path, **changed: Any) -> bytes:
    path = tmp_path / "whole" / "scores.parquet"
    path.parent.mkdir()
    score(Told(samples(numbers)), path, **changed)
    return path.read_bytes()


GROWN = {
    "at the end": [*range(25)],
    "in front and between": [30, *range(8), 31, 32, *range(8, 20), 33],
    "in another order": [*range(24, -1, -1)],
}


@pytest.mark.parametrize("numbers", GROWN.values(), ids=GROWN)
def test_only_new_samples_are_scored(
    numbers: list[int], out: Path, tmp_path: Path, scored: Callable[[], list[int]]
) -> None:
    score(Told(samples(range(20))), out)
    assert scored() == list(range(20))
    table = score(Told(samples(numbers)), out)
    assert scored() == sorted(set(numbers) - set(range(20)))
    assert table["index"].tolist() == [7 * number for number in numbers]
    assert out.read_bytes() == in_one_go(numbers, tmp_path)
    assert [path.name for path in out.parent.iterdir() if path.is_file()] == [out.name]
    assert not out.with_name("scores.parquet.parts").exists()


def test_a_source_that_tells_nothing_goes_by_its_positions(
    out: Path, scored: Callable[[], list[int]]
) -> None:
    score(samples(range(20)), out)
    scored()
    score(samples(range(25)), out)
    assert scored() == list(range(20, 25))
    content = out.read_bytes()
    with pytest.raises(ValueError, match=r"another one is at position 0 now \(index 168, label 0"):
        score(samples(range(24, -1, -1)), out)
    assert scored() == []
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("source", [Told, list], ids=["told", "by position"])
def test_fewer_samples_leave_the_others_beside_the_table(
    source: Any, out: Path, tmp_path: Path, scored: Callable[[], list[int]], capsys: Any
) -> None:
    score(source(samples(range(25))), out)
    content = out.read_bytes()
    scored()
    table = score(source(samples(range(18))), out)
    assert table["index"].tolist() == [7 * number for number in range(18)]
    assert "7 samples that are not asked for now: their scores stay in" in capsys.readouterr().err
    assert pq.read_table(out).num_rows == 18
    # Neither merging nor reading it again takes them away.
    assert merge_scores(out).equals(table)
    assert score(source(samples(range(18))), out).equals(table)
    score(source(samples(range(25))), out)
    assert scored() == []
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_changed_label_is_scored_again(out: Path, scored: Callable[[], list[int]]) -> None:
    score(Told(samples(range(20))), out)
    changed = samples(range(20))
    changed[11]["label"] = 0
    scored()
    table = score(Told(changed), out)
    assert scored() == [11]
    assert table.equals(score(changed))


@pytest.mark.parametrize("source", [Told, list], ids=["told", "by position"])
def test_a_single_sample_grows(source: Any, out: Path, scored: Callable[[], list[int]]) -> None:
    score(source(samples(range(1))), out)
    scored()
    table = score(source(samples(range(3))), out)
    assert scored() == [1, 2]
    assert table.equals(score(source(samples(range(3)))))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Told, "none of which is among the 3 of the source"),
        (list, r"another one is at position 0 now \(index 210, label 0"),
    ],
    ids=["told", "by position"],
)
def test_other_images_are_refused_before_anything_is_written(
    source: Any, message: str, out: Path
) -> None:
    score(source(samples(range(20))), out)
    content = out.read_bytes()
    for position in (0, 2, 19):
        others = samples(range(25))
        others[position]["image"] = IMAGES[39]
        with pytest.raises(ValueError, match=rf"that of index {7 * position} has changed"):
            score(source(others), out)
    with pytest.raises(ValueError, match=message):
        score(source(samples([30, 31, 32])), out)
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_unfinished_work_is_used_by_a_grown_source(
    out: Path, tmp_path: Path, scored: Callable[[], list[int]]
) -> None:
    """Half of the shards of 20 samples, then half of those of 25, then all."""
    score(Told(samples(range(20))), out, shard=(0, 2))
    (out.parent / "scores.parquet.parts" / ".half.parquet.tmp").touch()  # left by a kill
    first = scored()
    assert first == [n for n in range(20) if n // 4 % 2 == 0]
    grown = Told(samples(range(25)))
    score(grown, out, shard=(1, 2))
    second = scored()
    assert second == [n for n in range(25) if n // 4 % 2 == 1]
    score(grown, out)
    assert scored() == sorted(set(range(25)) - {*first, *second})
    assert out.read_bytes() == in_one_go(range(25), tmp_path)
    assert not out.with_name("scores.parquet.parts").exists()


def test_processes_grow_a_table_together(
    out: Path, tmp_path: Path, scored: Callable[[], list[int]]
) -> None:
    score(Told(samples(range(18))), out)
    scored()
    grown = Told(samples(range(33)))
    tables = []
    for turn in (2, 0, 1):
        tables.append(score(grown, out, shard=(turn, 3)))
        assert pq.read_table(out).num_rows == 18
    assert scored() == list(range(18, 33))
    with pytest.raises(ValueError, match=r"belongs to other settings .*\(key differ"):
        score(grown, out, key=jax.random.key(2))
    merged = merge_scores(out)
    assert out.read_bytes() == in_one_go(range(33), tmp_path)
    assert score(grown, out, shard=(2, 3)).equals(tables[0])
    assert merged.equals(pd.concat(tables).sort_values("index", ignore_index=True))


def test_several_checkpoints_grow(
    out: Path, tmp_path: Path, scored: Callable[[], list[int]]
) -> None:
    both = {"params": None, "checkpoints": [WEIGHTS, 2 * WEIGHTS]}
    score(Told(samples(range(9))), out, **both)
    scored()
    numbers = [20, *range(9), 21]
    table = score(Told(samples(numbers)), out, **both)
    assert scored() == [20, 21]
    assert table["checkpoint"].tolist() == [0, 1] * 11
    assert out.read_bytes() == in_one_go(numbers, tmp_path, **both)
    scored()
    fewer = score(Told(samples(range(4, 9))), out, **both)
    assert fewer["index"].tolist() == np.repeat(np.arange(4, 9) * 7, 2).tolist()
    score(Told(samples(numbers)), out, **both)
    assert scored() == []


def test_the_files_named_are_those_of_now(
    out: Path, tmp_path: Path, scored: Callable[[], list[int]]
) -> None:
    def filed(numbers: Sequence[int], folder: str) -> Told:
        source = Told(samples(numbers))
        source.paths = [f"{folder}/{number}.png" for number in numbers]
        return source

    score(filed(range(9), "old"), out)
    scored()
    numbers = [20, *range(9)]
    table = score(filed(numbers, "new"), out)
    assert scored() == [20]
    assert table["path"].tolist() == [f"new/{number}.png" for number in numbers]
    assert table.drop(columns="path").equals(score(Told(samples(numbers))))
    whole = tmp_path / "whole.parquet"
    score(filed(numbers, "new"), whole)
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to other settings \(columns differ\)"):
        score(Told(samples(numbers)), out)


def test_weights_in_a_closure_are_told_apart_whatever_the_samples(out: Path) -> None:
    def closed(weights: Any) -> Any:
        return lambda images: network(weights, images)

    score(Told(samples(range(9))), out, model=closed(WEIGHTS), params=None)
    for factor in (1.5, 1.0005):
        with pytest.raises(
            ValueError, match=r"belongs to other settings \(logits, losses, logits_in"
        ):
            score(Told(samples([20, *range(9)])), out, model=closed(factor * WEIGHTS), params=None)
    # As on another machine.
    score(Told(samples([20, *range(9)])), out, model=closed((1 + 1e-5) * WEIGHTS), params=None)


SETTINGS: dict[str, tuple[float, Any]] = {
    "the range": (1, lambda z, s: jnp.clip(z, -s, s)),
    "a leak": (1, lambda z, s: jnp.where(z > 0, z, z / s)),
    "where it saturates": (1, lambda z, s: jnp.where(z > 1, 1 + (z - 1) / s, z)),
    "a threshold": (1, lambda z, s: jax.nn.relu(-z - s / 3)),
    "the range of pixels": (80, lambda z, s: jnp.clip(z, -50 * s, 50 * s)),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_setting_that_images_in_0_to_1_do_not_show_is_told_apart(
    settings: Any, out: Path
) -> None:
    scale, apply = settings

    class Limited(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(5, 3, rngs=nnx.Rngs(1))
            self.setting = 3.0

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.linear(apply(x, self.setting) / scale)

    model, few = Limited(), {"one": FiniteDifference(probes=1)}
    far = [{**sample, "image": scale * sample["image"]} for sample in samples(range(9))]
    table = score(Told(far), out, model=model, params=None, estimators=few)
    assert score(Told(far), out, model=model, params=None, estimators=few).equals(table)
    model.setting = 1.2
    for some in (far, far[::-1], [*far[:5], *far[6:]]):
        with pytest.raises(ValueError, match=r"belongs to other settings \(logits_in"):
            score(Told(some), out, model=model, params=None, estimators=few)


@pytest.mark.parametrize("kept", ["long", "averaged"])
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_loss_that_the_fixed_images_do_not_show_is_told_apart(kept: str, out: Path) -> None:
    """Beyond losses of those, and of a model whose logits are the same."""
    far = [{**one, "image": 20 * one["image"]} for one in samples(range(12))]
    weights: dict[str, Any] = {"params": None, "checkpoints": [WEIGHTS, 0.5 * WEIGHTS]}
    weights["average"] = kept == "averaged"
    few = {"one": FiniteDifference(probes=1)}

    class Softened:
        """Cross-entropy that grows slower from 9 on."""

        slope = 0.5

        def __call__(self, logits: Any, labels: Any) -> Any:
            loss = cross_entropy(logits, labels)
            return jnp.where(loss > 9, 9 + self.slope * (loss - 9), loss)

    loss = Softened()
    for count in (8, 10):
        table = score(Told(far[:count]), out, loss=loss, estimators=few, **weights)
    assert table["loss"].max() > 9
    loss.slope = 0.9
    with pytest.raises(ValueError, match=r"scores of another loss or model: that of index \d+ was"):
        score(Told(far), out, loss=loss, estimators=few, **weights)
    loss.slope = 0.5
    score(Told(far), out, loss=loss, estimators=few, **weights)


def rounded(slope: float, x: jax.Array) -> jax.Array:
    """Rounding with a derivative of its own."""
    own = jax.custom_jvp(lambda z: jnp.round(8 * z) / 8)
    own.defjvp(lambda z, t: (own(z[0]), slope * t[0]))
    return own(x)


def behind(stops: bool, x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x) if stops else x


DERIVATIVES: dict[str, tuple[Any, Any]] = {
    "a rule of its own": (
        lambda w, x: network(w, rounded(1.0, x)),
        lambda w, x: network(w, rounded(0.2, x)),
    ),
    "a stop_gradient": (
        lambda w, x: network(w, behind(True, x)) + 0.3 * network(w, x / 2),
        lambda w, x: network(w, behind(False, x)) + 0.3 * network(w, x / 2),
    ),
}


@pytest.mark.filterwarnings("ignore:a step of")
@pytest.mark.parametrize("pair", DERIVATIVES.values(), ids=DERIVATIVES)
def test_models_that_differ_in_their_derivative_alone_are_told_apart(pair: Any, out: Path) -> None:
    one, other = pair
    few = {"one": FiniteDifference(probes=1)}
    table = score(Told(samples(range(9))), out, model=one, estimators=few)
    assert score(Told(samples(range(9))), out, model=one, estimators=few).equals(table)
    with pytest.raises(ValueError, match=r"belongs to other settings \(gradient_in_range differ"):
        score(Told(samples(range(9))), out, model=other, estimators=few)


def test_an_attribute_that_is_the_slope_of_a_surrogate_is_told_apart(out: Path) -> None:
    class Spiking(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(5, 8, rngs=nnx.Rngs(1))
            self.second = nnx.Linear(8, 3, rngs=nnx.Rngs(2))
            self.slope = 1.0

        def __call__(self, x: jax.Array) -> jax.Array:
            spike = jax.custom_jvp(lambda z: (z > 0).astype(z.dtype))
            slope = self.slope
            spike.defjvp(lambda z, t: (spike(z[0]), t[0] / (1 + (slope * z[0]) ** 2)))
            return self.second(spike(self.first(x)))

    model, few = Spiking(), {"one": HessianVector(1)}
    score(Told(samples(range(9))), out, model=model, params=None, estimators=few)
    model.slope = 25.0
    with pytest.raises(ValueError, match=r"belongs to other settings \(gradient_in_range differ"):
        score(Told(samples(range(9))), out, model=model, params=None, estimators=few)


def test_losses_that_differ_in_their_derivative_alone_are_told_apart(out: Path) -> None:
    def sloped(slope: float) -> Any:
        def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
            own = jax.custom_jvp(lambda z: z)
            own.defjvp(lambda z, t: (own(z[0]), slope * t[0]))
            return cross_entropy(own(logits), labels)

        return loss

    few = {"one": FiniteDifference(probes=1)}
    score(Told(samples(range(9))), out, loss=sloped(1.0), estimators=few)
    score(Told(samples(range(9))), out, loss=sloped(1.0), estimators=few)
    with pytest.raises(ValueError, match=r"belongs to other settings \(loss_gradient differ"):
        score(Told(samples(range(9))), out, loss=sloped(2.0), estimators=few)


def test_a_table_begun_before_such_images_were_looked_at_goes_on(
    out: Path, monkeypatch: pytest.MonkeyPatch, scored: Callable[[], list[int]]
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(dataset, "_answers_in_range", lambda *arguments: {})
        score(Told(samples(range(9))), out)
    scored()
    score(Told(samples(range(9))), out)
    assert scored() == []
    score(Told(samples([20, *range(9)])), out)
    assert scored() == [20]


def test_a_sample_of_a_wider_range_in_front_goes_on(
    out: Path, scored: Callable[[], list[int]]
) -> None:
    some = samples(range(10))
    some[9]["image"] = 30 * some[9]["image"]
    score(Told(some[:9]), out)
    scored()
    score(Told([some[9], *some[:9]]), out)
    assert scored() == [9]


def test_a_model_that_random_images_break_is_scored_all_the_same(out: Path) -> None:
    def choosy(weights: Any, images: Any) -> Any:
        return network(weights, images) / (images[:, :1] > 2)

    far = [{**sample, "image": abs(sample["image"]) + 3} for sample in samples(range(9))]
    table = score(Told(far), out, model=choosy)
    assert score(Told(far), out, model=choosy).equals(table)


def test_what_the_first_samples_show_of_the_matrix_is_no_setting() -> None:
    """A list that begins with others may find the two matrices a little nearer."""
    shards.refuse_other(Path("a"), {"matrix": "Hessian"}, {"matrix": "Gauss-Newton matrix"})


def with_pandas(path: Path) -> None:
    pd.read_parquet(path).assign(mine=1.0).to_parquet(path)


def with_pyarrow(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("mine", pa.array([1.0] * len(table))), path)


@pytest.mark.parametrize("changed", [with_pandas, with_pyarrow])
@pytest.mark.parametrize("count", [9, 12])
def test_a_table_that_the_user_changed_is_refused_and_left(
    changed: Callable[[Path], None], count: int, out: Path
) -> None:
    score(Told(samples(range(9))), out)
    changed(out)
    content = out.read_bytes()
    with pytest.raises(ValueError, match=r"another program .* it is left as it is; rename it"):
        score(Told(samples(range(count))), out)
    with pytest.raises(ValueError, match="another program"):
        merge_scores(out)
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["scores.csv", "scores", "scores.PARQUET"])
def test_a_name_that_is_not_parquet_s_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    class Unread(list[Any]):
        def __getitem__(self, position: Any) -> Any:
            raise AssertionError("read")

    message = rf"give a file NAME\.parquet, not .*{name}; .*to_csv"
    with pytest.raises(ValueError, match=message):
        score(Unread(samples(range(9))), tmp_path / name)
    with pytest.raises(ValueError, match=message):
        merge_scores(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unfinished_work_of_an_earlier_version_is_refused(out: Path) -> None:
    parts = out.with_name("scores.parquet.parts")
    write_json(parts / "run.json", {"samples": 9, "data": "", "piece_length": 4})
    for call in (lambda: score(samples(range(9)), out), lambda: merge_scores(out)):
        with pytest.raises(ValueError, match=r"was begun by another version .* or delete it"):
            call()


def test_a_table_that_lacks_a_setting_may_be_of_an_earlier_version() -> None:
    with pytest.raises(ValueError, match=r"\(b differ\).* or to an earlier version of jaxcurv: "):
        shards.refuse_other(Path("a"), {"a": 1}, {"a": 1, "b": 2})


def test_a_list_that_begins_while_shards_are_removed_keeps_its_record(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(Told(samples(range(9))), out, shard=(0, 1))
    parts = out.with_name("scores.parquet.parts")
    copy = shutil.copytree(parts, out.with_name("copy"))
    merge_scores(out)
    copy.rename(parts)  # as by a kill between the table and the removal of its shards
    remove, began = shards._remove, threading.Event()
    record = {**read_json(parts / "run.json"), "samples": 12, "data": "other"}

    def begin() -> None:
        shards.Shards(out, record).begin()
        began.set()

    other = threading.Thread(target=begin)

    def removed_meanwhile(folder: Path) -> None:
        other.start()
        began.wait(0.5)
        remove(folder)

    monkeypatch.setattr(shards, "_remove", removed_meanwhile)
    score(Told(samples(range(9))), out)
    other.join()
    assert read_json(parts / "run.json") == record
    assert [path.name for path in parts.iterdir()] == ["run.json"]


def test_reading_a_finished_table_removes_nothing(out: Path) -> None:
    score(Told(samples(range(9))), out)
    identity = json.loads(pq.read_schema(out).metadata[b"jaxcurv"])
    unfinished = shards.Shards(out, identity)
    unfinished.begin()
    assert shards.read_finished(out, identity) is not None
    assert (unfinished.folder / "run.json").exists()


def test_a_table_of_other_samples_is_not_handed_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(Told(samples(range(9))), out)

    def merge(path: Path) -> pa.Table:
        shutil.rmtree(path.with_name("scores.parquet.parts"))  # by another list's process
        return merge_shards(path)

    monkeypatch.setattr(dataset, "merge_shards", merge)
    with pytest.raises(ValueError, match=r"scores\.parquet is of other samples now: .* run again"):
        score(Told(samples(range(12))), out)


def test_the_metadata_say_what_each_run_computed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(Told(samples(range(9))), out)
    monkeypatch.setattr(jax, "__version__", "99")
    table = score(Told(samples(range(12))), out)
    assert len(table.attrs["jax"]) == 2
    assert "99" in table.attrs["jax"]
    assert table.attrs["samples"] == 12
