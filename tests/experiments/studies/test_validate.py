"""Scores beside published figures: files that fit and files that do not, averages by hand."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

from experiments.cli import commands
from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.job import Job
from experiments.runs.networks import build_flax
from experiments.settings.flags import Experiment, Training
from experiments.studies import validate
from experiments.studies.published import Reference, read_references
from experiments.studies.published_ranks import AVERAGED, draw, show, tabulate, verdicts
from jaxcurv import data, dataset, score_dataset
from jaxcurv.estimators import FiniteDifference
from jaxcurv.storage.checksums import read_json
from jaxcurv.training import checkpoints

LABELS = load_digits().target.astype(np.int64)
IMAGES = len(LABELS)
"""The indices of digits count all images, those of the test split among them."""

PROBES = ("--validate.probes", "3")
"""As the run has, so that its compiled program is used again."""


@pytest.fixture
def call(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the study into `tmp_path/out`, beside the finished run; exit code and what it said."""

    def run(*flags: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        line = ["validate", "digits", "--out", finished_run, "--validate.out", tmp_path / "out"]
        code = commands.run([str(word) for word in (*line, *flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def scores_of(run: Path) -> pd.DataFrame:
    """The run's scores of the images of the official training split."""
    scores = pd.read_parquet(run / "scores.parquet")
    return scores[scores["fold"].isin(["train", "validation"])]


def ranking_by(scores: pd.DataFrame, name: str, path: Path, *, falling: bool = False) -> Path:
    """A file that ranks the scored images by one of their scores, and the others anyhow."""
    figures = np.random.default_rng(0).normal(size=IMAGES)
    figures[scores["index"]] = scores[name]
    order = np.argsort(figures)
    np.save(path, order[::-1] if falling else order)
    return path


def write_cscores(path: Path, **others: Any) -> Path:
    regular = np.random.default_rng(1).uniform(size=IMAGES)
    np.savez(path, **({"scores": regular, "labels": LABELS} | others))
    return path


@pytest.fixture(scope="module")
def compared(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """What the study left with both files and the average over all epochs, and its command line."""
    folder = tmp_path_factory.mktemp("compared")
    cscores = write_cscores(folder / "c.npz")
    ranking = ranking_by(scores_of(finished_run), "loss", folder / "order.npy")
    files = ("--validate.cscores", cscores, "--validate.ranking", ranking)
    line = ("validate", "digits", "--out", finished_run, "--validate.out", folder / "out")
    words = [str(word) for word in (*line, *files, *PROBES)]
    assert commands.run(words) == 0
    return folder, words


# --- the table


@pytest.mark.parametrize(("falling", "rho"), [(False, 1.0), (True, -1.0)])
def test_a_ranking_by_the_run_s_own_curvature_is_perfect(
    finished_run: Path, tmp_path: Path, call: Any, falling: bool, rho: float
) -> None:
    own = scores_of(finished_run)
    file = ranking_by(own, "curvature", tmp_path / "order.npy", falling=falling)
    code, said, errors = call("--validate.ranking", file, "--validate.no-average")
    assert code == 0, errors
    table = pd.read_csv(tmp_path / "out" / "validate.csv")
    found = table[table["score"] == "curvature"].set_index("fold")
    assert list(found.index) == ["train", "validation"]  # other shares of each: none of both
    assert found["samples"].tolist() == [60, 60]
    assert (found[["rho", "rho_low", "rho_high"]] == rho).all(axis=None)
    assert f"{rho:.3f} [{rho:.3f}, {rho:.3f}]" in said
    assert table["difference"].isna().all()
    for name in ("validate.png", "validate.svg", "scores.parquet", "settings.json"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    assert not (tmp_path / "out" / "pieces").exists()  # nothing was computed
    settings = read_json(tmp_path / "out" / "settings.json")
    assert settings["references"]["curvature_rank"]["file"] == "order.npy"
    assert settings["epochs"] == []


def test_every_score_has_scipy_s_rho_with_every_reference(
    finished_run: Path, compared: tuple[Path, list[str]]
) -> None:
    folder, _ = compared
    out = folder / "out"
    table, scores = pd.read_csv(out / "validate.csv"), pd.read_parquet(out / "scores.parquet")
    pd.testing.assert_frame_equal(
        scores[["fold", "index", "label", "curvature", "margin"]],
        scores_of(finished_run)[["fold", "index", "label", "curvature", "margin"]],
    )
    assert "scores" not in scores  # what others published stays in its file
    assert set(AVERAGED.values()) <= set(scores)
    with np.load(folder / "c.npz") as file:
        published = {"cscore": file["scores"]}
    published["curvature_rank"] = np.argsort(np.load(folder / "order.npy"))
    assert len(table) == 2 * (2 * (len(scores.columns) - 3) + 1)
    for row in table.itertuples():
        images = scores[scores["fold"] == row.fold]
        reference = published[row.reference][images["index"]]
        other = published.get(row.score)
        score = images[row.score] if other is None else other[images["index"]]
        assert row.rho == pytest.approx(spearmanr(score, reference).statistic, abs=1e-9), row
        assert row.rho_low <= row.rho <= row.rho_high
        averaged = row.score in AVERAGED.values()
        assert row.epochs == (0 if other is not None else 3 if averaged else 1)
        if averaged:
            name = row.score.removesuffix("_averaged")
            one = spearmanr(images[name], reference).statistic
            assert row.difference == pytest.approx(row.rho - one, abs=1e-9)
            assert row.difference_low < row.difference < row.difference_high
    assert read_json(out / "settings.json")["epochs"] == [1, 2, 3]


# --- averages over epochs


def test_averages_are_the_means_over_the_kept_epochs_by_hand(
    finished_run: Path, compared: tuple[Path, list[str]]
) -> None:
    found = pd.read_parquet(compared[0] / "out" / "scores.parquet").set_index("index")
    description = read_description(finished_run)
    digits = data.load("digits").train
    images = data.read(digits, np.flatnonzero(np.isin(digits.indices, found.index)))
    seed = read_json(finished_run / "settings.json")["seed"]
    tables = [
        score_dataset(
            checkpoints.restore_epoch(
                lambda dtype: build_flax(description, 0, dtype),
                finished_run / description["checkpoint"],
                epoch,
            ),
            data.Normalised(images, read_normalisation(description)),
            key=jax.random.fold_in(jax.random.key(seed), epoch),
            estimators={"curvature": FiniteDifference(probes=3)},
        ).set_index("index")
        for epoch in (1, 2, 3)
    ]
    assert not np.allclose(tables[0]["loss"], tables[2]["loss"], rtol=1e-2)
    for name, column in AVERAGED.items():
        by_hand = sum(table[name].astype(float) for table in tables) / 3
        np.testing.assert_allclose(found[column].loc[by_hand.index], by_hand, rtol=1e-3)


def test_finished_epochs_stay(
    compared: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, line = compared
    path, calls = folder / "out" / "scores.parquet", []
    before, averaged = path.read_bytes(), pd.read_parquet(path)["loss_averaged"]
    (lost,) = (folder / "out").glob("pieces/*/epoch_2.parquet")
    lost.unlink()
    dispatch = dataset.dispatch
    monkeypatch.setattr(
        dataset, "dispatch", lambda *args, **named: calls.append(1) or dispatch(*args, **named)
    )
    capsys.readouterr()
    assert commands.run(line) == 0
    assert len(calls) == -(-120 // (64 * len(jax.local_devices())))  # the batches of one epoch
    assert path.read_bytes() == before
    assert capsys.readouterr().out.count(" averaged over 3 epochs, and the ") == 6
    # Another size of batches, as where memory ran out, begins anew and is no error.
    calls.clear()
    assert commands.run([*line, "--validate.batch-size", "40"]) == 0
    assert len(calls) == 3 * -(-120 // (40 * len(jax.local_devices())))
    now = pd.read_parquet(path)
    np.testing.assert_allclose(now["loss_averaged"], averaged, rtol=1e-3)


@pytest.mark.parametrize(
    ("every", "remark"),
    [
        ("none", "training kept none but the best and the newest; train with --train.keep-every N"),
        ("2", "of those that --train.keep-every 2 names 1 is kept, and it takes two"),
    ],
)
def test_without_kept_epochs_there_are_the_scores_of_one_checkpoint(
    tmp_path: Path, call: Any, every: str, remark: str
) -> None:
    file = write_cscores(tmp_path / "c.npz")
    code, said, errors = call("--validate.cscores", file, "--train.keep-every", every)
    assert code == 0, errors
    assert said.count(f"No average over epochs: {remark}") == 1
    assert set(pd.read_csv(tmp_path / "out" / "validate.csv")["epochs"]) == {1}


def test_epochs_that_are_gone_are_named(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "kept_epochs", lambda directory: [1, 3])
    experiment = Experiment(train=Training(epochs=3, keep_every=1))
    job = Job(experiment, finished_run, None)
    epochs, remark = validate._epochs(job, read_description(finished_run))
    assert epochs == (1, 3)
    assert remark == "Missing from the average, for they were not kept: epochs 2."


# --- more images than the run has scored


def test_the_other_training_images_are_scored_as_the_run_would(
    finished_run: Path, tmp_path: Path, call: Any
) -> None:
    file = write_cscores(tmp_path / "c.npz")
    flags = ("--validate.samples", "all", "--validate.limit", "90", "--validate.no-average")
    code, _, errors = call("--validate.cscores", file, *flags)
    assert code == 0, errors
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet").set_index("index")
    assert scores["fold"].value_counts().to_dict() == {"train": 90, "validation": 90}
    own = scores_of(finished_run).set_index("index")
    assert set(own.index) < set(scores.index)  # the choice is nested
    pd.testing.assert_series_equal(scores["curvature"].loc[own.index], own["curvature"])
    (piece,) = (tmp_path / "out").glob("pieces/*/others.parquet")
    assert set(pd.read_parquet(piece)["index"]) == set(scores.index) - set(own.index)
    description = read_description(finished_run)
    digits = data.load("digits").train
    images = data.read(digits, np.flatnonzero(np.isin(digits.indices, scores.index)))
    again = score_dataset(
        checkpoints.restore_best(
            lambda dtype: build_flax(description, 0, dtype),
            finished_run / description["checkpoint"],
        ),
        data.Normalised(images, read_normalisation(description)),
        key=jax.random.key(read_json(finished_run / "settings.json")["seed"]),
        estimators={"curvature": FiniteDifference(probes=3)},
    ).set_index("index")
    for name in ("curvature", "loss", "margin"):
        np.testing.assert_allclose(scores[name].loc[again.index], again[name], rtol=2e-3, atol=1e-6)


# --- what is refused


def test_no_file_is_refused(call: Any) -> None:
    code, _, errors = call()
    assert code == 2
    assert "give --validate.cscores FILE.npz, --validate.ranking FILE.npy, or both" in errors


PERMUTED = np.random.default_rng(3).permutation(LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": PERMUTED}, "other labels at .* of 120 images, the first at index .*another"),
        ({"scores": np.full(IMAGES, np.nan)}, "1,797 of 1,797 scores in .* are not finite"),
        ({"scores": np.ones((IMAGES, 2))}, r"float64 \(1797, 2\): --validate.cscores takes"),
        ({"labels": LABELS[:-1]}, r"labels in .* are int64 \(1796,\) beside \(1797,\) scores"),
        (
            {"scores": np.ones(1000), "labels": LABELS[:1000]},
            "has 1,000 figures and no index 1,.*another data set",
        ),
        ({"scores": np.array(["a"] * IMAGES)}, "scores in .* are <U1"),
        ({"labels": LABELS.astype(object)}, "damaged or of another kind .*pickle"),
    ],
)
def test_consistency_scores_that_do_not_fit_are_refused(
    tmp_path: Path, call: Any, content: dict[str, np.ndarray], message: str
) -> None:
    file = write_cscores(tmp_path / "c.npz", **content)
    _refuses(call("--validate.cscores", file), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.arange(IMAGES) + 1, "has 1,797 entries, among them 1,796 of the indices 0 to 1,796"),
        (np.zeros(IMAGES, int), "has 1,797 entries, among them 1 of the indices"),
        (np.arange(IMAGES) / 2, "float64 .*--validate.ranking takes an .npy file"),
        (np.arange(IMAGES).reshape(-1, 3), r"int64 \(599, 3\)"),
        (np.arange(100), "has 100 figures and no index 1,"),
    ],
)
def test_rankings_that_are_none_are_refused(
    tmp_path: Path, call: Any, order: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "order.npy", order)
    _refuses(call("--validate.ranking", tmp_path / "order.npy"), message)


def test_damaged_and_wrong_files_are_refused(tmp_path: Path, call: Any) -> None:
    good, order = write_cscores(tmp_path / "c.npz"), tmp_path / "order.npy"
    np.save(order, np.arange(IMAGES))
    half = tmp_path / "half.npz"
    half.write_bytes(good.read_bytes()[:2000])
    _refuses(call("--validate.cscores", half), "half.npz is damaged or of another kind")
    flipped = bytearray(good.read_bytes())
    flipped[3000] ^= 1
    half.write_bytes(flipped)
    _refuses(call("--validate.cscores", half), "half.npz is damaged or of another kind .*CRC")
    _refuses(call("--validate.cscores", order), "order.npy holds one array: --validate.cscores")
    _refuses(call("--validate.ranking", good), "c.npz holds scores, labels: --validate.ranking")
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    _refuses(call("--validate.cscores", tmp_path / "other.npz"), "other.npz holds values: ")
    _refuses(call("--validate.cscores", tmp_path / "no.npz"), "there is no file .*no.npz: --val")
    np.save(order, np.arange(IMAGES + 1))
    both = ("--validate.cscores", good, "--validate.ranking", order)
    _refuses(call(*both), "c.npz has 1,797 images and .*order.npy 1,798: give files of one")


def test_a_run_that_scored_too_few_training_images_is_refused(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / "scores.parquet"
    scores = pd.read_parquet(path)
    file = write_cscores(tmp_path / "c.npz")
    line = ["validate", "digits", "--out", str(run_copy), "--validate.cscores", str(file)]
    for kept, message in (
        (scores["fold"] == "test", "has scored no training image: give --validate.samples all"),
        (scores.index < 9, "9 images of the train fold are too few to rank: score at least 10"),
    ):
        scores[kept].to_parquet(path)
        assert commands.run(line) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 9}, "limit must be at least 10, to rank anything"),
        ({"batch_size": 0}, "batch_size at least 1; got None, 0"),
        ({"probes": 0}, "probes"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate.Validate(**settings)


def _refuses(said: tuple[int, str, str], message: str) -> None:
    code, _, errors = said
    assert code == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    assert re.search(message, line), line


# --- the sentences and the figure, of tables alone


@pytest.mark.parametrize(("noise", "word"), [(0.05, "nearer"), (3.0, "farther")])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_verdict_is_about_the_size_of_rho(
    tmp_path: Path, noise: float, word: str, sign: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with a reference that falls where scores rise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    labels = np.zeros(300, np.int64)
    reference = Reference("cscore", "consistency score", Path("x"), sign * truth, labels, "")
    scores = pd.DataFrame(
        {
            "fold": "train",
            "index": np.arange(300),
            "label": labels,
            "curvature": truth + rng.normal(size=300),
            "curvature_averaged": truth + noise * rng.normal(size=300),
        }
    )
    table = tabulate(scores, [reference], 5)
    (sentence,) = verdicts(table, [reference])
    assert sentence.startswith("Curvature averaged over 5 epochs, and the consistency score: rho ")
    assert sentence.endswith(f", {word}.")
    same = tabulate(scores.assign(curvature_averaged=scores["curvature"]), [reference], 5)
    (sentence,) = verdicts(same, [reference])
    assert sentence.endswith("+0.000 [+0.000, +0.000], no difference shown.")
    show(table, [reference])
    assert "curvature, averaged" in capsys.readouterr().out
    draw(table, [reference], tmp_path / "validate.png", "digits")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "validate.csv"), table)


def test_rhos_of_two_signs_are_neither_nearer_nor_farther() -> None:
    truth = np.random.default_rng(0).normal(size=300)
    labels = np.zeros(300, np.int64)
    reference = Reference("cscore", "consistency score", Path("x"), truth, labels, "")
    scores = pd.DataFrame(
        {"fold": "train", "index": np.arange(300), "label": labels, "curvature": -truth}
    )
    table = tabulate(scores.assign(curvature_averaged=truth), [reference], 5)
    (sentence,) = verdicts(table, [reference])
    assert sentence.endswith("+2.000 [+2.000, +2.000], of the other sign.")


def test_both_folds_together_are_a_choice() -> None:
    truth = np.arange(40.0)
    reference = Reference("cscore", "c", Path("x"), truth, np.zeros(40, np.int64), "")
    scores = pd.DataFrame(
        {"fold": ["train", "validation"] * 20, "index": range(40), "label": 0, "loss": truth}
    )
    together = tabulate(scores, [reference])
    apart = tabulate(scores, [reference], pooled=False)
    assert together["fold"].tolist() == ["train", "validation", "pooled"]
    pd.testing.assert_frame_equal(together[:2], apart)


def test_a_ranking_s_figures_are_places(tmp_path: Path) -> None:
    np.save(tmp_path / "order.npy", [2, 0, 3, 1])
    (found,) = read_references(None, str(tmp_path / "order.npy"))
    np.testing.assert_array_equal(found.values, [1, 3, 0, 2])
