"""The score's variants: raw inputs by an oracle, the table by hand, the command on a small run."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from bridge.chips.profiles import FULL_PROFILE
from experiments.cli import commands
from experiments.runs.files import sha256, write_parquet
from experiments.runs.records import write_record
from experiments.settings.presets import PRESETS
from experiments.studies import rescore
from experiments.studies.rescore import Finished, Rescore, draw, tabulate, variants_of
from jaxcurv import data, dataset, input_curvature, score_dataset
from jaxcurv.data import Arrays, Normalisation
from jaxcurv.engine.probes import probe
from jaxcurv.estimators import FiniteDifference
from jaxcurv.storage.checksums import read_json, write_json

NORMALISATION = Normalisation((0.4, 0.5, 0.3), (0.2, 0.25, 0.5))
KEY = jax.random.key(3)
INDICES = np.array([7, 2, 11])
LABELS = np.array([1, 0, 3])


def matrix() -> np.ndarray:
    return np.sin(np.arange(48.0)).reshape(12, 4)


class Softmax(nnx.Module):
    """Logits of three channels' 2x2 pixels, `[batch, 4]`."""

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.asarray(matrix()))

    def __call__(self, images: jax.Array) -> jax.Array:
        return images.reshape(len(images), -1) @ self.weights[...]


def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(3, 2, 2, 3))


def raw_scores(estimator: FiniteDifference, images: np.ndarray) -> np.ndarray:
    logits_fn, params = rescore.of_raw_pixels(Softmax(), NORMALISATION)
    return input_curvature(
        logits_fn, images, LABELS, indices=INDICES, key=KEY, params=params, estimator=estimator
    ).score


# --- raw inputs


def test_raw_inputs_are_the_normalisation_differentiated_through() -> None:
    """Softmax regression in closed form: grad = W (p - y) / std, by NumPy in float64."""
    estimator = FiniteDifference(step=1e-2, probes=2)
    mean, std = np.array(NORMALISATION.mean), np.array(NORMALISATION.std)
    weights = matrix()

    def gradient(x: np.ndarray) -> np.ndarray:
        z = ((x - mean) / std).reshape(3, -1) @ weights
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return ((p - np.eye(4)[LABELS]) @ weights.T).reshape(x.shape) / std

    x = pixels()
    with jax.enable_x64(True):
        norms = []
        for number in range(2):
            v = np.asarray(
                probe("rademacher", KEY, jnp.asarray(INDICES, jnp.uint32), jnp.uint32(number),
                      x.shape[1:], jnp.float64)
            )  # fmt: skip
            difference = gradient(x + 1e-2 * v) - gradient(x)
            norms.append(np.sqrt((difference**2).sum(axis=(1, 2, 3))))
        np.testing.assert_allclose(raw_scores(estimator, x), np.mean(norms, axis=0), rtol=1e-9)


# --- TensorFloat-32


