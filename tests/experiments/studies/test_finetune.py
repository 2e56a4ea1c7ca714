"""Fine-tuning of a finished run: weights by hand, equal chips, resuming, what is refused.

The training itself is tested in tests/jaxcurv/test_fine_tuning.py, a whole study in tests/long.
"""

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from safetensors.numpy import load_file

import bridge
from experiments.cli import commands
from experiments.runs.files import read_parquet, write_parquet
from experiments.settings.flags import Experiment, Model
from experiments.stages.pretrained import load_given
from experiments.studies import finetune
from experiments.studies.exported import read_network
from experiments.studies.finetune import Finetune
from experiments.studies.finetune_opened import open_run
from experiments.studies.finetune_tables import row_of, summarise
from experiments.studies.finetune_variants import emphasised
from experiments.studies.finetuned import tuned_network
from jaxcurv.data import load
from jaxcurv.storage.checksums import read_json
from jaxcurv.training import Recipe
from tests.described import described, tables_in
from tests.refusals import refused

KEYS = ["fold", "index"]
WEIGHTED = ("curvature", "flip_probability", "margin", "random")
FLAGS = (
    *("--finetune.profile", "wnoise", "--finetune.steps", "4", "--finetune.seeds", "1"),
    *("--finetune.chips", "2", "--finetune.learning-rate", "0.05"),
)


def line(run: Path, out: Path, *flags: str) -> list[str]:
    return ["finetune", "digits", "--out", str(run), "--finetune.out", str(out), *FLAGS, *flags]


class Tuned(NamedTuple):
    """What a training was given."""

    seed: int
    weights: np.ndarray
    noisy: bool
    steps: int
    recipe: Recipe
    indices: np.ndarray


@contextmanager
def quick_tuning() -> Iterator[list[Tuned]]:
    """Within, a training moves the last layer's bias by what it is given, and compiles nothing."""
    calls: list[Tuned] = []

    def fine_tuning(
        build: Any, train: Any, normalisation: Any, recipe: Recipe, *, steps: int, warmup: int,
        perturb: Any,
    ) -> Any:  # fmt: skip
        model = build(jnp.float32)
        model.eval()
        bias = model.fc.bias[...]

        def tune(seed: int, weights: np.ndarray) -> nnx.Module:
            given = Tuned(seed, weights, perturb is not None, steps, recipe, train.indices)
            calls.append(given)
            drawn = np.random.default_rng([seed, given.noisy, zlib.crc32(weights.tobytes())])
            model.fc.bias[...] = bias + (steps > 0) * drawn.normal(size=bias.shape)
            return model

        return tune

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcurv.training.tuning.fine_tuning", fine_tuning)
        yield calls


@pytest.fixture(scope="module")
def study(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tuned]]:
    """The six variants of the finished run; not to be changed."""
    out = tmp_path_factory.mktemp("finetune")
    with quick_tuning() as calls:
        assert commands.run(line(finished_run, out)) == 0
    return out, calls


@pytest.fixture(scope="module")
def made(study: tuple[Path, list[Tuned]]) -> Path:
    return study[0]


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "finetune")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.figures, "draw", lambda *_: None)


# --- the weight of each training image

SCORES = {"curvature": np.array([*range(40), 900.0, 2.5])}
INDICES = np.arange(42)[::-1].copy()


def test_weights_are_those_of_the_decile_and_the_rest() -> None:
    """Ranks 38 to 41 of 42 are in the tenth bin: the scores 37, 38, 39 and 900."""
    weights = emphasised("curvature", SCORES, INDICES, emphasis=3.0, seed=0)
    assert set(np.flatnonzero(weights == 3.0)) == {37, 38, 39, 40}
    np.testing.assert_allclose(np.delete(weights, [37, 38, 39, 40]), (42 - 12) / 38)
    assert weights.sum() == pytest.approx(42)


@pytest.mark.parametrize("variant", ["plain", "noise_aware"])
def test_without_a_decile_all_weights_are_one(variant: Any) -> None:
    np.testing.assert_array_equal(
        emphasised(variant, SCORES, INDICES, emphasis=3.0, seed=0), np.ones(42)
    )


