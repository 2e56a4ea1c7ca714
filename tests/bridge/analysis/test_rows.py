"""pandas objects that are taken together are of the same samples in the same order, or refused."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import bridge
from bridge import analysis, routing
from jaxcurv import logit_scores
from jaxcurv.frames import frame_of
from jaxcurv.rows import index_checksum

N = 200
RNG = np.random.default_rng(0)
SCORE = pd.Series(RNG.random(N))
DIGITAL = pd.Series(RNG.random(N) < 0.8)
ANALOG = DIGITAL & (SCORE < 0.7)
LABELS = pd.Series(np.arange(N) % 4)
FAILED = DIGITAL & ~ANALOG
CHIPS = pd.DataFrame([ANALOG, ~ANALOG])

# One call a function and a pair of its inputs: what it takes, by name, and how it is called.
CALLS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "failure_table": (
        {"score": SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda score, digital, analog: bridge.failure_table(score, digital, analog),
    ),
    "failure_table of chips": (
        {"score": SCORE, "digital": DIGITAL, "analog": CHIPS},
        lambda score, digital, analog: bridge.failure_table(score, digital, analog),
    ),
    "compare_predictors": (
        {"curvature": SCORE, "digital": DIGITAL, "analog": ANALOG, "labels": LABELS},
        lambda curvature, digital, analog, labels: bridge.compare_predictors(
            {"curvature": curvature}, digital, analog, labels=labels
        ),
    ),
    "compare_predictors' scores": (
        {"curvature": SCORE, "other": -SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda curvature, other, digital, analog: bridge.compare_predictors(
            {"curvature": curvature, "other": other}, digital, analog
        ),
    ),
    "cross_validated_logistic": (
        {"curvature": SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda curvature, digital, analog: analysis.cross_validated_logistic(
            {"curvature": curvature}, digital, analog
        ),
    ),
    "analog_only_failures": (
        {"digital": DIGITAL, "analog": ANALOG},
        lambda digital, analog: analysis.analog_only_failures(digital, analog),
    ),
    "deciles": (
        {"score": SCORE, "indices": pd.Series(np.arange(N))},
        lambda score, indices: analysis.deciles(score, indices),
    ),
    "edge_ties": (
        {"score": SCORE, "decile": LABELS},
        lambda score, decile: analysis.edge_ties(score, decile),
    ),
    "within_class_rank": (
        {"score": SCORE, "labels": LABELS},
        lambda score, labels: analysis.within_class_rank(score, labels),
    ),
    "trend_test": (
        {"decile": LABELS, "failed": FAILED},
        lambda decile, failed: analysis.trend_test(decile, failed),
    ),
    "calibration_table": (
        {"probability": SCORE, "failed": FAILED},
        lambda probability, failed: analysis.calibration_table(probability, failed),
    ),
    "failure_overlap": (
        {"pcm": FAILED, "reram": LABELS == 1, "margin": SCORE},
        lambda pcm, reram, margin: analysis.failure_overlap({"pcm": pcm, "reram": reram}, margin),
    ),
    "gaussian_flip_probability": (
        {"margin": SCORE, "shift": -SCORE, "variance": SCORE},
        lambda margin, shift, variance: analysis.gaussian_flip_probability(margin, shift, variance),
    ),
    "logit_scores": (
        {"logits": pd.DataFrame({"a": SCORE, "b": -SCORE}), "labels": LABELS % 2},
        lambda logits, labels: logit_scores(logits, labels),
    ),
    "routing_curve": (
        {"score": SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda score, digital, analog: routing.routing_curve(score, digital, analog),
    ),
    "routing_baselines": (
        {"digital": DIGITAL, "analog": ANALOG},
        lambda digital, analog: routing.routing_baselines(digital, analog),
    ),
    "routed_at": (
        {"score": SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda score, digital, analog: routing.routed_at(0.5, score, digital, analog),
    ),
    "choose_threshold": (
        {"score": SCORE, "digital": DIGITAL, "analog": ANALOG},
        lambda score, digital, analog: routing.choose_threshold(score, digital, analog, 0.5),
    ),
    "guaranteed_threshold": (
        {"scores": SCORE, "losses": FAILED},
        lambda scores, losses: routing.guaranteed_threshold(scores, losses, 0.5),
    ),
    "risk_at": (
        {"scores": SCORE, "losses": FAILED},
        lambda scores, losses: routing.risk_at(0.5, scores, losses),
    ),
}
EACH = [(call, name) for call, (inputs, _) in CALLS.items() for name in inputs]


def shuffled(value: Any) -> Any:
    if isinstance(value, pd.DataFrame) and value.shape[1] == N:
        return value.sample(frac=1, axis=1, random_state=1)
    return value.sample(frac=1, random_state=1)


def shifted(value: Any) -> Any:
    """The same rows under other numbers, as of another fold."""
    if isinstance(value, pd.DataFrame) and value.shape[1] == N:
        return value.set_axis(np.arange(N) + 1000, axis=1)
    return value.set_axis(np.arange(N) + 1000)


def same(one: Any, other: Any) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif isinstance(one, dict):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(("call", "name"), EACH)
def test_another_order_of_one_input_is_refused(call: str, name: str) -> None:
    inputs, function = CALLS[call]
    with pytest.raises(ValueError, match=r"the same samples in another order than .*reindex"):
        function(**inputs | {name: shuffled(inputs[name])})


@pytest.mark.parametrize(("call", "name"), EACH)
def test_other_samples_of_one_input_are_refused(call: str, name: str) -> None:
    inputs, function = CALLS[call]
    with pytest.raises(ValueError, match="other samples than"):
        function(**inputs | {name: shifted(inputs[name])})


@pytest.mark.parametrize(("call", "name"), EACH)
def test_an_order_of_its_own_beside_arrays_is_refused(call: str, name: str) -> None:
    inputs, function = CALLS[call]
    arrays = {other: value.to_numpy() for other, value in inputs.items()}
    with pytest.raises(ValueError, match="in an order of its own by its pandas index"):
        function(**arrays | {name: shuffled(inputs[name])})
    same(function(**arrays), function(**arrays | {name: shifted(inputs[name])}))


@pytest.mark.parametrize("change", [shuffled, lambda value: shifted(shuffled(value))])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_in_one_order_is_as_its_arrays(call: str, change: Callable[[Any], Any]) -> None:
    inputs, function = CALLS[call]
    moved = {name: change(value) for name, value in inputs.items()}
    arrays = {name: value.to_numpy() for name, value in moved.items()}
    same(function(**moved), function(**arrays))


def test_chips_as_a_list_of_series() -> None:
    chips = [ANALOG, shuffled(ANALOG)]
    with pytest.raises(ValueError, match="analog_correct has the same samples in another order"):
        bridge.failure_table(SCORE, DIGITAL, chips)


@pytest.mark.parametrize(
    "function",
    [
        analysis.systematic_share,
        analysis.variance_shares,
        analysis.rate_interval,
        analysis.crossed_mean_interval,
    ],
)
def test_chips_of_one_kind_as_a_list_of_series(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="has the same samples in another order"):
        function([FAILED, shuffled(FAILED)])
    same(function([FAILED, ~FAILED]), function(np.stack([FAILED, ~FAILED])))


def test_counts_that_are_sorted_by_count_are_refused() -> None:
    trials = LABELS.value_counts()
    failures = LABELS[FAILED].value_counts()
    with pytest.raises(ValueError, match="failures"):
        analysis.wilson_interval(failures.sort_index(ascending=False), trials.sort_index())
    low, _ = analysis.wilson_interval(failures.sort_index(), trials.sort_index())
    assert low.shape == (4,)
    assert analysis.wilson_interval(failures, 200)[0].shape == (4,)


@pytest.mark.parametrize("name", ["labels", "indices", "digital_correct", 0.01])
def test_a_score_may_have_any_name(name: Any) -> None:
    with pytest.raises(ValueError, match="the same samples in another order"):
        bridge.compare_predictors({name: shuffled(SCORE)}, DIGITAL, ANALOG)
    table = bridge.compare_predictors({name: SCORE}, DIGITAL, ANALOG)
    assert table["predictor"].tolist() == [name]


def test_an_index_names_its_own_samples() -> None:
    one, digital, analog = (shuffled(value) for value in (SCORE, DIGITAL, ANALOG))
    table = bridge.failure_table(one, digital, analog, indices=one.index)
    same(table, bridge.failure_table(SCORE, DIGITAL, ANALOG))
    same(
        table,
        bridge.failure_table(*(v.to_numpy() for v in (one, digital, analog)), indices=one.index),
    )
    with pytest.raises(ValueError, match="another order"):
        bridge.failure_table(SCORE, DIGITAL, ANALOG, indices=one.index)


REPEATED = np.tile(np.arange(N // 4), 4)
"""The index of four shards that were put together without ignore_index."""


def repeated(value: Any) -> Any:
    if isinstance(value, pd.DataFrame) and value.shape[1] == N:
        return value.set_axis(REPEATED, axis=1)
    return value.set_axis(REPEATED)


@pytest.mark.parametrize("call", CALLS)
def test_equal_indexes_with_repeats_of_two_tables_are_told(call: str) -> None:
    inputs, function = CALLS[call]
    moved = {name: repeated(value) for name, value in inputs.items()}
    with pytest.warns(UserWarning, match=r"repeat.*reset_index\(drop=True\)"):
        function(**moved)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shard", [slice(None), slice(3, 150)])
def test_columns_of_one_table_may_have_an_index_with_repeats(shard: slice) -> None:
    table = pd.DataFrame({"score": SCORE, "digital": DIGITAL, "analog": ANALOG, "label": LABELS})
    table = repeated(table)[shard]
    table["failed"] = table.digital & ~table.analog
    bridge.failure_table(table.score, table.digital, table.analog)
    bridge.failure_table(table["score"] * 2, table.digital.copy(), ~table.analog)
    analysis.calibration_table(table.score.clip(0, 1), table.failed)
    analysis.within_class_rank(table.score, table.label.astype(int))


def test_repeats_in_another_order_are_refused_with_a_cure_that_works() -> None:
    with pytest.raises(ValueError, match=r"another order.*reset_index\(drop=True\)"):
        bridge.failure_table(repeated(SCORE), shuffled(repeated(DIGITAL)), repeated(ANALOG))


@pytest.mark.parametrize("name", ["score", "digital_correct", "analog_correct"])
def test_a_frame_of_one_column_is_told_as_such(name: str) -> None:
    inputs = {"score": SCORE, "digital_correct": DIGITAL, "analog_correct": ANALOG}
    frames = {name: inputs[name].to_frame("a")}
    with pytest.raises(ValueError, match=rf"^{name} is a DataFrame of one column.*{name}\['a'\]"):
        bridge.failure_table(**inputs | frames)
    arrays = {key: value.to_numpy() for key, value in inputs.items()}
    with pytest.raises(ValueError, match=rf"^{name} is a DataFrame of one column.*{name}\['a'\]"):
        bridge.failure_table(**arrays | frames)
    with pytest.raises(ValueError, match="DataFrame of one column"):
        bridge.failure_table(**{key: value.to_frame("a") for key, value in inputs.items()})


def test_a_frame_of_one_chip_may_be_a_row() -> None:
    table = bridge.failure_table(SCORE, DIGITAL, pd.DataFrame([ANALOG]))
    same(table, bridge.failure_table(SCORE, DIGITAL, ANALOG))


def test_the_cure_for_missing_samples_works() -> None:
    fewer = ANALOG.drop([3, 5, 8])
    with pytest.raises(ValueError, match=r"other samples than .*index\.intersection.*reindex"):
        bridge.failure_table(SCORE, DIGITAL, fewer)
    common = SCORE.index.intersection(fewer.index)
    bridge.failure_table(SCORE.reindex(common), DIGITAL.reindex(common), fewer.reindex(common))


@pytest.mark.parametrize("kind", [object, "boolean"])
@pytest.mark.parametrize("name", ["digital_correct", "analog_correct", "chips"])
def test_missing_outcomes_are_counted(name: str, kind: Any) -> None:
    inputs: dict[str, Any] = {"digital_correct": DIGITAL, "analog_correct": ANALOG}
    holed = inputs[name if name in inputs else "analog_correct"].drop([3, 5, 8])
    holed = holed.astype(kind).reindex(SCORE.index)
    inputs |= {name: holed} if name in inputs else {"analog_correct": [holed, ANALOG]}
    with pytest.raises(ValueError, match=r"correct is missing \(NaN\) for 3 of 200 samples"):
        bridge.failure_table(SCORE, **inputs)


@pytest.mark.parametrize("of", [lambda s: s, lambda s: s.to_numpy(), lambda s: list(s)])
@pytest.mark.parametrize("name", ["digital_correct", "analog_correct", "chips"])
def test_the_cure_for_missing_outcomes_works(name: str, of: Callable[[Any], Any]) -> None:
    known = {"score": SCORE, "digital_correct": DIGITAL, "analog_correct": ANALOG}
    which = name if name in known else "analog_correct"
    holed = known[which].drop([3, 5, 8]).astype(object).reindex(SCORE.index)
    given = holed.dropna()
    assert given.dtype == object
    rows = {key: value.reindex(given.index) for key, value in known.items()}
    expected = bridge.failure_table(**rows)
    inputs = {key: of(value) for key, value in rows.items()} | {which: of(given)}
    same(expected, bridge.failure_table(**inputs))
    if name == "chips":
        for chips in ([inputs[which]] * 2, pd.DataFrame([given, given])):
            frame = {} if isinstance(chips, list) else rows  # which has an index of its own
            found = bridge.failure_table(**inputs | frame | {which: chips})
            assert found["failures"].tolist() == (2 * expected["failures"]).tolist()
    others = given.astype(object)
    others.iloc[0] = "yes"
    with pytest.raises(ValueError, match=r"bools.*got (object|<U)"):
        bridge.failure_table(**inputs | {which: of(others)})


def a_table(index: Any, score: Any = SCORE, **attrs: Any) -> pd.DataFrame:
    """A table as the product gives them: rows numbered from 0, the sample in a column."""
    rows = np.arange(len(index))
    columns = {"index": index, "score": score[rows], "correct": DIGITAL[rows]}
    table = frame_of(pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False))
    table.attrs |= attrs
    return table


SAMPLES = RNG.permutation(10_000)[:N]
FEWER = np.setdiff1d(np.arange(N), [3, 5, 8, 77])


def failures_of(scores: pd.DataFrame, predictions: pd.DataFrame) -> list[int]:
    """By the columns of two tables, as they are."""
    inputs = scores["score"], scores["correct"], predictions["correct"]
    return bridge.failure_table(*inputs)["failures"].tolist()


def merged_failures(scores: pd.DataFrame, predictions: pd.DataFrame) -> list[int]:
    """As the message says."""
    both = scores.merge(predictions[["index", "correct"]], on="index")
    table = bridge.failure_table(both.score, both.correct_x, both.correct_y)
    return table["failures"].tolist()


def by_hand(scores: pd.DataFrame, predictions: pd.DataFrame) -> list[int]:
    outcome = dict(zip(predictions["index"], predictions["correct"], strict=True))
    rows = scores[[sample in outcome for sample in scores["index"]]]
    analog = np.array([outcome[sample] for sample in rows["index"]])
    values = rows["score"].to_numpy(), rows["correct"].to_numpy(), analog
    return bridge.failure_table(*values)["failures"].tolist()


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The same without attrs, as of a CSV file."""
    return pd.DataFrame({name: table[name].to_numpy() for name in table})


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("chips", [1, 3])
def test_row_numbers_of_two_tables_are_not_intersected(known: bool, chips: int) -> None:
    scores = a_table(SAMPLES)
    outcomes = [ANALOG.iloc[FEWER].sample(frac=1, random_state=n) for n in range(chips)]
    predictions = pd.concat(
        [
            pd.DataFrame({"index": SAMPLES[FEWER], "chip": chip, "correct": outcome.to_numpy()})
            for chip, outcome in enumerate(outcomes)
        ],
        ignore_index=True,
    )
    predictions.attrs = index_checksum(SAMPLES[FEWER])
    if not known:
        scores, predictions = plain(scores), plain(predictions)
    for chip in range(chips):
        one = predictions[predictions.chip == chip]
        with pytest.raises(ValueError, match=r'scores\.merge\(predictions, on="index"\)') as said:
            failures_of(scores, one)
        assert "intersection" not in str(said.value)
        assert merged_failures(scores, one) == by_hand(scores, one)
        named = scores.set_index("index"), one.set_index("index")
        with pytest.raises(ValueError, match=r"index\.intersection"):
            failures_of(*named)
        common = named[0].index.intersection(named[1].index)
        found = failures_of(*(table.reindex(common) for table in named))
        assert found == by_hand(scores, one)


