"""Figures in docs/measurements are those of the archived tables and benchmarks."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxcurv.storage.checksums import read_json
from tests.conftest import ROOT

RESULTS = ROOT / "experiments" / "results"
SMALL = RESULTS / "cifar100_resnet18_small"
FULL = "adc+wnoise+pcm"


def rows(page: str, columns: int) -> dict[str, list[str]]:
    """Rows of a page's tables that have as many columns, by their first cell."""
    text = (ROOT / "docs" / "measurements" / f"{page}.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {one[0].replace("`", ""): one[1:] for one in cells if len(one) == columns}


def spread(ratio: dict[str, float], digits: int = 2) -> str:
    """A median and its range as pages write them."""
    median, lowest, highest = (ratio[name] for name in ("median", "lowest", "highest"))
    return f"{median:.{digits}f} ({lowest:.{digits}f} to {highest:.{digits}f})"


def benchmark(name: str) -> dict[str, Any]:
    """An archived benchmark."""
    return read_json(RESULTS / "benchmark" / f"{name}.json")


def test_failures_by_decile() -> None:
    table = rows("narrow-networks", 9)
    profiles = table[""]
    assert len(profiles) == 8
    deciles = pd.read_csv(SMALL / "deciles.csv").query("fold == 'test'")
    for number in range(1, 11):
        of_decile = deciles[deciles["decile"] == number].set_index("profile")
        rates = [f"{100 * of_decile.loc[one, 'rate_of_correct']:.1f}" for one in profiles]
        assert table[f"D{number}"] == rates


def test_calibration_of_the_flip_probability() -> None:
    table = rows("narrow-networks", 4)
    names = ("predicted", "observed", "expected_calibration_error")
    errors = pd.read_csv(SMALL / "calibration_errors.csv").query(
        "fold == 'test' and predictor == 'flip_probability'"
    )
    of_profile = errors.set_index("profile")[list(names)]
    wanted = {"adc", "wnoise", "pcm", FULL, "adc_coarse", "wnoise_mvm", "pcm_gdc", f"{FULL}_gdc"}
    assert wanted <= table.keys()
    for profile in wanted:
        assert table[profile] == [f"{one:.3f}" for one in of_profile.loc[profile]]


def test_routing() -> None:
    table = rows("narrow-networks", 5)
    choices = pd.read_csv(SMALL / "routing_choices.csv").query(f"profile == '{FULL}'")
    for one in choices.itertuples():
        name = str(one.router).removeprefix("analog ")
        row = table[f"{'analog ' if one.kind == 'analog' else ''}{name}"]
        digits = 1 if one.energy > 10 else 2
        assert row == [
            *(f"{100 * one.fraction:.1f} %", f"{100 * one.accuracy:.1f} %"),
            *(f"{100 * one.given_up:.1f}", f"{one.energy:.{digits}f}"),
        ]


def test_drift() -> None:
    table = rows("narrow-networks", 3)
    times = {"0 s": 0, "1 s": 1, "20 s": 20, "1 min": 60, "1 h": 3600, "1 d": 86400}
    times |= {"30 d": 30 * 86400, "1 y": 31536000}
    drift = pd.read_csv(SMALL / "drift" / "drift.csv").set_index(["compensation", "time_s"])
    for name, time in times.items():
        for cell, compensation in zip(table[name], ("none", "global"), strict=True):
            one = (
                100 * drift.loc[(compensation, time), ["accuracy", "accuracy_low", "accuracy_high"]]
            )
            assert cell == "{:.1f} [{:.1f}, {:.1f}]".format(*one)


RANKED = {
    "Eq. 1, n = 10, another key": "fd_h1e-3_n10_another_key",
    "Eq. 1, n = 1, another key": "fd_h1e-3_n1_another_key",
    "Eq. 1, n = 1, the same key": "fd_h1e-3_n1",
    "Eq. 1, n = 20, the same key": "fd_h1e-3_n20",
    "Eq. 1, h = 1e-4, n = 10": "fd_h1e-4_n10",
    "Eq. 1, h = 1e-2, n = 10": "fd_h1e-2_n10",
    "Eq. 1, h = 1e-1, n = 10": "fd_h1e-1_n10",
    "HessianVector": "hessian_vector",
    "HessianTrace": "hessian_trace",
    "HessianTrace, step 1e-3": "hessian_trace_h1e-3",
    "GaussNewton": "gauss_newton",
    "LowRankGaussNewton": "low_rank_gauss_newton",
    "gradient norm": "gradient_norm",
    "loss": "loss",
}


def test_rank_correlations() -> None:
    table = rows("estimators", 4)
    folder = SMALL / "rank-correlation"
    every, correct = (
        pd.read_csv(folder / f"{name}.csv").set_index("score").loc["fd_h1e-3_n10"]
        for name in ("rank_correlation", "rank_correlation_correct")
    )
    for row, score in RANKED.items():
        assert table[row][1:] == [f"{every[score]:.3f}", f"{correct[score]:.3f}"]


def test_costs_of_scores() -> None:
    table = rows("estimators", 2)
    constants = benchmark("cpu_costs")["constants"]
    for row, names in {
        "loss and input gradient": ["gradient_norm"],
        "FiniteDifference: base, each probe": ["finite_difference_base", "finite_difference_each"],
        "HessianVector: base, each probe": ["hessian_vector_base", "hessian_vector_each"],
        "LowRankGaussNewton: base, dimension, probe": [
            *("low_rank_base", "low_rank_dimension", "low_rank_probe"),
        ],
        "margin alone": ["margin"],
    }.items():
        assert table[row] == [", ".join(spread(constants[name]) for name in names)]


@pytest.mark.parametrize("width", [16, 64])
def test_speed_of_the_engine(width: int) -> None:
    table, measured = rows("speed", 3), benchmark(f"cpu_width{width}")
    for name in ("over_published", "of_floor", "gauss_newton_over_finite_difference"):
        (row,) = (cells for first, cells in table.items() if first.startswith(name))
        assert row[width == 64] == spread(measured["ratios"][name])
    cells = rows("speed", 6)[f"width {width}"]
    estimators = ("FiniteDifference", "HessianVector", "GaussNewton", "LowRankGaussNewton")
    for cell, name in zip(cells, ("published, PyTorch", *estimators), strict=True):
        rate = measured["contestants"][name]["images_per_second"]
        assert float(cell) == pytest.approx(rate, abs=0.51 if width == 16 else 0.051)


PER_MVM = {
    "wnoise at each operation": "wnoise:per_mvm",
    "adc+wnoise at each operation": "adc+wnoise:per_mvm",
    "adc+wnoise at each operation, +pcm": "adc+wnoise+pcm:per_mvm",
    "pcm, drift compensated": "pcm:compensated",
}


def test_cost_of_a_chip() -> None:
    text = (ROOT / "docs" / "measurements" / "chip-cost.md").read_text()
    lines = [re.sub(r" +", " ", line) for line in text.splitlines()]
    width64, width16 = (
        benchmark("cpu_analog")["ratios"],
        benchmark("cpu_analog_jax_width16")["ratios"],
    )
    for row in ("ideal", "wnoise", "pcm", "adc", FULL, *PER_MVM):
        key = PER_MVM.get(row, row)
        slow = spread(width64[f"aihwkit:{key}"], 1)
        assert f"| {row} | {spread(width64[key])} | {slow} |" in lines
        if f"jax:{key}" in width16 and row != "adc+wnoise at each operation":
            assert f"| {row} | {spread(width16[f'jax:{key}'])} | {spread(width16[key])} |" in lines


def test_a_million_samples() -> None:
    table = rows("speed", 6)
    for row, work in {"score_dataset": "score", "predict": "simulate"}.items():
        found = benchmark("cpu_load")["works"][work]
        last = found["points"][-1]
        assert last["samples"] == 1_000_000
        seconds, line, square, memory, _ = table[row]
        assert float(seconds) == pytest.approx(last["seconds"], rel=4e-3)
        assert line == f"{1000 * found['seconds']['slope']:.3f} ms a sample"
        assert square == f"{found['seconds']['r_squared']:.3f}"
        assert memory == f"{last['peak_bytes'] / 1e6:.0f} MB"


def test_scores_beside_published_figures() -> None:
    table = rows("fitted-network", 3)
    found = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "validate" / "validate.csv")
    found = found.set_index(["reference", "score"])[["rho", "rho_low", "rho_high"]]
    for row, score in {
        "curvature, one checkpoint": "curvature",
        "curvature, averaged": "curvature_averaged",
    }.items():
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*found.loc[(reference, score)])
            for reference in ("curvature_rank", "cscore")
        ]
        assert table[row] == cells


def test_the_student() -> None:
    cells = rows("remedies", 3)["AUROC of the student"]
    found = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "student" / "student.csv")
    query = f"profile == '{FULL}' and predictor == 'student' and denominator == 'correct'"
    (one,) = found.query(query)[["auroc", "auroc_low", "auroc_high"]].to_numpy()
    assert cells[0] == "{:.3f} [{:.3f}, {:.3f}]".format(*one)


def read_after_20_s() -> list[Path]:
    """The archived runs whose memories are read 20 s after programming."""
    runs = [path.parent for path in sorted(RESULTS.glob("*/predictors.csv"))]
    of_pcm = [read_json(run / "settings.json")["simulate"]["pcm"] for run in runs]
    return [run for run, pcm in zip(runs, of_pcm, strict=True) if pcm["t_inference"] == 20]


def test_other_times_of_the_fitted_networks() -> None:
    networks = {"CIFAR-10": RESULTS / "cifar10_resnet18_fit"}
    table, predictors = rows("fitted-network", 11), rows("fitted-network", 6)
    times = {"0 s": "_0s", "20 s": "", "60 s": "_60s"}
    for network, folder in networks.items():
        for time, suffix in times.items():
            run = folder.with_name(folder.name + suffix)
            pcm = read_json(run / "settings.json")["simulate"]["pcm"]
            assert f"{pcm['t_inference']:g} s" == time
            deciles = pd.read_csv(run / "deciles.csv").sort_values("decile")
            for fold in ("train", "test"):
                rates = deciles.query(f"fold == '{fold}' and profile == '{FULL}'")["rate_of_all"]
                assert table[f"{network}, {fold}, {time}"] == [f"{100 * one:.1f}" for one in rates]
                assert fold == "test" or rates.is_monotonic_increasing
            of_scores = pd.read_csv(run / "predictors.csv").query(
                f"fold == 'test' and profile == '{FULL}' and denominator == 'correct'"
            )
            found = of_scores.set_index("predictor")
            logits = "logits + gradient norm + curvature"
            assert predictors[time] == [
                form.format(*found.loc[score, [f"{name}{end}" for end in ("", "_low", "_high")]])
                for score, name, form in (
                    ("curvature", "auroc", "{:.3f} [{:.3f}, {:.3f}]"),
                    ("margin", "auroc", "{:.3f} [{:.3f}, {:.3f}]"),
                    ("curvature", "auroc_difference", "{:+.4f} [{:+.4f}, {:+.4f}]"),
                    (logits, "added_difference", "{:+.4f} [{:+.4f}, {:+.4f}]"),
                    (
                        f"{logits} + flip probability",
                        "added_difference",
                        "{:.3f} [{:.3f}, {:.3f}]",
                    ),
                )
            ]


def test_what_scores_add_to_others() -> None:
    text = " ".join((ROOT / "docs" / "measurements" / "narrow-networks.md").read_text().split())
    tables = [pd.read_csv(run / "predictors.csv") for run in read_after_20_s()]
    table = pd.concat(tables).query("fold == 'test' and denominator == 'correct'")
    added = table[table["added_difference"].notna()].groupby("predictor")
    curvature = added.get_group("logits + curvature").sort_values("added_difference")
    most, exception = curvature["added_difference"].iloc[-2:]
    pairs = len(curvature)
    assert f"an estimated {most:.4f} at most in {pairs - 1} of {pairs} pairs" in text
    assert f"The one exception is `wnoise_mvm` on this network: +{exception:.3f} [" in text
    shown = (curvature["added_difference_low"].iloc[:-1] > 0).sum()
    assert f"The gain is shown in {shown} of them" in text
    physical = added.get_group("logits + gradient norm + curvature")
    others = physical.sort_values("added_difference")[:-1]
    gains = (others["added_difference_low"] > 0).sum()
    losses = (others["added_difference_high"] < 0).sum()
    said = f"at most {others['added_difference'].max():.4f}, shown in {gains} ("
    assert said in text
    assert f"in {losses} it takes as little away" in text
    for page in ("results/index.md", "explanation/worth.md"):
        said = " ".join((ROOT / "docs" / page).read_text().split())
        losses = others[others["added_difference_high"] < 0]["added_difference"]
        taken = f"in {len(losses)} it is shown to take away, {-losses.min():.4f} at most"
        assert re.search(rf"shown in {gains}(; {taken})?\. ", said)
        assert f"n {pairs - 1} of {pairs} pairs of network and profile" in said
    for page in ("README.md", "BUILD_NOTES.md"):
        said = " ".join((ROOT / page).read_text().split())
        assert f"at most in {pairs - 1} of {pairs} pairs of network and profile" in said
    flip = added.get_group("logits + gradient norm + curvature + flip probability")
    drifts = flip["profile"].str.contains("pcm") & ~flip["profile"].str.contains("gdc")
    drifting, rest = flip[drifts], flip[~drifts]
    lowest, highest = drifting["added_difference"].min(), drifting["added_difference"].max()
    assert (drifting["added_difference_low"] > 0).all()
    assert f"+{lowest:.3f} to +{highest:.3f} in the {len(drifting)} pairs" in text
    gains = (rest["added_difference_low"] > 0).sum()
    assert f"In the other {len(rest)} it adds {rest['added_difference'].min():.3f} to " in text
    assert f"shown in {gains};" in text


def test_headlines_of_the_build_notes() -> None:
    notes = " ".join((ROOT / "BUILD_NOTES.md").read_text().split())
    deciles = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "deciles.csv").query(
        "fold == 'train'"
    )
    for profile in (FULL, f"{FULL}_gdc"):
        of_profile = deciles[deciles["profile"] == profile].set_index("decile")
        names = ["rate_of_all", "rate_of_all_low", "rate_of_all_high"]
        first, last = 100 * of_profile.loc[1, names], 100 * of_profile.loc[10, names]
        said = "from {:.1f} [{:.1f}, {:.1f}] to {:.1f} % [{:.1f}, {:.1f}]".format(*first, *last)
        assert said in notes
    engine = benchmark("cpu_width16")["ratios"]["over_published"]
    assert f"{spread(engine)} times that of the published" in notes
    chips = benchmark("cpu_analog")["ratios"]
    assert f"{spread(chips['pcm'])} for pcm, {spread(chips[FULL])} for {FULL}" in notes
    predictors = pd.read_csv(SMALL / "predictors.csv").query(
        f"fold == 'test' and profile == '{FULL}' and denominator == 'correct'"
    )
    found = predictors.set_index("predictor")[["auroc", "auroc_low", "auroc_high"]]
    for name in ("curvature", "margin", "flip_probability"):
        said = "{} {:.3f} [{:.3f}, {:.3f}]".format(name.replace("_", " "), *found.loc[name])
        assert said in notes


def test_how_many_pairs_show_what_is_ahead_of_the_margin() -> None:
    pages = ("measurements/narrow-networks", "explanation/failures")
    narrow, failures = (
        " ".join((ROOT / "docs" / f"{page}.md").read_text().split()) for page in pages
    )
    tables = [pd.read_csv(run / "predictors.csv") for run in read_after_20_s()]
    table = pd.concat(tables).query("fold == 'test' and denominator == 'correct'")
    table = table[table["auroc"].notna()]
    counts = {}
    for score in ("curvature", "least_confidence", "failure on another chip"):
        of_score = table[table["predictor"] == score]
        more, less = of_score["auroc_difference_low"] > 0, of_score["auroc_difference_high"] < 0
        counts[score] = len(of_score), more.sum(), less.sum()
    pairs, ahead, _ = counts["curvature"]
    assert f"Curvature is shown ahead in {ahead} of {pairs} pairs" in narrow
    pairs, more, less = counts["failure on another chip"]
    assert f"shown less than the margin in {less} of {pairs} pairs, more in {more} (" in narrow
    pairs, ahead, behind = counts["least_confidence"]
    assert f"of the {pairs} archived pairs of network and profile" in failures
    assert f"is shown ahead of it in {ahead} and behind in {behind}." in failures


def test_fine_tuning_beside_plain_training() -> None:
    results, readme = (
        " ".join((ROOT / page).read_text().split())
        for page in ("docs/results/index.md", "README.md")
    )
    table = pd.read_csv(RESULTS / "digits" / "finetune" / "finetune.csv")
    rates = table.query("images == 'D10' and measure == 'failure_rate'").set_index("variant")
    noisy, plain, original = (
        100 * rates.loc[one, ["value", "value_low", "value_high"]].astype(float)
        for one in ("noise_aware", "plain", "original")
    )
    said = ["{:.0f} % [{:.0f}, {:.0f}]".format(*one) for one in (noisy, plain, original)]
    assert [one for one in said if one not in results] == []
    more = [f"difference_to_noise_aware{end}" for end in ("", "_low", "_high")]
    difference = 100 * rates.loc["plain", more].astype(float)
    assert difference.iloc[1] < 0  # so that nothing is shown
    assert "({:.1f} points more than with noise [{:.1f}, {:.1f}])".format(*difference) in results
    assert f"{said[2]} fail, {said[0]} after 40 steps, {said[1]} after plain ones (" in readme


def test_fine_tuning_of_cifar100() -> None:
    table = rows("remedies", 5)
    found = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "finetune" / "finetune.csv")
    found = found.query("images == 'all'").set_index(["variant", "measure"])
    names = {
        "not": "original",
        "plain": "plain",
        "noise-aware, all alike": "noise_aware",
        "weight by curvature": "curvature",
        "weight by flip probability": "flip_probability",
        "weight by low margin": "margin",
        "weight on a random decile": "random",
    }
    for name, variant in names.items():
        digital, chips, failures = (
            100 * found.loc[(variant, measure)].drop("images").astype(float)
            for measure in ("digital_accuracy", "accuracy", "failure_rate")
        )
        ends = [f"difference_to_noise_aware{end}" for end in ("", "_low", "_high")]
        less = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*failures[ends])
        cells = [
            *(f"{digital['value']:.1f}", f"{chips['value']:.1f}"),
            "{:.1f} [{:.1f}, {:.1f}]".format(*failures[["value", "value_low", "value_high"]]),
            "" if variant == "noise_aware" else less,
        ]
        assert table[name] == cells
    results = " ".join((ROOT / "docs" / "results" / "index.md").read_text().split())
    noisy, plain = (table[name] for name in ("noise-aware, all alike", "plain"))
    assert "24.1 % [19.9, 28.4] of the images that it had right" in results
    assert noisy[2] == "24.1 [19.9, 28.4]"
    assert plain[3] == "+0.9 [-0.3, +2.1]"


def test_what_the_flip_probability_adds_in_the_paper_s_regime() -> None:
    results = " ".join((ROOT / "docs" / "results" / "index.md").read_text().split())
    table = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "predictors.csv").query(
        "fold == 'test' and predictor == 'logits + gradient norm + curvature + flip probability'"
    )
    names = ["added_difference", "added_difference_low", "added_difference_high"]
    found = table.set_index("profile")[names]
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*found.loc[one]) for one in (FULL, f"{FULL}_gdc")]
    assert f"{cells[0]}, or {cells[1]} where drift is compensated" in results


def test_curvature_ranks_all_new_images_the_wrong_way_round() -> None:
    results = " ".join((ROOT / "docs" / "results" / "index.md").read_text().split())
    table = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "predictors.csv").query(
        "fold == 'test' and predictor == 'curvature' and denominator == 'all'"
    )
    found = table.set_index("profile")[["auroc", "auroc_low", "auroc_high"]]
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*found.loc[one]) for one in (FULL, f"{FULL}_gdc")]
    assert (found.loc[[FULL, f"{FULL}_gdc"], "auroc_high"] < 0.5).all()
    assert f"the wrong way round: AUROC {cells[0]}, compensated {cells[1]}" in results


def test_single_steps_of_the_deciles() -> None:
    table = rows("fitted-network", 4)
    deciles = pd.read_csv(RESULTS / "cifar100_resnet18_fit" / "deciles.csv").query(
        "fold == 'train'"
    )
    for profile, of_profile in deciles.groupby("profile"):
        if profile == "ideal":
            continue
        steps = 100 * of_profile.sort_values("decile")["rate_of_all"].diff().iloc[1:]
        (row,) = (cells for first, cells in table.items() if first.split(" (")[0] == profile)
        assert int(row[0]) == (steps > 0).sum()
        for number, said in re.findall(r"D(\d+) to D\d+ (\S+) \[", row[2]):
            assert said == f"{steps.iloc[int(number) - 1]:+.1f}"


def test_intervals_of_published_networks() -> None:
    table = rows("published-networks", 5)
    runs = ("akamaster_resnet20", "akamaster_resnet32", "akamaster_resnet56", "crosssim_resnet20")
    for name, profile in (("without compensation", FULL), ("compensated", f"{FULL}_gdc")):
        for place, run in enumerate(runs):
            found = pd.read_csv(RESULTS / f"cifar10_{run}" / "predictors.csv").query(
                f"fold == 'test' and denominator == 'correct' and profile == '{profile}'"
            )
            of_score = found[found["auroc"].notna()].set_index("predictor")
            for score in ("curvature", "gradient_norm", "margin", "flip_probability"):
                one = of_score.loc[score, ["auroc", "auroc_low", "auroc_high"]]
                cell = table[f"AUROC of {score.replace('_', ' ')}, {name}"][place]
                assert cell == "{:.3f} [{:.3f}, {:.3f}]".format(*one)
            rates = pd.read_csv(RESULTS / f"cifar10_{run}" / "table_one.csv").query(
                f"fold == 'test' and profile == '{profile}'"
            )
            for of in ("all", "correct"):
                one, ten = (
                    rates[[f"{decile}_of_{of}{end}" for end in ("", "_low", "_high")]].iloc[0]
                    for decile in ("d1", "d10")
                )
                cell = table[f"D1, D10 of {of}, {name}"][place]
                assert cell == f"{one.iloc[0]:.2f}, " + "{:.1f} % [{:.1f}, {:.1f}]".format(*ten)


def test_what_remedies_leave_by_decile() -> None:
    said = " ".join((ROOT / "docs" / "measurements" / "remedies.md").read_text().split())

    def at_a_day(run: str, first: str) -> pd.DataFrame:
        table = pd.read_csv(RESULTS / run / "remedies" / "deciles.csv")
        chosen = (table["first"] == first) & (table["time_s"] == 86400)
        return 100 * table[chosen].set_index("decile").filter(like="rate_of_all")

    def cell(row: pd.Series) -> str:
        return "{:.1f} % [{:.1f}, {:.1f}]".format(*row.iloc[:3])

    left, plain = (at_a_day("digits", one) for one in ("compensated, recalibrated", "chip"))
    assert f"{cell(left.loc[10])} of the tenth of highest curvature" in said
    nine, eight = (left.loc[one, "rate_of_all"] for one in (9, 8))
    assert f"{nine:.1f} % of D9 and {eight:.1f} % of D8" in said
    assert (left.loc[:7, "rate_of_all"] == 0).all()
    assert f"{plain['rate_of_all'].min():.0f} to {plain['rate_of_all'].max():.0f} % fail" in said
    left, plain = (
        at_a_day("cifar100_resnet18_fit", one) for one in ("compensated, recalibrated", "chip")
    )
    assert left["rate_of_all"].idxmax() == 4
    assert f"{cell(left.loc[4])} of its images, of {plain.loc[4, 'rate_of_all']:.1f} %" in said
    assert "the rates seen are lower in D1 to D9" in said
    assert (left.loc[:9, "rate_of_all"] < plain.loc[:9, "rate_of_all"]).all()
    low, high = (plain.loc[:4, "rate_of_all"].agg(one) for one in ("min", "max"))
    assert f"Without them {low:.0f} to {high:.0f} % fail in each of D1 to D4" in said