def test_the_random_decile_is_another_of_the_same_size() -> None:
    draw = [emphasised("random", SCORES, INDICES, emphasis=2.5, seed=seed) for seed in range(6)]
    assert [(one == 2.5).sum() for one in draw] == [4] * 6
    assert len({one.tobytes() for one in draw}) > 1
    assert [one.sum() for one in draw] == pytest.approx([42] * 6)
    again = emphasised("random", SCORES, INDICES, emphasis=2.5, seed=3)
    np.testing.assert_array_equal(again, draw[3])


def test_an_emphasis_that_leaves_nothing_is_refused() -> None:
    scores = {"margin": np.arange(11.0)}  # the decile has one of them
    weights = emphasised("margin", scores, np.arange(11), emphasis=10, seed=0)
    assert weights.min() == pytest.approx(0.1)
    with refused("leaves the others a negative weight.*--finetune.emphasis 11.00"):
        emphasised("margin", scores, np.arange(11), emphasis=12, seed=0)


def test_scores_rank_the_vulnerable_highest(finished_run: Path) -> None:
    opened = opened_of(finished_run)
    scores = read_parquet(finished_run / "scores.parquet").set_index(KEYS).loc["train"]
    flips = read_parquet(finished_run / "flips.parquet")
    flips = flips[flips["profile"] == "wnoise"].set_index(KEYS)["probability"].loc["train"]
    wanted = {
        "curvature": scores["curvature"],
        "margin": -scores["margin"],
        "flip_probability": flips,
    }
    for name, one in wanted.items():
        np.testing.assert_allclose(opened.vulnerability[name], one.loc[opened.indices])
    assert len(opened.indices) == len(opened.scored.folds["train"]) == 60
    np.testing.assert_array_equal(opened.scored.folds["train"].indices, opened.indices)


# --- the tables, by hand


def test_failures_are_of_what_was_right_before() -> None:
    row = row_of(
        {"chip": 7},
        digital=np.array([True, False, True, True]),
        analog=np.array([True, False, False, True]),
        original=np.array([True, True, True, False]),
        vulnerable=np.array([False, True, False, True]),
    )
    assert row["chip"] == 7
    assert (row["failures"], row["digitally_correct"], row["samples"]) == (2, 3, 4)
    assert row["failure_rate"] == pytest.approx(2 / 3)
    assert (row["accuracy"], row["digital_accuracy"]) == (0.5, 0.75)
    assert (row["failures_d10"], row["digitally_correct_d10"]) == (1, 1)
    assert (row["accuracy_d10"], row["digital_accuracy_d10"]) == (0.5, 0.5)


def test_differences_are_of_the_same_seeds_and_chips() -> None:
    rates = {
        ("original", None): [0.5, 0.7],
        ("plain", 0): [0.4, 0.6],
        ("plain", 1): [0.2, 0.6],
        ("noise_aware", 0): [0.1, 0.3],
        ("noise_aware", 1): [0.1, 0.1],
    }
    rows = []
    for (variant, seed), values in rates.items():
        for chip, value in enumerate(values):
            row = {"variant": variant, "seed": seed, "chip": chip}
            for end in ("", "_d10"):
                row |= {f"samples{end}": 10, f"digitally_correct{end}": 5}
                row |= {f"digital_accuracy{end}": 0.9, f"accuracy{end}": 1 - value}
                row |= {f"failure_rate{end}": value}
            rows.append(row)
    table = summarise(pd.DataFrame(rows).astype({"seed": "Int64"}), 0.95)
    assert len(table) == 3 * 2 * 3
    rates_of = table[(table["measure"] == "failure_rate") & (table["images"] == "D10")]
    rates_of = rates_of.set_index("variant")
    assert rates_of.loc["plain", "value"] == pytest.approx(0.45)
    found = rates_of.loc["noise_aware", "difference_to_plain"]
    differences = np.array([[-0.3, -0.3], [-0.1, -0.5]])
    assert found == pytest.approx(differences.mean())
    expected = bridge.analysis.crossed_mean_interval(differences, 0.95)
    ends = [f"difference_to_plain_{end}" for end in ("low", "high")]
    expected = np.clip(expected, -1, 1)
    np.testing.assert_allclose(rates_of.loc["noise_aware", ends].astype(float), expected)
    found = rates_of.loc["original", "difference_to_noise_aware"]
    assert found == pytest.approx(np.mean([[0.4, 0.4], [0.4, 0.6]]))
    assert np.isnan(rates_of.loc["plain", "difference_to_plain"])
    assert rates_of["seeds"].to_dict() == {"original": 0, "plain": 2, "noise_aware": 2}
    # Of one network on all chips there is no spread.
    digital = table[table["measure"] == "digital_accuracy"].set_index("variant")
    assert np.isnan(digital.loc["original", "value_low"]).all()