def test_rows_that_were_left_out_are_told_of_both_cures() -> None:
    table = a_table(SAMPLES)
    few = table[table.score > 0.2]
    with pytest.raises(ValueError, match=r'on="index".*; of one table\'s rows .*intersection'):
        bridge.failure_table(few.score, few.correct, ANALOG)


@pytest.mark.parametrize("samples", [SAMPLES, np.arange(N)[::-1]])
def test_row_numbers_beside_samples_are_told_to_become_samples(samples: Any) -> None:
    """As of a table of chips that was pivoted."""
    scores = a_table(samples)
    chips = pd.DataFrame({"index": samples, "a": ANALOG, "b": ~ANALOG}).set_index("index")
    message = r"row numbers, which name no samples: take it of table\.set_index\('index'\)"
    with pytest.raises(ValueError, match=f"score is by {message}"):
        bridge.failure_table(scores.score, scores.correct, chips.T)
    named = scores.set_index("index")
    with pytest.raises(ValueError, match=f"analog_correct is by {message}"):
        bridge.failure_table(named.score, named.correct, scores.correct)
    found = bridge.failure_table(named.score, named.correct, chips.T)
    values = SCORE.to_numpy(), DIGITAL.to_numpy(), CHIPS.to_numpy()
    same(found, bridge.failure_table(*values, indices=samples))


