"""The report's first answer, on tables whose AUROC is known: never more than its interval."""

import numpy as np
import pandas as pd
import pytest

from bridge.chips.profiles import FULL_COMPENSATED, FULL_PROFILE
from bridge.report.tables import outcomes
from bridge.report.tables.failing_classes import concentration
from bridge.report.tables.failure_rates import per_class
from bridge.report.tables.predictors import compare
from bridge.report.tables.verdict import RULE, beside_margin, decide, strength

FULL = FULL_PROFILE
COSTS = pd.DataFrame({"predictor": ["curvature"], "forward_passes": [25.0]})
SAMPLES = 300


def joined(curvature, fails, *, margin=None, chips=1, profile=FULL):
    """Samples of one class that the digital model gets right; `fails` [chips or 1, samples]."""
    count = len(curvature)
    index = np.arange(count)
    fails = np.broadcast_to(fails, (chips, count))
    scores = pd.DataFrame({"fold": "test", "index": index, "label": index % 3})
    scores = scores.assign(prediction=index % 3, correct=True, curvature=curvature)
    scores["margin"] = np.random.default_rng(9).random(count) if margin is None else margin
    predictions = [
        pd.DataFrame({"profile": profile, "chip": chip, "fold": "test", "index": index}).assign(
            prediction=(index % 3 + failed) % 3, correct=~failed
        )
        for chip, failed in enumerate(fails)
    ]
    return outcomes.join(scores, pd.concat(predictions, ignore_index=True))


def said(rows, **where):
    return decide(compare(rows, COSTS, resamples=200), per_class(rows, **where), **where)


RANK = np.arange(SAMPLES) / SAMPLES
TENTH = RANK >= 0.9
CHANCE = np.random.default_rng(0).random(SAMPLES) < 0.3


def test_a_perfect_predictor():
    found = said(joined(RANK, TENTH))
    assert found.word == "Yes, and better than the margin"
    assert found.aurocs[0].value == 1.0
    assert found.facts.startswith("AUROC: curvature 1.00, margin 0.")
    assert "300 digitally correct samples of the test fold" in found.about
    assert found.about.endswith("30 failures on 1 chip")


def test_the_margin_that_is_as_good():
    assert said(joined(RANK, TENTH, margin=-RANK)).word == "Yes, within 0.02 of the margin"


def test_the_margin_that_is_better():
    noisy = RANK + np.random.default_rng(1).normal(scale=0.2, size=SAMPLES)
    word = said(joined(noisy, TENTH, margin=-RANK)).word
    assert word.endswith("but worse than the margin")


def test_no_predictor():
    many = np.tile(CHANCE, 20)
    constant = np.random.default_rng(3).random(len(many))
    assert said(joined(constant, many, margin=-constant)).word == "No"
    few = np.random.default_rng(4).random(60)
    assert said(joined(few, CHANCE[:60])).word == "Not shown"


def test_a_reversed_predictor():
    assert said(joined(-RANK, TENTH, margin=RANK)).word == "No, the reverse"
    word = said(joined(-RANK, TENTH, margin=-RANK)).word
    assert word == "No, the reverse, and worse than the margin"


@pytest.mark.parametrize(("failures", "word"), [(1, "Not shown"), (3, "Not shown")])
def test_few_failures_show_nothing_however_well_they_are_ranked(failures, word):
    found = said(joined(RANK, np.arange(SAMPLES) >= SAMPLES - failures, margin=-RANK))
    assert found.aurocs[0].value == 1.0
    assert found.word == word
    assert "classes" not in found.facts


def test_no_failures():
    found = said(joined(RANK, np.zeros(SAMPLES, bool)))
    assert (found.word, found.facts) == ("Nothing to tell", "No sample fails.")
    assert found.aurocs == ()
    assert found.sentence == "Nothing to tell. No sample fails."


def test_several_chips_that_disagree_show_less_than_one():
    """On one chip curvature is perfect, on the other two reversed."""
    fails = np.stack([RANK >= 0.9, RANK < 0.1, RANK < 0.1])
    found = said(joined(RANK, fails, chips=3, margin=-RANK))
    assert found.word == "Not shown"
    assert found.about.endswith("90 failures on 3 chips")
    assert said(joined(RANK, TENTH, margin=-RANK)).word.startswith("Yes")


def test_each_profile_has_its_own():
    rows = pd.concat(
        [
            joined(RANK, TENTH),
            joined(RANK, RANK < 0.1, profile=FULL_COMPENSATED),
        ],
        ignore_index=True,
    )
    assert said(rows).word.startswith("Yes")
    assert said(rows, profile=FULL_COMPENSATED).word.startswith("No, the reverse")
    with pytest.raises(ValueError, match="no profile 'pcm' here; there is"):
        said(rows, profile="pcm")
    compared = compare(rows, COSTS, resamples=50)
    with pytest.raises(ValueError, match="no predictor 'curvature' here"):
        decide(compared[compared["predictor"] != "curvature"])