# --- a finished run


def test_all_are_tried_on_the_run_s_chips(made: Path, finished_run: Path) -> None:
    rows = pd.read_parquet(made / "finetune.parquet")
    networks = rows.groupby(["variant", "seed"], dropna=False)
    assert len(networks) == 1 + 6
    assert {tuple(one["chip"]) for _, one in networks} == {(0, 1)}
    assert rows["digitally_correct"].nunique() == rows["digitally_correct_d10"].nunique() == 1
    assert (rows["samples"].iloc[0], rows["samples_d10"].iloc[0]) == (60, 6)
    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    of_run = predictions[
        (predictions["profile"] == "wnoise")
        & (predictions["fold"] == "test")
        & (predictions["chip"] == 0)
    ]
    (path,) = made.glob("pieces/original-*/0.parquet")
    found = read_parquet(path).set_index("index")["correct"].sort_index()
    pd.testing.assert_series_equal(found, of_run.set_index("index")["correct"].sort_index())


def test_every_variant_has_its_own_weights_and_the_same_budget(
    study: tuple[Path, list[Tuned]], finished_run: Path
) -> None:
    out, calls = study
    assert {(one.steps, one.recipe.learning_rate, one.recipe.batch_size) for one in calls} == {
        (4, 0.05, 16)
    }
    indices = calls[0].indices
    assert all(np.array_equal(one.indices, indices) for one in calls)
    order = ("plain", "noise_aware", *WEIGHTED)
    by_name = dict(zip(order, calls, strict=True))
    scores = read_parquet(finished_run / "scores.parquet").set_index(KEYS).loc["train"]
    for variant, one in by_name.items():
        assert one.seed == 0
        assert one.noisy == (variant != "plain")
        assert one.weights.sum() == pytest.approx(60)
        assert (one.weights == 4).sum() == (6 if variant in WEIGHTED else 0)
    for variant, highest in (("curvature", scores["curvature"]), ("margin", -scores["margin"])):
        chosen = indices[by_name[variant].weights == 4]
        assert set(chosen) == set(highest.nlargest(6).index)
    named = read_json(out / "settings.json")["weights"]
    kept = [bridge.weights.load_weights(out / path)[0]["fc.bias"] for path in named.values()]
    assert list(named) == [f"{variant}, seed 0" for variant in order]
    trainings = {(one.noisy, one.weights.tobytes()) for one in calls}  # two deciles may be the same
    assert len({one.numpy().tobytes() for one in kept}) == len(trainings) >= 4
    assert len(kept) == len(calls)


def test_a_kept_network_starts_a_training(made: Path, finished_run: Path) -> None:
    path = made / read_json(made / "settings.json")["weights"]["margin, seed 0"]
    experiment = opened_of(finished_run).job.experiment
    given = load_given(experiment, load("digits"), str(path), "--train.start")
    state_dict, header = bridge.weights.load_weights(path)
    assert header["variant"] == "margin"
    kernel = np.asarray(given.network.fc.kernel[...]).T
    np.testing.assert_array_equal(kernel, state_dict["fc.weight"].numpy())


@pytest.mark.parametrize("engine", ["fast", "jax"])
def test_chips_of_a_kept_network_differ_as_its_weights_do(
    made: Path, finished_run: Path, engine: Any
) -> None:
    """Here by the last layer's bias alone, and so each image's logits by the same."""
    experiment = opened_of(finished_run).job.experiment
    experiment = replace(experiment, simulate=replace(experiment.simulate, engine=engine))
    network = read_network(experiment, finished_run, None)
    path = made / read_json(made / "settings.json")["weights"]["noise_aware, seed 0"]
    tuned, header = tuned_network(experiment, network, path, None)
    own = network.programmable([])
    assert header["variant"] == "noise_aware"
    assert (tuned.layers, tuned.batch_norms) == (own.layers, own.batch_norms)
    first, second = (
        np.stack(one.predict(network.images.some("test", 5), "test", batch_size=5)["logits"])
        for one in (own, tuned)
    )
    weights = [load_file(one)["fc.bias"] for one in (finished_run / "weights.safetensors", path)]
    moved = np.broadcast_to(weights[1] - weights[0], (5, 10))
    assert np.abs(moved).max() > 0.1
    np.testing.assert_allclose(second - first, moved, atol=1e-4)