OTHERS = np.concatenate([SAMPLES[:-1], [20_000]])


@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: t[::-1], lambda t: t.sort_values("index")]
)
def test_tables_of_other_samples_are_refused(change: Callable[[Any], Any]) -> None:
    scores, predictions = a_table(SAMPLES), change(a_table(np.roll(OTHERS, 3)))
    score, digital, analog = -scores["score"], scores["correct"] > 0, ~predictions["correct"]
    with pytest.raises(ValueError, match=r"analog_correct is of a table of other samples .*merge"):
        bridge.failure_table(score, digital, analog)
    with pytest.raises(ValueError, match=r"analog_correct is of a table of other samples .*merge"):
        bridge.failure_table(score, digital, [digital, analog])
    assert merged_failures(scores, predictions) == by_hand(scores, predictions)


SORTED_BY_SAMPLE: dict[str, Callable[[pd.DataFrame], list[pd.Series]]] = {
    "pivot": lambda t: [t.pivot(index="index", columns="chip", values="correct").reset_index()[0]],
    "pivots": lambda t: [
        one
        for name, one in t.pivot(index="index", columns="chip", values="correct")
        .reset_index()
        .items()
        if name != "index"
    ],
    "unstack": lambda t: [
        t.set_index(["chip", "index"])["correct"].unstack("chip").reset_index()[1]
    ],
}