def test_only_convolutions_compute_in_tensor_float() -> None:
    """Forward and to the input, under the precision that the engine pins; the original stays."""

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
            self.fc = nnx.Linear(2, 4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.fc(self.conv(x).mean((1, 2)))

    def precisions(model: nnx.Module) -> list[tuple[str, object]]:
        graph, state = nnx.split(model)
        with jax.default_matmul_precision("highest"):
            traced = jax.make_jaxpr(jax.grad(lambda x: nnx.merge(graph, state)(x).sum()))(
                jnp.zeros((2, 4, 4, 1))
            )
        return [
            (equation.primitive.name, set(equation.params["precision"]))
            for equation in traced.jaxpr.eqns
            if "precision" in equation.params
        ]

    highest, high = {jax.lax.Precision.HIGHEST}, {jax.lax.Precision.HIGH}
    net = Net()
    copy = rescore.with_tensor_float(net)
    for model, convolution in ((net, highest), (copy, high)):
        found = precisions(model)
        assert {name for name, _ in found} == {"conv_general_dilated", "dot_general"}
        for name, precision in found:
            assert precision == (convolution if name == "conv_general_dilated" else highest)
    x = jnp.ones((1, 4, 4, 1))
    np.testing.assert_array_equal(copy(x), net(x))  # a CPU has float32 alone


@pytest.mark.parametrize(
    ("capability", "has"),
    [("8.0", True), ("10.0", True), ("7.5", False), ("gfx90a", False), (None, False)],
)
def test_which_devices_have_tensor_float(capability: str | None, has: bool) -> None:
    named = {} if capability is None else {"compute_capability": capability}
    assert rescore.has_tensor_float(SimpleNamespace(**named)) is has


# --- which variants


def test_each_variant_differs_in_one_thing() -> None:
    own = FiniteDifference(step=1e-2, probes=20)
    variants = {one.name: one for one in variants_of(own, 5, Rescore(), tensor_float=True)}
    same = variants["recomputed"]
    assert (same.estimator, same.seed, same.raw, same.tensor_float) == (own, 5, False, False)
    differing = {
        name: {key for key, value in vars(one).items() if value != vars(same)[key]} - {"name"}
        for name, one in variants.items()
    }
    assert differing == {
        "recomputed": set(),
        "raw inputs": {"raw"},
        "TensorFloat-32": {"tensor_float"},
        "another key": {"seed"},
        "1 probe": {"estimator"},
        "h = 1e-4": {"estimator"},
        "h = 1e-1": {"estimator"},
    }
    assert variants["1 probe"].estimator == replace(own, probes=1)
    assert variants["h = 1e-4"].estimator == replace(own, step=1e-4)
    on_cpu = variants_of(own, 5, Rescore(), tensor_float=False)
    assert "TensorFloat-32" not in {one.name for one in on_cpu}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 0}, "at least 1"),
        ({"probes": (1, 1)}, "probes must differ"),
        ({"probes": (0,)}, "probes must be at least 1"),
        ({"steps": (0.0,)}, "step must be a positive number"),
    ],
)
def test_refused_settings(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rescore(**wrong)


# --- the table


def small_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Six samples in three bins, two chips; sample 15 is digitally wrong."""
    index = np.arange(10, 16)
    scores = pd.DataFrame(
        {
            "fold": "test",
            "index": index,
            "label": 1,
            "prediction": [1, 1, 1, 1, 1, 0],
            "correct": [True] * 5 + [False],
            "shipped": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "swapped": [1.0, 3.0, 2.0, 4.0, 6.0, 5.0],
            "reversed": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        }
    )
    scores.attrs["devices"] = {"shipped": "cpu"}
    fails = {0: {14}, 1: {11, 14}}
    predictions = pd.concat(
        pd.DataFrame(
            {
                "profile": profile,
                "chip": chip,
                "fold": "test",
                "index": np.r_[index, 99],
                "prediction": [int(i not in failing and i < 15) for i in (*index, 99)],
                "correct": [i not in failing and i < 15 for i in (*index, 99)],
            }
        )
        for profile in ("adc", FULL_PROFILE)
        for chip, failing in fails.items()
    )
    return scores, predictions


def test_table_by_hand() -> None:
    scores, predictions = small_tables()
    table = tabulate(scores, predictions, bins=3).set_index("variant")
    assert list(table.index) == ["shipped", "swapped", "reversed"]
    assert table["samples"].eq(6).all()
    assert table["digitally_correct"].eq(5).all()
    assert table["chips"].eq(2).all()
    assert table["device"].tolist() == ["cpu", "", ""]
    # 1 - 6 sum d^2 / (n (n^2 - 1)): d^2 = 4 of six; of the first five ranks 1 3 2 4 5, d^2 = 2.
    assert table["rho"].tolist() == pytest.approx([1, 1 - 24 / 210, -1])
    assert table["rho_of_correct"].tolist() == pytest.approx([1, 0.9, -1])
    # First bins {10, 11}, {10, 12}, {15, 14}; last {14, 15}, {15, 14}, {11, 10}.
    assert table["d1_overlap"].tolist() == [1, 0.5, 0]
    assert table["d10_overlap"].tolist() == [1, 1, 0]
    # Sample 14 fails on both chips, 11 on the second: halves of 100 % of two samples.
    assert table["d1_of_all"].tolist() == [25, 0, 50]
    assert table["d10_of_all"].tolist() == [50, 50, 25]
    assert table["d1_of_correct"].tolist() == [25, 0, 100]
    assert table["d10_of_correct"].tolist() == [100, 100, 25]
    assert (table["d1_of_all_low"] <= table["d1_of_all"]).all()
    assert (table["d1_of_all_high"] >= table["d1_of_all"]).all()


def test_order_of_rows_and_other_profiles_do_not_matter() -> None:
    scores, predictions = small_tables()
    expected = tabulate(scores, predictions, bins=3)
    only = predictions[predictions["profile"] == FULL_PROFILE]
    shuffled = tabulate(scores.iloc[::-1], only.iloc[::-1], bins=3)
    pd.testing.assert_frame_equal(shuffled, expected)


def test_what_cannot_be_tabulated() -> None:
    scores, predictions = small_tables()
    with pytest.raises(ValueError, match="no column shipped"):
        tabulate(scores.drop(columns="shipped"), predictions)
    with pytest.raises(ValueError, match=r"no predictions of these samples under adc\+wnoise\+pcm"):
        tabulate(scores, predictions[predictions["profile"] == "adc"])
    with pytest.raises(ValueError, match="scored samples without a prediction"):
        tabulate(scores, predictions[predictions["index"] != 12], bins=3)


def test_figure_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    table = tabulate(*small_tables(), bins=3)
    first = draw(table, tmp_path / "first.png")
    second = draw(table, tmp_path / "second.png")
    for suffix in (".png", ".svg", ".csv"):
        content = first.with_suffix(suffix).read_bytes()
        assert content == second.with_suffix(suffix).read_bytes()
    assert len(pd.read_csv(first.with_suffix(".csv"))) == 3


# --- the variants of a model


def finished() -> Finished:
    images = np.random.default_rng(1).integers(0, 256, (20, 2, 2, 3), np.uint8)
    return Finished(
        model=Softmax(),
        normalisation=NORMALISATION,
        samples=Arrays(images, np.arange(20, dtype=np.int32) % 4, np.arange(20)),
        own=pd.DataFrame(),
        predictions=pd.DataFrame(),
        estimator=FiniteDifference(step=1e-2, probes=3),
        seed=0,
        origin={"batch_size": 20},
        versions={},
    )


def test_score_of_a_variant(tmp_path: Path) -> None:
    one = finished()
    variants = variants_of(one.estimator, 0, Rescore(probes=(), steps=()), tensor_float=True)
    (variant,) = (v for v in variants if v.tensor_float)
    scores, _ = rescore.score(one, variant, tmp_path / "scores.parquet")
    expected = input_curvature(
        one.model,
        NORMALISATION.apply(one.samples.images),
        one.samples.labels,
        indices=np.arange(20),
        key=jax.random.key(0),
        estimator=one.estimator,
    ).score
    np.testing.assert_allclose(scores, expected, rtol=1e-3)  # a CPU has float32 alone


# --- the command


class OfDigits(nnx.Module):
    """A linear model in place of the trained network: it compiles at once."""

    def __init__(self) -> None:
        self.fc = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.fc(images.reshape(len(images), -1))


ESTIMATOR = FiniteDifference(step=1e-2, probes=3)
FLAGS = ("--rescore.limit", "40", "--rescore.probes", "1", "--rescore.steps")  # no step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, scored with other settings than the preset's, chips invented.

    Only the test fold of its predictions is kept.
    """
    folder = tmp_path_factory.mktemp("run")
    digits = data.load("digits")
    test = data.read(digits.test, range(60), description="test")
    normalisation = data.Normalisation.of(test.images)
    checkpoint = folder / "checkpoints" / "trained"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("of the linear model")
    description = {
        "architecture": "resnet18",  # `load_model` is replaced below
        "stem": "cifar",
        "width": 2,
        "in_channels": 1,
        "num_classes": 10,
        "class_names": list(digits.class_names),
        "normalisation": asdict(normalisation),
        "checkpoint": "checkpoints/trained",
    }
    write_json(folder / "model.json", description)
    scores = score_dataset(
        OfDigits(),
        data.Normalised(test, normalisation),
        key=jax.random.key(4),
        estimators={"curvature": ESTIMATOR},
    )
    scores.insert(0, "fold", "test")
    scores["curvature_label_free"] = scores["curvature"] * np.where(scores["correct"], 1, 0.01)
    other = scores.assign(fold="train")
    write_parquet(folder / "scores.parquet", pd.concat([other, scores]))
    random = np.random.default_rng(0)
    predictions = [
        scores[["fold", "index"]].assign(
            profile=profile,
            chip=chip,
            prediction=np.where(random.random(60) < 0.3, 0, scores["prediction"]),
        )
        for profile in ("ideal", FULL_PROFILE)
        for chip in (0, 1)
    ]
    table = pd.concat(predictions)
    table["correct"] = table["prediction"] == np.tile(scores["label"], 4)
    write_parquet(folder / "predictions.parquet", table)
    write_record(
        folder,
        {
            "name": "score",
            "settings": {
                "data": asdict(PRESETS["digits"].experiment.data),
                "seed": 4,
                "score": {"estimator": asdict(ESTIMATOR)},
            },
            "inputs": {"checkpoints/trained": sha256(checkpoint)},
            "outputs": {},
            "versions": {},
            "device": "an abacus",
            "platform": "",
            "environment": {},
            "seconds": 0.0,
            "measured": {},
        },
    )
    return folder


@pytest.fixture(scope="module")
def rescored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of that run, rescored by the command."""
    run = tmp_path_factory.mktemp("rescored") / "run"
    shutil.copytree(folder, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescore, "load_model", lambda *of_run: (OfDigits(), None))
        assert commands.run(["rescore", "digits", "--out", str(run), *FLAGS]) == 0
        yield run


def test_command(rescored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["rescore", "digits", "--out", str(rescored), *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "The score's variants on 40 test samples" in printed
    assert "No TensorFloat-32 on" in printed
    out = rescored / "rescore"
    scores = pd.read_parquet(out / "scores.parquet")
    variants = ["shipped", "recomputed", "raw inputs", "another key", "1 probe", "own prediction"]
    assert list(scores.columns[5:]) == variants
    own = pd.read_parquet(rescored / "scores.parquet").query("fold == 'test'").set_index("index")
    own = own.loc[scores["index"]]
    assert len(scores) == 40
    np.testing.assert_array_equal(scores["shipped"], own["curvature"])
    # The run's seed and Eq. 1, not the preset's.
    np.testing.assert_allclose(scores["recomputed"], scores["shipped"], rtol=1e-3)
    for name in ("another key", "1 probe"):
        assert not np.allclose(scores[name], scores["shipped"], rtol=1e-3)
    # A step h / s in a gradient over s.
    (std,) = read_json(rescored / "model.json")["normalisation"]["std"]
    ratio = scores["raw inputs"] / scores["recomputed"]
    np.testing.assert_allclose(ratio, 1 / std**2, rtol=0.1)
    right = scores["correct"]
    assert 0 < right.sum() < 40
    assert (scores["own prediction"] == scores["shipped"])[right].all()
    assert (scores["own prediction"] < scores["shipped"])[~right].all()

    table = pd.read_csv(out / "variants.csv").set_index("variant")
    assert list(table.index) == variants
    assert table.at["recomputed", "rho"] == pytest.approx(1, abs=1e-3)
    assert table.at["own prediction", "rho_of_correct"] == 1
    assert table.at["shipped", "device"] == table.at["own prediction", "device"] == "an abacus"
    assert table.at["raw inputs", "device"] == jax.devices()[0].device_kind
    again = tabulate(scores, pd.read_parquet(rescored / "predictions.parquet"))
    pd.testing.assert_frame_equal(again.set_index("variant"), table)
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["samples"], settings["seed"], settings["tensor_float_32"]) == (40, 4, False)
    assert settings["variants"]["1 probe"]["estimator"]["probes"] == 1
    assert (out / "rescore.png").exists()
    assert (out / "rescore.svg").exists()


def test_finished_variants_are_kept(rescored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = rescored / "rescore"
    before = (out / "scores.parquet").read_bytes()
    (lost,) = out.glob("pieces/*/another_key.parquet")
    lost.unlink()
    calls = []
    dispatch = dataset.dispatch
    monkeypatch.setattr(
        dataset, "dispatch", lambda *args, **named: calls.append(1) or dispatch(*args, **named)
    )
    assert commands.run(["rescore", "digits", "--out", str(rescored), *FLAGS]) == 0
    assert len(calls) == 1  # the 40 images of one variant, in one batch
    assert (out / "scores.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.json", "run train first"),
        ("checkpoints/trained", "run train first"),
        ("predictions.parquet", "run simulate first"),
        ("stages/score.json", "run score first"),
    ],
)
def test_unfinished_runs_are_refused(
    folder: Path, tmp_path: Path, missing: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / missing).rename(tmp_path / "elsewhere")
    assert commands.run(["rescore", "digits", "--out", str(run), *FLAGS]) == 2
    assert message in capsys.readouterr().err


def test_scores_of_another_model_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "checkpoints" / "trained" / "weights").write_text("trained once more")
    assert commands.run(["rescore", "digits", "--out", str(run), *FLAGS]) == 2
    assert "are not of its checkpoints/trained" in capsys.readouterr().err


def test_too_few_samples_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--rescore.limit", "9")
    assert commands.run(["rescore", "digits", "--out", str(folder), *flags]) == 2
    assert "9 samples cannot fill 10 bins" in capsys.readouterr().err