@pytest.mark.parametrize("low", np.arange(0.025, 1, 0.05))
def test_a_word_holds_at_both_ends_of_its_interval(low):
    """Checked against what each word claims, an interval of any width."""
    claims = {
        "Yes": (0.8, 1.0),
        "Moderately": (0.7, 0.8),
        "Weakly": (0.5, 0.7),
        "At least moderately": (0.7, 1.0),
        "At least weakly": (0.5, 1.0),
        "No": (0.0, 0.6),
        "No, the reverse": (0.0, 0.5),
        "Not shown": (0.0, 1.0),
    }
    for high in np.arange(low, 1, 0.05):
        least, most = claims[strength(low, high)]
        assert least <= low <= high <= most
    assert strength(np.nan, np.nan) == "Not shown"


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.81, 0.99), "Yes"),
        ((0.71, 0.79), "Moderately"),
        ((0.71, 0.81), "At least moderately"),
        ((0.51, 0.69), "Weakly"),
        ((0.51, 0.99), "At least weakly"),
        ((0.49, 0.61), "Not shown"),
        ((0.49, 0.59), "No"),
        ((0.40, 0.49), "No, the reverse"),
    ],
)
def test_the_word_is_the_strongest_that_the_interval_allows(interval, word):
    assert strength(*interval) == word


def test_the_rule_is_told_with_its_bounds():
    for number in ("0.8", "0.7", "0.5", "0.6", "0.02"):
        assert number in RULE
    assert beside_margin(0.0, 0.01) == "within 0.02 of the margin"
    assert beside_margin(0.0, 0.03) == "not shown to be better or worse than the margin"


def classes(failures, taken_for=None, samples=100):
    names = [f"class {one}" for one in range(len(failures))]
    table = pd.DataFrame({"class_name": names, "failures": failures, "samples": samples})
    table["digital_accuracy"] = 0.9
    return table if taken_for is None else table.assign(taken_for=taken_for)


def test_which_classes_hold_the_failures():
    found = concentration(classes([1.0, 30.0, 2.0, 25.0, 2.0], [50.0, 1.0, 9.0, 0.0, 0.0]))
    assert found.holders == ("class 1", "class 3")  # 30 of 60 are not more than half
    assert found.held == pytest.approx(55 / 60)
    assert (found.becomes, found.become) == ("class 0", pytest.approx(50 / 60))
    assert found.sentence == (
        "two of 5 classes hold 92 % of the failures, and 83 % of all failures become one class, "
        "class 0"
    )
    assert concentration(classes([20.0, 1.0])).sentence == (
        "one of 2 classes holds 95 % of the failures"
    )
    assert concentration(classes([9.0, 0.5])).sentence == ""


def test_classes_that_hold_what_chance_gives_are_not_told_of():
    assert concentration(classes([10.0] * 8, [10.0] * 8)).sentence == ""  # five hold 62 %
    assert concentration(classes([9.0, 9.0, 2.0, 0.0, 0.0])).sentence.startswith("two")
    drawn = np.random.default_rng(1).multinomial(20, [0.2] * 5, size=300).astype(float)
    told = [bool(concentration(classes(one)).sentence) for one in drawn]
    assert np.mean(told) < 0.03
    many = classes([12.0, 9.0, 3.0, 3.0, 3.0], samples=[800, 600, 200, 200, 200])
    assert concentration(many).sentence == ""  # the larger classes fail as often as the others


def test_a_class_that_fails_become_is_told_of_alone():
    found = concentration(classes([10.0] * 8, [50.0] + 7 * [30 / 7]))
    assert found.sentence == "62 % of all failures become one class, class 0"


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.001, 0.019), "better than the margin by less than 0.02"),
        ((0.001, 0.021), "better than the margin"),
        ((-0.019, -0.001), "worse than the margin by less than 0.02"),
        ((-0.02, 0.02), "within 0.02 of the margin"),
        ((-0.021, 0.001), "not shown to be better or worse than the margin"),
    ],
)
def test_a_difference_that_is_shown_to_be_small_is_told_as_small(interval, words):
    assert beside_margin(*interval) == words


def test_of_one_class_nothing_is_said_and_of_two_not_what_failures_become():
    assert concentration(classes([30.0], [30.0])).sentence == ""
    assert concentration(classes([20.0, 1.0], [1.0, 20.0])).sentence == (
        "one of 2 classes holds 95 % of the failures"
    )


def test_failures_are_counted_by_the_class_that_they_become():
    rows = joined(RANK, np.stack([TENTH, RANK >= 0.8]), chips=2)
    table = per_class(rows)
    assert table["taken_for"].sum() == table["failures"].sum() == 45
    # The failing samples of label 0 become 1, those of 1 become 2, those of 2 become 0.
    failures = table["failures"].tolist()
    assert table["taken_for"].tolist() == [failures[2], failures[0], failures[1]]