def of_chips(samples: Any) -> pd.DataFrame:
    tables = [a_table(samples).assign(chip=chip) for chip in range(2)]
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("how", SORTED_BY_SAMPLE)
def test_a_pivot_beside_a_table_in_no_order_is_told(how: str) -> None:
    scores, chips = a_table(SAMPLES), of_chips(SAMPLES)
    made = SORTED_BY_SAMPLE[how](chips)
    with pytest.warns(UserWarning, match=r"score is of a table .* no ascending order") as said:
        bridge.failure_table(
            scores["score"], scores["correct"], made if how == "pivots" else made[0]
        )
    assert said[0].filename == __file__
    few, those = (t[t["index"] < 5000].reset_index(drop=True) for t in (scores, chips))
    with pytest.warns(UserWarning, match=r"score is of a table .* no ascending order"):
        bridge.failure_table(few["score"], few["correct"], SORTED_BY_SAMPLE[how](those)[0])
    named = scores.set_index("index")  # as the message says
    wide = chips.pivot(index="index", columns="chip", values="correct").reindex(named.index)
    found = bridge.failure_table(named.score, named.correct, wide[0])
    assert found["failures"].tolist() == by_hand(scores, chips[chips.chip == 0])


@pytest.mark.filterwarnings("error")
def test_what_is_in_a_table_s_order_raises_no_false_alarm() -> None:
    ascending = np.sort(SAMPLES)
    scores, chips = a_table(ascending), of_chips(ascending)
    for how in SORTED_BY_SAMPLE.values():
        bridge.failure_table(scores["score"], scores["correct"], how(chips)[0])
    failures_of(scores, plain(scores))
    ordered = a_table(SAMPLES).sort_values("index", ignore_index=True)
    for how in SORTED_BY_SAMPLE.values():
        analysis.calibration_table(ordered["score"], how(of_chips(SAMPLES))[0])
    failures_of(plain(a_table(SAMPLES)), plain(a_table(SAMPLES)))
    scores = a_table(SAMPLES)
    analysis.within_class_rank(scores["score"], pd.qcut(scores["score"], 3, labels=False))
    analog = scores["correct"] & (scores["score"].rank() < 99)
    bridge.failure_table(scores["score"], scores["correct"], [analog, ~analog])
    values = scores["correct"].to_numpy()
    bridge.failure_table(scores["score"], values, values)
    one = of_chips(SAMPLES).query("chip == 1").reset_index(drop=True)
    failures_of(scores, one)
    failures_of(scores, plain(scores))  # as of a CSV file, or of pd.concat of several chips
    bridge.failure_table(scores["score"], scores["correct"], pd.Series(values))


