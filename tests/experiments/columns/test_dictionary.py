"""The dictionary of columns beside the tables that the project makes and keeps."""

import ast
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.chips.product_table import product_table
from bridge.report.figures import paper, scores
from bridge.report.tables import digital, outcomes, predictors
from experiments.benchmarks import curvature_figures
from experiments.cli import commands
from experiments.columns import dictionary
from experiments.columns.column import PERCENT, Column, Table, count, fraction, percent, text
from experiments.comparison.results import compare_results, pairing
from experiments.comparison.runs import Run
from experiments.studies import (
    atlas_figures,
    atlas_tables,
    finetune_tables,
    rank_correlation,
    remedies_tables,
)
from experiments.studies.compare_noise import Match, matched_noise
from jaxcurv import dataset
from jaxcurv.estimators import SCORE_COLUMNS, named_estimators
from tests.described import described, misfit, tables_in

RESULTS = Path(__file__).parents[3] / "experiments" / "results"

Seen = dict[tuple[str, str], list[pd.Series]]


def of_run_without_chips(run: Path, place: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """What `analyse_scores` and `report_scores` make of the run's scores."""
    samples = outcomes.digital_outcomes(pd.read_parquet(run / "scores.parquet"))
    samples = samples.assign(path="0/a.png")
    yield "accuracy.csv", digital.accuracy(samples)
    yield "score_deciles.csv", digital.score_deciles(samples)
    passes = {"loss": 1.0, "gradient_norm": 2.4, "curvature": 25.0}
    measured = pd.DataFrame({"predictor": passes.keys(), "forward_passes": passes.values()})
    yield "score_costs.csv", digital.score_costs(samples, measured)
    yield "per_class.csv", digital.per_class(samples)
    yield "highest.csv", digital.highest(samples)
    drawn = scores.score_histogram(samples, place / "score_histogram.png")
    yield "figures/score_histogram.csv", pd.read_csv(drawn.with_suffix(".csv"))
    rows = paper.gallery_rows(samples, count=2)
    images = np.zeros((len(rows), 4, 4, 1), np.uint8)
    names = [str(number) for number in range(10)]
    drawn = paper.gallery(rows, images, names, place / "gallery_digital.png")
    yield "figures/gallery_digital.csv", pd.read_csv(drawn.with_suffix(".csv"))


def of_studies(place: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """What studies make, of which the archive has none or an earlier form."""
    failed = np.array([[True, False], [True, True]])
    match = Match(2.0, 0.5, 0.5, True, 3.0)
    yield "compare-noise/matched.csv", pd.DataFrame([matched_noise("pcm", match, failed, ~failed)])
    rng = np.random.default_rng(0)
    fold = np.repeat(["train", "test"], 40)
    sample = pd.DataFrame({"fold": fold, "index": np.tile(np.arange(40), 2), "path": "0/a.png"})
    sample = sample.assign(label=1, prediction=1, correct=True, loss=0.5, gradient_norm=1.0)
    sample = sample.assign(curvature=rng.random(80), margin=1.0, cscore=0.5)
    wrong = {"pcm": rng.random((3, 80)) < 0.5}
    flips = {"pcm": pd.Series(rng.random(80))}
    table, texts = atlas_tables.atlas_table(sample, wrong, flips, {"pcm": "pcm"})
    yield "atlas/atlas.parquet", table
    yield "atlas/columns.csv", pd.DataFrame({"column": texts.keys(), "description": texts.values()})
    summary = atlas_tables.summarise(table, wrong, 0.95)
    yield "atlas/summary.csv", summary
    drawn = atlas_figures.draw(table, summary, {"pcm": "pcm"}, place / "atlas.png", title="t")
    yield "atlas/atlas.csv", pd.read_csv(drawn.with_suffix(".csv"))
    most = atlas_tables.most_failing(table, ["pcm"], 2)
    images = np.zeros((len(most), 4, 4, 1), np.uint8)
    drawn = atlas_figures.gallery(most, images, ["a", "b"], {"pcm": "pcm"}, place / "always.png")
    yield "atlas/always.csv", pd.read_csv(drawn.with_suffix(".csv"))


def of_remedies() -> Iterator[tuple[str, pd.DataFrame]]:
    """What can be done about failures: a remedy of each kind, and fine-tuning."""
    rng = np.random.default_rng(0)
    outcomes = [{fold: rng.random((2, 40)) < 0.5 for fold in ("test", "validation")} for _ in "ab"]
    digital = {fold: some[0] for fold, some in outcomes[1].items()}
    margins = remedies_tables.Score({fold: rng.random((2, 40)) for fold in digital})
    table = remedies_tables.remedies_table(
        [
            remedies_tables.Remedy("chip"),
            remedies_tables.Remedy("chip", "2 chips", rule="all"),
            remedies_tables.Remedy("chip", "2 chips", "margin", "share", 0.1),
            remedies_tables.Remedy("chip", "2 chips", "margin", "risk", 0.2),
        ],
        {"chip": remedies_tables.Outcomes(outcomes[0], remedies_tables.Passes(1.0, 0.0))},
        {
            ("chip", "2 chips"): remedies_tables.Outcomes(
                outcomes[1], remedies_tables.Passes(1.0, 0.0)
            )
        },
        {("chip", "margin"): margins},
        digital,
        plain="chip",
        free="chip",
        confidence=0.95,
    )
    table.insert(0, "time_s", 20.0)
    table = table.assign(energy=remedies_tables.energies(table, bridge.routing.Costs()))
    yield "remedies/remedies.parquet", table
    best = remedies_tables.frontiers(table, ["time_s"], [bridge.routing.Costs()])
    yield "remedies/frontier.csv", best
    right = rng.random((3, 40)) < 0.8
    vulnerable = np.arange(40) < 4
    rows = pd.DataFrame(
        [
            finetune_tables.row_of(
                {"variant": variant, "seed": seed, "chip": chip},
                *(right[chip], right[chip + 1]),
                original=right[2],
                vulnerable=vulnerable,
            )
            for variant, seed in (
                ("original", None),
                ("plain", 0),
                ("noise_aware", 0),
                ("random", 0),
            )
            for chip in (0, 1)
        ]
    ).astype({"seed": "Int64"})
    sample = {"fold": ["train", "test"], "index": [0, 1], "student": [0.5, 0.25]}
    yield "student/student.parquet", pd.DataFrame(sample)
    yield "finetune/finetune.parquet", rows
    yield "finetune/finetune.csv", finetune_tables.summarise(rows, 0.95)
    scored = pd.DataFrame({"fold": ["train", "test"], "index": [0, 0], "student": [0.0, 1.0]})
    yield "student/student.parquet", scored


def scored_in(run: Path) -> pd.DataFrame:
    """What `score_dataset` made of a fold."""
    (path,) = (run / "scores").glob("*/test.parquet")
    return pd.read_parquet(path)


def named_only(run: Path) -> Iterator[tuple[str, list[str]]]:
    """A table's columns whose names are known without the work that fills them."""
    estimators = {
        **rank_correlation.ESTIMATORS,
        **rank_correlation.ANOTHER_KEY,
        **rank_correlation.COARSE,
    }
    yield "rank_correlation", [*estimators]
    by_products = [f"curvature_{end}" for end in dataset._SUFFIXES]
    of_any = ["path", *SCORE_COLUMNS.values(), *by_products]
    yield "scores", of_any
    yield "own_scores", of_any
    own = [name for name in scored_in(run) if name != "curvature"]
    errors = [f"{name}_standard_error" for name in estimators]
    yield "rank_correlation_scores", [*own, "path", *estimators, *errors, *by_products]
    row = {"layer": "a", "operator": "b", "weights": "", "macs": 1, "tiles": 1, "reason": ""}
    yield "coverage", [*product_table([row])]  # type: ignore[list-item]
    yield "benchmark_curvature", [*curvature_figures._rows("probes", 1, {"a": [1.0]}, 1)[0]]
    load = json.loads((RESULTS / "benchmark" / "cpu_load.json").read_text())
    (point, *_) = load["works"]["score"]["points"]
    yield "benchmark_load", ["work", *point]
    yield "rescore_scores", ["path", "TensorFloat-32"]
    names = predictors.score_columns(pd.DataFrame(columns=[*named_estimators(), "curvature"]))
    yield "validate_scores", names
    tables = {table.name: table for table in dictionary.TABLES}
    yield "student", [*tables["predictors"].columns]


def yours() -> Iterator[tuple[str, pd.DataFrame]]:
    """What `analyse --scores` leaves."""
    rng = np.random.default_rng(0)
    score, analog = rng.random(40), rng.random((2, 40)) < 0.5
    right = np.ones(40, bool)
    yield "own_deciles", bridge.failure_table(score, right, analog)
    yield "own_predictors", bridge.compare_predictors({"one": score}, right, analog, resamples=5)


@pytest.fixture(scope="module")
def seen(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Every column that the project's tables have, with its values; each is described."""
    place = tmp_path_factory.mktemp("columns")
    found: Seen = defaultdict(list)

    def see(path: str | Path, frame: pd.DataFrame) -> None:
        table, keys = described(path, frame)
        for key, name in zip(keys, frame, strict=True):
            found[table.name, key].append(frame[name])

    path: str | Path
    for path, frame in tables_in(finished_run):
        see(path, frame)
    for path, frame in [
        *of_run_without_chips(finished_run, place),
        *of_studies(place),
        *of_remedies(),
    ]:
        see(path, frame)
    arguments = ["table-one", str(finished_run), "--out", str(place)]
    assert commands.run(arguments) == 0
    see("table_one.csv", pd.read_csv(place / "table_one.csv"))
    named = {table.name: table for table in dictionary.TABLES}
    for name, frame in [*yours(), ("own_scores", scored_in(finished_run))]:
        for column in frame:
            key = named[name].key(column)
            assert key is not None, (name, column)
            assert not misfit(named[name].columns[key], frame[column]), (name, column)
            found[name, key].append(frame[column])
    for name, columns in named_only(finished_run):
        for column in columns:
            key = named[name].key(column)
            assert key is not None, (name, column)
            found[name, key] += []
    run = Run("b", finished_run, {"data.name": "digits"}, {})
    first, rows = replace(run, name="a"), run.joined("test")
    common = pairing(run, first, rows, rows)
    moved = compare_results(run, first, rows, rows, common, fold="test")
    for column in moved:
        assert not misfit(named["comparison"].columns[str(column)], moved[column]), column
        found["comparison", str(column)].append(moved[column])
    return found


def test_every_column_of_the_archive_is_described(seen: Seen) -> None:
    archived = list(tables_in(RESULTS))
    assert len(archived) > 100
    for path, frame in archived:
        table, keys = described(path, frame)
        for key, name in zip(keys, frame, strict=True):
            seen[table.name, key].append(frame[name])
    lacking = [
        (table.name, column)
        for table in dictionary.TABLES
        for column in table.columns
        if (table.name, column) not in seen
    ]
    assert lacking == [], "described, but in no table"
    for table in dictionary.TABLES:
        for name, column in table.columns.items():
            values = [one for one in seen.get((table.name, name), []) if len(one)]
            if column.unit == PERCENT and values:
                largest = max(one.max() for one in values)
                # A fraction that is called a percentage would be at most 1.
                assert largest > 1 or math.isnan(largest), (table.name, name)


def defined_in(nodes: list[ast.stmt], name: str) -> list[ast.stmt] | None:
    """What the function or class of a name holds; None where there is none."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node.body
    return None


def test_where_a_table_is_from_exists() -> None:
    root = RESULTS.parents[1]
    for made_by in {table.made_by for table in dictionary.TABLES}:
        parts = made_by.split(".")
        files = [root.joinpath(*parts[:end]).with_suffix(".py") for end in range(1, len(parts))]
        (depth, file), *others = [(n, one) for n, one in enumerate(files, 1) if one.exists()]
        assert not others
        body: list[ast.stmt] | None = ast.parse(file.read_text()).body
        for name in parts[depth:]:
            assert body is not None, made_by
            body = defined_in(body, name)
        assert body is not None, made_by


def test_words() -> None:
    names = [table.name for table in dictionary.TABLES]
    assert len(set(names)) == len(names)
    for table in dictionary.TABLES:
        assert table.rows.endswith(".")
        for name, column in table.columns.items():
            assert column.definition.endswith("."), (table.name, name)
            assert not column.definition.startswith("Of ")


def test_a_file_is_told_by_the_end_of_its_path() -> None:
    def names(path: str) -> list[str]:
        return [table.name for table in dictionary.tables_of(path)]

    assert names("runs/digits/figures/figure_one.csv") == ["figure_one"]
    assert names("runs/digits/overlap.csv") == ["overlap"]
    assert names("runs/digits/compare-noise/overlap.csv") == ["noise_overlap"]
    assert names("runs/digits/rescore/scores.parquet") == ["rescore_scores"]
    assert names("runs/digits/scores.parquet") == ["scores"]
    assert names("digits/chips/adc-0a/12.parquet") == ["predictions"]
    assert names("digits/chips/adc-0a/12.adc.parquet") == ["adc_ranges"]
    assert names("predictors.csv") == ["predictors", "own_predictors"]
    assert names("runs/digits/other.csv") == []


def test_names_with_a_place_for_others() -> None:
    table = Table(
        "t",
        (),
        "A row.",
        "m.f",
        {"{cell}/{chip}": count("A."), "failures_{setting}": count("B."), "h = {step}": text("C.")},
    )
    assert table.key("0a1b2c3d/12") == "{cell}/{chip}"
    assert table.key("failures_adc+pcm@3600") == "failures_{setting}"
    assert table.key("h = 1e-4") == "h = {step}"
    assert table.key("0a1b2c3d/x") is None
    assert table.key("failure_adc") is None


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        (fraction("A."), [0.0, 1.0, np.nan], ""),
        (fraction("A."), [0.5, 1.5], "lies in 0.5 to 1.5, not in 0 to 1"),
        (percent("A."), [-0.1, 5.0], "lies in -0.1 to 5, not in 0 to 100"),
        (count("A.", 1), [0, 3], "lies in 0 to 3, not in 1 or more"),
        (count("A."), ["a"], "is no number"),
        (text("A.", "train", "test"), ["train", "tost"], "has ['tost']"),
        (text("A."), [1.5], "is a number"),
        (Column("true or false", "A."), [2], "neither true nor false"),
    ],
)
def test_values_that_do_not_fit_are_found(column: Column, values: list, problem: str) -> None:
    assert misfit(column, pd.Series(values)) == problem


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert commands.run(["columns", *words]) == 0
        return " ".join(capsys.readouterr().out.split())

    everything = said()
    assert all(table.name in everything for table in dictionary.TABLES)
    assert "%, 0 to 100" in said("runs/digits/figures/figure_one.csv")
    assert "fraction, 0 to 1" in said("deciles")
    found = said("added_difference")
    assert "without its last score" in found
    assert "predictors" in found
    assert "{" not in said("atlas")
    assert commands.run(["columns", "decles"]) == 2
    assert "near: deciles" in capsys.readouterr().err


def test_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["columns", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert page == dictionary.markdown()
    lines = page.splitlines()
    headings = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert headings == [table.name for table in dictionary.TABLES]
    rows = sum(len(table.columns) for table in dictionary.TABLES)
    assert sum(line.startswith("| `") for line in lines) == rows
    assert "{" not in page