def test_without_a_step_all_networks_are_the_original(
    finished_run: Path, tmp_path: Path, undrawn: None
) -> None:
    """Which is equal on equal chips, and only there."""
    flags = ("--finetune.steps", "0", "--finetune.variants")
    assert commands.run(line(finished_run, tmp_path, *flags, "plain", "noise_aware")) == 0
    rows = pd.read_parquet(tmp_path / "finetune.parquet")
    measured = rows.drop(columns=["variant", "seed"]).groupby("chip")
    assert len(rows) == 3 * 2
    assert (measured.nunique() == 1).all(axis=None)
    outcomes = [read_parquet(path)["correct"] for path in tmp_path.glob("pieces/*/0.parquet")]
    assert len(outcomes) == 3
    assert all(one.equals(outcomes[0]) for one in outcomes)
    (other,) = tmp_path.glob("pieces/original-*/1.parquet")
    assert not read_parquet(other)["correct"].equals(outcomes[0])


def test_only_what_is_missing_is_made_again(
    copied: Path, made: Path, finished_run: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    programmed: list[int] = []
    program = bridge.program

    def noted_chip(*arguments: Any, seed: int, **options: Any) -> Any:
        programmed.append(seed)
        return program(*arguments, seed=seed, **options)

    monkeypatch.setattr(bridge, "program", noted_chip)
    (lost,) = copied.glob("weights/plain-0-*")
    before = load_file(lost)
    lost.unlink()
    (copied / "finetune.parquet").unlink()
    with quick_tuning() as calls:
        assert commands.run(line(finished_run, copied)) == 0
    assert [(one.seed, one.noisy) for one in calls] == [(0, False)]
    assert programmed == []
    again = load_file(lost)
    assert again.keys() == before.keys()
    for name, one in before.items():
        np.testing.assert_array_equal(again[name], one)
    found, expected = (read_parquet(one / "finetune.parquet") for one in (copied, made))
    pd.testing.assert_frame_equal(found, expected)
    flags = ("--finetune.chips", "3", "--finetune.variants", "plain", "noise_aware")
    with quick_tuning() as calls:
        assert commands.run(line(finished_run, copied, *flags)) == 0
    assert not calls
    assert programmed == [2] * 3


# --- what is refused


def opened_of(run: Path, **settings: Any) -> Any:
    from experiments.cli.parsing import Options, parse_preset

    experiment = parse_preset(Options, "run", ["digits", "--out", str(run)]).experiment
    given = {
        **{name: getattr(Finetune(), name) for name in finetune.STUDY.opened_with},
        "profile": "wnoise",
        **settings,
    }
    return open_run(experiment, run, None, **given)


def test_a_run_without_scored_training_images_is_refused(run_copy: Path) -> None:
    path = run_copy / "scores.parquet"
    scores = read_parquet(path)
    write_parquet(path, scores[scores["fold"] != "train"])
    with refused("has scored 0 training images.*run score with train among its --folds"):
        opened_of(run_copy)


def test_fewer_training_images_than_a_step_takes_are_refused(finished_run: Path) -> None:
    with refused("scored 60 training images.*takes 61.*smaller --finetune.batch-size"):
        opened_of(finished_run, batch_size=61)


def test_a_profile_without_noise_of_weights_is_refused(finished_run: Path) -> None:
    with refused(r"--finetune.profile wnoise_mvm has no noise of weights.*adc\+wnoise\+pcm"):
        opened_of(finished_run, profile="wnoise_mvm")


def test_flip_probabilities_of_another_time_are_refused(finished_run: Path) -> None:
    with refused("no flip probabilities of pcm, 1 h.*without flip_probability"):
        opened_of(finished_run, profile="pcm@3600")
    opened = opened_of(finished_run, profile="pcm@3600", variants=("plain", "noise_aware"))
    assert opened.name == "pcm@3600"


def test_a_network_of_a_factory_is_refused(tmp_path: Path) -> None:
    with refused("own:make is a network of your own.*jaxcurv.training.fine_tuning"):
        open_run(
            Experiment(model=Model(factory="own:make")),
            tmp_path,
            None,
            **{name: getattr(Finetune(), name) for name in finetune.STUDY.opened_with},
        )


def test_every_column_is_described(made: Path) -> None:
    for path, frame in tables_in(made):
        described(path, frame)