def test_tables_in_another_order_are_told() -> None:
    scores, predictions = a_table(SAMPLES), a_table(np.roll(SAMPLES, 3))
    with pytest.warns(UserWarning, match=r"had the samples of score's in another order") as said:
        failures_of(scores, predictions)
    assert said[0].filename == __file__
    assert merged_failures(scores, predictions) == by_hand(scores, predictions)


def sorted_anew(table: pd.DataFrame, by: str = "score") -> pd.DataFrame:
    return table.sort_values(by).reset_index(drop=True)


@pytest.mark.parametrize(
    "renumbered",
    [
        sorted_anew,
        lambda t: t.sort_values("score", ignore_index=True),
        lambda t: t.sample(frac=1, random_state=0, ignore_index=True),
        lambda t: t.sort_values("score").set_axis(range(N)),
        lambda t: through_parquet(sorted_anew(t)),
    ],
)
@pytest.mark.parametrize("samples", [SAMPLES, np.arange(N)])
def test_a_table_whose_rows_were_sorted_and_numbered_anew_is_refused(
    samples: Any, renumbered: Callable[[Any], Any]
) -> None:
    scores, predictions = renumbered(a_table(samples)), a_table(samples)
    message = (
        r"score is of a table that was sorted.*analog_correct of one in its first order.*merge"
    )
    for of_one in (scores["correct"], scores["score"] > 0.5):
        with pytest.raises(ValueError, match=message):
            bridge.failure_table(scores["score"], of_one, predictions["correct"])
    with pytest.raises(ValueError, match="analog_correct is of a table that was sorted"):
        failures_of(predictions, scores)
    assert merged_failures(scores, predictions) == by_hand(scores, predictions)


