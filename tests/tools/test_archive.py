"""Finished runs and fits in the archive, and the page that is made from it."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import run as run_python

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bridge.chips.profiles import FULL_COMPENSATED, FULL_PROFILE
from bridge.report.tables.outcomes import select
from bridge.report.tables.predictors import NESTED
from experiments.paper import fit
from experiments.paper.reproduce import ROWS
from experiments.paper.search import SHIPPED, changes, descend
from experiments.runs.files import read_parquet, sha256, write_csv, write_parquet
from experiments.studies.atlas_tables import atlas_table, summarise
from experiments.system.errors import WorkFailed
from jaxcurv.storage.checksums import read_json, write_json
from jaxcurv.storage.lock import lock
from tools import results_page
from tools.__main__ import main as maintain
from tools.archive import archive, archive_fit, archive_remedies, read_samples
from tools.regenerate import regenerate, regenerate_run


@pytest.fixture(scope="module")
def archived(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run's archive, its tables and figures made; not to be changed."""
    place = tmp_path_factory.mktemp("results") / "digits"
    archive(finished_run, place)
    regenerate_run(place)
    return place


@pytest.mark.usefixtures("as_preset")
def test_a_chip_is_fitted_and_all_is_archived_and_paged(
    finished_run: Path, archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = list(changes(SHIPPED))[::4]
    monkeypatch.setattr(fit.search, "descend", partial(descend, neighbours=lambda chip: iter(few)))
    options = fit.FitPaper(
        fit=("digits",),
        predict=(),
        runs=finished_run.parent,
        share=0.4,
        search_chips=1,
        chips=2,
        out=tmp_path / "fit_paper_digits",
    )
    fit.run(options)
    search = pd.read_csv(options.out / "search.csv")
    table = pd.read_csv(options.out / "table.csv").iloc[0]
    assert search.loc[search["step"] == 0, "change"].eq("as shipped").all()
    best = search.loc[search["misfit"].idxmin()]
    assert (table["fold"], table["denominator"]) == (best["fold"], best["denominator"])

    # Once more, from the samples alone.
    scores = pd.read_parquet(finished_run / "scores.parquet")
    fitted = pd.read_parquet(options.out / "fitted" / "digits.parquet")
    wanted = {"train and test": ["train", "test"]}.get(table["fold"], [table["fold"]])
    both = fitted[fitted["fold"].isin(wanted)].merge(scores, on=["fold", "index"])
    both = both.sort_values(["curvature", "fold", "index"])
    failed = both[["0", "1"]].rsub(1).mul(both["correct"], axis=0).mean(axis=1)
    for end, part in (("d1", slice(None, len(both) // 10)), ("d10", slice(-len(both) // 10, None))):
        of = {"all": len(failed[part]), "correct": both["correct"][part].sum()}
        rate = 100 * failed[part].sum() / of[table["denominator"]]
        assert table[f"fitted_{end}"] == pytest.approx(rate)

    # Nothing is simulated twice, and the result is the same.
    first = (options.out / "table.csv").read_bytes()
    monkeypatch.setattr(fit, "_simulate", None)
    fit.run(options)
    assert (options.out / "table.csv").read_bytes() == first

    results, readme = tmp_path / "results", tmp_path / "README.md"
    shutil.copytree(archived, results / "digits")
    archive_fit(options.out, results / "fit_paper_digits")
    readme.write_text("no place")
    with pytest.raises(ValueError, match="lacks the lines"):
        regenerate(results, readme)
    with pytest.raises(FileNotFoundError, match="give --into and --results"):
        regenerate(results, tmp_path / "none.md")
    readme.write_text(f"before\n{results_page.BEGIN}\nold\n{results_page.END}\nafter\n")
    regenerate(results, readme)
    for name in ("deciles", "table_one"):
        made, wanted = (
            pd.read_csv(folder / f"{name}.csv") for folder in (results / "digits", finished_run)
        )
        ours = [column for column in wanted if "paper" not in column]
        pd.testing.assert_frame_equal(made[ours], wanted[ours])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert f"{table['fitted_d1']:.2f}" in text
    assert f"it counts {table['fold']}, of " in text
    # The default chip under that reading stands there already where its fold is test.
    assert "| default chip, of all |" in text
    assert (f"| default chip, {table['fold']}, of " in text) == (table["fold"] != "test")
    assert "Not run: ResNet-18, CIFAR-10;" in text
    made = {path: sha256(path) for path in sorted(results.rglob("*")) if path.is_file()}
    regenerate(results, readme)
    assert {path: sha256(path) for path in made} == made
    assert sum(path.stat().st_size for path in made) < 5e6

    monkeypatch.setattr("tools.regenerate.regenerate_run", lambda run: None)  # the same again
    # Chips tried on another network are not tabled beside this one's scores.
    kept = read_json(results / "fit_paper_digits" / "fit.json")
    kept["runs"]["digits"]["weights"] = "0" * 64
    write_json(results / "fit_paper_digits" / "fit.json", kept)
    with pytest.raises(WorkFailed, match="run fit-paper again"):
        regenerate(results, readme)
    text = readme.read_text()  # of the rest
    assert "The fitted chip comes nearest" not in text
    assert "Not run: ResNet-18, CIFAR-10;" in text


def test_a_network_of_others_has_a_table_of_its_own(archived: Path, tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    place = results / "cifar10_akamaster_resnet20"
    shutil.copytree(archived, place)
    for path in (place / "stages").glob("*.json"):
        record = read_json(path)
        if "model" in record["settings"]:
            factory = "tools.published_networks:akamaster_resnet20"
            record["settings"]["model"] = record["settings"]["model"] | {"factory": factory}
            write_json(path, record)
    regenerate_run(place)
    readme.write_text(f"{results_page.BEGIN}\n{results_page.END}\n")
    page = results_page.write(results, readme, []).read_text()
    shown = {"fold": "test", "profile": FULL_PROFILE}
    row = select(pd.read_csv(place / "table_one.csv"), **shown)
    _, _, after = page.partition("## Networks that we did not train\n\n")
    network = after.splitlines()[2]
    assert "| ResNet-20, github.com/akamaster/pytorch_resnet_cifar10 | 91.73 % |" in network
    assert f"| {row['digital_accuracy'].iloc[0]:.2f} % |" in network
    of_margin = {"predictor": "margin", "denominator": "correct"}
    predictors = select(pd.read_csv(place / "predictors.csv"), **shown, **of_margin)
    assert f"| {predictors['auroc'].iloc[0]:.2f} [" in network
    assert f"| {FULL_PROFILE} | {row['analog_accuracy'].iloc[0]:.2f} % |" in network
    compensated = after.splitlines()[3]
    assert f"| {FULL_COMPENSATED} |" in compensated
    assert "ResNet-18" not in page.partition("Not run")[0]
    assert "--model.factory tools.published_networks:akamaster_resnet20" in page
    _, _, after = page.partition("## Which score predicts failure\n\n")
    table = pd.read_csv(place / "predictors.csv").query("denominator == 'correct'")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    measured = table[table["reason"].isna()]
    assert [line.split(" | ")[1] for line in lines] == measured["profile"].unique().tolist()
    full = next(line for line in lines if f"| {FULL_PROFILE} |" in line)
    assert f"| {predictors['auroc'].iloc[0]:.2f} [" in full
    added = table[table["profile"] == FULL_PROFILE].set_index("predictor")["added_difference"]
    for name in NESTED:
        assert (f"| {added[name]:+.3f} [" if name in added else "| - |") in full


def test_a_row_that_cannot_be_kept_stops_no_other(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    unfinished, finished, *_ = ROWS["small"]
    (runs / unfinished).mkdir(parents=True)
    shutil.copytree(finished_run, runs / finished)
    line = ["archive", "--runs", str(runs), "--results", str(results)]
    assert maintain(line) == 1
    assert f"no scores.parquet in {runs / unfinished}" in capsys.readouterr().err
    assert [path.parent.name for path in results.glob("*/predictions.parquet")] == [finished]
    shutil.rmtree(runs / unfinished)
    assert maintain(line) == 0
    kept = pd.read_parquet(results / finished / "scores.parquet")
    scores = pd.read_parquet(finished_run / "scores.parquet")
    assert kept["curvature"].equals(scores["curvature"])
    assert kept.query("fold != 'test'")["margin"].isna().all()
    whole = read_samples(results / finished)[0].query("fold == 'test'")
    wanted = scores.query("fold == 'test'")
    for name in ("margin", "loss_label_free", "curvature_label_free"):
        assert whole[name].equals(wanted[name]), name
    assert maintain(["archive", "--runs", str(tmp_path / "none")]) == 2
    (runs / finished).rename(runs / "cifar10_resnet18_fit_seed1")  # another training of a preset
    assert maintain([*line, "--rows", "fit"]) == 0
    assert (results / "cifar10_resnet18_fit_seed1" / "predictions.parquet").exists()


def test_half_an_archive_counts_as_none(
    finished_run: Path, archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(f"{results_page.BEGIN}\n{results_page.END}\n")
    for name in ("one", "other"):
        shutil.copytree(archived, results / name)
    monkeypatch.setattr("tools.regenerate.regenerate_run", lambda run: None)  # the same again
    regenerate(results, readme)
    assert "| one |" in (results / "README.md").read_text().split("comes from")[1]

    def full(*_: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tools.archive.copy", full)
    with pytest.raises(OSError, match="No space"):
        archive(finished_run, results / "one")
    regenerate(results, readme)  # the page of the rest
    provenance = (results / "README.md").read_text().split("comes from")[1]
    assert "| other |" in provenance
    assert "| one |" not in provenance
    with pytest.raises(OSError, match="No space"):
        archive(finished_run, results / "other")
    with pytest.raises(FileNotFoundError, match="no archived run"):
        regenerate(results, readme)


def test_remedies_are_kept_with_the_weights_that_they_were_tried_on(
    finished_run: Path, tmp_path: Path
) -> None:
    run, place = tmp_path / "run", tmp_path / "results" / "digits"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    archive(run, place)
    assert not (place / "weights.safetensors").exists()
    (run / "remedies/pieces").mkdir(parents=True)
    for name in ("frontier.csv", "settings.json", "flags.json", "pieces/a.parquet"):
        (run / "remedies" / name).touch()
    Image.new("RGB", (4, 4)).save(run / "remedies/remedies.png")
    archive(run, place)
    assert (place / "weights.safetensors").exists()
    kept = {path.name for path in (place / "remedies").iterdir()}
    assert kept == {"frontier.csv", "remedies.png", "settings.json"}


def remedies_of(run: Path) -> pd.DataFrame:
    """A frontier of two rows, in the run's folder."""
    columns = ["first", "second", "score", "rule", "at", "energy", "validation_energy"]
    rows = [["chip", "", "", "none", np.nan, 0.1, 0.1], ["digital", "", "", "none", np.nan, 1, 1]]
    best = pd.DataFrame(rows, columns=columns).assign(time_s=20.0, analog_cost=0.1)
    for name, values in {"accuracy": (0.8, 0.9), "gain": (0.0, 0.1), "short": (0.1, 0.0)}.items():
        for end in ("", "_low", "_high"):
            best[name + end] = values
    best["validation_accuracy"] = best["accuracy"]
    made = {
        "energy": {"analog": 0.1, "digital": 1.0},
        "profile_name": "pcm",
        "seeds": [0, 1],
        "digital_accuracy": {"validation": 0.9, "test": 0.9},
    }
    for name in ("frontier", "remedies"):
        write_csv(run / f"remedies/{name}.csv", best)
    write_json(run / "remedies/settings.json", made)
    return best


def test_what_to_do_is_on_the_page(tmp_path: Path) -> None:
    run, place = tmp_path / "digits", tmp_path / "results" / "digits"
    with pytest.raises(FileNotFoundError, match="no finished finetune or remedies"):
        archive_remedies(run, place)
    remedies_of(run)
    archive_remedies(run, place)
    page = "\n".join(results_page._remedies(tmp_path / "results"))
    assert "### digits, pcm" in page
    assert "20 s after programming:" in page
    assert "| chip | 0.100 | 80.0 [80.0, 80.0] | 0.0 [0.0, 0.0] | 10.0 [10.0, 10.0] |" in page
    assert "Cheapest of 2 ways within 1 point" in page
    assert "digital, at 1.000 of its energy; on test images 0.0 [0.0, 0.0] points below" in page


def atlas_of(run: Path) -> pd.DataFrame:
    """An atlas of a run's scores, of failures that were made up, in the run's folder."""
    scores = pd.read_parquet(run / "scores.parquet")
    wrong = {"pcm@20": np.random.default_rng(0).random((3, len(scores))) < 0.2}
    table, columns = atlas_table(scores, wrong, {}, {"pcm@20": "pcm, 20 s"})
    (run / "atlas").mkdir(exist_ok=True)
    attrs = {"columns": columns, "title": "digits: 3 chips", "made": {}}
    write_parquet(run / "atlas/atlas.parquet", table, attrs=attrs)
    write_csv(run / "atlas/summary.csv", summarise(table, wrong, 0.95))
    Image.new("RGB", (4, 4)).save(run / "atlas/atlas.png")
    return table


def test_an_atlas_is_kept_under_its_run_s_name(finished_run: Path, tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    table = atlas_of(run)
    (results / "atlas").mkdir(parents=True)
    (results / "atlas/digits_always.png").touch()  # of an earlier atlas
    other = results / "atlas/digits_small_summary.csv"  # of another run
    other.touch()
    archive(run, results / "digits")
    assert {path.name for path in (results / "atlas").iterdir()} == {
        *("digits.parquet", "digits.png", "digits_summary.csv", "README.md"),
        other.name,
    }
    page = (results / "atlas/README.md").read_text()
    for column in table:
        assert f"| `{column}` | " in page
    assert "![digits.png](digits.png)" in page
    assert "always.png" not in page
    summary = pd.read_csv(run / "atlas/summary.csv").set_index("fold").loc["test"]
    assert f"| `pcm@20` | test | {summary['digitally_correct']} | " in page
    # The block loads the file and ranks its images.
    code = page.split("```python\n")[1].split("```")[0].replace("experiments/results", str(results))
    shown = run_python([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"{table['failures_pcm@20'].max()}" in shown.stdout.splitlines()[1]
    assert pd.read_parquet(results / "atlas/digits.parquet").attrs["columns"].keys() == {*table}

    scores = read_parquet(run / "scores.parquet")
    write_parquet(run / "scores.parquet", scores.assign(curvature=2 * scores["curvature"]))
    with pytest.raises(ValueError, match=r"was made of other scores than .* run atlas again"):
        archive(run, results / "digits")
    kept = pd.read_parquet(results / "digits/scores.parquet")["curvature"]
    assert kept.equals(scores["curvature"])  # nothing was copied
    assert (results / "digits/predictions.parquet").exists()
    # A run without an atlas takes its earlier one away, and that of no other.
    shutil.copy(results / "atlas/digits.parquet", results / "atlas/digits_small.parquet")
    other.unlink()
    shutil.rmtree(run / "atlas")
    archive(run, results / "digits")
    there = {path.name for path in (results / "atlas").iterdir()}
    assert there == {"digits_small.parquet", "README.md"}
    assert "## digits\n" not in (results / "atlas/README.md").read_text()
    (results / "atlas/digits_small.parquet").unlink()
    archive(run, results / "digits")
    assert not list((results / "atlas").iterdir())


@pytest.mark.parametrize(
    ("study", "settings"),
    [
        ("rescore", lambda digest: {"checkpoint_sha256": digest}),
        ("validate", lambda digest: {"weights": digest}),
        ("validate", lambda digest: {"weights": {"weights": digest, "factory": "a:b"}}),
    ],
)
def test_studies_of_another_network_s_scores_are_not_archived(
    finished_run: Path, tmp_path: Path, study: str, settings: Callable[[str], dict]
) -> None:
    run, place = tmp_path / "run", tmp_path / "place"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    inputs = read_json(run / "stages" / "score.json")["inputs"]
    (own,) = (digest for name, digest in inputs.items() if name.startswith("checkpoints/"))
    (run / study).mkdir()
    (run / study / "table.csv").write_text("variant")
    for checkpoint, kept in ((own, True), ("0" * 64, False)):
        write_json(run / study / "settings.json", settings(checkpoint))
        archive(run, place)
        assert (place / study / "table.csv").exists() is kept


def test_what_a_study_remembers_is_not_archived(finished_run: Path, tmp_path: Path) -> None:
    """The paths of the published files would be another machine's."""
    run, place = tmp_path / "run", tmp_path / "place"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    (run / "validate" / "pieces").mkdir(parents=True)
    inputs = read_json(run / "stages" / "score.json")["inputs"]
    (own,) = (digest for name, digest in inputs.items() if name.startswith("checkpoints/"))
    write_json(run / "validate" / "settings.json", {"weights": own})
    for name in ("validate.csv", "flags.json", "pieces/epoch_1.parquet"):
        (run / "validate" / name).touch()
    archive(run, place)
    kept = [path.name for path in (place / "validate").rglob("*")]
    assert sorted(kept) == ["settings.json", "validate.csv"]


def test_results_in_use_are_not_regenerated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"{results_page.BEGIN}\n{results_page.END}\n")
    (results / "row").mkdir(parents=True)
    (results / "row/predictions.parquet").touch()
    with lock(results):
        line = ["regenerate", "--results", str(results), "--into", str(readme)]
        assert maintain(line) == 2
    assert f"error: {results} is in use by process" in capsys.readouterr().err