def shares(table: pd.DataFrame) -> pd.Series:
    return table.groupby("index")["correct"].any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("samples", [np.arange(N), np.random.default_rng(3).permutation(N)])
def test_row_numbers_in_another_order_are_refused_beside_samples(samples: Any) -> None:
    """What `groupby` gives is by sample, and row numbers of a table in another order are not."""
    scores, chips = a_table(samples), of_chips(samples)
    by_sample = sorted_anew(scores, "index")
    values = by_sample["score"].to_numpy(), by_sample["correct"].to_numpy()
    right = bridge.failure_table(*values, shares(chips).to_numpy())
    named = scores.set_index("index").sort_index()
    for table in (by_sample, named):
        same(right, bridge.failure_table(table["score"], table["correct"], shares(chips)))
    pivoted = chips.pivot(index="chip", columns="index", values="correct")
    moved = sorted_anew(scores)
    for table in (moved, scores) if samples[0] else (moved,):
        for analog in (shares(chips), pivoted):
            with pytest.raises(ValueError, match=r"score is by row numbers of a table in another"):
                bridge.failure_table(table["score"], table["correct"], analog)
            with pytest.raises(ValueError, match=r"digital_correct is by row numbers of a table"):
                bridge.failure_table(-table["score"], table["correct"], analog)
    cured = moved.set_index("index")
    with pytest.raises(ValueError, match="align them"):
        bridge.failure_table(cured["score"], cured["correct"], shares(chips))
    found = bridge.failure_table(
        cured["score"], cured["correct"], shares(chips).reindex(cured.index)
    )
    assert np.array_equal(found["failures"], right["failures"])


def test_values_that_were_computed_in_no_order_are_told_beside_samples() -> None:
    samples = np.random.default_rng(3).permutation(N)
    scores, chips = a_table(samples), of_chips(samples)
    with pytest.warns(UserWarning, match="names samples: a pivot, unstack or groupby sorts"):
        bridge.failure_table(-scores["score"], scores["score"] < 0.9, shares(chips))


def through_parquet(table: pd.DataFrame) -> pd.DataFrame:
    file = io.BytesIO()
    table.to_parquet(file)
    return pd.read_parquet(io.BytesIO(file.getvalue()))


@pytest.mark.filterwarnings("error")
def test_tables_that_were_sorted_alike_or_not_at_all_raise_no_false_alarm() -> None:
    scores, predictions = a_table(SAMPLES), a_table(SAMPLES)
    expected = by_hand(scores, predictions)
    for change in (
        lambda t: t,
        lambda t: t.copy(),
        lambda t: t.reset_index(drop=True),
        lambda t: sorted_anew(t, "index"),
        lambda t: sorted_anew(t).sort_values("index").reset_index(drop=True),
        through_parquet,
    ):
        assert failures_of(change(scores), change(predictions)) == expected
    # Sorted and not numbered anew, a table says itself which rows they are.
    assert failures_of(scores.sort_values("score").sort_index(), predictions) == expected
    alone = sorted_anew(scores)
    for same_table in (alone, alone.assign(more=1), alone.drop(columns="index")):
        assert failures_of(alone, same_table) == expected
    changed = sorted_anew(scores)
    changed["score"] = -changed["score"]
    failures_of(changed, changed)
    one_class = predictions.assign(correct=True)
    bridge.failure_table(alone["score"], alone["correct"], one_class["correct"] > 2)


OF_ONE_INDEX = r"analog_correct and score have the same row numbers and other labels.*two random"


def labelled(index: Any, labels: np.ndarray | pa.Array | None) -> pd.DataFrame:
    columns = {"index": index, "score": SCORE.to_numpy(), "correct": DIGITAL.to_numpy()}
    return frame_of(pa.table(columns if labels is None else {**columns, "label": labels}))


def test_tables_of_one_index_and_other_labels_are_refused() -> None:
    """As of two random subsets of arrays, whose index is the position."""
    classes = LABELS.to_numpy()
    scores, predictions = labelled(np.arange(N), classes), labelled(np.arange(N), classes[::-1])
    for change in (lambda t: t, lambda t: t.assign(label=classes), lambda t: t[::-1]):
        with pytest.raises(ValueError, match=OF_ONE_INDEX):
            failures_of(scores, change(predictions))
    with pytest.raises(ValueError, match=OF_ONE_INDEX.replace("score", r"scores\['a'\]")):
        bridge.compare_predictors(
            {"a": scores.score, "b": labelled(np.arange(N), None).score},
            scores.correct, predictions.correct,
        )  # fmt: skip
    values = scores.score.to_numpy(), scores.correct.to_numpy(), predictions.correct.to_numpy()
    bridge.failure_table(*values)


@pytest.mark.filterwarnings("error")
def test_labels_that_are_equal_or_not_there_raise_no_false_alarm() -> None:
    classes, floats = LABELS.to_numpy(), RNG.random(N, np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(floats, 3)), 3)
    scores = labelled(SAMPLES, classes.astype(np.int32))
    for labels in (classes, None, floats, lists):
        failures_of(scores, labelled(SAMPLES, labels))
        failures_of(labelled(SAMPLES, labels), scores)
    of_file = labelled(SAMPLES, classes[::-1])
    of_file.attrs = index_checksum(SAMPLES)  # as of an earlier version
    failures_of(scores, of_file)
    failures_of(scores.assign(label=classes[::-1]), scores)
    moved = labelled(np.roll(SAMPLES, 3), np.roll(classes, 3))
    with pytest.warns(UserWarning, match="in another order"):
        failures_of(scores, moved)
    moved = labelled(np.roll(SAMPLES, 3), classes)
    with pytest.raises(ValueError, match=OF_ONE_INDEX):
        failures_of(scores, moved)


@pytest.mark.filterwarnings("error")
def test_what_is_made_of_tables_of_other_samples_raises_no_false_alarm() -> None:
    scores, predictions = a_table(SAMPLES, other=1), a_table(np.roll(OTHERS, 3), other=2)
    merged_failures(scores, predictions)
    merged_failures(scores[scores.score > 0.1], predictions[5:])
    outcome = predictions.set_index("index")["correct"]
    known = scores[scores["index"].isin(outcome.index)]
    mapped = known["index"].map(outcome)
    aligned = outcome.reindex(known["index"]).reset_index(drop=True)
    for analog in (mapped, aligned.set_axis(known.index)):
        bridge.failure_table(known.score, known.correct, analog)
    same_samples = a_table(SAMPLES, -SCORE)
    failures_of(scores, same_samples)
    for change in (lambda t: t[t.index % 3 > 0], lambda t: t.sample(frac=1, random_state=0)):
        failures_of(change(scores), change(same_samples))
    named = [table.set_index("index").sort_index() for table in (scores, a_table(SAMPLES[::-1]))]
    failures_of(*named)
    counted = predictions.groupby(predictions["index"] % 4).correct.sum()
    analysis.wilson_interval(counted, scores.groupby(scores["index"] % 4).correct.count() + N)


LONG: dict[str, Callable[[Any, Any, Any], Any]] = {
    "failure_table": lambda score, digital, analog: bridge.failure_table(score, digital, analog),
    "compare_predictors": lambda score, digital, analog: bridge.compare_predictors(
        {"curvature": score}, digital, analog, resamples=20
    ),
    "cross_validated_logistic": lambda score, digital, analog: analysis.cross_validated_logistic(
        {"curvature": score}, digital, analog
    ),
    "calibration_table": lambda score, digital, analog: analysis.calibration_table(score, ~analog),
    "guaranteed_threshold": lambda score, digital, analog: routing.guaranteed_threshold(
        score, digital & ~analog, level=0.5
    ),
}


@pytest.mark.parametrize("call", LONG)
def test_a_long_table_of_several_chips_is_told_of(call: str) -> None:
    rng = np.random.default_rng(0)
    samples = pd.DataFrame({"index": np.arange(150), "score": rng.random(150).round(3)})
    samples["digital"] = rng.random(150) < 0.9
    chips = pd.DataFrame({"chip": np.repeat(range(3), 150), "index": np.tile(range(150), 3)})
    both = chips.assign(correct=rng.random(450) < 0.7).merge(samples, on="index")
    with pytest.warns(UserWarning, match=r"value of the score is there 3 times: .*chips, samples"):
        LONG[call](both["score"], both["digital"], both["correct"])
    wide = both.pivot(index="chip", columns="index", values="correct")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = samples.set_index("index")
        if call == "guaranteed_threshold":
            one = both[both["chip"] == 0]
            LONG[call](one["score"], one["digital"], one["correct"])
        else:
            LONG[call](given["score"], given["digital"], wide)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bins", [10, 100])
@pytest.mark.parametrize("call", LONG)
def test_scores_that_are_their_bin_s_raise_no_false_alarm(call: str, bins: int) -> None:
    rng = np.random.default_rng(0)
    binned = (analysis.deciles(rng.random(600), np.arange(600), bins) - 0.5) / bins
    LONG[call](binned, rng.random(600) < 0.9, rng.random(600) < 0.7)
